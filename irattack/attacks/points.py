"""Where a step takes its gradient, and how it makes one of several.

A step of the loop asks for g = ∇J(δ). `look` moves the point first; `estimate` replaces ∇J at the
point by a rule of its own, of gradients at other points, and may remember some for the next step.

slot      piece                gives
look      Lookahead            NI   (Lin et al., 2020)
          ReversePerturbation  RAP  (Qin et al., 2022)
estimate  EnhancedMomentum     EMI  (Wang et al., 2021)
          VarianceTuning       VMI, and VNI with NI's point (Wang & He, 2021)
          GradientNorm         PGN  (Ge et al., 2023)
          GradientRelevance    GRA  (Zhu et al., 2023), with SignDecay of moves.py

All take `at(δ, name)`, the gradient of J at a δ, whose random numbers (masks, noise, transforms)
are those of the step if `name` is empty, and others for each other name. As in their authors' code
the points may lie outside the ball and outside of [0, 1]. A length in a direction g is
α g / mean|g| in L∞, as there (`norms.along`), whatever the papers write: α g / ‖g‖₁, or g itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irattack.attacks.norms import Norm, along, l1_length, l2_length
from irattack.attacks.randomness import Draws, to_device
from irattack.errors import ranged

At = Callable[..., Tensor]
Past = dict[str, Tensor]


@dataclass(frozen=True)
class Lookahead:
    """NI: g = ∇J(δ + α μ m) (Lin et al., 2020).

    m is a sum of gradients of ‖·‖₁ = 1; each is taken as long as a step, α g / mean|g| in L∞.

    Args:
        mu: μ, at least 0, as that of the momentum; 0 stays at δ.
    """

    mu: float = 1.0

    def __post_init__(self) -> None:
        ranged("mu", self.mu, 0)

    def __call__(self, at: At, delta: Tensor, m: Tensor, norm: Norm, *drawing: object) -> Tensor:
        """The point, (B, C, H, W), from δ and the last m."""
        return delta + self.mu * l1_length(norm.step(m)) * m


@dataclass(frozen=True)
class ReversePerturbation:
    """RAP: g = ∇J(δ + n) where n lowers J, n ← Π(n − β sign ∇J(δ + n)) (Qin et al., 2022).

    Π keeps ‖n‖_∞ ≤ radius, and n begins uniform in that cube, anew for each step. Of the paper's
    late start there is none: n is there from the first step on. The authors' code also keeps
    x + δ + n in [0, 1].

    Args:
        radius: ε_n, of n, in units of [0, 1] images; ε in the authors' code, 0 for n = 0.
        step_size: β, of one step of the descent; ε_n / 8 in the authors' code.
        steps: of the descent, each a gradient.
    """

    radius: float
    step_size: float
    steps: int = 8

    def __post_init__(self) -> None:
        ranged("radius", self.radius, 0)
        ranged("step_size", self.step_size, 0)
        ranged("steps", self.steps, 1, whole=True)

    def __call__(
        self,
        at: At,
        delta: Tensor,
        m: Tensor,
        norm: Norm,
        ids: Sequence[str],
        step: int,
        draws: Draws,
    ) -> Tensor:
        """The point, (B, C, H, W)."""
        u = to_device(draws.uniform(ids, step, "reverse", delta.shape[1:]), delta.device)
        n = self.radius * (2 * u.to(delta.dtype) - 1)
        for k in range(1, self.steps + 1):
            g = at(delta + n, f"reverse {k}")
            n = n - self.step_size * torch.where(g.isfinite(), g.sign(), torch.nan)  # sign(NaN) = 0
            n = n.clamp(-self.radius, self.radius)
        return delta + n


@dataclass(frozen=True)
class EnhancedMomentum:
    """EMI: ḡ ← (1/N) Σ_i ∇J(δ + c_i α ḡ / mean|ḡ|), of the last step's ḡ (Wang et al., 2021).

    The c_i are evenly spaced from −η to η, and ḡ begins at 0.

    Args:
        samples: N, gradients a step; 11 in the paper.
        radius: η; 7 in the paper. One sample is the gradient at δ.
    """

    samples: int = 11
    radius: float = 7.0

    def __post_init__(self) -> None:
        ranged("samples", self.samples, 1, whole=True)
        ranged("radius", self.radius, 0)

    def __call__(
        self,
        at: At,
        delta: Tensor,
        norm: Norm,
        past: Past,
        ids: Sequence[str],
        step: int,
        draws: Draws,
    ) -> Tensor:
        """ḡ, (B, C, H, W)."""
        last = past.get("average")
        ahead = torch.zeros_like(delta) if last is None else along(norm, last)
        total = torch.zeros_like(delta)
        radius = self.radius if self.samples > 1 else 0.0  # of one sample, the gradient at δ
        for i, c in enumerate(torch.linspace(-radius, radius, self.samples).tolist()):
            total = total + at(delta + c * ahead, f"along {i}" if i else "")
        past["average"] = total / self.samples
        return past["average"]


@dataclass(frozen=True)
class Neighbourhood:
    """Points δ + r_i around δ, r_i uniform in [−radius, radius] for each pixel, anew for each step.

    Args:
        samples: N, points an image and step; 20 in the papers.
        radius: in units of [0, 1] images.
    """

    samples: int
    radius: float

    def __post_init__(self) -> None:
        ranged("samples", self.samples, 1, whole=True)
        ranged("radius", self.radius, 0)

    def points(
        self, delta: Tensor, ids: Sequence[str], step: int, draws: Draws
    ) -> Iterator[tuple[str, Tensor]]:
        """Names of the points, and the points, (B, C, H, W) each."""
        for i in range(1, self.samples + 1):
            u = draws.uniform(ids, step, f"neighbour {i}", delta.shape[1:])
            away = self.radius * (2 * to_device(u, delta.device).to(delta.dtype) - 1)
            yield f"neighbour {i}", delta + away

    def mean(self, at: At, delta: Tensor, ids: Sequence[str], step: int, draws: Draws) -> Tensor:
        """(1/N) Σ_i ∇J(δ + r_i), (B, C, H, W)."""
        total = torch.zeros_like(delta)
        for name, point in self.points(delta, ids, step, draws):
            total = total + at(point, name)
        return total / self.samples


@dataclass(frozen=True)
class VarianceTuning(Neighbourhood):
    """VMI: g = ∇J(δ) + v, then v ← (1/N) Σ_i ∇J(δ + r_i) − ∇J(δ) (Wang & He, 2021).

    v begins at 0. VNI is the same at NI's point. The radius is β ε, with β = 1.5 in the paper.
    """

    def __call__(
        self,
        at: At,
        delta: Tensor,
        norm: Norm,
        past: Past,
        ids: Sequence[str],
        step: int,
        draws: Draws,
    ) -> Tensor:
        """g, (B, C, H, W)."""
        g, last = at(delta), past.get("variance")
        past["variance"] = self.mean(at, delta, ids, step, draws) - g
        return g if last is None else g + last


@dataclass(frozen=True)
class GradientNorm(Neighbourhood):
    """PGN: J is raised where its gradient is small (Ge et al., 2023).

    g = (1/N) Σ_i [(1 − b) g_i + b ∇J(δ + r_i − α g_i / mean|g_i|)],  g_i = ∇J(δ + r_i),
    2N gradients a step. The radius is ζ, 3 ε in the paper.

    Args:
        balance: b, 0.5 in the paper; 0 is the mean over neighbours.
    """

    balance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        ranged("balance", self.balance, 0, 1)

    def __call__(
        self,
        at: At,
        delta: Tensor,
        norm: Norm,
        past: Past,
        ids: Sequence[str],
        step: int,
        draws: Draws,
    ) -> Tensor:
        """g, (B, C, H, W)."""
        total = torch.zeros_like(delta)
        for name, point in self.points(delta, ids, step, draws):
            near = at(point, name)
            back = at(point - along(norm, near), name)
            total = total + (1 - self.balance) * near + self.balance * back
        return total / self.samples


@dataclass(frozen=True)
class GradientRelevance(Neighbourhood):
    """GRA: g = s G + (1 − s) Ḡ, G = ∇J(δ), Ḡ = (1/N) Σ_i ∇J(δ + r_i) (Zhu et al., 2023).

    s is the cosine of G and Ḡ, image by image. The radius is β ε, with β = 3.5 in the paper.
    """

    def __call__(
        self,
        at: At,
        delta: Tensor,
        norm: Norm,
        past: Past,
        ids: Sequence[str],
        step: int,
        draws: Draws,
    ) -> Tensor:
        """g, (B, C, H, W)."""
        g, mean = at(delta), self.mean(at, delta, ids, step, draws)
        lengths = l2_length(g) * l2_length(mean)
        product = (g * mean).sum(dim=(1, 2, 3), keepdim=True)
        s = product / lengths.clamp_min(torch.finfo(g.dtype).tiny)
        return g + (1 - s) * (mean - g)
