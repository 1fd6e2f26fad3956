"""How accurate networks are on clean images, and what is probably wrong where they are not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from irattack.models import zoo
from irattack.models.defences import parted
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import job_of
from irattack.pipeline.results import WRONG
from irattack.pipeline.sources import Accuracy
from irattack.pipeline.statistics import wilson
from irattack.pipeline.values import PRECISIONS
from irattack.results.names import title
from irattack.results.publish import publish

SURE = 0.5  # median probability of the likeliest class, from which a network takes images for known


def record(cell: Cell) -> dict[str, Any]:
    """A network as a table row; rates in percent, with 95 % intervals (Wilson)."""
    found = job_of(cell, Accuracy).values()
    card = zoo.card(cell.cfg.benchmark.name, cell.cfg.source)
    n = len(found["rank"])

    def rate(name: str, right: np.ndarray) -> dict[str, float]:
        low, high = wilson(int(right.sum()), n)
        return {
            f"{name}_percent": 100 * float(right.mean()),
            f"{name}_ci_low": 100 * low,
            f"{name}_ci_high": 100 * high,
        }

    return {
        "network": cell.cfg.source,
        "n": n,
        **rate("top1", found["rank"] == 0),
        **rate("top5", found["rank"] < 5),
        "median_probability": float(np.median(found["probability"])),
        "size": card.get("size", ""),
        "interpolation": "" if "members" in card else card.get("interpolation", "bilinear"),
        "median_largest_probability": float(np.median(found["largest"])),
        **rate("labels_plus_1", found["shift"] == 1),
        **rate("labels_minus_1", found["shift"] == -1),
    }


def doubt(row: dict[str, Any], card: dict[str, Any]) -> str:
    """What is probably wrong with a network or its labels, a sentence; empty if nothing seems so.

    Args:
        row: see `record`.
        card: the network's facts.
    """
    name, right = title(row["network"]), row["top1_percent"]
    for side, one in (("plus", "more"), ("minus", "less")):
        if row[f"labels_{side}_1_ci_low"] > row["top1_ci_high"]:
            return (
                f"{name} is right on {right:.1f} % as it is, and on "
                f"{row[f'labels_{side}_1_percent']:.1f} % if every label is one {one}: if so for "
                "all networks, labels are counted from the other number (benchmark.data.counting); "
                "if for this one, its logits are shifted (`offset` in its yaml)."
            )
    if row["top1_ci_high"] >= 100 - WRONG:
        return ""
    begin = f"{name} is right on {right:.1f} % only (by chance {100 / card['classes']:.2g} %), "
    sure = f"median largest probability {row['median_largest_probability']:.2f}"
    if row["median_largest_probability"] >= SURE:
        return (
            f"{begin}but sure of its answers ({sure}): the labels are probably in another order "
            "than its classes, or else its mean and std are wrong."
        )
    return (
        f"{begin}and not sure of its answers ({sure}): its mean {card['mean']}, std {card['std']} "
        f"or size {card['size']} are probably not those of its training, or its weights are not "
        "trained."
    )


def write(name: str, definition: dict[str, Any], cells: Sequence[Cell]) -> str:
    """The table of accuracies: writes its files, returns what to print."""
    rows = [record(cell) for cell in cells]
    lines = [["network", "n", "top-1 % [95 %]", "top-5 % [95 %]", "median p_y", "px", "resized"]]
    for row, cell in zip(rows, cells, strict=True):
        benchmark = cell.cfg.benchmark
        rates = [
            f"{row[f'{top}_percent']:.1f} [{row[f'{top}_ci_low']:.1f}, {row[f'{top}_ci_high']:.1f}]"
            for top in ("top1", "top5")
        ]
        if benchmark.model["classes"] <= 5:  # of which every answer is among the first five
            rates[1] = "–"
        probability = f"{row['median_probability']:.2f}"
        same = (
            row["size"] == benchmark.size
            and zoo.card(benchmark.name, row["network"]).get("crop_pct", 1) == 1
        )
        seen = [str(row["size"]), "–" if same else row["interpolation"]]
        lines.append([title(row["network"]), str(row["n"]), *rates, probability, *seen])
    cfg = cells[0].cfg
    made = [job_of(cell, Accuracy).artifact("accuracy").card() for cell in cells]
    devices, versions, commits = (
        " and ".join(sorted({getattr(run, fact) for card in made if card for run in card.runs}))
        for fact in ("device", "torch", "commit")
    )
    caption = (
        f"benchmark={cfg.benchmark.name}, n={cfg.images} images of {cfg.benchmark.size} px, drawn "
        f"by seed={cfg.seed} whoever classifies them; {PRECISIONS[cfg.precision]}, {devices}, "
        f"torch {versions}, commit {commits}. A tie for the first place counts as wrong. p_y is "
        "the probability of the true class; a network resizes images to its own px, if these "
        "differ."
    )
    doubts = [
        doubt(row, facts(cell))
        for row, cell in zip(rows, cells, strict=True)
        if not parted(cell.cfg.source)[1]  # a defence may be all that is wrong
    ]
    remarks = [caption, *(text for text in doubts if text)]
    files = {f"{name}.csv": pd.DataFrame(rows)}
    return publish(cells, name, definition, [lines], remarks, files)


def facts(cell: Cell) -> dict[str, Any]:
    """The facts of a network; of an ensemble, those of its first member."""
    name = cell.cfg.source
    while "members" in (card := zoo.card(cell.cfg.benchmark.name, name)):
        name = card["members"][0]
    return card
