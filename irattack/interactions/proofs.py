"""Propositions 1, 2 and 3 as statements to be tested: attacks as in their proofs.

In the proofs gradients are neither signed nor normalised and nothing is clipped (Appendices E, I,
J), so these perturbations do not pass through the 8-bit step cache.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from irattack.attacks import losses
from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.norms import Free, l2_length, of_length
from irattack.attacks.pieces import GaussianNoise, Momentum
from irattack.attacks.randomness import Draws


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
    return found | {"noise": of_length(noise, l2_length(found["multi"]))}
