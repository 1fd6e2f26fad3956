"""What predicts transfer best: the table of rank correlations, and the figure of their points."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns

from irattack.errors import InputError
from irattack.interactions.averages import average
from irattack.pipeline.cell import Cell
from irattack.pipeline.correlation import correlate, enough
from irattack.pipeline.job import job_of
from irattack.pipeline.measures import Contributions
from irattack.pipeline.predictors import Predictors
from irattack.pipeline.statistics import Interval
from irattack.results import plotting
from irattack.results.names import method_name, title
from irattack.results.publish import caption, publish
from irattack.results.record import Definition, needs, same_images

MEASURES = {
    "interaction": "average interaction",
    "regions": "interaction of neighbours",
    "sharpness": "sharpness, random",
    "worst": "sharpness, worst of a few",
    "alignment": "gradients' alignment",
    "variation": "total variation of δ",
    "margin": "source margin",
    "own_length": "own ‖δ‖₂",
}
HELD = ("own_length", "margin")
SUCCESS = "success"


def values(cell: Cell) -> dict[str, np.ndarray]:
    """Every measure of a cell, and its success in %, the means over targets, (N,) each."""
    found = job_of(cell, Predictors).values()
    interaction = average(job_of(cell, Contributions).values()["contributions"])
    own = {name: found[name] for name in MEASURES if name not in ("interaction", "alignment")}
    own |= {"interaction": interaction, "alignment": found["alignment"].mean(axis=1)}
    return own | {SUCCESS: 100 * (found["target_margins"] > 0).mean(axis=1)}


def told(interval: Interval, other: Interval | None = None) -> str:
    """A correlation and its intervals."""
    shown = f"{interval[0]:+z.2f}"
    for _, low, high in filter(None, (interval, other)):
        shown += f" [{low:+z.2f}, {high:+z.2f}]"
    return shown


def the_same_of_each(name: str, definition: Definition, cells: Sequence[Cell]) -> None:
    """Raises InputError unless every source has the same attacks."""
    sources, methods = {cell.cfg.source for cell in cells}, {cell.method for cell in cells}
    if len({(cell.cfg.source, cell.method) for cell in cells}) < len(sources) * len(methods):
        raise InputError(f"{name}: needs the same attacks of every source; select source= instead.")


def many(name: str, definition: Definition, cells: Sequence[Cell]) -> None:
    """Raises InputError for too few attacks."""
    enough(len({cell.method for cell in cells}), len(HELD))


@needs(the_same_of_each, same_images, many)
def rivals(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """The table, by source and on average, and the figure beside it."""
    sources = list(dict.fromkeys(cell.cfg.source for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    measured = {(cell.cfg.source, cell.method): values(cell) for cell in cells}
    arrays = {
        measure: np.stack([[measured[s, m][measure] for m in methods] for s in sources])
        for measure in (*MEASURES, SUCCESS)
    }  # (S, A, N)
    n = arrays[SUCCESS].shape[2]
    groups = {source: slice(k, k + 1) for k, source in enumerate(sources)}
    groups |= {"mean": slice(None)} if len(sources) > 1 else {}
    lines, records = [["source", "measure", "Spearman", "held fixed: own length, margin"]], []
    for source, part in groups.items():
        for measure, label in MEASURES.items():
            held = [arrays[other][part] for other in HELD if other != measure]
            simple, partial = (
                correlate(arrays[measure][part], arrays[SUCCESS][part], fixed)
                for fixed in ([], held)
            )
            lines.append([title(source), label, told(*simple), told(*partial)])
            at: dict[str, object] = {
                "source": source,
                "measure": measure,
                "attacks": len(methods),
                "n": n,
            }
            for kind, (by_attack, by_image) in (("spearman", simple), ("partial", partial)):
                at[kind] = by_attack[0]
                for over, (_, low, high) in (("attacks", by_attack), ("images", by_image)):
                    at |= {f"{kind}_{over}_low": low, f"{kind}_{over}_high": high}
            records.append(at)
    job, limits = job_of(cells[0], Predictors), "95 % bootstrap intervals"
    points = pd.DataFrame(
        [
            {"source": s, "attack": m, "n": n}
            | {measure: arrays[measure][i, k].mean() for measure in (*MEASURES, SUCCESS)}
            for i, s in enumerate(sources)
            for k, m in enumerate(methods)
        ]
    )
    remarks = [
        f"Over {len(methods)} attacks ({', '.join(method_name(m) for m in methods)}), a point an "
        f"attack: means over {n} images. Of each correlation two {limits}: over attacks, which are "
        "few, and over images, the same for all attacks. Means of noisy measures correlate less "
        "than what they measure, and these intervals are of the means as they were measured.",
        f"Every δ of the last step is scaled to ‖δ‖₂ = {job.length}, not rounded to 8 bits and not "
        "clipped; success is of that image, the mean over the targets. Interactions in logits; of "
        f"neighbours, by {job.pairs} pairs of cells that share a side, each with a context (Eq. "
        "3). Sharpness: the rise of −ℓ of the source, ℓ the cross-entropy, by steps of ‖·‖₂ = "
        f"{job.radius} in {job.directions} random directions and the opposite ones: their mean, "
        "and the largest. Alignment: the cosine of the gradients of ℓ of source and target at "
        "x + δ, which an attacker does not know. Partial correlations are of ranks, after least "
        "squares on those of ‖δ‖₂ before scaling and of the source's margin.",
        caption(
            cells, "Success is that of the last step, wrong answers to clean images included. "
        ),
    ]
    figure = draw(name, definition, cells, points, records)
    files = {f"{name}.csv": pd.DataFrame(records), f"{name}_points.csv": points}
    return f"{publish(cells, name, definition, [lines], remarks, files)}\n{figure}"


def draw(
    name: str,
    definition: Definition,
    cells: Sequence[Cell],
    points: pd.DataFrame,
    records: Sequence[dict],
) -> str:
    """A panel a measure, a point an attack and source, with the attack's number in it."""
    figure, axes = plotting.panels(len(MEASURES), 4, height=1.9)
    sources = list(points.source.unique())
    inside = {"ha": "center", "va": "center_baseline", "color": "white"}
    numbers = {attack: k + 1 for k, attack in enumerate(points.attack.unique())}
    colours = sns.color_palette("colorblind")
    for axis, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for k, source in enumerate(sources):
            of_source = points[points.source == source]
            axis.plot(
                *(of_source[measure], of_source[SUCCESS], plotting.MARKERS[k % 8]),
                color=colours[k % len(colours)],
                markersize=6,
                alpha=0.7,
                label=title(source),
            )
            for row in of_source.to_dict("records"):
                where = (row[measure], row[SUCCESS])
                axis.annotate(str(numbers[row["attack"]]), where, fontsize=4, **inside)
        found = [r for r in records if r["measure"] == measure][-1]
        axis.set_title(f"{label}\nρ = {found['spearman']:+.2f}", fontsize=7)
    for axis in axes[::4]:
        axis.set_ylabel("success (%)")
    plotting.legend_below(figure, axes[:1], len(sources))
    mean = " (mean of the sources)" if len(sources) > 1 else ""
    key = ", ".join(f"{k} {method_name(attack)}" for attack, k in numbers.items())
    note = f"A point is an attack: {key}; ρ: Spearman{mean}. All δ at one L2 length"
    return plotting.save(name, definition | {"note": note}, cells, figure, points)
