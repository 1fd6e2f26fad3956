"""How a step moves δ, where it is more than α · direction(m). A move may remember what it needs.

slot  piece      gives
move  PatchWise  PI   (Gao et al., 2020)
      SignDecay  GRA  (Zhu et al., 2023), with GradientRelevance of points.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from irattack.attacks.norms import Norm
from irattack.errors import ranged
from irattack.exact import smoothed


@dataclass(frozen=True)
class PatchWise:
    """PI: steps β times as long, of which what leaves the ball goes to the pixels around.

    With step(·) = α · direction(·) and a the sum of all that was added, from 0 on
    (Gao et al., 2020):

        s = β step(m),  a ← a + s,  C = a − Π_ε(a),  p = γ β step(W ∗ C),  a ← a + p,
        δ ← Π_ε(δ + s + p)

    In L∞, C = max(|a| − ε, 0) sign(a) and step(·) = α sign(·), as the paper writes them.

    Args:
        factor: β, the amplification; 10 in the paper, whose α is ε / T. 1 is a plain step.
        project: γ, of p in units of s; 1 in the authors' code, 0 for none.
        size: odd side of W, in pixels, which is uniform but 0 in its middle; 3 in the paper.
    """

    factor: float = 10.0
    project: float = 1.0
    size: int = 3

    def __post_init__(self) -> None:
        ranged("factor", self.factor, 0)
        ranged("project", self.project, 0)
        ranged("size", self.size, 1, odd=True)

    def __call__(self, m: Tensor, norm: Norm, past: dict[str, Tensor]) -> Tensor:
        """s + p, (B, C, H, W), from the m of this step."""
        s = self.factor * norm.step(m)
        a = past.get("added", torch.zeros_like(m)) + s
        cut = self.around(a - norm.project(a))
        p = self.project * self.factor * norm.step(cut)
        past["added"] = a + p
        return s + p

    def around(self, cut: Tensor) -> Tensor:
        """W ∗ C for each channel, zero-padded, (B, C, H, W)."""
        kernel = cut.new_ones(self.size, self.size) / max(self.size**2 - 1, 1)
        kernel[self.size // 2, self.size // 2] = 0
        return smoothed(cut, kernel)


@dataclass(frozen=True)
class SignDecay:
    """GRA's decay indicator: a step is α M ⊙ direction(m) (Zhu et al., 2023).

    M begins at 1/η and is multiplied by η wherever sign m is another than in the last step; as
    m begins at 0, the first step is a plain one.

    Args:
        eta: η in (0, 1]; 0.94 in the paper, 1 for plain steps.
    """

    eta: float = 0.94

    def __post_init__(self) -> None:
        ranged("eta", self.eta, 0, 1, above=True)

    def __call__(self, m: Tensor, norm: Norm, past: dict[str, Tensor]) -> Tensor:
        """The step, (B, C, H, W), from the m of this step."""
        last = past.get("signs", torch.zeros_like(m))
        indicator = past.get("indicator", torch.full_like(m, 1 / self.eta))
        past["signs"] = m.sign()
        kept = torch.where(past["signs"] == last, 1.0, self.eta).to(m.dtype)
        past["indicator"] = indicator * kept
        return past["indicator"] * norm.step(m)
