"""What the yaml of a model may say of it; everything else is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from irattack.errors import InputError, unknown

KINDS = ("factory", "timm", "torchvision", "members")  # a model is one of these


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _channels(value: Any) -> bool:
    three = isinstance(value, list) and len(value) == 3
    return three and all(type(v) in (int, float) and 0 <= v <= 1 for v in value)


FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "factory": (_text, "a function of the number of classes, as package.module.function"),
    "timm": (_text, "the name of a model of timm"),
    "torchvision": (_text, "weights such as ResNet50_Weights.IMAGENET1K_V2, or a model's name"),
    "members": (
        lambda v: isinstance(v, list) and bool(v) and all(map(_text, v)),
        "a list of models such as [resnet34, densenet121]",
    ),
    "weights": (_text, "a file that holds a state dict"),
    "match": (
        lambda v: v in ("name", "order"),
        "name or order, by which the tensors of `weights` are matched with the network's",
    ),
    "how": (_text, "how the file of weights is made"),
    "mean": (_channels, "three numbers for images in [0, 1] (divide those for [0, 255] by 255)"),
    "std": (
        lambda v: _channels(v) and min(v) > 0,
        "three numbers above 0 for images in [0, 1] (divide those for [0, 255] by 255)",
    ),
    "size": (_count, "the side of the network's input in pixels"),
    "classes": (_count, "how many classes the network knows"),
    "offset": (
        lambda v: type(v) is int and v >= 0,
        "how many logits stand before those of the classes, such as 1 for a background class",
    ),
    "interpolation": (lambda v: v in ("bilinear", "bicubic"), "bilinear or bicubic"),
    "crop_pct": (
        lambda v: type(v) in (int, float) and 0 < v <= 1,
        "the part of the side that the centre crop keeps, such as 0.875",
    ),
    "lam": (lambda v: type(v) in (int, float), "λ, a number"),
    "skip": (lambda v: v is None or isinstance(v, dict), "what SGM knows of its branches"),
}


def check(path: Path, own: dict[str, Any], shared: dict[str, Any]) -> None:
    """Raises InputError for the first fact that a model's yaml, or its benchmark's, may not say.

    Args:
        path: of the yaml of the model, for the sentence.
        own: what it says.
        shared: what the benchmark says of all its models.
    """
    for fact, value in (shared | own).items():
        if fact not in FACTS:
            raise unknown(f"{path}: fact", fact, FACTS)
        holds, expected = FACTS[fact]
        if not holds(value):
            raise InputError(f"{path}: {fact}={value}: expected {expected}.")
    kinds = [kind for kind in KINDS if kind in own]
    if len(kinds) != 1:
        raise InputError(
            f"{path}: names {' and '.join(kinds) or 'no network'}; a model needs exactly one of "
            f"{', '.join(KINDS)}."
        )
    beside = sorted(own.keys() - {"members", "lam"}) if "members" in own else []
    if beside or path.stem in own.get("members", []):
        wrong = f"says {', '.join(beside)}" if beside else "has itself as a member"
        raise InputError(f"{path}: an ensemble {wrong}; say such facts in the yaml of a member.")
    if "_Weights" not in own.get("torchvision", "_Weights") and "weights" not in own:
        raise InputError(
            f"{path}: torchvision={own['torchvision']} is a network without weights; name "
            "published ones, such as ResNet50_Weights.IMAGENET1K_V2, or your own `weights:`."
        )


def missing(facts: dict[str, Any]) -> list[str]:
    """What has to be known of a network before it can be named by its facts, and is not said."""
    return [fact for fact in ("mean", "std", "size", "classes") if fact not in facts]
