"""What is done with images and gradients outside the networks: in full, in a fixed order.

TF32 is for networks alone.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def set_tf32(allowed: bool) -> None:
    """Whether CUDA may round the factors of a product to TF32; cuDNN does unless it is told."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 in full, whatever the precision of the run."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def smoothed(g: Tensor, kernel: Tensor) -> Tensor:
    """W ∗ g for each channel, zero-padded, (B, C, H, W), for an odd square kernel W (k, k)."""
    channels, side = g.shape[1], len(kernel)
    with without_tf32():
        each = kernel.expand(channels, 1, side, side)
        return F.conv2d(g, each, padding=side // 2, groups=channels)


class Separable(torch.autograd.Function):
    """R X Cᵀ for images X (b, C, H, W) and tables R, C (b, H, H), (b, W, W), never in TF32.

    Sums of a product have a fixed order on CUDA, which the gradients of gathers have not.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """R X Cᵀ."""
        ctx.save_for_backward(rows, columns)
        return _in_full(rows[:, None], images, columns.mT[:, None])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """Rᵀ G C, by the images alone."""
        rows, columns = ctx.saved_tensors
        return _in_full(rows.mT[:, None], g, columns[:, None]), None, None


def _in_full(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    with without_tf32():
        return left @ middle @ right
