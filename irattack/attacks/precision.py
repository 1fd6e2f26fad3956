"""TF32 is for networks alone: what is done with images and gradients is in float32."""

import contextlib
from collections.abc import Iterator

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
