"""Tables that compare every attack with one: means over targets, paired over images, and costs."""

from collections.abc import Sequence

import pandas as pd

from irattack.pipeline import statistics
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import jobs_of
from irattack.pipeline.price import Price, price_of
from irattack.pipeline.results import arrays, rows
from irattack.results.names import method_name, signed, title
from irattack.results.publish import caption, publish
from irattack.results.record import Definition
from irattack.results.tables import COLUMNS, gains, summaries

MEAN = ("mean_gain", "mean_ci_low", "mean_ci_high")


def reference(cell: Cell, cells: Sequence[Cell], against: Sequence[str]) -> Cell | None:
    """The cell with which a table compares a cell; None for such a cell itself.

    Of the methods in `against` it is that of the same attack if there is one, else the first.
    """
    if cell.method in against:
        return None
    same = [method for method in against if method.split()[0] == cell.method.split()[0]]
    where = (same or against)[0], cell.cfg.source, cell.norm
    found = [other for other in cells if (other.method, other.cfg.source, other.norm) == where]
    return found[0] if found else None


def mean_gain(ours: Cell, baseline: Cell) -> statistics.Interval:
    """The mean over targets of the gains of a cell over another, in points, paired over images."""
    pairs = [
        tuple(statistics.successes(arrays(cell, target)["margins"]) for cell in (ours, baseline))
        for target in ours.targets
    ]
    return statistics.mean_gain([(a, b) for a, b in pairs])[0]


def compared(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """A line a cell: success on each target, and the mean gain over what `against` names."""
    against = definition["against"]
    targets = list(dict.fromkeys(target for cell in cells for target in cell.targets))
    priced = any(isinstance(job, Price) for job in jobs_of(cells[0]))
    costs = ["gradients an image", "s an image (CPU: all threads)"] if priced else []
    heads = ["source", "norm", "method", *(title(t) for t in targets), "mean"]
    lines = [[*heads, "mean gain [95 %]", "mean L2", *costs]]
    frames, found = [], dict[tuple[str, str, str], statistics.Interval]()
    for cell in cells:
        other = reference(cell, cells, against)
        gain = mean_gain(cell, other) if other else (float("nan"),) * 3
        extra, frame = dict(zip(MEAN, gain, strict=True)), rows(cell)
        extra["compared_with"] = other.method if other else ""  # type: ignore[assignment]
        shown = [signed(gain) if other else "–", f"{frame.mean_l2.mean():.2f}"]
        if priced:
            price = price_of(cell)
            extra |= {"gradients": price.gradients, "seconds": price.seconds}
            shown += [str(price.gradients), f"{price.seconds:.3g}"]
        frames.append(frame.assign(**extra))
        percent = dict(zip(frame.target, frame.success_rate_percent, strict=True))
        where = [title(cell.cfg.source), title(cell.norm), method_name(cell.method)]
        rates = [f"{percent[t]:.1f}" if t in percent else "–" for t in targets]
        mean = f"{frame.success_rate_percent.mean():.1f}"
        lines.append([*where, *rates, mean, *shown])
        if other:
            found[cell.method, cell.cfg.source, cell.norm] = gain
    results = pd.concat(frames, ignore_index=True)
    own = [column for column in results.columns if column not in COLUMNS]
    results = results[[c for c in COLUMNS if c in results.columns] + own]
    files = {f"{name}.csv": results}
    names = " or, of the same attack, ".join(method_name(one) for one in against)
    remarks = [
        f"`mean gain` is over {names}: the mean over the targets of the difference in success, in "
        "points, with the interval of that mean, paired over images.",
        *definition.get("remarks", []),
        caption(cells),
    ]
    each = gains(cells, definition.get("gain", []), None).drop(columns="paper_gain")
    if len(each):
        files[f"{name}_gain.csv"] = each
        remarks += summaries(each.assign(paper_gain=float("nan")))
    return publish(cells, name, definition, [lines], remarks, files)
