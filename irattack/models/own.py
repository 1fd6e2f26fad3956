"""A network and images of the user's own, checked, as the rest of irattack takes them."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from irattack.errors import InputError, some
from irattack.models.network import Ensemble, Network, logits_of

ROUNDING = 1e-4  # by which x + δ may leave [0, 1] without being another image


class Classifier(nn.Module):
    """A network whose answer is its logits alone, however it returns them (see `logits_of`)."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.skip: dict[str, Any] | None = getattr(body, "skip", None)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in [0, 1]."""
        return logits_of(self.body(images))


@contextlib.contextmanager
def classifier(net: nn.Module, x: Tensor, y: Tensor) -> Iterator[nn.Module]:
    """The network as attacks take it, in eval mode and frozen; as it was on leaving.

    Args:
        net: from images in [0, 1] to logits, a tuple or an object that holds them.
        x: images (…, B, C, H, W) in [0, 1].
        y: their labels (B,).

    Raises:
        InputError: they do not fit together.
    """
    check_batch(net, x, y)
    modes = [(module, module.training) for module in net.modules()]
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        model = net if isinstance(net, Network | Ensemble) else Classifier(net).eval()
        with torch.no_grad():
            found = _tried(model, x.flatten(0, -4)[:1])
            check_logits(found, y)
            warn_of_probabilities(found)
        yield model
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def _tried(model: nn.Module, image: Tensor) -> Tensor:
    try:
        return model(image)
    except InputError:
        raise
    except Exception as error:  # of code that is not ours
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"net: fails on one image, {image.dtype} {tuple(image.shape)} ({why}); give images of "
            "the size and kind of number that it takes."
        ) from error


def check_batch(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Raises InputError unless x are images (…, B, C, H, W) in [0, 1] and y their labels (B,)."""
    if not isinstance(net, nn.Module):
        raise InputError(
            f"net: is a {type(net).__name__}; expected a torch.nn.Module, such as "
            "models.load('resnet34')."
        )
    if not isinstance(x, Tensor) or x.ndim < 4 or not x.is_floating_point() or 0 in x.shape:
        given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"x: is {given}; expected a floating-point tensor of images, (B, C, H, W) in [0, 1]."
        )
    low, high = x.min().item(), x.max().item()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN, too
        raise InputError(
            f"x: has values from {low:.3g} to {high:.3g}; expected images in [0, 1]. Divide 8-bit "
            "ones by 255, and put a normalisation into the network: "
            "models.Network(body, mean, std, size)."
        )
    whole = isinstance(y, Tensor) and y.dtype in (torch.int64, torch.int32, torch.uint8)
    if not whole or y.shape != x.shape[-4:-3]:
        given = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError(
            f"y: is {given}; expected a tensor of {x.shape[-4]} whole numbers, the class of each "
            "image."
        )
    where = {tensor.device for tensor in (x, y, *net.parameters(), *net.buffers())}
    if len(where) > 1:
        raise InputError(
            f"net, x and y: are on {', '.join(sorted(map(str, where)))}; move them to one device."
        )


def check_logits(logits: Tensor, y: Tensor) -> None:
    """Raises InputError unless they are an image's logits, (1, classes), of all classes in y."""
    if logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise InputError(
            f"net: gives a tensor {tuple(logits.shape)} for one image; expected logits (1, "
            "classes), of two classes or more."
        )
    if not 0 <= y.min() <= y.max() < logits.shape[1]:
        raise InputError(
            f"y: has classes from {y.min()} to {y.max()}; this network knows 0 to "
            f"{logits.shape[1] - 1}."
        )


def warn_of_probabilities(values: Tensor) -> None:
    """Warns of what looks like probabilities, (1, classes), where logits are expected."""
    if values.min() >= 0 and ((values.sum(dim=1) - 1).abs() < 1e-4).all():
        warnings.warn(
            "net: gives numbers that sum to 1, as a softmax does; attacks and interactions are of "
            "logits, leave the softmax out.",
            stacklevel=5,
        )


def check_finite(what: str, values: Tensor) -> None:
    """Raises InputError if anything is NaN or infinite; values (…, B)."""
    bad = (~values.isfinite()).reshape(-1, values.shape[-1]).any(dim=0).nonzero().flatten().tolist()
    if bad:
        raise InputError(
            f"net: gives {what} that are NaN or infinite on {len(bad)} of {values.shape[-1]} "
            f"images ({some([f'number {i}' for i in bad])}); use float32, or a network without "
            "overflow."
        )
