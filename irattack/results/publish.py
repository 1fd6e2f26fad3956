"""Captions, and the files of a table: CSV, Markdown and LaTeX."""

from collections.abc import Sequence
from operator import attrgetter

import pandas as pd
from tabulate import tabulate

from irattack.pipeline import files as disk
from irattack.pipeline.cell import Cell
from irattack.pipeline.results import cards
from irattack.pipeline.values import PRECISIONS
from irattack.results.names import title

LATEX = {
    **{ord("∞"): r"$_\infty$", ord("–"): "--", ord("−"): "$-$", ord("λ"): r"$\lambda$"},
    **{ord("≥"): r"$\geq$", ord("±"): r"$\pm$"},
}


def caption(cells: Sequence[Cell]) -> str:
    """On which benchmark, settings, precision and number of images a table was made, by what."""
    cfg = cells[0].cfg
    names = ("eps", "steps", "samples", "cells", "grid", "lam", "loss", "start", "seed")
    settings = ", ".join(f"{name}={values(cells, name)}" for name in names)
    results = [card for cell in cells for card in cards(cell)]
    made = [run for card in results for run in (*card.attacked_with, card.made_with)]
    devices, versions, commits = (
        " and ".join(sorted({getattr(run, fact) for run in made}))
        for fact in ("device", "torch", "commit")
    )
    data = cfg.benchmark.data
    split = f" ({data['split']} crops)" if "split" in data else ""
    used = dict.fromkeys(cell.cfg.precision for cell in cells)
    precision = " and ".join(PRECISIONS[name] for name in used)
    untrained = "" if cfg.pretrained else "UNTRAINED NETWORKS, "
    return (
        f"{untrained}benchmark={cfg.benchmark.name}{split}, "
        f"protocol={values(cells, 'protocol.name')}, n={results[0].n} images, {settings}; "
        f"{precision}, {devices}, torch {versions}, commit "
        f"{commits}. start=auto is zero with an interaction term and random without. "
        "Success is measured at every step and the step chosen by leave-one-out over the answers "
        "of the target (Appendix M), so not strictly black-box. Intervals are 95 %, over images, "
        "and repeat that choice; those of gains are paired. The paper's numbers are of ImageNet."
    )


def values(cells: Sequence[Cell], name: str) -> str:
    """The values that a setting takes in a table, with the sources they belong to."""
    of_value: dict[str, list[str]] = {}
    for cell in cells:
        value = str(attrgetter(name)(cell.cfg))
        of_value.setdefault(value, []).append(title(cell.cfg.source))
    if len(of_value) == 1 or len({frozenset(sources) for sources in of_value.values()}) == 1:
        return " ".join(of_value)
    return " ".join(f"{v} ({' '.join(dict.fromkeys(s))})" for v, s in of_value.items())


def publish(
    cells: Sequence[Cell],
    name: str,
    title: str,
    tables: Sequence[list[list[str]]],
    remarks: Sequence[str],
    files: dict[str, pd.DataFrame],
) -> str:
    """Writes outputs/<benchmark>/tables/<name>.{md,tex} and the CSV files; returns what to print.

    Args:
        tables: lines of cells, the first of them the heads of the columns.
        files: data frames by the name of their CSV file.
    """
    folder = cells[0].root / "tables"
    for file, frame in files.items():
        disk.write_text(folder / file, frame.to_csv(index=False, float_format="%.4f"))

    def text(style: str) -> str:
        return "\n\n".join(
            tabulate(table[1:], headers=table[0], tablefmt=style, disable_numparse=True)
            for table in tables
        )

    markdown = "\n\n".join([f"# {title}", text("github"), *remarks])
    disk.write_text(folder / f"{name}.md", markdown + "\n")
    latex = "\n".join([f"% {line}" for line in [title, *remarks]])
    latex += "\n" + text("latex_booktabs").translate(LATEX) + "\n"
    disk.write_text(folder / f"{name}.tex", latex)
    where = f"Written to {folder}: {', '.join([*files, f'{name}.md', f'{name}.tex'])}"
    return "\n\n".join([title, text("simple"), *remarks, where])
