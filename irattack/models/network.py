"""What makes any classifier an attackable model: its normalisation and input size are inside it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irattack.errors import InputError
from irattack.exact import Separable
from irattack.models.defences import Defence

TOLERANCE = 1e-4  # of the largest logit: what rounding may change, and nothing else


@dataclass(frozen=True)
class Resize:
    """How a network sees an image: resized to size / crop_pct px, of which the centre is kept.

    Attributes:
        size: side of what the network gets, in pixels.
        interpolation: bilinear or bicubic, both with antialiasing.
        crop_pct: the part of the side that the centre crop keeps, in (0, 1]; 1 keeps everything.
    """

    size: int
    interpolation: str = "bilinear"
    crop_pct: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to (B, 3, size, size) in [0, 1], differentiable."""
        whole = int(self.size / self.crop_pct)
        images = resized(images, whole, self.interpolation)
        if whole == self.size:
            return images
        first = round((whole - self.size) / 2)
        return images[..., first : first + self.size, first : first + self.size]


def resized(images: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """Images (B, 3, H, W) at size x size pixels; as they are if they have that size.

    Bicubic values that overshoot [0, 1] are clipped, as in an image file.
    """
    if images.shape[-2:] == (size, size):
        return images
    # on CUDA the gradient of F.interpolate is a sum in no fixed order
    how = by_tables if images.is_cuda else F.interpolate
    found = how(images, size=(size, size), mode=interpolation, antialias=True)
    return found.clamp(0, 1) if interpolation == "bicubic" else found


def by_tables(images: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    """F.interpolate of images (B, C, H, W), as two products with tables of its weights."""
    rows, columns = (
        interpolation_table(before, after, mode, antialias, images.dtype, images.device)
        for before, after in zip(images.shape[-2:], size, strict=True)
    )
    return Separable.apply(images, rows, columns)


@cache
def interpolation_table(
    before: int, after: int, mode: str, antialias: bool, dtype: torch.dtype, where: torch.device
) -> Tensor:
    """What each pixel of an axis weighs in each that it is resized to, (1, after, before)."""
    each = torch.eye(before, dtype=torch.float64)[None, None]
    found = F.interpolate(each, size=(after, before), mode=mode, antialias=antialias)[0]
    return found.to(where, dtype)


class Network(nn.Module):
    """A classifier of images in [0, 1].

    Args:
        body: maps normalised images (B, 3, size, size) to logits (B, offset + classes), or to
            something that holds them (see `logits_of`).
        mean: of each channel, for the normalisation, in units of [0, 1] images.
        std: the same.
        size: input side in pixels; images of another size are resized.
        skip: what SGM needs to know of the skip connections; None if there are none.
        interpolation: how they are resized, see `Resize`.
        crop_pct: the same.
        offset: how many logits stand before those of the classes, such as a background's.

    Attributes:
        resize: what `forward` does first; for images that several networks see at one size.
        lam: the λ of its yaml, for an attack that is given none; None where no yaml says it.
        reduced: whether the body computes in bfloat16; images and logits stay as they are.
        compiled: whether torch.compile runs the body, which may then reuse the memory of the last
            logits.
        memory_format: of the images that the body gets.
        scale: by what the logits are multiplied, one over the temperature (Guo et al., 2017).
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
        interpolation: str = "bilinear",
        crop_pct: float = 1.0,
        offset: int = 0,
    ):
        super().__init__()
        self.body = body
        self.skip = skip
        self.size = size
        self.resize = Resize(size, interpolation, crop_pct)
        self.offset = offset
        self.lam: float | None = None
        self.reduced = False
        self.compiled = False
        self.memory_format = torch.channels_last
        self.scale = 1.0
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) in [0, 1]."""
        return self.classify(self.resize(images))

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, size, size) in [0, 1] that `resize` made."""
        normalised = (images - self.mean) / self.std
        normalised = normalised.contiguous(memory_format=self.memory_format)
        output = self.body(normalised.bfloat16() if self.reduced else normalised)
        logits = logits_of(output)[:, self.offset :]
        return logits.to(images.dtype, copy=self.compiled) * self.scale


def logits_of(output: Any) -> Tensor:
    """The logits in what a network returns: a tensor, or the one that a container holds.

    That is `logits` of a dictionary or object, the only entry of a dictionary, or the first of a
    tuple or list; of those inside one another, too.

    Raises:
        InputError: there is no such tensor.
    """
    found = output
    while not isinstance(found, Tensor):
        if isinstance(found, Mapping) and (len(found) == 1 or "logits" in found):
            found = found.get("logits", next(iter(found.values())))
        elif hasattr(found, "logits"):
            found = found.logits
        elif isinstance(found, tuple | list) and found:
            found = found[0]
        else:
            holds = f" with {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
            raise InputError(
                f"its network returns a {type(found).__name__}{holds} in place of logits; expected "
                "a tensor (B, classes), a tuple whose first is that, or one named `logits`."
            )
    return found


def check_finite(name: str, values: np.ndarray | Tensor, ids: Sequence[str]) -> None:
    """Raises InputError, with network and images named, if anything is NaN or infinite.

    Args:
        name: of the network that gave the values.
        values: of logits, margins or a gradient, whose last axis is that of the images (…, b).
        ids: the names of the b images.
    """
    bad = (~torch.as_tensor(values).isfinite()).reshape(-1, len(ids)).any(dim=0).nonzero().flatten()
    if len(bad):
        some = ", ".join(ids[i] for i in bad[:3])
        raise InputError(
            f"{name}: gives NaN or infinity on {len(bad)} of {len(ids)} images ({some}…), on which "
            "nothing can be said; use precision=fp32 if it is not, or a network without overflow."
        )


class Ensemble(nn.Module):
    """The mean logit of several networks, each with its own normalisation (Liu et al., 2016)."""

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) in [0, 1]."""
        return torch.stack([member(images) for member in self.members]).mean(dim=0)


@dataclass(frozen=True, eq=False)
class Chance:
    """What defences draw: a function of the seed, the image's 8-bit pixels, and the purpose.

    So a defended network is one function of the image, whatever batch it is in.

    Args:
        images: (B, 3, H, W) in [0, 1], before any defence.
    """

    images: Tensor
    seed: int

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of each image."""
        pixels = (255 * self.images).round().clamp(0, 255).byte().cpu().contiguous().numpy()
        return [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]

    def draw(self, purpose: str, one: Callable[[torch.Generator], Tensor]) -> Tensor:
        """What each image draws, (B, …), on the CPU."""

        def row(digest: str) -> Tensor:
            key = hashlib.sha256(f"{self.seed}/{digest}/{purpose}".encode()).digest()
            return one(torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1))

        return torch.stack([row(digest) for digest in self.digests])


class Defended(nn.Module):
    """A network behind defences that transform its images; it gives no gradients.

    With a defence that votes, what is returned is log(1 + votes) of each class over as many copies
    of an image, each of which draws anew for the whole chain; its softmax is (1 + votes) / (copies
    + classes), its largest the class of the majority.

    Args:
        network: images (B, 3, H, W) in [0, 1], or with a defence's noise on them, to logits.
        defences: in the order in which an image meets them.
        seed: of what they draw.
    """

    def __init__(self, network: nn.Module, defences: Sequence[Defence], seed: int = 0):
        super().__init__()
        self.network, self.defences, self.seed = network, list(defences), seed
        self.copies = max(defence.votes for defence in defences)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, or log(1 + votes), (B, classes) of images (B, 3, H, W) in [0, 1].

        Raises:
            InputError: a gradient is asked for.
        """
        if images.requires_grad and torch.is_grad_enabled():
            names = "+".join(defence.name for defence in self.defences)
            raise InputError(
                f"+{names}: a defended network gives no gradients; attack and measure the network "
                "alone, source=vgg16, and name its defences among the targets."
            )
        chance = Chance(images, self.seed)
        if not self.copies:
            return self.network(self.defended(images, chance, 0))
        votes: Tensor | float = 0.0
        for copy in range(self.copies):
            logits = self.network(self.defended(images, chance, copy))
            voted = F.one_hot(logits.argmax(dim=1), logits.shape[1])
            votes = votes + voted + 0 * logits  # NaN if any logit is
        return torch.as_tensor(votes).log1p()

    def defended(self, images: Tensor, chance: Chance, copy: int) -> Tensor:
        """A copy of the images (B, 3, H, W) as the network gets it, maybe of another size."""
        for place, defence in enumerate(self.defences):
            purpose = f"{copy}/{place}/{defence.name}"
            images = defence(images, partial(chance.draw, purpose))
        return images


def networks(model: nn.Module) -> list[Network]:
    """The networks that a model consists of: itself, or the members of an ensemble."""
    return [module for module in model.modules() if isinstance(module, Network)]


def sample(network: Network, count: int = 1) -> Tensor:
    """Random images (count, 3, size, size) in [0, 1], always the same, on the network's device."""
    seeded = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, network.size, network.size, generator=seeded).to(network.mean)


