"""The pieces that attacks are made of. A piece fills one slot of the loop in attack.py.

slot          piece         gives
interaction   Interaction   IR    (Section 5, Eq. 42)
accumulate    Momentum      MI    (Section 4; Dong et al., 2018)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irattack.losses import margin
from irattack.objective import Term
from irattack.randomness import Draws


@dataclass(frozen=True)
class Interaction:
    """−λ (1/K) Σ_k [v(Λ) − v(Λ∖S_k) − v(S_k) + v(∅)], the interaction loss of Eq. 42.

    Args:
        lam: λ ≥ 0.
        samples: K, random sets a step.
        cells: cells in a set.
        grid: L, the image is divided into L x L cells.
        replacement: draw a set's cells with replacement, as the authors' code does.
        skip_at_zero: leave the term out where δ = 0. Its gradient is zero there, but comes out of
            the arithmetic as rounding noise.
    """

    lam: float
    samples: int
    cells: int
    grid: int
    replacement: bool = False
    skip_at_zero: bool = True

    def terms(self, delta: Tensor, ids: Sequence[str], step: int, draws: Draws) -> list[Term]:
        """The terms of J; v(∅) is missing because it does not depend on δ."""
        counts = torch.ones_like(delta[:, 0, 0, 0])
        if self.skip_at_zero:
            counts = delta.flatten(1).any(dim=1).to(delta.dtype)
        if self.lam == 0 or not counts.any():
            return []
        sets = draws.subsets(ids, step, self.samples, self.cells, self.grid, self.replacement)
        both = torch.cat([sets, ~sets], dim=1).to(delta.device)  # S_k and Λ∖S_k
        return [
            Term(margin, -self.lam * counts),
            Term(margin, self.lam / self.samples * counts, sets=both),
        ]


@dataclass(frozen=True)
class Momentum:
    """m ← μ m + g / ‖g‖₁ (MI, Dong et al., 2018); μ = 0 keeps the direction of g alone."""

    mu: float = 0.0

    def __call__(self, m: Tensor, g: Tensor) -> Tensor:
        """The next m, from the last m and the gradient g, all (B, C, H, W)."""
        length = g.abs().sum(dim=(1, 2, 3), keepdim=True)
        return self.mu * m + g / length.clamp_min(torch.finfo(g.dtype).tiny)
