"""What is measured on cached perturbations: interactions and transfer utility (Section 3.2).

Interactions are of the last step of an attack, on its source, at the level of grid cells. Like all
stages this one reads the step cache and keeps what it finds under a hash of all that decides it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irattack.attacks.norms import l2_length, of_length
from irattack.commands.settings import number
from irattack.data.images import Images
from irattack.interactions import cells as interactions
from irattack.interactions.proofs import perturb
from irattack.pipeline import run as pipeline
from irattack.pipeline import statistics as evaluation
from irattack.pipeline import steps, store
from irattack.pipeline.cell import PRECISIONS, Cell, prepare, to_device
from irattack.pipeline.cell import VERSION as CELL_VERSION

VERSION = 1  # raise it when the same configuration starts to give other values


@dataclass(frozen=True)
class Last:
    """The images of a cell and their perturbation at its last step.

    Attributes:
        images: as 8-bit pixels. x: (N, C, H, W) in [0, 1]. y: (N,). delta: (N, C, H, W).
    """

    images: Images
    x: Tensor
    y: Tensor
    delta: Tensor


def last_step(cell: Cell) -> Last:
    """Reads the last step of an attack from the step cache; runs the attack where it is missing."""
    images = pipeline.chosen_images(cell)
    last = cell.recorded - 1
    pipeline.attack_images(cell, images, sorted({*cell.kept, last}))
    frames = []
    for path, part in cell.shards(images):
        *_, frame = steps.read_shard(path, part.pixels)
        frames.append(to_device(frame, cell.cfg))
    x = to_device(images.pixels, cell.cfg)
    y = torch.from_numpy(images.labels).to(x.device)
    return Last(images, x, y, torch.cat(frames) - x)


def contributions(cell: Cell, length: float | None = None) -> np.ndarray:
    """Σ_j I_ij of every cell i of the grid at the last step (Eq. 28), (N, L, L).

    Args:
        length: scale each δ to this ‖δ‖₂ first, in units of [0, 1] images; None for as it is.
            Interactions grow with the perturbation, so that attacks compare at equal length only.
    """
    cfg = cell.cfg
    facts = {"version": VERSION, "key": cell.key, "grid": cfg.grid, "length": length}
    name = f"contributions-{store.key(facts)}.safetensors"

    def compute() -> dict[str, np.ndarray]:
        last = last_step(cell)
        delta = last.delta if length is None else of_length(last.delta, length)
        model = cell.build(cfg.source)
        found = interactions.contributions(model, last.x, delta, last.y, cfg.grid, cfg.micro_batch)
        return {"contributions": found.numpy()}

    prepare(cfg)
    path = cell.root / "interactions" / cell.label / name
    return store.remembered(path, facts | pipeline.pixels(cell), compute)["contributions"]


def average_interaction(cell: Cell, length: float | None = None) -> np.ndarray:
    """The average interaction of each image's perturbation, without 1/(L² − 1), (N,)."""
    return interactions.average(torch.from_numpy(contributions(cell, length))).numpy()


def transfer_utility(cell: Cell, target: str) -> np.ndarray:
    """The margin of x + δ minus that of x on a target (Section 3.2), every step, (T, N)."""
    arrays = store.read_arrays(cell.margins_path(target))
    return arrays["margins"] - arrays["clean"]


def interaction_record(cell: Cell, length: float | None = None) -> dict[str, Any]:
    """The average interaction of a cell as a table row, in both scalings."""
    plain = average_interaction(cell, length)
    mean, low, high = evaluation.mean_interval(plain)
    return {
        "source": cell.cfg.source,
        "attack": cell.method,
        "norm": cell.norm,
        "n": len(plain),
        "grid": cell.cfg.grid,
        "average_interaction": mean,
        "ci_low": low,
        "ci_high": high,
        "per_pair": float(interactions.per_pair(torch.tensor(mean), cell.cfg.grid)),
    }


def measured(cell: Cell, definition: dict[str, Any], loss: str) -> dict[str, np.ndarray]:
    """Contributions (N, L, L) and lengths (N,) of each attack of the proofs.

    `own multi` is of the perturbation as in the proof, `equal multi` of the same scaled to the
    length of the multi-step attack's, `length multi` its ‖δ‖₂; so for every attack.
    """
    cfg = cell.cfg
    settings = {
        **{key: definition[key] for key in ("step_size", "steps")},
        **{"loss": loss, "copies": cfg.benchmark.copies, "sigma": number(cfg.benchmark.sigma)},
    }
    facts = {
        "version": [VERSION, CELL_VERSION, PRECISIONS[cfg.precision]],
        "images": cell.images_facts,
        "source": cell.identity(cfg.source),
        "settings": settings,
        **{"grid": cfg.grid, "seed": cfg.seed},
    }

    def compute() -> dict[str, np.ndarray]:
        images = pipeline.chosen_images(cell)
        model = cell.build(cfg.source)
        x = to_device(images.pixels, cfg)
        y = torch.from_numpy(images.labels).to(x.device)
        found = perturb(settings, model, x, y, images.ids, cfg.seed)
        length, arrays = l2_length(found["multi"]), {}
        for attack, delta in found.items():
            arrays[f"length {attack}"] = l2_length(delta).flatten().cpu().numpy()
            for scale, scaled in (("own", delta), ("equal", of_length(delta, length))):
                values = interactions.contributions(model, x, scaled, y, cfg.grid, cfg.micro_batch)
                arrays[f"{scale} {attack}"] = values.numpy()
        return arrays

    prepare(cfg)
    folder = cell.root / "interactions" / "propositions"
    path = folder / f"{cfg.source}-{store.key(facts)}.safetensors"
    return store.remembered(path, facts | pipeline.pixels(cell), compute)
