"""Attacks on networks and images of one's own, in a few lines of Python.

    from irattack import attack, interactions, models, success

    net = models.load("resnet34")  # or your own torch.nn.Module of images in [0, 1]
    delta = attack("ir", net, x, y, eps=16 / 255, steps=10, lam=1)  # (B, C, H, W)
    rate = success(target, x + delta, y).float().mean()
    inside = interactions.average(net, x, delta, y, grid=8)  # (B,)

Attacks, pieces and settings are those of the command line, and have its names and defaults.
"""

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Sequence
from functools import cache
from numbers import Integral, Real

import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.losses import margin
from irattack.attacks.randomness import Draws
from irattack.commands.cli import explain
from irattack.commands.composing import composed, hydra
from irattack.commands.settings import OF_ATTACK, register_resolvers, without_effect
from irattack.conf import OWN
from irattack.errors import InputError, ranged, unknown
from irattack.models import zoo
from irattack.models.network import networks
from irattack.models.own import check_finite, classifier
from irattack.pipeline.cell import Cell, attack_of
from irattack.pipeline.settings import Settings, settings_of

Value = str | float | bool | None
MICRO_BATCH = 128  # where a benchmark's is `auto`: nothing is measured here
KNOWN = (*OF_ATTACK, "loss", "goal", "eps", "norm", "protocol", "seed", "micro_batch")


def attack(
    how: str | Sequence[str],
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    benchmark: str = "photos",
    every_step: bool = False,
    ids: Sequence[str] | None = None,
    **settings: Value,
) -> Tensor:
    """Perturbs images so that a network misclassifies them: δ of the last step, (B, C, H, W).

    ‖δ‖∞ ≤ eps, or ‖δ‖₂ ≤ eps·√n with norm="l2", and x + δ in [0, 1]; in floating point, where the
    pipeline rounds x + δ to 8 bits. An image's δ depends on the network, the image, its label, the
    settings and its name, not on the others of the batch, but for last digits.

    Args:
        how: the name of an attack (`irattack ls attacks`), or a list of pieces (`irattack ls
            pieces`), such as ["mi", "ir"].
        net: from images in [0, 1] to logits (B, classes); as it was afterwards. SGM needs to know
            its residual branches, `skip` of `models.Network`.
        x: images (B, C, H, W) in [0, 1].
        y: their labels (B,); with goal="targeted", the classes that they shall be given.
        benchmark: the benchmark whose numbers (eps, steps, samples, cells, grid …) hold where none
            are given, as on the command line; "imagenet" has the paper's, for images of 224 px. λ
            is that of the network's yaml, if it has one, else the benchmark's.
        every_step: return δ of all recorded steps, (T, B, C, H, W).
        ids: names of the images, on which the random numbers depend; by default hashes of their
            pixels, so that equal images get equal numbers.
        settings: of the attack, as on the command line (`irattack --help`): eps, steps, norm, lam,
            gamma, loss, goal, start, samples, cells, grid, c, p, tau, protocol, seed, micro_batch;
            and with a dot in their name in a dictionary, **{"benchmark.kernel": 5}.

    Raises:
        InputError: an argument that cannot be used; the sentence says what is allowed.
    """
    with classifier(net, x, y) as model, torch.enable_grad():
        if x.ndim != 4:
            raise InputError(f"x: is {tuple(x.shape)}; expected images (B, C, H, W).")
        made, cfg = _made(how, net, x, benchmark, settings)
        names = [_name(image) for image in x] if ids is None else [str(name) for name in ids]
        if len(names) != len(x):
            raise InputError(f"ids: are {len(names)} for {len(x)} images; give each image one.")
        draws = Draws(cfg.seed)
        size = MICRO_BATCH if cfg.micro_batch == "auto" else cfg.micro_batch
        every = perturbations(made, model, x.detach(), y.long(), names, draws, size)
        steps = list(deque(every, None if every_step else 1))
    found = torch.stack(steps) if every_step else steps[-1]
    check_finite("gradients", found.flatten(-3).sum(dim=-1))
    return found


