"""The two norms of the paper (Eqs. 9, 10), and none. A norm is: start, step, project, rounding."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from irattack.errors import InputError, ranged

IMAGENET_SIZE = 3 * 224 * 224  # the n at which the authors state their L2 step size


class Norm(Protocol):
    """A ball around the clean image. Tensors are (B, C, H, W), in units of [0, 1] images.

    Projecting and rounding leave NaN as it is, so that it cannot pass for a perturbation.
    """

    def start(self, x: Tensor, uniform: Tensor) -> Tensor:
        """A random perturbation inside the ball, from `uniform` in [0, 1) shaped like x."""
        ...

    def step(self, gradient: Tensor) -> Tensor:
        """The update α · direction(gradient); zero for an image whose gradient is zero."""
        ...

    def project(self, delta: Tensor) -> Tensor:
        """Π_ε(δ), Eq. 10."""
        ...

    def round(self, levels: Tensor) -> Tensor:
        """255 δ rounded to integers that stay inside the ball."""
        ...


def l2_length(t: Tensor) -> Tensor:
    """‖t‖₂ of each image, (B, C, H, W) -> (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(t, dim=(1, 2, 3), keepdim=True)


def l1_length(t: Tensor) -> Tensor:
    """‖t‖₁ of each image, (B, C, H, W) -> (B, 1, 1, 1)."""
    return t.abs().sum(dim=(1, 2, 3), keepdim=True)


def of_length(delta: Tensor, length: float | Tensor) -> Tensor:
    """Perturbations scaled to an L2 length, one for all or (B, 1, 1, 1); zero stays zero."""
    return delta * (length / l2_length(delta).clamp_min(1e-12))


def along(norm: Norm, g: Tensor) -> Tensor:
    """g with the L1 length of a step, (B, C, H, W): α g / mean|g| in L∞; zero stays zero."""
    return g * (l1_length(norm.step(g)) / l1_length(g).clamp_min(torch.finfo(g.dtype).tiny))


@dataclass(frozen=True)
class Linf:
    """‖δ‖_∞ ≤ eps, steps of step_size along the sign of the gradient."""

    eps: float
    step_size: float

    def __post_init__(self) -> None:
        ranged("eps", self.eps, 0)
        ranged("step_size", self.step_size, 0)

    def start(self, x: Tensor, uniform: Tensor) -> Tensor:
        return self.eps * (2 * uniform - 1)

    def step(self, gradient: Tensor) -> Tensor:
        return self.step_size * gradient.sign()

    def project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps)

    def round(self, levels: Tensor) -> Tensor:
        limit = int(255 * self.eps + 1e-4)  # 1e-4 of a level: 8/255 * 255 may fall below 8
        return levels.round().clamp(-limit, limit)


@dataclass(frozen=True)
class L2:
    """‖δ‖₂ ≤ eps √n, steps of step_size · √(n / 150528) along the gradient; n = C·H·W.

    The scaling keeps the authors' step of 2.0 at 224 px, relative to the ball, at any image size.
    """

    eps: float
    step_size: float

    def __post_init__(self) -> None:
        ranged("eps", self.eps, 0)
        ranged("step_size", self.step_size, 0)

    def start(self, x: Tensor, uniform: Tensor) -> Tensor:
        return self.project(uniform - x)

    def step(self, gradient: Tensor) -> Tensor:
        tiny = torch.finfo(gradient.dtype).tiny
        scale = self.step_size * (gradient[0].numel() / IMAGENET_SIZE) ** 0.5
        return scale * gradient / l2_length(gradient).clamp_min(tiny)

    def project(self, delta: Tensor) -> Tensor:
        return delta * self._shrink(delta, self.radius(delta))

    def round(self, levels: Tensor) -> Tensor:
        limit = 255 * self.radius(levels)
        for _ in range(8):  # rounding lengthens δ by about n/24 of a squared level: shrink, retry
            rounded = levels.round()
            if (l2_length(rounded) <= limit).all():
                return rounded
            levels = levels * self._shrink(rounded, limit)
        fits = l2_length(rounded) <= limit
        return torch.where(fits, rounded, levels.trunc())

    def radius(self, delta: Tensor) -> float:
        """eps √n, the radius of the ball for images of this size."""
        return self.eps * delta[0].numel() ** 0.5

    @staticmethod
    def _shrink(delta: Tensor, radius: float) -> Tensor:
        return (radius / l2_length(delta).clamp_min(radius)).to(delta.dtype)


@dataclass(frozen=True)
class Free:
    """No ball: steps of step_size · gradient (Eq. 8, and the proofs of Propositions 1 to 3)."""

    step_size: float

    def __post_init__(self) -> None:
        ranged("step_size", self.step_size, 0)

    def start(self, x: Tensor, uniform: Tensor) -> Tensor:
        raise InputError("start=random: an attack without a ball has no random start; use zero.")

    def step(self, gradient: Tensor) -> Tensor:
        return self.step_size * gradient

    def project(self, delta: Tensor) -> Tensor:
        return delta

    def round(self, levels: Tensor) -> Tensor:
        return levels.round()
