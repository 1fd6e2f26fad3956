"""What figures share: style, panels, and their files: PNG, PDF, and the data behind as CSV."""

import io
import logging
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from irattack.pipeline.cell import Cell
from irattack.pipeline.job import jobs_of
from irattack.pipeline.sources import OfSource
from irattack.results import record
from irattack.results.record import Definition

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
logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every glyph in a PDF
plt.rcParams.update(STYLE)
MARKERS = "osD^vPX*"


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
    """One legend for all panels, under them, where it covers no data.

    Args:
        columns: of its entries; fewer where the figure is too narrow.
    """
    labels: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    for count in range(columns, 0, -1):
        legend = figure.legend(
            list(labels.values()),
            list(labels),
            loc="outside lower center",
            ncols=count,
            frameon=False,
        )
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def save(
    name: str, definition: Definition, cells: Sequence[Cell], figure: Figure, data: pd.DataFrame
) -> str:
    """Writes outputs/<benchmark>/figures/<name>.{png,pdf,csv}; returns what to print."""
    caption = f"{definition['title']}. {setting(definition, cells)}"
    lines = textwrap.wrap(caption, int(19 * figure.get_figwidth()))
    figure.suptitle("\n".join(lines), fontsize=6.5, x=0.01, ha="left")
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
        files[f"{name}.{kind}"] = buffer.getvalue()
    plt.close(figure)
    files[f"{name}.csv"] = data.to_csv(index=False, float_format="%.6g").encode()
    remarks = [setting(definition, cells)]
    folder = record.write("figures", name, definition, cells, files, remarks)
    return f"{caption}\nWritten to {folder}: {', '.join(files)}"


def setting(definition: Definition, cells: Sequence[Cell]) -> str:
    """On which benchmark, protocol and number of images a figure was made."""
    cfg = cells[0].cfg
    settings = f"benchmark={cfg.benchmark.name}, n = {cfg.images} images"
    if not all(isinstance(job, OfSource) for job in jobs_of(cells[0])):
        longest = max(cell.steps_facts["attack"]["steps"] for cell in cells)
        settings += f", protocol={cfg.protocol.name}, {longest} steps"
        settings += "" if cells[0].norm == "free" else f", ε = {cfg.eps}"
    return f"{settings}. {definition.get('note', '')}".strip()
