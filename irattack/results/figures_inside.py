"""Figures 2, 4, 5 and 8: inside perturbations, drawn from what is on the disk."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns

from irattack.pipeline.cell import Cell
from irattack.pipeline.images import images_of
from irattack.pipeline.job import job_of
from irattack.pipeline.measures import NeighbourMaps
from irattack.pipeline.sources import Hessians, Proofs
from irattack.results.names import method_name, title
from irattack.results.plotting import Definition, panels, save


def fig2(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Image, perturbation and neighbour-interaction map, with and without the interaction loss."""
    job = job_of(cells[0], NeighbourMaps)
    count, contexts = job.images, job.contexts
    data, drawn = [], []
    for cell in cells:
        images, found = images_of(cell), job_of(cell, NeighbourMaps).values()
        drawn.append((images.pixels, found["levels"], found["value"]))
        for (image, row, column), value in np.ndenumerate(found["value"]):
            error = found["error"][image, row, column]
            data.append((cell.method, images.ids[image], row, column, value, error))
    limit = max(float(np.abs(maps).max()) for *_, maps in drawn)
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
        pixels, levels, maps = drawn[max(column - 1, 0) // 2]
        picture = pixels[image].transpose(1, 2, 0)
        if column == 0:
            axis.imshow(picture, interpolation="nearest")
        elif column % 2:
            delta = levels[image].transpose(1, 2, 0).astype(float)
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


def fig4(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Histograms of Hessian elements H_ab and of g_b H_bb / Σ_a g_a H_ab (Appendix E.2)."""
    job = job_of(cells[0], Hessians)
    found = {cell.cfg.source: job_of(cell, Hessians).values() for cell in cells}
    figure, axes = panels(2 * len(found), len(found), width=2.2)
    colour = sns.color_palette("colorblind")[0]
    data, lines = [], []
    for k, (source, arrays) in enumerate(found.items()):
        for row, what in enumerate(("element", "ratio")):
            axis, values = axes[row * len(found) + k], arrays[what].ravel()
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
        f"{job.columns} columns b each, Softplus "
        f"with β = {job.beta} for ReLU, cross-entropy; the outer 1 % is not drawn"
    )
    written = save(
        name, definition | {"note": note}, cells, figure, pd.DataFrame(data, columns=columns)
    )
    return summary.to_markdown(index=False, floatfmt=".3g", tablefmt="simple") + "\n\n" + written


def fig5(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Histograms of Σ_b I_ab over cells a: multi-step against single-step and against noise."""
    records = []
    for cell in cells:
        found = job_of(cell, Proofs).values()
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
