"""Propositions 1, 2 and 3 as statements to be tested: attacks as in their proofs.

In the proofs gradients are neither signed nor normalised and nothing is clipped (Appendices E, I,
J), so these perturbations do not pass through the 8-bit step cache.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from irattack import analysis, interactions, losses, pipeline, store
from irattack.attack import Attack, perturbations
from irattack.cell import PRECISIONS, VERSION, Cell, prepare, to_device
from irattack.norms import Free, l2_length
from irattack.pieces import GaussianNoise, Momentum
from irattack.randomness import Draws
from irattack.settings import number

CLAIMS = {  # the attack that has the larger average interaction, and the one that has the smaller
    "Proposition 1: multi-step ≥ single-step": ("multi", "single"),
    "Proposition 2: multi-step ≥ VR": ("multi", "vr"),
    "Proposition 3: multi-step ≥ revised MI": ("multi", "mi"),
    "Appendix E.4: multi-step ≥ Gaussian noise": ("multi", "noise"),
}


def attacks(cfg: dict[str, Any]) -> dict[str, Attack]:
    """The attacks of the proofs, from the settings of conf/table/propositions.yaml.

    multi    δ^m = α Σ_{t<m} ∇ℓ(h(x + δ^t), y)
    single   δ = α m ∇ℓ(h(x), y)                         (Proposition 1)
    vr       ∇ is the mean over x + δ + ξ                (Proposition 2)
    mi       g^t = (t−1)/t g^{t−1} + ∇ / t               (Proposition 3, Eq. 33)
    """
    multi = Attack(
        Free(cfg["step_size"]),
        cfg["steps"],
        loss=losses.by_name(cfg["loss"]),
        accumulate=Momentum(rule="none"),
        start="zero",
        record="last",
        clip=False,
    )
    return {
        "multi": multi,
        "single": replace(multi, norm=Free(cfg["step_size"] * cfg["steps"]), steps=1),
        "vr": replace(multi, samples=GaussianNoise(cfg["copies"], cfg["sigma"])),
        "mi": replace(multi, accumulate=Momentum(rule="revised")),
    }


def perturb(
    cfg: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor, ids: Sequence[str], seed: int
) -> dict[str, Tensor]:
    """The perturbation of each attack of the proofs, and Gaussian noise as long as multi's."""
    draws, found = Draws(seed), {}
    for name, attack in attacks(cfg).items():
        parts = [
            next(perturbations(attack, model, x[rows], y[rows], [ids[i] for i in rows], draws))
            for rows in torch.arange(len(x)).split(64)
        ]
        found[name] = torch.cat(parts)
    noise = draws.normal(ids, 0, "noise", x.shape[1:]).to(x)
    return found | {"noise": analysis.of_length(noise, l2_length(found["multi"]))}


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
        "version": [analysis.VERSION, VERSION, PRECISIONS[cfg.precision]],
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
            for scale, scaled in (("own", delta), ("equal", analysis.of_length(delta, length))):
                values = interactions.contributions(model, x, scaled, y, cfg.grid, cfg.micro_batch)
                arrays[f"{scale} {attack}"] = values.numpy()
        return arrays

    prepare(cfg)
    folder = cell.root / "interactions" / "propositions"
    path = folder / f"{cfg.source}-{store.key(facts)}.safetensors"
    return store.remembered(path, facts | pipeline.pixels(cell), compute)
