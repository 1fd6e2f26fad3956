"""Models as the rest of irattack sees them: [0, 1] images in, logits out, frozen.

`zoo` names, describes and builds them; nothing in it waits for PyTorch before a network is built.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from irattack.models.network import Ensemble, Network

__all__ = ["Ensemble", "Network", "load"]


def load(
    name: str,
    benchmark: str = "photos",
    pretrained: bool = True,
    weights_dir: str | None = None,
    device: Any = "cpu",
) -> "nn.Module":
    """A network of a benchmark, frozen and in eval mode: images (B, 3, H, W) in [0, 1] to logits.

    Args:
        name: as `irattack ls models benchmark=…` lists it, or a timm name where it may be one.
        benchmark: whose networks; those of photos come with irattack.
        pretrained: false for random weights, the same in every process.
        weights_dir: a folder of weights that is searched before anything is downloaded.
        device: where it goes, as PyTorch names it.

    Raises:
        InputError: there is no such network, or its weights cannot be used.
    """
    from pathlib import Path

    from irattack.errors import InputError
    from irattack.models import zoo

    if weights_dir is not None and not Path(weights_dir).is_dir():
        raise InputError(f"weights_dir={weights_dir}: there is no such folder.")
    return zoo.build(benchmark, name, pretrained, weights_dir).to(device)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'irattack.models' has no attribute {name!r}")
    from irattack.models import network

    return getattr(network, name)
