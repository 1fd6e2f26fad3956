"""Tables that compare every attack with one: means over targets, paired over images, and costs.

And, where they are measured, average interactions at one length.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from irattack.pipeline import statistics
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import job_of, jobs_of
from irattack.pipeline.measures import Contributions
from irattack.pipeline.price import Price, price_of
from irattack.pipeline.results import arrays, rows
from irattack.pipeline.visibility import Visibility
from irattack.results.claims import correlation, interaction_record, verdicts
from irattack.results.names import method_name, signed, title
from irattack.results.publish import caption, publish
from irattack.results.record import Definition, needs, same_images
from irattack.results.tables import COLUMNS, gains, summaries

SEEN = {"psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".3f"), "lpips": ("LPIPS", ".3f")}
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


@needs(same_images)
def compared(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """A line a cell: success on each target, and the mean gain over what `against` names."""
    against = definition["against"]
    targets = list(dict.fromkeys(target for cell in cells for target in cell.targets))
    priced, inside, seen = (
        any(isinstance(job, kind) for job in jobs_of(cells[0]))
        for kind in (Price, Contributions, Visibility)
    )
    length = job_of(cells[0], Contributions).length if inside else None
    costs = ["gradients an image", "s an image (CPU: all threads)"] if priced else []
    costs += [SEEN[what][0] for what in job_of(cells[0], Visibility).measures] if seen else []
    heads = ["source", "norm", "method", *(title(t) for t in targets), "mean"]
    within = [f"interaction at L2 {length}"] if inside else []
    lines = [[*heads, "mean gain [95 %]", "mean L2", *within, *costs]]
    frames, found = [], dict[tuple[str, str, str], statistics.Interval]()
    for cell in cells:
        other = reference(cell, cells, against)
        gain = mean_gain(cell, other) if other else (float("nan"),) * 3
        frame = rows(cell)
        extra: dict[str, Any] = dict(zip(MEAN, gain, strict=True))
        extra["compared_with"] = other.method if other else ""
        shown = [signed(gain) if other else "–", f"{frame.mean_l2.mean():.2f}"]
        if inside:
            interaction = interaction_record(cell)
            value, low, high = (
                interaction[c] for c in ("average_interaction", "ci_low", "ci_high")
            )
            extra |= {
                "average_interaction": value,
                "interaction_ci_low": low,
                "interaction_ci_high": high,
            }
            shown += [f"{value:+.3f} ± {value - low:.3f}"]
        if priced:
            price = price_of(cell)
            extra |= {"gradients": price.gradients, "seconds": price.seconds}
            extra["timed_on"] = f"{price.made_with.device}, {price.made_with.threads} threads"
            shown += [str(price.gradients), f"{price.seconds:.3g}"]
        if seen:
            job = job_of(cell, Visibility)
            measured = job.values()
            means = {what: float(measured[what].mean()) for what in job.measures}
            extra |= means
            shown += [f"{mean:{SEEN[what][1]}}" for what, mean in means.items()]
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
        *(interactions(results, length) if inside else []),
        *([timed(results)] if priced else []),
        caption(cells),
    ]
    each = gains(cells, definition.get("gain", []), None).drop(columns="paper_gain")
    if len(each):
        files[f"{name}_gain.csv"] = each
        remarks += summaries(each.assign(paper_gain=float("nan")))
    claims, told = verdicts(cells, definition if inside else {})
    remarks[1:1] = told
    return publish(cells, name, definition, [lines], remarks, files, claims)


def timed(results: pd.DataFrame) -> str:
    """Where the seconds were measured, and whether they compare."""
    places = list(results.timed_on.unique())
    alike = "" if len(places) == 1 else ", so that only those of the same place compare"
    return f"The seconds are those of {'; '.join(places)}{alike}."


def interactions(results: pd.DataFrame, length: float | None) -> list[str]:
    """What the column of interactions is, and how it goes with success over attacks."""
    by_attack = ["source", "norm", "attack"]
    means = results.groupby(by_attack, sort=False)[["average_interaction", "last_step_percent"]]
    found = means.mean().reset_index()
    return [
        "Interactions are the mean over images and cells of v(Λ) − v(Λ∖i) − v(i) + v(∅), in "
        f"logits, of each perturbation of the last step, scaled to ‖δ‖₂ = {length} first, ± the "
        "95 % interval; the correlations are with success at that step.",
        *(
            correlation(
                f"{title(str(source))}, {title(str(norm))}",
                group.average_interaction,
                group.last_step_percent,
            )
            for (source, norm), group in found.groupby(["source", "norm"], sort=False)
        ),
    ]
