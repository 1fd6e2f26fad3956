"""Builds a model by name: its facts stand in conf/model/<benchmark>/<name>.yaml."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_method
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from irattack.errors import InputError, unknown
from irattack.models.network import Ensemble, Network
from irattack.store import sha256

CONF = Path(__file__).resolve().parents[2] / "conf"
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


def names(benchmark: str) -> list[str]:
    """Every model that the benchmark defines."""
    return sorted(path.stem for path in (CONF / "model" / benchmark).glob("*.yaml"))


def card(benchmark: str, name: str, what: str = "source") -> dict[str, Any]:
    """The facts of a model, over those that all models of the benchmark share."""
    if name not in names(benchmark):
        raise unknown(what, name, names(benchmark))
    return deepcopy(_card(benchmark, name))


@cache
def _card(benchmark: str, name: str) -> dict[str, Any]:
    shared = OmegaConf.load(CONF / "benchmark" / f"{benchmark}.yaml").model
    own = OmegaConf.load(CONF / "model" / benchmark / f"{name}.yaml")
    merged = OmegaConf.to_container(OmegaConf.merge(shared, own))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def weights(benchmark: str, name: str) -> tuple[Path, str]:
    """The path and the expected SHA-256 of a model's weights."""
    path = WEIGHTS / benchmark / f"{name}.safetensors"
    return path, json.loads(path.with_suffix(".json").read_text())["sha256"]


def identity(benchmark: str, name: str) -> dict[str, Any]:
    """All that decides a model's outputs: its card and its weights' hashes. Builds nothing."""
    facts = card(benchmark, name)
    if "members" in facts:
        return {"members": [identity(benchmark, member) for member in facts["members"]]}
    keys = ("factory", "mean", "std", "size", "classes")
    return {key: facts[key] for key in keys} | {"sha256": weights(benchmark, name)[1]}


def skips(benchmark: str, name: str) -> Any:
    """What SGM knows of a model's skip connections, those of its members for an ensemble."""
    facts = card(benchmark, name)
    if "members" in facts:
        return [skips(benchmark, member) for member in facts["members"]]
    return facts.get("skip")


def build(benchmark: str, name: str, pretrained: bool = True) -> nn.Module:
    """The model `name`, frozen and in eval mode; untrained and trainable if not `pretrained`."""
    facts = card(benchmark, name)
    if "members" in facts:
        return Ensemble([build(benchmark, member) for member in facts["members"]]).eval()
    body = get_method(facts["factory"])(facts["classes"])
    model = Network(body, facts["mean"], facts["std"], facts["size"], facts.get("skip"))
    if not pretrained:
        return model
    path, expected = weights(benchmark, name)
    if not path.is_file() or sha256(path) != expected:
        raise InputError(
            f"{path} is not the file whose SHA-256 is {expected[:12]}…: "
            "restore it with `git checkout` or retrain with `make train-photos`."
        )
    body.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)
