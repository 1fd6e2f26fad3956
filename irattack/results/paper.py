"""The paper's own numbers."""

from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent / "paper"
CELL = ["source", "attack", "norm", "target"]
INTERACTIONS = 4  # the table that has interactions instead of success rates


def rates(table: int | None = None) -> pd.DataFrame:
    """The paper's success rates: source, attack, norm, target, paper_percent, note."""
    found = pd.read_csv(FOLDER / "success_rates.csv")
    if table is not None:
        found = found[found["table"] == table]
    found = found.rename(columns={"success_rate_percent": "paper_percent"})
    return found[[*CELL, "paper_percent", "note"]].drop_duplicates(CELL)


def with_paper(results: pd.DataFrame, table: int | None = None) -> pd.DataFrame:
    """Adds the column paper_percent; empty where the paper has no such cell."""
    return results.merge(rates(table).drop(columns="note"), how="left", on=CELL)


def interactions() -> pd.DataFrame:
    """The paper's average interactions (Table 4): source, attack, paper."""
    found = pd.read_csv(FOLDER / "interactions.csv").drop(columns="table")
    return found.rename(columns={"average_interaction": "paper"})
