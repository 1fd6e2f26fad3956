"""Tables of the report: cells with a number to sort by, the paper's beside ours, shaded by gain."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from irattack.results.names import method_name, title
from irattack.results.paper import CELL

RATES = {*CELL, "success_rate_percent"}
SCALE = 30.0  # points of gain at which a cell has its full colour


@dataclass(frozen=True)
class Entry:
    """A cell of a table.

    Attributes:
        text: what it says.
        sort: the number it is sorted by; None for a text.
        notes: what stands below it in small print, by its kind: interval, paper, gain.
        shade: the gain in points, over `SCALE`, from −1 to 1.
    """

    text: str
    sort: float | None = None
    notes: tuple[tuple[str, str], ...] = ()
    shade: float = 0.0


@dataclass(frozen=True)
class Table:
    """A table: heads, lines of cells, how many columns name the line, what the colour means."""

    heads: list[str]
    lines: list[list[Entry]]
    names: int
    caption: str
    shading: str = ""


def leading(text: str) -> float | None:
    """The number that a text begins with, if it does."""
    found = re.match(r"[+−-]?\d+(\.\d+)?", text.strip())
    return float(found[0].replace("−", "-")) if found else None


def of_lines(lines: Sequence[Sequence[str]]) -> Table:
    """A table as it is printed."""
    body = [[Entry(text, leading(text)) for text in line] for line in lines[1:]]
    columns = list(zip(*body, strict=True))
    numeric = [all(e.sort is not None or e.text in ("", "–") for e in c) for c in columns]
    body = [
        [
            entry if number else Entry(entry.text)
            for entry, number in zip(line, numeric, strict=True)
        ]
        for line in body
    ]
    names = numeric.index(True) if True in numeric else 1
    return Table(list(lines[0]), body, max(names, 1), "")


def of_rates(rates: pd.DataFrame, gain: pd.DataFrame | None) -> list[Table]:
    """A table a norm: a line a source and method, a column a target."""
    return [
        _of_norm(str(norm), part, None if gain is None else gain[gain.norm == norm])
        for norm, part in rates.groupby("norm", sort=False)
    ]


def _of_norm(norm: str, rates: pd.DataFrame, gain: pd.DataFrame | None) -> Table:
    gains = {}
    over: dict[str, str] = {}  # an attack's first rival gives its colour
    for row in () if gain is None else gain.itertuples():
        if over.setdefault(row.attack, row.over) == row.over:
            gains[row.attack, row.source, row.target] = row
    targets = list(dict.fromkeys(rates.target))
    lines = []
    for (source, attack), group in rates.groupby(["source", "attack"], sort=False):
        of_target = {row.target: row for row in group.itertuples()}
        line = [Entry(title(str(source))), Entry(method_name(str(attack)))]
        found = [gains.get((attack, source, target)) for target in targets]
        for target, won in zip(targets, found, strict=True):
            row = of_target.get(target)
            line.append(Entry("–") if row is None else _of_row(row, won))
        line.append(_mean(group, [won.gain for won in found if won is not None]))
        lines.append(line)
    pairs = [f"{method_name(ours)} over {method_name(other)}" for ours, other in over.items()]
    heads = ["source", "method", *(title(target) for target in targets), "mean"]
    caption = f"{title(norm)}: success rates (%) on each target"
    return Table(heads, lines, 2, caption, ", ".join(pairs))


def _of_row(row, won) -> Entry:  # type: ignore[no-untyped-def]
    value = float(row.success_rate_percent)
    notes = [("interval", f"{row.ci_low:.0f}–{row.ci_high:.0f}")]
    if won is not None:
        low, high = (f"{limit:+.0f}".replace("-", "−") for limit in (won.ci_low, won.ci_high))
        notes.append(("gain", f"{won.gain:+.1f} [{low}, {high}]".replace("-", "−")))
    if not pd.isna(row.paper_percent):
        notes.append(("paper", f"{row.paper_percent:.1f}"))
    return Entry(f"{value:.1f}", value, tuple(notes), 0 if won is None else shade(won.gain))


def _mean(group: pd.DataFrame, gains: list[float]) -> Entry:
    value = float(group.success_rate_percent.mean())
    notes = []
    if gains:
        notes.append(("gain", f"{sum(gains) / len(gains):+.1f}".replace("-", "−")))
    if not group.paper_percent.isna().any():
        notes.append(("paper", f"{group.paper_percent.mean():.1f}"))
    return Entry(
        f"{value:.1f}", value, tuple(notes), shade(sum(gains) / len(gains)) if gains else 0
    )


def shade(gain: float) -> float:
    """A gain in points as a part of the scale of colours, from −1 to 1."""
    return max(-1.0, min(1.0, gain / SCALE))
