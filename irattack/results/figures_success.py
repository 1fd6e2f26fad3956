"""Figures 1, 3 and 7: success and transfer utility, drawn from what is on the disk.

A figure is a function of its name, its definition (conf/figure) and its cells that returns what to
print.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns

from irattack.errors import InputError
from irattack.interactions.averages import average
from irattack.pipeline import statistics
from irattack.pipeline.cell import Cell, attack_of
from irattack.pipeline.job import job_of
from irattack.pipeline.measures import Contributions
from irattack.pipeline.results import arrays, rows, transfer_utility
from irattack.pipeline.values import number
from irattack.results.names import method_name, title
from irattack.results.plotting import MARKERS, legend_below, panels, save
from irattack.results.record import Definition, needs


def has_points(name: str, definition: Definition, cells: Sequence[Cell]) -> None:
    """Raises InputError where a panel has too few points for a correlation."""
    points = Counter((cell.cfg.source, cell.cfg.p) for cell in cells)
    if min(points.values()) < 3:
        raise InputError("fig1: a correlation needs at least three values of c; select more.")


@needs(has_points)
def fig1(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Interaction against transfer utility, a point for each weight c of the relaxed attack.

    A panel's points are means over the same images: those that reach ‖δ‖₂ = τ for every c.
    """
    from scipy.stats import pearsonr

    reached: dict[tuple[str, Any], np.ndarray] = {}
    for cell in cells:
        tau = cell.steps_facts["attack"]["stop"]["tau"]
        lengths = arrays(cell, cell.targets[0])["lengths"][-1]
        arrived = lengths >= 0.99 * tau  # of the 8-bit images
        where = (cell.cfg.source, cell.cfg.p)
        reached[where] = reached.get(where, arrived) & arrived
    if min(kept.sum() for kept in reached.values()) < 2:
        raise InputError("fig1: fewer than two images reach τ for every c; use a smaller tau or c.")
    records = []
    for cell in cells:
        interaction = average(job_of(cell, Contributions).values()["contributions"])
        kept = reached[cell.cfg.source, cell.cfg.p]
        for target in cell.targets:
            if not same_family(cell.cfg.source, target):
                utility = transfer_utility(cell, target)[-1]
                point = (cell.cfg.source, target, cell.cfg.p, cell.cfg.c)
                means = (interaction[kept].mean(), utility[kept].mean())
                never = rows(cell).below_tau.max()
                records.append((*point, kept.sum(), never, *means))
    names = ["source", "target", "p", "c", "n", "never_reached_tau", "interaction"]
    data = pd.DataFrame(records, columns=[*names, "transfer_utility"])
    groups = list(data.groupby(["p", "source", "target"], sort=False))
    figure, axes = panels(len(groups), 4, width=1.85)
    colours = dict(zip(data.p.unique(), sns.color_palette("colorblind"), strict=False))
    lines = []
    for axis, ((p, source, target), group) in zip(axes, groups, strict=True):
        x, y = group.interaction.to_numpy(), group.transfer_utility.to_numpy()
        fit = pearsonr(x, y)
        line = np.linspace(x.min(), x.max(), 50)
        middle, half = regression(x, y, line)
        axis.fill_between(line, middle - half, middle + half, color=colours[p], alpha=0.2, lw=0)
        axis.plot(line, middle, color=colours[p])
        axis.plot(x, y, "o", color=colours[p], markersize=3.5)
        axis.set_title(
            f"{title(source)} → {title(target)}, p = {p}\n"
            f"r = {fit.statistic:.2f}, P = {fit.pvalue:.1g}, n = {len(x)}",
            fontsize=7,
        )
        axis.set_xlabel("interaction (logits)")
        lines.append((p, title(source), title(target), fit.statistic, fit.pvalue, len(x)))
    for axis in axes[::4]:
        axis.set_ylabel("transfer utility (logits)")
    table = pd.DataFrame(lines, columns=["p", "source", "target", "r", "P-value", "points"])
    tau = cells[0].steps_facts["attack"]["stop"]["tau"]
    note = (
        f"A point is a mean over the images that reach τ = {tau} for every c, "
        f"{data.n.min()} to {data.n.max()} of them; at most {data.never_reached_tau.max()} of "
        f"{cells[0].cfg.images} images never reach it for a c. Line: least squares with its 95 % "
        "band; r: Pearson, over n points that share their images, so that P is a description only"
    )
    written = save(name, definition | {"note": note}, cells, figure, data)
    return f"{table.to_markdown(index=False, floatfmt='.2g', tablefmt='simple')}\n\n{written}"


