"""Defences of a network that transform its images, named behind it: `vgg16+bits5+jpeg75`.

Each is one function of images in [0, 1], in that order; none is trained, and none gives gradients.
What a name means takes no PyTorch.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from irattack.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    # from what one image draws, shape S, to what all draw, (B, *S)
    Draw = Callable[[Callable[[torch.Generator], Tensor]], Tensor]

VERSION = 2  # raise it when the same name starts to give other images


def through_file(image: np.ndarray, form: str, **options: Any) -> np.ndarray:
    """An image (3, H, W) uint8 as it comes back from a file of this format, written by Pillow."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, form, **options)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def jpeg(images: "Tensor", quality: float, draw: "Draw") -> "Tensor":
    """JPEG of a quality from 1 to 100 (Dziugaite et al., 2016, arXiv 1608.00853), 4:2:0, by Pillow.

    Images (B, 3, H, W) in [0, 1] are rounded to 8 bits before, and have 8 bits after.
    """
    import torch

    pixels = (255 * images.clamp(0, 1)).round().byte().cpu().numpy()
    found = np.stack([through_file(image, "jpeg", quality=int(quality)) for image in pixels])
    return torch.from_numpy(found).to(images) / 255


def bits(images: "Tensor", depth: float, draw: "Draw") -> "Tensor":
    """The nearest of 2^depth evenly spaced levels (Xu et al., 2018, arXiv 1704.01155, Section 3.1).

    Images (B, 3, H, W), clipped to [0, 1]; a depth of 8 changes no 8-bit image.
    """
    steps = 2 ** int(depth) - 1
    return (images.clamp(0, 1) * steps).round() / steps


