"""Images of the report: clean, adversarial and what was added, from the step cache."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from irattack.pipeline.cell import Cell, Shard
from irattack.pipeline.images import images_of
from irattack.pipeline.results import arrays
from irattack.pipeline.steps import last_frame, of_shard
from irattack.results.names import method_name, title

COUNT = 4  # images


@dataclass(frozen=True)
class Picture:
    """A picture: its data URI, what it shows, and what stands under it."""

    src: str
    alt: str
    text: str


@dataclass(frozen=True)
class Gallery:
    """A line an image: clean, then each attack's adversarial image and perturbation."""

    caption: str
    heads: list[str]
    lines: list[list[Picture]]


def of_cells(cells: Sequence[Cell]) -> Gallery | None:
    """The first images of the first source, by the attacks whose last step is on the disk."""
    cells = [cell for cell in cells if cell.steps_folder.is_dir()]
    for first in cells:
        shard = first.shards(images_of(first))[0]
        group = [
            cell
            for cell in cells
            if (cell.cfg.source, cell.norm, cell.cfg.block, cell.images_facts)
            == (first.cfg.source, first.norm, first.cfg.block, first.images_facts)
            and has_last(cell, shard)
        ]
        if group:
            return _of_group(group, shard)
    return None


def has_last(cell: Cell, shard: Shard) -> bool:
    """Whether the last step of a shard is on the disk."""
    card = of_shard(cell, shard).card()
    return card is not None and card.kept[-1] == cell.recorded - 1


def _of_group(cells: Sequence[Cell], shard: Shard) -> Gallery:
    count = min(COUNT, len(shard.images))
    clean = shard.images.pixels[:count]
    lines = [
        [Picture(png(clean[i]), f"clean image {shard.images.ids[i]}", shard.images.ids[i])]
        for i in range(count)
    ]
    heads = ["clean"]
    for cell in cells:
        name = method_name(cell.method)
        heads += [name, f"{name}: δ"]
        frame = last_frame(cell, shard)[:count]
        margins = [arrays(cell, target)["margins"][-1, :count] for target in cell.targets]
        fooled = (np.array(margins) > 0).sum(axis=0)
        for i, line in enumerate(lines):
            delta = frame[i].astype(float) - clean[i]
            most = max(np.abs(delta).max(), 1.0)
            what = f"image {shard.images.ids[i]} by {name}"
            hits = f"fools {fooled[i]} of {len(margins)}"
            line.append(Picture(png(frame[i]), f"adversarial {what}, {hits} targets", hits))
            amplified = png(np.rint(127.5 + delta * 127.5 / most).astype(np.uint8))
            times = f"× {127.5 / most:.1f}"
            line.append(Picture(amplified, f"perturbation of {what}, amplified {times}", times))
    source, norm = title(cells[0].cfg.source), title(cells[0].norm)
    caption = (
        f"Images attacked through {source} ({norm}) at the last step; δ is amplified so that its "
        "largest change spans the range. Under each image: how many of the targets it fools."
    )
    return Gallery(caption, heads, lines)


def png(pixels: np.ndarray) -> str:
    """(C, H, W) uint8 pixels as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