def scaled(model: nn.Module, scale: float) -> nn.Module:
    """Lets the networks of a model multiply their logits, in place; returns the model."""
    for network in networks(model):
        network.scale = scale
    return model


def scale_for(logits: Tensor, y: Tensor, confidence: float) -> float:
    """The s > 0 at which the median over images of softmax_y(s h) is this, to 1e-9 of s.

    Of an image that is classified correctly, p_y rises with s from 1 / C to 1.

    Args:
        logits: h, (N, C) float64.
        y: (N,).
        confidence: in (0, 1).

    Raises:
        InputError: there is none.
    """
    from scipy.optimize import brentq

    def above(exponent: float) -> float:
        p = (np.exp(exponent) * logits).log_softmax(dim=1).gather(1, y[:, None]).exp()
        return float(np.median(p.cpu().numpy())) - confidence

    low, high = -15.0, 15.0
    if above(low) >= 0 or above(high) <= 0:
        reached = [f"{confidence + above(end):.4f}" for end in (low, high)]
        raise InputError(
            f"has a median p_y from {reached[0]} to {reached[1]} on these images, whatever its "
            "temperature; give a confidence between."
        )
    return float(np.exp(brentq(above, low, high, xtol=1e-9)))


def in_bfloat16(model: nn.Module) -> nn.Module:
    """Lets the bodies of a model compute in bfloat16, in place; returns the model."""
    for network in networks(model):
        network.body.bfloat16()
        network.reduced = True
    return model


def compiled(model: nn.Module) -> nn.Module:
    """Lets torch.compile run the bodies of a model, in place, on CUDA as graphs of its kernels.

    Nothing is compiled before the first images come, and again for a second number of images.
    """
    for network in networks(model):
        network.body.compile(mode="reduce-overhead")
        network.compiled = True
    return model