def median(images: "Tensor", side: float, draw: "Draw") -> "Tensor":
    """The median of side x side pixels of a channel (Xu et al., 2018, Section 3.2).

    Images (B, 3, H, W); beyond a border they are mirrored, the border pixel repeated. A window of
    an even side has its centre right of and below its middle, and the upper one of two medians.
    """
    import torch

    k = int(side)

    def within(length: int) -> "Tensor":
        """The pixels of a mirrored axis."""
        at = torch.arange(-(k // 2), length + k - 1 - k // 2, device=images.device)
        at = torch.where(at < 0, -1 - at, at)
        return torch.where(at < length, at, 2 * length - 1 - at)

    rows, columns = (within(length) for length in images.shape[-2:])
    found = []
    for part in images.split(8):  # which takes k² times their memory
        windows = part[:, :, rows][..., columns].unfold(2, k, 1).unfold(3, k, 1)
        found.append(windows.flatten(-2).kthvalue(k * k // 2 + 1).values)
    return torch.cat(found)


def resizepad(images: "Tensor", ratio: float, draw: "Draw") -> "Tensor":
    """A random size below ratio · side, padded with grey at random to it (Xie et al., 2018).

    arXiv 1711.01991, Section 4: 299 px to a size in [299, 331), padded to 331 with zeros, which
    are grey, 0.5, in the images in [−1, 1] that its networks take. Nearest pixels.
    Images (B, 3, H, W) to (B, 3, round(ratio · H), round(ratio · W)), which the network resizes to
    the size that it takes, as it does all images.
    """
    import torch
    import torch.nn.functional as F

    most = [round(ratio * side) for side in images.shape[-2:]]
    found = []
    for image, (size, *where) in zip(
        images.split(1), draw(lambda g: torch.rand(3, generator=g)).tolist(), strict=True
    ):
        sides = zip(images.shape[-2:], most, strict=True)
        new = [side + int(size * (wide - side)) for side, wide in sides]
        spare = [wide - side for wide, side in zip(most, new, strict=True)]
        top, left = (int(u * (room + 1)) for u, room in zip(where, spare, strict=True))
        resized = F.interpolate(image, size=new, mode="nearest")
        found.append(F.pad(resized, (left, spare[1] - left, top, spare[0] - top), value=0.5))
    return torch.cat(found)


def smooth(images: "Tensor", sigma: float, draw: "Draw") -> "Tensor":
    """x + N(0, σ²), σ in units of [0, 1] images, not clipped (Cohen et al., 2019, Eq. 1).

    arXiv 1902.02918. Images (B, 3, H, W).
    """
    import torch

    shape = images.shape[1:]
    return images + sigma * draw(lambda g: torch.randn(shape, generator=g)).to(images)


@dataclass(frozen=True)
class Kind:
    """A row of the table of defences.

    Attributes:
        apply: from images (B, 3, H, W), the strength, and random numbers of each image, to images.
        means: what the number behind its name is.
        low, high: between which it may be.
        whole: whether it is a whole number.
        usual: the strength of a name without a number; None if it needs one.
        votes: of how many noisy copies the majority is taken, if the name does not say; 0 for none.
    """

    apply: "Callable[[Tensor, float, Draw], Tensor]"
    means: str
    low: float
    high: float
    whole: bool = True
    usual: float | None = None
    votes: int = 0

    @property
    def numbers(self) -> str:
        """What the number is and may be, for a sentence."""
        usual = ", or none" if self.usual is not None else ""
        return f"{self.means}, {self.low} to {self.high}{usual}"


KINDS = {
    "jpeg": Kind(jpeg, "quality", 1, 100),
    "bits": Kind(bits, "bits of a channel", 1, 8),
    "median": Kind(median, "side of the window in px", 1, 9),
    "resizepad": Kind(
        resizepad, "largest side over the image's", 1, 2, whole=False, usual=331 / 299
    ),
    "smooth": Kind(smooth, "σ of the noise for images in [0, 1]", 0, 1, whole=False, votes=32),
}
MOST_VOTES = 10_000


@dataclass(frozen=True)
class Defence:
    """A defence of a strength, as it is named.

    Attributes:
        name: of `KINDS`.
        votes: noisy copies of which the majority is taken; 0 for none.
    """

    name: str
    strength: float
    votes: int = 0

    @property
    def facts(self) -> list[Any]:
        """What decides its images, and the answer."""
        return [self.name, self.strength, self.votes]

    def __call__(self, images: "Tensor", draw: "Draw") -> "Tensor":
        """Images (B, 3, H, W) as the next defence, or the network, gets them."""
        return KINDS[self.name].apply(images, self.strength, draw)


def allowed() -> str:
    """The defences that there are, for a sentence."""
    return ", ".join(f"{name} ({kind.numbers})" for name, kind in KINDS.items())


def defence(text: str, what: str) -> Defence:
    """The defence that a text such as `jpeg75` or `smooth0.25x100` names.

    Args:
        what: names it, for the sentence, as `targets`.

    Raises:
        InputError: there is none, or none of this strength.
    """
    found = re.fullmatch(r"([a-z]*)(\d+(?:\.\d+)?)?(?:x(\d+))?", text)
    name = found[1] if found else text
    if found is None or name not in KINDS:
        near = get_close_matches(name, KINDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{what}: +{text}: {hint}expected the name of a defence and its number: {allowed()}."
        )
    kind = KINDS[name]
    strength = float(found[2]) if found[2] else kind.usual
    votes = int(found[3] or kind.votes)
    fits = strength is not None and kind.low <= strength <= kind.high
    fits = fits and not (kind.whole and strength % 1)  # type: ignore[operator]
    votable = 1 <= votes <= MOST_VOTES if kind.votes else not found[3]
    if strength is None or not (fits and votable):
        number = "a whole number" if kind.whole else "a number"
        usual = ", or none" if kind.usual is not None else ""
        copies = f", and behind an x how many copies vote, 1 to {MOST_VOTES}" if kind.votes else ""
        raise InputError(
            f"{what}: +{text}: expected {name} and {number} from {kind.low} to {kind.high} "
            f"({kind.means}){usual}{copies}."
        )
    return Defence(name, int(strength) if kind.whole else strength, votes)


def parted(name: str, what: str = "targets") -> tuple[str, Sequence[Defence]]:
    """The network of a name such as `vgg16+bits5+jpeg75`, and its defences in their order.

    Raises:
        InputError: there is no such defence.
    """
    network, *texts = name.split("+")
    return network, [defence(text, what) for text in texts]
