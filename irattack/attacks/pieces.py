"""The pieces that attacks are made of. A piece fills one slot of the loop in loop.py.

slot          piece            gives
interaction   Interaction      IR    (Section 5, Eq. 42)
samples       GaussianNoise    VR    (Section 4; Wu et al., 2018)
              Copies           draws of the transform, averaged
transform     ResizeAndPad     DI    (Xie et al., 2019), in diversity.py
              ScaledCopies     SI    (Lin et al., 2020), there too
              Spectrum         SSA   (Long et al., 2022), there too
              ShuffleAndRotate BSR   (Wang et al., 2024), in shuffle.py
backward      SkipGradient     SGM   (Section 4; Wu et al., 2020), in skip.py
              LinearBackward   LinBP (Guo et al., 2020), in linear.py
look          NI, RAP, and
estimate      EMI, VMI, PGN, GRA, in points.py
move          PI, GRA, in moves.py
smooth        GaussianKernel   TI    (Dong et al., 2019)
accumulate    Momentum         MI    (Section 4; Dong et al., 2018)
penalty       LengthPenalty    Eq. 8 (Section 3.2, Appendix C)
stop          StopAtLength     Eq. 8 (Section 3.2, Appendix H)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from irattack.attacks.losses import UTILITIES
from irattack.attacks.norms import l2_length
from irattack.attacks.objective import Term, Value
from irattack.attacks.randomness import Draws, to_device
from irattack.errors import one_of, ranged
from irattack.exact import smoothed

GENERATORS = ("mt19937", "philox")


@dataclass(frozen=True, kw_only=True)
class RandomCells:
    """Random sets S_1 … S_K of the cells of an image, anew for each image and step.

    Args:
        samples: K, sets a step.
        cells: cells in a set.
        grid: L, the image is divided into L x L cells.
        replacement: draw a set's cells with replacement, as the authors' code does.
        border: what becomes of the pixels left when L does not divide the side: `shared` out, so
            that cells are as even as possible, or `uncovered`, in no cell (the authors' code).
    """

    samples: int
    cells: int
    grid: int
    replacement: bool = False
    border: str = "shared"

    def __post_init__(self) -> None:
        one_of("border", self.border, ("shared", "uncovered"))
        ranged("samples", self.samples, 1, whole=True)
        ranged("grid", self.grid, 1, whole=True)
        ranged("cells", self.cells, 1, self.grid**2, whole=True)

    def both(
        self, value: Value, weight: Tensor, ids: Sequence[str], step: int, draws: Draws, shape: Size
    ) -> Term:
        """weight · Σ_k [value at S_k + value at Λ∖S_k], 2K probes an image."""
        sets, side = self.drawn(ids, step, draws, shape)
        sets = to_device(torch.cat([sets, ~sets], dim=1), weight.device)
        return Term(value, weight, sets=sets, side=side, share=self.samples)

    def alone(
        self, value: Value, weight: Tensor, ids: Sequence[str], step: int, draws: Draws, shape: Size
    ) -> Term:
        """weight · Σ_k value at S_k, K probes an image, whose gradient moves every pixel."""
        sets, side = self.drawn(ids, step, draws, shape)
        sets = to_device(sets, weight.device)
        return Term(value, weight, sets=sets, side=side, share=self.samples, moves_all=True)

    def drawn(
        self, ids: Sequence[str], step: int, draws: Draws, shape: Size
    ) -> tuple[Tensor, int | None]:
        """S_1 … S_K of each image, (B, K, L, L) bool, and the side of a cell if it is fixed.

        Args:
            shape: of δ, (B, C, H, W).

        Raises:
            InputError: there are cells without a pixel.
        """
        ranged("grid", self.grid, 1, min(shape[-2:]), whole=True)
        sets = draws.subsets(ids, step, self.samples, self.cells, self.grid, self.replacement)
        if self.border == "uncovered":  # one more row and column, in Λ∖S_k but in no S_k
            return F.pad(sets, (0, 1, 0, 1)), shape[-1] // self.grid
        return sets, None


@dataclass(frozen=True, kw_only=True)
class Interaction(RandomCells):
    """−λ (1/K) Σ_k [v(Λ) − v(Λ∖S_k) − v(S_k) + v(∅)], the interaction loss of Eq. 42.

    Args:
        lam: λ; below 0 the interaction is raised, a control.
        rival: y' in v(S) = h_y'(x + δ^(S)) − h_y(x + δ^(S)): the strongest wrong class of each
            `set` S, as Section 3.1 and Eq. 26 define v, or of each `step`, at full δ, for all of
            its sets (the authors' code).
        balance: multiply λ by ‖∇ℓ‖₂ / ‖∇I‖₂ of each image and step, so that the two gradients keep
            their ratio λ however small ∇ℓ is, as it is where p_y is almost 1.
        skip_at_zero: leave the term out where δ = 0. Its gradient is zero there, but comes out of
            the arithmetic as rounding noise.
    """

    lam: float
    rival: str = "set"
    skip_at_zero: bool = True
    balance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        ranged("lam", self.lam, -math.inf)
        one_of("rival", self.rival, UTILITIES)

    def terms(self, delta: Tensor, ids: Sequence[str], step: int, draws: Draws) -> list[Term]:
        """The terms of J; v(∅) is missing because it does not depend on δ."""
        present = delta.new_ones(len(delta))
        if self.skip_at_zero:
            present = delta.flatten(1).any(dim=1).to(delta.dtype)
            if step == 1 and not present.any():  # asked at the start alone: to ask is to wait
                return []
        if self.lam == 0:
            return []
        v, weight = UTILITIES[self.rival], self.lam / self.samples * present
        sets = self.both(v, weight, ids, step, draws, delta.shape)
        found = [Term(v, -self.lam * present), sets]
        if self.balance:
            return [replace(term, balance=abs(self.lam)) for term in found]
        return found


@dataclass(frozen=True, kw_only=True)
class MaskedLoss(RandomCells):
    """(1/2K) Σ_k [ℓ(x + S_k⊙δ) + ℓ(x + (Λ∖S_k)⊙δ)]: IR's masks and cost, without interaction.

    Args:
        part: `both`, or `sets`, (1/K) Σ_k ℓ(x + S_k⊙δ) alone. Then the gradient is that by the
            input x + S_k⊙δ and moves every pixel, present or not, as in the baseline of
            TA-Bench (Li et al., 2023).
    """

    part: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("part", self.part, ("both", "sets"))

    def terms(
        self, loss: Value, delta: Tensor, ids: Sequence[str], step: int, draws: Draws
    ) -> list[Term]:
        """The terms of J."""
        weight = delta.new_ones(len(delta)) / self.samples
        if self.part == "both":
            return [self.both(loss, weight / 2, ids, step, draws, delta.shape)]
        return [self.alone(loss, weight, ids, step, draws, delta.shape)]


@dataclass(frozen=True)
class GaussianNoise:
    """VR: ℓ is averaged over x + δ + ξ, ξ ~ N(0, σ² I) (Wu et al., 2018).

    Args:
        samples: M, copies of an image.
        sigma: σ, in units of [0, 1] images.
        reduction: `mean` (the expectation of the paper) or `sum` (the authors' code, in which λ
            therefore acts as λ / M).
        generator: `mt19937` draws on the CPU; `philox` on the device of the images, other numbers
            but the same on every device.
    """

    samples: int
    sigma: float
    reduction: str = "mean"
    generator: str = "mt19937"

    def __post_init__(self) -> None:
        ranged("samples", self.samples, 1, whole=True)
        ranged("sigma", self.sigma, 0)
        one_of("reduction", self.reduction, ("mean", "sum"))
        one_of("generator", self.generator, GENERATORS)

    def noise(self, x: Tensor, ids: Sequence[str], step: int, draws: Draws) -> Tensor:
        """ξ, (B, M, C, H, W)."""
        shape = (self.samples, *x.shape[1:])
        if self.generator == "philox":
            drawn = draws.philox(ids, step, "noise", shape, x.device)
        else:
            drawn = to_device(draws.normal(ids, step, "noise", shape), x.device)
        return drawn.to(x.dtype) * self.sigma


@dataclass(frozen=True)
class Copies:
    """J averages ℓ(h(T_i(x + δ))) over M draws T_i of the input transform, without noise.

    Args:
        samples: M, draws an image and step; 1 is the transform itself.
        reduction: `mean` or `sum`, as for noise.
    """

    samples: int
    reduction: str = "mean"

    def __post_init__(self) -> None:
        ranged("samples", self.samples, 1, whole=True)
        one_of("reduction", self.reduction, ("mean", "sum"))


@cache
def _gaussian(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    points = torch.linspace(-3, 3, size, dtype=torch.float64)
    density = torch.exp(-(points**2) / 2)
    kernel = torch.outer(density, density)
    return (kernel / kernel.sum()).to(device, dtype)


@dataclass(frozen=True)
class GaussianKernel:
    """TI: g ← W ∗ g with a Gaussian W that sums to 1, from −3 to 3 standard deviations.

    Args:
        size: odd side of W, in pixels.
    """

    size: int

    def __post_init__(self) -> None:
        ranged("size", self.size, 1, odd=True)

    def __call__(self, g: Tensor) -> Tensor:
        """W ∗ g for each channel, zero-padded, (B, C, H, W)."""
        return smoothed(g, _gaussian(self.size, g.dtype, g.device))


@dataclass(frozen=True)
class Momentum:
    """How gradients add up.

    Args:
        mu: the decay μ, at least 0; 0 keeps the direction of g alone.
        rule: `original`, m ← μ m + g / ‖g‖₁ (MI, Dong et al., 2018); `revised`,
            m ← μ m + (1 − μ) g with μ = (t − 1) / t (Proposition 3, Eq. 33); or `none`, m ← g.
    """

    mu: float = 0.0
    rule: str = "original"

    def __post_init__(self) -> None:
        ranged("mu", self.mu, 0)
        one_of("rule", self.rule, ("original", "revised", "none"))

    def __call__(self, m: Tensor, g: Tensor, step: int) -> Tensor:
        """The next m, from the last m and the gradient g of step t ≥ 1, all (B, C, H, W)."""
        if self.rule == "revised":
            return (step - 1) / step * m + g / step
        if self.rule == "none":
            return g
        length = g.abs().sum(dim=(1, 2, 3), keepdim=True)
        return self.mu * m + g / length.clamp_min(torch.finfo(g.dtype).tiny)


@dataclass(frozen=True)
class LengthPenalty:
    """c ‖δ‖_p^p, which the relaxed attack subtracts from the loss (Eq. 8).

    Args:
        c: its weight, at least 0.
        p: the norm; 2 and 5 in the paper. At least 1.
    """

    c: float
    p: float

    def __post_init__(self) -> None:
        ranged("c", self.c, 0)
        ranged("p", self.p, 1)

    def gradient(self, delta: Tensor) -> Tensor:
        """∇_δ c ‖δ‖_p^p = c p |δ|^(p − 1) sign δ, (B, C, H, W)."""
        return self.c * self.p * delta.abs() ** (self.p - 1) * delta.sign()


@dataclass(frozen=True)
class StopAtLength:
    """An image whose ‖δ‖₂ reaches τ stays there (Section 3.2, Appendix H).

    The update that would pass τ is shortened, so that ‖δ‖₂ = τ and images compare.

    Args:
        tau: τ > 0, in units of [0, 1] images.
    """

    tau: float

    def __post_init__(self) -> None:
        ranged("tau", self.tau, 0, above=True)

    def arrived(self, delta: Tensor) -> Tensor:
        """Which images have ‖δ‖₂ = τ, up to rounding: (B, 1, 1, 1) bool."""
        return l2_length(delta) >= self.tau * (1 - 1e-5)

    def __call__(self, delta: Tensor, moved: Tensor) -> Tensor:
        """The next δ, from the last and the one that the update gives, (B, C, H, W)."""
        shortened = moved * (self.tau / l2_length(moved).clamp_min(self.tau))
        return torch.where(self.arrived(delta), delta, shortened)
