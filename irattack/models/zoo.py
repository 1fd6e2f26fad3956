"""Models by name: their facts stand in conf/model/<benchmark>/<name>.yaml, or are timm's.

Defences stand behind the name of any of them, `vgg16+jpeg75` (see `defences`).

To name a model costs no import of PyTorch, unless its facts are not all in its yaml.
"""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from irattack.code import code_of
from irattack.conf import CONF, yamls
from irattack.errors import InputError, unknown
from irattack.models import cards, defences, files

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
DECISIVE = (  # facts that decide a model's outputs
    *("factory", "timm", "torchvision", "mean", "std", "size", "classes"),
    *("offset", "interpolation", "crop_pct", "match"),
)


@cache
def owner(benchmark: str) -> str:
    """The benchmark whose models this one uses: `models` in its yaml, or itself."""
    known = yamls("benchmark")
    if benchmark not in known:
        raise unknown("benchmark.name", benchmark, known)
    settings: Any = OmegaConf.load(known[benchmark])
    found = settings.get("models", benchmark)
    if found not in known:
        raise unknown("benchmark.models", found, known)
    return found


def names(benchmark: str) -> list[str]:
    """Every model that the benchmark defines, or the one whose models it uses."""
    return list(yamls(f"model/{owner(benchmark)}"))


@cache
def shared(benchmark: str) -> dict[str, Any]:
    """The facts that all models of a benchmark share: `model` in the yaml of their owner."""
    settings: Any = OmegaConf.load(yamls("benchmark")[owner(benchmark)])
    return _plain(settings.get("model", {}))


def card(benchmark: str, name: str, what: str = "source") -> dict[str, Any]:
    """The facts of a model, over those that all models of the benchmark share.

    It has `members` (an ensemble), or `mean`, `std`, `size`, `classes` and one of `timm`,
    `torchvision` (a tag of published weights, or an architecture) or `factory` (a function of the
    number of classes); a file of its own `weights`, which `factory` needs; `lam`, and for SGM
    `skip`. `cards.FACTS` lists them all. What the yaml leaves unsaid is as it was published. The
    facts of a defended network are those of the network.

    Raises:
        InputError: the benchmark has no such model, its yaml is not right, or there is no such
            defence.
    """
    network, _ = defences.parted(name, what)
    return deepcopy(_card(benchmark, network, what))


@cache
def _card(benchmark: str, name: str, what: str) -> dict[str, Any]:
    benchmark = owner(benchmark)
    settings: Any = OmegaConf.load(yamls("benchmark")[benchmark])
    path = yamls(f"model/{benchmark}").get(name, CONF / "model" / benchmark / f"{name}.yaml")
    if name in names(benchmark):
        own = _plain(OmegaConf.load(path))
    elif settings.get("any_timm_model") and _published().known_to_timm(name):
        own = {"timm": name}
    else:
        more = " or any ImageNet-1k model of timm" if settings.get("any_timm_model") else ""
        allowed = names(benchmark)
        raise unknown(what, name, allowed, f"expected one of {', '.join(allowed)}{more}")
    cards.check(path, own, shared(benchmark))
    facts = shared(benchmark) | own
    if "members" in facts:
        return facts
    # a bare name of timm stands for other weights in other versions: the full one is in the key
    named = "weights" in facts or "." in facts.get("timm", ".")
    if "factory" not in facts and (cards.missing(facts) or not named):
        facts = _published().completed(str(path), facts)
    missing = cards.missing(facts)
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; add them to the model's facts.")
    return facts


def _plain(cfg: Any) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.create(cfg), resolve=True)
    return {str(key): value for key, value in found.items()}


def _published() -> Any:
    from irattack.models import published  # takes seconds, which others need not wait

    return published


def weights(benchmark: str, name: str, weights_dir: str | None = None) -> tuple[Path, str]:
    """The path and the SHA-256 of a model's weights: the shipped, a folder's, or the published.

    The hash is the expected one of shipped weights, and of others what the file has.
    """
    name, _ = defences.parted(name)
    shipped = WEIGHTS / owner(benchmark) / f"{name}.safetensors"
    if shipped.with_suffix(".json").is_file():
        return shipped, json.loads(shipped.with_suffix(".json").read_text())["sha256"]
    path = files.find_weights(name, card(benchmark, name), weights_dir)
    return path, files.digest(path)


def identity(
    benchmark: str, name: str, pretrained: bool = True, weights_dir: str | None = None
) -> dict[str, Any]:
    """All that decides a model's outputs: its card and its weights' hashes. Builds nothing.

    The seed of a defence that draws is not among them.
    """
    name, chain = defences.parted(name)
    if chain:
        alone = identity(benchmark, name, pretrained, weights_dir)
        behind = [each.facts for each in chain]
        return {"network": alone, "defences": behind, "version": defences.VERSION}
    facts = card(benchmark, name)
    if "members" in facts:
        members = [identity(benchmark, m, pretrained, weights_dir) for m in facts["members"]]
        return {"members": members}
    found = {key: facts[key] for key in DECISIVE if key in facts}
    if code := code_of(facts):  # of the user's own network
        found["code"] = code
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
    benchmark: str,
    name: str,
    pretrained: bool = True,
    weights_dir: str | None = None,
    seed: int = 0,
) -> "nn.Module":
    """The model `name`, frozen and in eval mode, tried on two images.

    Args:
        pretrained: false for random weights, the same in every process.
        weights_dir: a folder of weights that is searched before anything is downloaded.
        seed: of a defence that draws.

    Raises:
        InputError: its weights or its network cannot be used.
    """
    from irattack.models import building

    return building.build(benchmark, name, pretrained, weights_dir, seed)
