"""Builds a network of a card, with its weights, and tries it before anything relies on it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from irattack.code import function
from irattack.errors import InputError
from irattack.hashing import key
from irattack.models import defences, files, zoo
from irattack.models.checkpoint import disorder, in_order, misfit, read_weights
from irattack.models.network import TOLERANCE, Defended, Ensemble, Network, sample


def build(
    benchmark: str, name: str, pretrained: bool, weights_dir: str | None, seed: int = 0
) -> nn.Module:
    """The model `name`, see `zoo.build`."""
    name, chain = defences.parted(name)
    if chain:
        return Defended(build(benchmark, name, pretrained, weights_dir, seed), chain, seed).eval()
    facts = zoo.card(benchmark, name)
    if "members" in facts:
        members = facts["members"]
        built = [build(benchmark, member, pretrained, weights_dir, seed) for member in members]
        return Ensemble(built).eval()
    if "factory" not in facts:
        from irattack.models import published  # takes seconds, which others need not wait

        facts = published.completed(name, facts)
    if pretrained:
        path, expected = zoo.weights(benchmark, name, weights_dir)
        network = _with_weights(name, facts, path, expected)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(int(key(name), 16))
            network = _untrained(facts)
    network.eval().requires_grad_(False)
    try:
        tried(network, facts["classes"])
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return network


def _network(body: nn.Module, facts: dict[str, Any]) -> Network:
    how = {fact: facts[fact] for fact in ("interpolation", "crop_pct", "offset") if fact in facts}
    network = Network(body, facts["mean"], facts["std"], facts["size"], facts.get("skip"), **how)
    network.lam = facts.get("lam")
    return network


def _untrained(facts: dict[str, Any]) -> Network:
    """The network of a card with fresh weights."""
    if "factory" not in facts:
        from irattack.models import published

        return _network(published.body(facts, None), facts)
    classes, offset = facts["classes"], facts.get("offset", 0)
    network = _network(_made(facts["factory"], classes), facts)
    if offset and _logits(network.eval()).shape[1] == max(classes - offset, 0):
        # a function of the number of logits, which does not count a background class by itself
        network = _network(_made(facts["factory"], classes + offset), facts)
    return network


def _made(factory: str, classes: int) -> nn.Module:
    cure = "a function of the number of classes that returns a network, as package.module.function"
    make = function("factory", factory, cure)
    try:
        body = make(classes)
    except Exception as error:  # of code that is not ours
        raise InputError(
            f"factory: {factory}({classes}) fails ({_line(error)}); expected a function of the "
            "number of classes that returns a network."
        ) from error
    if not isinstance(body, nn.Module):
        raise InputError(
            f"factory: {factory}({classes}) returns a {type(body).__name__}; expected a network, "
            "a torch.nn.Module."
        )
    return body


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": .")


def _with_weights(name: str, facts: dict[str, Any], path: Path, expected: str) -> Network:
    if not path.is_file() or files.digest(path) != expected:
        raise InputError(
            f"{path} is not the file whose SHA-256 is {expected[:12]}…: "
            "reinstall irattack, or in a checkout restore it with `git checkout` or retrain with "
            "`make train-photos`."
        )
    if "factory" in facts:
        network = _untrained(facts)
        state = read_weights(path, network.body.state_dict())
    else:
        state = read_weights(path)
    by_order = facts.get("match") == "order"
    if by_order:
        state = in_order(path, state, _untrained(facts).body.state_dict())
    try:
        if "factory" not in facts:
            from irattack.models import published

            return _network(published.body(facts, state), facts)
        network.body.load_state_dict(state)
    except InputError:
        raise
    except Exception as error:  # timm's renaming of keys can raise anything
        why = misfit(error) or type(error).__name__
        cure = "give this network's own weights"
        if not by_order and not disorder(path, state, _untrained(facts).body.state_dict()):
            cure = "if they are this architecture's under other names, say `match: order` in its "
            cure += "yaml, else give this network's own weights"
        elif "size mismatch" in why:
            cure += ", or say in its yaml how many `classes:` they know, and with a background "
            cure += "class in front of them `offset: 1`"
        raise InputError(f"{path}: does not fit {name} ({why}); {cure}.") from error
    return network


def _logits(network: Network, count: int = 1) -> Tensor:
    """The logits of random images, (count, classes)."""
    try:
        with torch.no_grad():
            logits = network(sample(network, count))
    except InputError:
        raise
    except Exception as error:  # of code that is not ours
        raise InputError(
            f"its network fails on an image of {network.size} x {network.size} px "
            f"({_line(error)}); give the `size:` that it needs, or mend it."
        ) from error
    if logits.ndim != 2 or len(logits) != count:
        raise InputError(
            f"its network returns a tensor {tuple(logits.shape)} for {count} images in place of "
            "their logits (B, classes); name a network that classifies whole images."
        )
    return logits


def tried(network: Network, classes: int) -> None:
    """Tries a network on two random images, together and one alone.

    Raises:
        InputError: it fails; its logits are not as wide as its classes are many, are not finite,
            or depend on the other images of a batch.
    """
    both = _logits(network, 2)
    found, offset = both.shape[1], network.offset
    if found != classes:
        beside = f" after `offset: {offset}`" if offset else ""
        more = found - classes
        cure = f"say `classes: {found}` in its yaml if the images' labels are among so many"
        if more > 0:
            front = "the background class" if more == 1 else f"{more} that are not classes"
            cure = (
                f"add `offset: {offset + more}` to its yaml if they begin with {front}, or {cure}"
            )
        raise InputError(
            f"its network gives {found} logits{beside} where `classes: {classes}` are expected; "
            f"{cure}."
        )
    if not both.isfinite().all():
        raise InputError(
            "its network gives NaN or infinity on a random image; its weights are damaged, or its "
            "mean and std are not those of images in [0, 1]."
        )
    if (both[:1] - _logits(network)).abs().max() > TOLERANCE * both.abs().max():
        raise InputError(
            "its logits of an image change with the other images of the batch, or from call to "
            "call, as with batch norm without running statistics (track_running_stats=False) or "
            "dropout at test time; give a network whose answer depends on the image alone."
        )