def regression(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares line of (n,) points at other x, and the half-width of its 95 % band."""
    from scipy.special import stdtrit

    slope, intercept = np.polyfit(x, y, 1)
    free = len(x) - 2
    residual = np.sqrt(((y - slope * x - intercept) ** 2).sum() / free)
    spread = np.sqrt(1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    quantile = stdtrit(free, (1 + statistics.LEVEL) / 2)
    return slope * at + intercept, quantile * residual * spread


def same_family(source: str, target: str) -> bool:
    """Whether both are ResNets or both DenseNets; the paper crosses the families in Figure 1."""
    return source.rstrip("0123456789") == target.rstrip("0123456789")


def fig3a(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Success rate of IR against λ, a line for each target."""
    data = pd.concat([rows(c).assign(lam=number(c.cfg.lam)) for c in cells])
    sources = list(data.source.unique())
    figure, axes = panels(len(sources), 2, width=3.4, height=2.4)
    colours = sns.color_palette("colorblind")
    for axis, source in zip(axes, sources, strict=True):
        of_source = data[data.source == source]
        for k, (target, group) in enumerate(of_source.groupby("target", sort=False)):
            axis.errorbar(
                group.lam,
                group.success_rate_percent,
                yerr=[
                    group.success_rate_percent - group.ci_low,
                    group.ci_high - group.success_rate_percent,
                ],
                label=title(str(target)),
                color=colours[k % len(colours)],
                marker=MARKERS[k % len(MARKERS)],
                markersize=3.5,
                elinewidth=0.5,
            )
        axis.set(title=f"source {title(source)}", xlabel="λ", ylabel="success rate (%)")
        axis.set_xscale("symlog", linthresh=0.1, linscale=0.5)
        ticks = sorted(set(of_source.lam))
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ylim(bottom=0)
    legend_below(figure, axes, 7)
    return save(name, definition, cells, figure, data)


def curves(cells: Sequence[Cell]) -> pd.DataFrame:
    """Success rate (%) of every cell, target and step, and the steps chosen by leave-one-out."""
    records = []
    for cell in cells:
        steps = list(attack_of(cell).recorded)
        for target in cell.targets:
            margins = arrays(cell, target)["margins"]
            chosen = statistics.chosen_steps(statistics.successes(margins))
            usual = steps[int(np.bincount(chosen).argmax())]
            for step, percent in zip(steps, 100 * (margins > 0).mean(axis=1), strict=True):
                where = (cell.cfg.source, cell.method, target, len(chosen), step, percent)
                records.append((*where, usual))
    columns = ["source", "attack", "target", "n", "step", "success_rate_percent", "chosen_step"]
    return pd.DataFrame(records, columns=columns)


def has_noise(name: str, definition: Definition, cells: Sequence[Cell]) -> None:
    """Raises InputError unless there are noise and what it is compared with."""
    if len({cell.method == "noise" for cell in cells}) < 2:
        raise InputError("fig3b: needs both attacks, ironly and noise; leave attack= out.")


@needs(has_noise)
def fig3b(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Success of the interaction loss alone at every step, noise of the same ε as baseline."""
    data = curves(cells)
    alone = data[data.attack != "noise"]
    noise = data[data.attack == "noise"].set_index(["source", "target"]).success_rate_percent
    pairs = list(alone.groupby(["source", "target"], sort=False))
    figure, axes = panels(len(pairs), 7, width=1.3, height=1.5)
    blue, orange = sns.color_palette("colorblind")[:2]
    for axis, ((source, target), group) in zip(axes, pairs, strict=True):
        axis.plot(group.step, group.success_rate_percent, color=blue, label="interaction loss only")
        axis.axhline(noise[source, target], color=orange, ls="--", label="ε · sign(noise)")
        axis.set_title(f"{title(source)} → {title(target)}", fontsize=7)
        axis.set_ylim(0, 1.1 * alone.success_rate_percent.max())
        axis.set_xlabel("step")
    for axis in axes[::7]:
        axis.set_ylabel("success rate (%)")
    legend_below(figure, axes[:1], 2)
    return save(name, definition, cells, figure, data)


def fig7(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Success at every step, the step that leave-one-out chooses for most images marked."""
    data = curves(cells)
    pairs = list(data.groupby(["source", "target"], sort=False))
    figure, axes = panels(len(pairs), 4)
    colours = sns.color_palette("colorblind")
    for axis, ((source, target), of_pair) in zip(axes, pairs, strict=True):
        for k, (attack, group) in enumerate(of_pair.groupby("attack", sort=False)):
            steps, percent = group.step, group.success_rate_percent
            axis.plot(steps, percent, color=colours[k], label=method_name(str(attack)))
            chosen = group[group.step == group.chosen_step]
            axis.plot(
                *(chosen.step, chosen.success_rate_percent),
                color=colours[k],
                marker=MARKERS[k],
                markersize=5,
            )
        axis.set(title=f"{title(source)} → {title(target)}", xlabel="step")
        axis.set_ylabel("success rate (%)")
        axis.set_ylim(0, 100)
    legend_below(figure, axes[:1], 6)
    return save(name, definition, cells, figure, data)
