"""The paper's figures, drawn from what is on disk. Each is PNG, PDF and the data behind it as CSV.

A figure is a function of its definition (conf/figure) and its cells that returns what to print.
"""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from scipy import stats

from irattack.attacks import losses
from irattack.attacks.randomness import Draws
from irattack.commands.settings import number
from irattack.errors import InputError
from irattack.interactions import cells as interactions
from irattack.interactions import hessian
from irattack.pipeline import analysis, store
from irattack.pipeline import run as pipeline
from irattack.pipeline import statistics as evaluation
from irattack.pipeline.analysis import measured
from irattack.pipeline.cell import VERSION, Cell, prepare, to_device
from irattack.results.report import NAMES, method_name

Definition = dict[str, Any]
STYLE: Any = {
    "figure.dpi": 200,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
}
plt.switch_backend("agg")
plt.rcParams.update(STYLE)
MARKERS = "osD^vPX*"


def title(model: str) -> str:
    """How a figure writes a model."""
    return NAMES.get(model, model)


def panels(count: int, columns: int, width: float = 1.75, height: float = 1.7) -> tuple[Any, list]:
    """A figure of `count` panels, at most `columns` in a row; sizes in inches a panel."""
    rows = -(-count // columns)
    columns = min(count, columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for empty in axes.flat[count:]:
        empty.set_axis_off()
    return figure, list(axes.flat[:count])


def legend_below(figure: Figure, axes: Sequence[Any], columns: int) -> None:
    """One legend for all panels, under them, where it covers no data."""
    labels: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    figure.legend(
        list(labels.values()),
        list(labels),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def save(
    name: str, definition: Definition, cells: Sequence[Cell], figure: Figure, data: pd.DataFrame
) -> str:
    """Writes outputs/<benchmark>/figures/<name>.{png,pdf,csv}; returns what to print."""
    folder = cells[0].root / "figures"
    caption = f"{definition['title']}. {setting(definition, cells)}"
    lines = textwrap.wrap(caption, int(19 * figure.get_figwidth()))
    figure.suptitle("\n".join(lines), fontsize=6.5, x=0.01, ha="left")
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
        store.write_bytes(folder / f"{name}.{kind}", buffer.getvalue())
    plt.close(figure)
    store.write_text(folder / f"{name}.csv", data.to_csv(index=False, float_format="%.6g"))
    return f"{caption}\nWritten to {folder}: {name}.png, {name}.pdf, {name}.csv"


def setting(definition: Definition, cells: Sequence[Cell]) -> str:
    """On which benchmark, protocol and number of images a figure was made."""
    cfg = cells[0].cfg
    note = definition.get("note", "")
    count = definition.get("images", cfg.images)
    settings = f"benchmark={cfg.benchmark.name}, n = {count} images"
    if definition.get("run", True):
        longest = max(cell.steps_facts["attack"]["steps"] for cell in cells)
        settings += f", protocol={cfg.protocol.name}, {longest} steps"
        settings += "" if cells[0].norm == "free" else f", ε = {cfg.eps}"
    return f"{settings}. {note}".strip()


def fig1(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Interaction against transfer utility, a point for each weight c of the relaxed attack.

    A panel's points are means over the same images: those that reach ‖δ‖₂ = τ for every c.
    """
    reached: dict[tuple[str, float], np.ndarray] = {}
    for cell in cells:
        arrays = store.read_arrays(cell.margins_path(cell.targets[0]))
        arrived = arrays["lengths"][-1] >= 0.99 * number(cell.cfg.tau)  # of the 8-bit images
        where = (cell.cfg.source, cell.cfg.p)
        reached[where] = reached.get(where, arrived) & arrived
    if min(kept.sum() for kept in reached.values()) < 2:
        raise InputError("fig1: fewer than two images reach τ for every c; use a smaller tau or c.")
    records = []
    for cell in cells:
        average = analysis.average_interaction(cell)
        kept = reached[cell.cfg.source, cell.cfg.p]
        for target in cell.targets:
            if not same_family(cell.cfg.source, target):
                utility = analysis.transfer_utility(cell, target)[-1]
                point = (cell.cfg.source, target, cell.cfg.p, cell.cfg.c)
                means = (average[kept].mean(), utility[kept].mean())
                never = pipeline.rows(cell).below_tau.max()
                records.append((*point, kept.sum(), never, *means))
    names = ["source", "target", "p", "c", "n", "never_reached_tau", "interaction"]
    data = pd.DataFrame(records, columns=[*names, "transfer_utility"])
    groups = list(data.groupby(["p", "source", "target"], sort=False))
    if min(len(group) for _, group in groups) < 3:
        raise InputError("fig1: a correlation needs at least three values of c; select more.")
    figure, axes = panels(len(groups), 4, width=1.85)
    colours = dict(zip(data.p.unique(), sns.color_palette("colorblind"), strict=False))
    lines = []
    for axis, ((p, source, target), group) in zip(axes, groups, strict=True):
        x, y = group.interaction.to_numpy(), group.transfer_utility.to_numpy()
        fit = stats.pearsonr(x, y)
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
    note = (
        f"A point is a mean over the images that reach τ = {cells[0].cfg.tau} for every c, "
        f"{data.n.min()} to {data.n.max()} of them; at most {data.never_reached_tau.max()} of "
        f"{cells[0].cfg.images} images never reach it for a c. Line: least squares with its 95 % "
        "band; r: Pearson, over n points that share their images, so that P is a description only"
    )
    written = save(name, definition | {"note": note}, cells, figure, data)
    return f"{table.to_markdown(index=False, floatfmt='.2g', tablefmt='simple')}\n\n{written}"


def regression(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares line of (n,) points at other x, and the half-width of its 95 % band."""
    slope, intercept = np.polyfit(x, y, 1)
    free = len(x) - 2
    residual = np.sqrt(((y - slope * x - intercept) ** 2).sum() / free)
    spread = np.sqrt(1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    quantile = stats.t.ppf((1 + evaluation.LEVEL) / 2, free)
    return slope * at + intercept, quantile * residual * spread


def same_family(source: str, target: str) -> bool:
    """Whether both are ResNets or both DenseNets; the paper crosses the families in Figure 1."""
    return source.rstrip("0123456789") == target.rstrip("0123456789")


def fig2(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Image, perturbation and neighbour-interaction map, with and without the interaction loss."""
    contexts = definition["contexts"]
    count = min(definition["drawn"], cells[0].cfg.images)
    data, drawn = [], []
    for cell in cells:
        prepare(cell.cfg)
        last = analysis.last_step(cell)
        found = interactions.neighbour_map(
            cell.build(cell.cfg.source),
            *(last.x[:count], last.delta[:count], last.y[:count], last.images.ids[:count]),
            *(Draws(cell.cfg.seed), contexts, cell.cfg.grid, cell.cfg.micro_batch),
        )
        drawn.append((last, found.value.numpy()))
        for (image, row, column), value in np.ndenumerate(found.value.numpy()):
            error = found.error[image, row, column].item()
            data.append((cell.method, last.images.ids[image], row, column, value, error))
    limit = max(float(np.abs(maps).max()) for _, maps in drawn)
    columns = 1 + 2 * len(cells)
    figure, axes = panels(count * columns, columns, width=1.25, height=1.2)
    heads = ["image"]
    for cell in cells:
        heads += [f"{method_name(cell.method)}: δ", f"{method_name(cell.method)}: interactions"]
    for axis, head in zip(axes, heads, strict=False):
        axis.set_title(head)
    for k, axis in enumerate(axes):
        axis.set_xticks([])
        axis.set_yticks([])
        image, column = divmod(k, columns)
        last, maps = drawn[max(column - 1, 0) // 2]
        if column == 0:
            picture = last.images.pixels[image].transpose(1, 2, 0)
            axis.imshow(picture, interpolation="nearest")
        elif column % 2:
            delta = last.delta[image].permute(1, 2, 0).cpu().numpy()
            axis.imshow(0.5 + delta / (2 * np.abs(delta).max()), interpolation="nearest")
        else:
            colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            shown = axis.imshow(maps[image], interpolation="nearest", **colours)
    label = "mean $I_{ij}$ over neighbours j (logits)"
    figure.colorbar(shown, ax=axes, shrink=0.6, label=label)
    names = ["attack", "image", "row", "column", "interaction", "standard_error"]
    frame = pd.DataFrame(data, columns=names)
    note = (
        f"source {title(cells[0].cfg.source)}, {cells[0].cfg.grid} x {cells[0].cfg.grid} cells, "
        f"{contexts} contexts a pair, median standard error {frame.standard_error.median():.2g}; "
        "δ is scaled to its largest value"
    )
    means = frame.groupby("attack", sort=False).interaction.mean()
    text = ", ".join(f"{method_name(str(attack))} {mean:+.4f}" for attack, mean in means.items())
    written = save(name, definition | {"note": note}, cells, figure, frame)
    return f"Mean over cells and images: {text}\n{written}"


def fig3a(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Success rate of IR against λ, a line for each target."""
    data = pd.concat([pipeline.rows(c).assign(lam=float(c.cfg.lam)) for c in cells])
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
        for target in cell.targets:
            margins = store.read_arrays(cell.margins_path(target))["margins"]
            first = int(cell.cfg.attack.record == "after")
            chosen = evaluation.chosen_steps(margins > 0) + first
            usual = int(np.bincount(chosen).argmax())
            for step, percent in enumerate(100 * (margins > 0).mean(axis=1), start=first):
                where = (cell.cfg.source, cell.method, target, len(chosen), step, percent)
                records.append((*where, usual))
    columns = ["source", "attack", "target", "n", "step", "success_rate_percent", "chosen_step"]
    return pd.DataFrame(records, columns=columns)


def fig3b(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Success of the interaction loss alone at every step, noise of the same ε as baseline."""
    data = curves(cells)
    alone = data[data.attack != "noise"]
    if len(alone) in (0, len(data)):
        raise InputError("fig3b: needs both attacks, ironly and noise; leave attack= out.")
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


def hessian_of(cell: Cell, definition: Definition) -> dict[str, np.ndarray]:
    """H_ab and the ratios of Figure 4 on a source, with ReLU replaced, in float64."""
    cfg, count = cell.cfg, definition["images"]
    settings = {key: definition[key] for key in ("images", "columns", "beta")}
    facts = {
        "version": [analysis.VERSION, VERSION],
        "images": cell.images_facts,
        "source": cell.identity(cfg.source),
        "settings": settings | {"seed": cfg.seed},
    }

    def compute() -> dict[str, np.ndarray]:
        images = pipeline.chosen_images(cell).take(range(count))
        model = hessian.smoothed(cell.build(cfg.source), definition["beta"]).double()
        x = to_device(images.pixels, cfg).double()
        y = torch.from_numpy(images.labels).to(x.device)
        draw = Draws(cfg.seed).uniform(images.ids, 0, "columns", (x[0].numel(),))
        columns = draw.argsort(dim=1)[:, : definition["columns"]].tolist()
        elements, ratio = hessian.measure(model, losses.cross_entropy, x, y, columns)
        kept = {"element": elements.float(), "ratio": ratio}
        return {name: values.flatten().cpu().numpy() for name, values in kept.items()}

    prepare(cfg)
    path = cell.root / "interactions" / "hessian" / f"{cfg.source}-{store.key(facts)}.safetensors"
    return store.remembered(path, facts | pipeline.pixels(cell), compute)


def fig4(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Histograms of Hessian elements H_ab and of g_b H_bb / Σ_a g_a H_ab (Appendix E.2)."""
    found = {}
    for cell in cells:
        found[cell.cfg.source] = hessian_of(cell, definition)
    figure, axes = panels(2 * len(found), len(found), width=2.2)
    colour = sns.color_palette("colorblind")[0]
    data, lines = [], []
    for k, (source, arrays) in enumerate(found.items()):
        for row, what in enumerate(("element", "ratio")):
            axis, values = axes[row * len(found) + k], arrays[what]
            low, high = np.quantile(values, [0.005, 0.995])
            counts, edges = np.histogram(values, bins=60, range=(low, high))
            axis.stairs(counts, edges, fill=True, color=colour)
            small = float((np.abs(values) < 1).mean())
            label = "$H_{ab}$" if what == "element" else r"$g_bH_{bb}\,/\,\sum_a g_aH_{ab}$"
            axis.set(title=f"{title(source)}: |·| < 1 for {small:.1%}", xlabel=label)
            axis.set_ylabel("count")
            lines.append((title(source), what, len(values), np.median(np.abs(values)), small))
            data += [
                (source, what, *bin_) for bin_ in zip(edges[:-1], edges[1:], counts, strict=True)
            ]
    columns = ["source", "quantity", "from", "to", "count"]
    summary = pd.DataFrame(lines, columns=["source", "of", "n", "median |·|", "share below 1"])
    note = (
        f"{definition['columns']} columns b each, Softplus "
        f"with β = {definition['beta']} for ReLU, cross-entropy; the outer 1 % is not drawn"
    )
    written = save(
        name, definition | {"note": note}, cells, figure, pd.DataFrame(data, columns=columns)
    )
    return summary.to_markdown(index=False, floatfmt=".3g", tablefmt="simple") + "\n\n" + written


def fig5(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Histograms of Σ_b I_ab over cells a: multi-step against single-step and against noise."""
    records = []
    for cell in cells:
        found = measured(cell, definition, definition["loss"])
        for attack in ("multi", "single", "noise"):
            values = found[f"equal {attack}"].ravel()
            records.append((cell.cfg.source, attack, values))
    rivals = {"single": "single-step", "noise": "Gaussian noise"}
    figure, axes = panels(2 * len(cells), 2, width=3.0)
    blue, orange = sns.color_palette("colorblind")[:2]
    data = []
    for k, cell in enumerate(cells):
        of_source = {attack: v for source, attack, v in records if source == cell.cfg.source}
        for j, (rival, label) in enumerate(rivals.items()):
            axis = axes[2 * k + j]
            both = np.concatenate([of_source["multi"], of_source[rival]])
            low, high = np.quantile(both, [0.005, 0.995])
            edges = np.linspace(low, high, 61)
            for attack, shown, colour in (("multi", "multi-step", blue), (rival, label, orange)):
                counts, _ = np.histogram(of_source[attack], bins=edges)
                axis.stairs(counts, edges, color=colour, label=shown, lw=1.2, fill=False)
                axis.axvline(of_source[attack].mean(), color=colour, ls=":", lw=1)
                data += [
                    (cell.cfg.source, label, shown, *b)
                    for b in zip(edges[:-1], edges[1:], counts, strict=True)
                ]
            axis.set(title=f"{title(cell.cfg.source)}: multi-step and {label}")
            axis.set(xlabel=r"$\sum_b I_{ab}$ of a cell a (logits)", ylabel="count")
            axis.legend(frameon=False, loc="upper left")
    columns = ["source", "comparison", "attack", "from", "to", "count"]
    frame = pd.DataFrame(data, columns=columns)
    note = "Perturbations of equal ‖δ‖₂ for each image; dotted: means; the outer 1 % is not drawn"
    return save(name, definition | {"note": note}, cells, figure, frame)
