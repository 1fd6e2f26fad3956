"""Input transforms T: DI (Xie et al., 2019), SI (Lin et al., 2020), SSA (Long et al., 2022).

Resizes and spectra of a batch are products with a table an axis.

A transform takes images and random numbers. By itself it gets four numbers in [0, 1) an image; one
that has `copies` is averaged over so many of each image, and one that has `drawn` draws its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from irattack.attacks.randomness import Draws
from irattack.errors import InputError, ranged
from irattack.exact import Separable


@dataclass(frozen=True)
class ResizeAndPad:
    """DI: with some probability, the image is resized at random and padded at random.

    Xie et al. (2019) enlarge 299 px to a random size in [299, 330) and pad to 330 with zeros, with
    probability 0.5 (zeros of images in [0, 1], black; in the authors' code of images in [−1, 1],
    grey). For another input size the ratio 330 / 299 is kept, and the result is resized
    back, so that any network takes it.
    """

    probability: float = 0.5
    ratio: float = 330 / 299

    def __post_init__(self) -> None:
        ranged("probability", self.probability, 0, 1)
        ranged("ratio", self.ratio, 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """T(images): images (b, C, H, W), draws (b, 4) in [0, 1) -> (b, C, H, W)."""
        side = images.shape[-1]
        if images.shape[-2] != side:
            raise InputError(
                f"transform: DI resizes square images; these are {images.shape[-2]} x {side} px."
            )
        wide = max(side + 1, round(side * self.ratio))
        coin, size, top, left = draws.double().unbind(dim=1)
        new = side + (size * (wide - side)).long()
        new, u = new.repeat(2), torch.cat([top, left])  # of the rows, and of the columns
        rows, columns = _tables(images, wide, new, (u * (wide - new + 1)).long()).chunk(2)
        moved = Separable.apply(images, rows, columns)
        return torch.where((coin < self.probability).view(-1, 1, 1, 1), moved, images)


def _tables(images: Tensor, wide: int, new: Tensor, shift: Tensor) -> Tensor:
    """Of an axis of ResizeAndPad: row i has the weights of the input's pixels in output pixel i.

    An axis is resized to `new` pixels by the nearest, of which the first becomes number `shift`
    of `wide`, and resized back linearly.

    Args:
        new, shift: (n,), of n axes.

    Returns:
        (n, side, side), with at most two weights in a row, which sum to less than 1 at the pad.
    """
    side, where = images.shape[-1], images.device
    pixel = torch.arange(side, device=where)
    at = ((pixel.to(images.dtype) + 0.5) * (wide / side) - 0.5).clamp_min(0)
    first = at.long()
    share = at - first
    taps = torch.stack([first, (first + 1).clamp_max(wide - 1)])  # (2, side), of the padded axis
    source = taps - shift[:, None, None]
    inside = (source >= 0) & (source < new[:, None, None])
    # PyTorch finds the nearest in float32, whatever the images are; side / tensor would not divide
    ratio = torch.full_like(new, side, dtype=torch.float32) / new
    nearest = (source * ratio[:, None, None]).long().clamp_(0, side - 1)
    weight = torch.stack([1 - share, share]) * inside
    return ((nearest[..., None] == pixel) * weight[..., None]).sum(dim=1)


@dataclass(frozen=True)
class ScaledCopies:
    """SI: J averages ℓ(h((x + δ) / 2^i)) over i = 0 … m − 1 (Lin et al., 2020).

    Args:
        copies: m; 5 in the paper. 1 is the image alone.
    """

    copies: int = 5

    def __post_init__(self) -> None:
        ranged("copies", self.copies, 1, whole=True)

    def drawn(
        self, ids: Sequence[str], step: int, draws: Draws, times: int, shape: Sequence[int]
    ) -> Tensor:
        """The i of each copy, (B, times · copies, 1); nothing of it is random."""
        return torch.arange(self.copies).repeat(len(ids), times)[..., None]

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images (b, C, H, W), their i (b, 1) -> (b, C, H, W)."""
        return images * (0.5 ** draws.to(images.dtype)).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Spectrum:
    """SSA: T(z) = IDCT(M ⊙ DCT(z + ξ)), averaged over copies (Long et al., 2022).

    ξ ~ N(0, σ² I) and M uniform in [1 − ρ, 1 + ρ], for each pixel and frequency of each channel;
    the cosine transform is that of whole images. The gradient is that of J by δ, through T; the
    authors' code takes the one by T(z), at T(z), instead.

    Args:
        copies: N, copies an image and step; 20 in the paper.
        sigma: σ, in units of [0, 1] images; the paper takes ε.
        rho: ρ; 0.5 in the paper. 0 with σ = 0 is the image itself.
    """

    copies: int
    sigma: float
    rho: float = 0.5

    def __post_init__(self) -> None:
        ranged("copies", self.copies, 1, whole=True)
        ranged("sigma", self.sigma, 0)
        ranged("rho", self.rho, 0)

    def drawn(
        self, ids: Sequence[str], step: int, draws: Draws, times: int, shape: Sequence[int]
    ) -> Tensor:
        """ξ and M − 1, (B, times · copies, 2, C, H, W)."""
        each = (times * self.copies, *shape)
        noise = self.sigma * draws.normal(ids, step, "spectrum noise", each)
        masks = self.rho * (2 * draws.uniform(ids, step, "spectrum", each) - 1)
        return torch.stack([noise, masks], dim=2)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images (b, C, H, W), their ξ and M − 1 (b, 2, C, H, W) -> (b, C, H, W)."""
        noise, masks = draws.to(images.dtype).unbind(dim=1)
        z = images + noise
        rows, columns = (_cosines(side, z.dtype, z.device) for side in z.shape[-2:])
        change = masks * Separable.apply(z, rows, columns)
        return z + Separable.apply(change, rows.mT, columns.mT)


@cache
def _cosines(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal cosine transform of an axis (DCT-II), (1, side, side)."""
    pixel = torch.arange(side, dtype=torch.float64)
    table = torch.cos(math.pi / side * pixel[:, None] * (pixel + 0.5)) * (2 / side) ** 0.5
    table[0] /= 2**0.5
    return table[None].to(device, dtype)