def success(net: nn.Module, images: Tensor, y: Tensor, micro_batch: int = 256) -> Tensor:
    """Whether a network misclassifies images: max_{y' ≠ y} h_y' > h_y, (…, B) bool.

    Args:
        net: from images in [0, 1] to logits (B, classes); as it was afterwards.
        images: x + δ in [0, 1], (…, B, C, H, W), such as those of all steps, (T, B, C, H, W).
        y: the labels of the B images.
        micro_batch: images that go through the network at once.

    Raises:
        InputError: these do not fit together.
    """
    ranged("micro_batch", micro_batch, 1, whole=True)
    with classifier(net, images, y) as model, torch.no_grad():
        logits = torch.cat([model(part) for part in images.flatten(0, -4).split(micro_batch)])
    labels = y.long().expand(images.shape[:-3]).flatten()
    margins = (margin(logits, labels) + 0 * logits.sum(dim=1)).view(images.shape[:-3])
    check_finite("logits", margins)
    return margins > 0


def _made(
    how: str | Sequence[str],
    net: nn.Module,
    x: Tensor,
    benchmark: str,
    settings: dict[str, Value],
) -> tuple[Attack, Settings]:
    """The attack, and the settings that it is made of."""
    if torch.is_inference_mode_enabled():
        raise InputError("attack(): has no gradients in torch.inference_mode(); call it outside.")
    for name, value in settings.items():
        if name in ("norm", "protocol") and not isinstance(value, str):
            raise InputError(f"{name}={value!r}: expected a word, such as linf.")
    if not how:
        raise InputError(f"attack({how!r}): names nothing; PGD alone is 'pgd'.")
    if isinstance(how, str) and "," in how:
        raise InputError(
            f"attack({how!r}): expected one attack, or a list of pieces: {how.split(',')}."
        )
    for name in settings:
        if name not in KNOWN and "." not in name:
            cure = (
                f"expected settings among {', '.join(KNOWN)}, or one of a piece in a dictionary, "
            )
            raise unknown("attack()", name, KNOWN, cure + "**{'attack.accumulate.mu': 0.9}")
    chosen = f"attack={how}" if isinstance(how, str) else f"+piece={_text(how)}"
    given = [f"{name}={_text(value)}" for name, value in settings.items()]
    weights = {network.lam for network in networks(net)}
    known = weights.pop() if len(weights) == 1 else None
    lam = "${benchmark.model.lam}" if known is None else known
    overrides = [
        *(f"benchmark={benchmark}", f"source={_source(benchmark)}", "pretrained=false"),
        *(f"benchmark.size={min(x.shape[-2:])}", f"lam={lam}", chosen, *given),
    ]
    attacks, cfg, unused = _composed(tuple(overrides), os.environ.get(OWN))
    for name in set(unused) & set(settings):
        warnings.warn(
            f"{name}=… has no effect: attack={cfg.attack.name} does not use it.", stacklevel=3
        )
    return attacks, cfg


@cache
def _composed(overrides: tuple[str, ...], own: str | None) -> tuple[Attack, Settings, list[str]]:
    """Composes conf once for the same settings; `own` is the folder of the user's yamls."""
    register_resolvers()
    try:
        with hydra():
            cfg = composed([*overrides])
            settings = settings_of(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error)) from None
    return attack_of(Cell(settings)), settings, without_effect(cfg, overrides)


def _source(benchmark: str) -> str:
    """A model of the benchmark, which a configuration names; the network itself takes its place."""
    names = zoo.names(benchmark)
    able = [name for name in names if zoo.card(benchmark, name).get("skip")]
    return (able or names)[0]


def _text(value: Value | Sequence[str]) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, str):
        return value
    if not isinstance(value, Sequence):
        raise InputError(f"{value!r}: expected a number, a word, true, false or a list of words.")
    return f"[{','.join(map(str, value))}]"


def _name(image: Tensor) -> str:
    """A hash of an image in 8 bits."""
    levels = (255 * image.detach()).round().to(torch.uint8).cpu().contiguous()
    return hashlib.sha256(levels.numpy().tobytes()).hexdigest()
