"""BSR: blocks of an image in another order, each rotated a little (Wang et al., 2024)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from irattack.attacks.randomness import Draws
from irattack.errors import ranged


@dataclass(frozen=True)
class ShuffleAndRotate:
    """J averages ℓ over copies whose blocks are shuffled and rotated (Wang et al., 2024).

    An image is cut into n strips of random heights, whose order is drawn, and each strip into n
    blocks of random widths, whose order is drawn too. Each block is rotated about its middle by
    an angle uniform in [−τ, τ], bilinearly, with zeros where it has no pixels. A part's share of a
    side is u_i / Σ u, u_i uniform in [0, 1), so that it may be thin. In the authors' code u_i is in
    (1, 2], it is drawn whether rows or columns are cut first, and what is rotated are the strips.

    Args:
        copies: N, copies an image and step; 20 in the paper.
        blocks: n; 2 in the paper. 1 with no angle is the image itself.
        degrees: τ; 24 in the paper.
    """

    copies: int
    blocks: int = 2
    degrees: float = 24.0

    def __post_init__(self) -> None:
        ranged("copies", self.copies, 1, whole=True)
        ranged("blocks", self.blocks, 1, whole=True)
        ranged("degrees", self.degrees, 0, 180)

    def drawn(
        self, ids: Sequence[str], step: int, draws: Draws, times: int, shape: Sequence[int]
    ) -> Tensor:
        """(B, times · copies, 2n + 3n²) in [0, 1)."""
        n = self.blocks
        return draws.uniform(ids, step, "blocks", (times * self.copies, 2 * n + 3 * n * n))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Images (b, C, H, W), draws (b, 2n + 3n²) in [0, 1) -> (b, C, H, W)."""
        n, (height, width) = self.blocks, images.shape[-2:]
        draws = draws.double()
        of_blocks = draws[:, 2 * n :].unflatten(1, (3, n, n))
        top, bottom, row, strip = _rearranged(draws[:, :n], draws[:, n : 2 * n], height)
        left, right, column, block = _rearranged(of_blocks[:, 0], of_blocks[:, 1], width)
        angle = math.radians(self.degrees) * (2 * of_blocks[:, 2] - 1)

        def of_row(table: Tensor) -> Tensor:  # (b, n, W) of each strip -> (b, H, W)
            return table.gather(1, strip[..., None].expand(-1, -1, table.shape[-1]))

        top, bottom, row = (each[..., None].expand(-1, -1, width) for each in (top, bottom, row))
        left, right, column = of_row(left), of_row(right), of_row(column)
        theta = of_row(angle.gather(2, block))
        y0, x0 = (top + bottom - 1) / 2, (left + right - 1) / 2
        cos, sin, dy, dx = theta.cos(), theta.sin(), row - y0, column - x0
        y, x = y0 + cos * dy - sin * dx, x0 + sin * dy + cos * dx
        taps, weights = [], []
        for below, after in ((0, 0), (0, 1), (1, 0), (1, 1)):
            v, u = y.floor() + below, x.floor() + after
            inside = (v >= top) & (v < bottom) & (u >= left) & (u < right)
            weights.append((1 - (y - v).abs()) * (1 - (x - u).abs()) * inside)
            taps.append((v * width + u).long().clamp(0, height * width - 1))
        at = torch.stack(taps, dim=1).flatten(2)  # (b, 4, H·W)
        return _Taps.apply(images, at, torch.stack(weights, dim=1).flatten(2).to(images.dtype))


def _rearranged(cuts: Tensor, order: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each output pixel of an axis: first and end of its part, its source pixel, which part.

    Args:
        cuts: (…, n), lengths of the parts up to a factor.
        order: (…, n), whose ranks are the order of the parts.

    Returns:
        Four of (…, side): float, float, float and long.
    """
    ends = (side * cuts.cumsum(-1) / cuts.sum(-1, keepdim=True).clamp_min(1e-12)).round()
    ends[..., -1] = side
    firsts = torch.cat([torch.zeros_like(ends[..., :1]), ends[..., :-1]], dim=-1)
    chosen = order.argsort(dim=-1)
    new_ends = (ends - firsts).gather(-1, chosen).cumsum(-1)
    pixel = torch.arange(side, device=cuts.device, dtype=cuts.dtype)
    place = (pixel >= new_ends[..., None]).sum(dim=-2)  # which part from the start
    part = chosen.gather(-1, place)
    first, end = firsts.gather(-1, part), ends.gather(-1, part)
    return first, end, pixel - new_ends.gather(-1, place) + end, part


class _Taps(torch.autograd.Function):
    """Σ_k w_k X[at_k], whose gradient is summed in an order that does not change."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, at: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(at, weights)
        flat = images.flatten(2)  # (b, C, H·W)
        found = torch.zeros_like(flat)
        for where, weight in zip(at.unbind(1), weights.unbind(1), strict=True):
            found += weight[:, None] * flat.gather(2, where[:, None].expand_as(flat))
        return found.view_as(images)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        at, weights = ctx.saved_tensors
        flat = g.flatten(2)
        total = torch.zeros_like(flat)
        for where, weight in zip(at.unbind(1), weights.unbind(1), strict=True):
            given = weight[:, None] * flat
            if flat.is_cuda:  # sorts, where scatter_add_ would race
                images = torch.arange(len(flat), device=flat.device)[:, None]
                given = given.transpose(1, 2)
                total.transpose(1, 2).index_put_((images, where), given, accumulate=True)
            else:
                total.scatter_add_(2, where[:, None].expand_as(flat), given)
        return total.view_as(g), None, None
