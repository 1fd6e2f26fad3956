"""What makes any classifier an attackable model: its normalisation and input size are inside it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """A classifier of images in [0, 1].

    Args:
        body: maps normalised images (B, 3, size, size) to logits (B, classes).
        mean, std: per-channel constants of the normalisation, in units of [0, 1] images.
        size: input side in pixels; images of another size are resized bilinearly.
        skip: what SGM needs to know of the skip connections; None if there are none.

    Attributes:
        reduced: whether the body computes in bfloat16; images and logits stay as they are.
        memory_format: of the images that the body gets.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        skip: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.body = body
        self.skip = skip
        self.size = size
        self.reduced = False
        self.memory_format = torch.channels_last
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) in [0, 1]."""
        normalised = (resized(images, self.size) - self.mean) / self.std
        normalised = normalised.contiguous(memory_format=self.memory_format)
        if self.reduced:
            return self.body(normalised.bfloat16()).to(images.dtype)
        return self.body(normalised)


def resized(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) at size x size pixels, bilinear; as they are if they have that size."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


class Ensemble(nn.Module):
    """The mean logit of several networks, each with its own normalisation (Liu et al., 2016)."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) in [0, 1]."""
        return torch.stack([member(images) for member in self.members]).mean(dim=0)


def networks(model: nn.Module) -> list[Network]:
    """The networks that a model consists of: itself, or the members of an ensemble."""
    return [module for module in model.modules() if isinstance(module, Network)]


def in_bfloat16(model: nn.Module) -> nn.Module:
    """Lets the bodies of a model compute in bfloat16, in place; returns the model."""
    for network in networks(model):
        network.body.bfloat16()
        network.reduced = True
    return model
