"""Builds a model by name: its facts stand in conf/model/<benchmark>/<name>.yaml, or are timm's."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import get_method
from omegaconf import OmegaConf
from torch import nn

from irattack.conf import CONF
from irattack.errors import InputError, unknown
from irattack.hashing import key, sha256
from irattack.models.network import Ensemble, Network

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


@cache
def owner(benchmark: str) -> str:
    """The benchmark whose models this one uses: `models` in its yaml, or itself."""
    settings: Any = OmegaConf.load(CONF / "benchmark" / f"{benchmark}.yaml")
    found = settings.get("models", benchmark)
    known = sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml"))
    if found not in known:
        raise unknown("benchmark.models", found, known)
    return found


def names(benchmark: str) -> list[str]:
    """Every model that the benchmark defines, or the one whose models it uses."""
    return sorted(path.stem for path in (CONF / "model" / owner(benchmark)).glob("*.yaml"))


@cache
def shared(benchmark: str) -> dict[str, Any]:
    """The facts that all models of a benchmark share: `model` in the yaml of their owner."""
    settings: Any = OmegaConf.load(CONF / "benchmark" / f"{owner(benchmark)}.yaml")
    found: Any = OmegaConf.to_container(settings.model)
    return found


def card(benchmark: str, name: str, what: str = "source") -> dict[str, Any]:
    """The facts of a model, over those that all models of the benchmark share.

    It has `members` (an ensemble), or `mean`, `std`, `size`, `classes` and one of `timm`,
    `torchvision` (a tag of published weights) or `factory` (a function of the number of classes,
    with a file of `weights`); `lam`, and for SGM `skip`.
    """
    return deepcopy(_card(benchmark, name, what))


@cache
def _card(benchmark: str, name: str, what: str) -> dict[str, Any]:
    benchmark = owner(benchmark)
    settings: Any = OmegaConf.load(CONF / "benchmark" / f"{benchmark}.yaml")
    path = CONF / "model" / benchmark / f"{name}.yaml"
    if name in names(benchmark):
        own = OmegaConf.load(path)
    elif settings.get("any_timm_model") and _published().known_to_timm(name):
        own = OmegaConf.create({"timm": name})
    else:
        more = " or any ImageNet-1k model of timm" if settings.get("any_timm_model") else ""
        allowed = names(benchmark)
        raise unknown(what, name, allowed, f"expected one of {', '.join(allowed)}{more}")
    merged = OmegaConf.to_container(OmegaConf.merge(settings.model, own))
    assert isinstance(merged, dict)
    facts = {str(key): value for key, value in merged.items()}
    if "timm" in facts or "torchvision" in facts:
        facts |= _published().facts(facts)
    elif "members" not in facts:
        wanted = ("factory", "mean", "std", "size", "classes")
        missing = [fact for fact in wanted if fact not in facts]
        if missing:
            raise InputError(f"{path}: lacks {', '.join(missing)}; add them to the model's facts.")
    return facts


def _published() -> Any:
    from irattack.models import published  # takes seconds, which photos need not wait

    return published


def weights(benchmark: str, name: str, weights_dir: str | None = None) -> tuple[Path, str]:
    """The path and the SHA-256 of a model's weights: the shipped, a folder's, or the published.

    The hash is the expected one of shipped weights, and of others what the file has.
    """
    shipped = WEIGHTS / owner(benchmark) / f"{name}.safetensors"
    if shipped.with_suffix(".json").is_file():
        return shipped, json.loads(shipped.with_suffix(".json").read_text())["sha256"]
    path = _published().find_weights(name, card(benchmark, name), weights_dir)
    return path, _published().digest(path)


def identity(
    benchmark: str, name: str, pretrained: bool = True, weights_dir: str | None = None
) -> dict[str, Any]:
    """All that decides a model's outputs: its card and its weights' hashes. Builds nothing."""
    facts = card(benchmark, name)
    if "members" in facts:
        members = [identity(benchmark, m, pretrained, weights_dir) for m in facts["members"]]
        return {"members": members}
    keys = ("factory", "timm", "torchvision", "mean", "std", "size", "classes")
    found = {key: facts[key] for key in keys if key in facts}
    if not pretrained:
        return found | {"untrained": name}
    return found | {"sha256": weights(benchmark, name, weights_dir)[1]}


def classes(benchmark: str, name: str) -> int:
    """How many classes a model knows; its members, for an ensemble."""
    facts = card(benchmark, name)
    if "members" in facts:
        return min(classes(benchmark, member) for member in facts["members"])
    return facts["classes"]


def skips(benchmark: str, name: str) -> Any:
    """What SGM knows of a model's skip connections, those of its members for an ensemble."""
    facts = card(benchmark, name)
    if "members" in facts:
        return [skips(benchmark, member) for member in facts["members"]]
    return facts.get("skip")


def build(
    benchmark: str, name: str, pretrained: bool = True, weights_dir: str | None = None
) -> nn.Module:
    """The model `name`, frozen and in eval mode.

    Args:
        pretrained: false for random weights, the same in every process.
        weights_dir: a folder of weights that is searched before anything is downloaded.
    """
    facts = card(benchmark, name)
    if "members" in facts:
        members = facts["members"]
        return Ensemble([build(benchmark, m, pretrained, weights_dir) for m in members]).eval()
    if pretrained:
        model = _with_weights(benchmark, name, facts, weights_dir)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(int(key(name), 16))
            model = untrained(facts)
    return model.eval().requires_grad_(False)


def untrained(facts: dict[str, Any]) -> Network:
    """The network of a card with fresh weights, trainable."""
    if "factory" in facts:
        try:
            factory = get_method(facts["factory"])
        except (HydraException, ImportError, ValueError) as error:
            raise InputError(
                f"factory: {facts['factory']} cannot be imported ({error}); name a function of the "
                "number of classes that returns a network, as package.module.function."
            ) from error
        return _network(factory(facts["classes"]), facts)
    return _network(_published().body(facts, None), facts)


def _network(body: nn.Module, facts: dict[str, Any]) -> Network:
    return Network(body, facts["mean"], facts["std"], facts["size"], facts.get("skip"))


def _with_weights(
    benchmark: str, name: str, facts: dict[str, Any], weights_dir: str | None
) -> Network:
    path, expected = weights(benchmark, name, weights_dir)
    if not path.is_file() or sha256(path) != expected:
        raise InputError(
            f"{path} is not the file whose SHA-256 is {expected[:12]}…: "
            "restore it with `git checkout` or retrain with `make train-photos`."
        )
    state = _published().read_weights(path)
    try:
        if "factory" not in facts:
            return _network(_published().body(facts, state), facts)
        model = untrained(facts)
        model.body.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: does not fit {name} ({why}); give this network's own weights."
        ) from error
    return model
