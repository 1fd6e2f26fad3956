"""Checks of a configuration before anything is computed, and the values Hydra computes for it."""

import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from irattack.commands.cli import one_sentence
from irattack.conf import CONF
from irattack.errors import InputError, unknown
from irattack.models import zoo
from irattack.pipeline.cell import PRECISIONS

LOSSES = ("ce", "margin")
STARTS = ("auto", "random", "zero", "noise")


def number(value: Any, name: str = "value") -> float:
    """A number, or a fraction such as 8/255, as a float."""
    try:
        result = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        result = math.nan
    if isinstance(value, bool) or not math.isfinite(result):
        raise InputError(f"{name}={value}: expected a finite number such as 0.5 or 8/255.")
    return result


def cpu_count() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_cuda() -> bool:
    """Whether PyTorch finds a CUDA device."""
    import torch

    return torch.cuda.is_available()


def register_resolvers() -> None:
    """Makes ${number:…} and ${of_source:…} known to the configuration."""
    OmegaConf.register_new_resolver("number", number, replace=True)
    OmegaConf.register_new_resolver(
        "number_or_null", lambda value: None if value is None else number(value), replace=True
    )
    OmegaConf.register_new_resolver("cpu_count", cpu_count, replace=True)
    OmegaConf.register_new_resolver("product", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver(
        "of_source", lambda benchmark, source, name: zoo.card(benchmark, source)[name], replace=True
    )


def check(cfg: DictConfig) -> None:
    """Raises InputError for the first setting that cannot be used."""
    benchmarks = sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml"))
    if cfg.benchmark.name not in benchmarks:
        raise unknown("benchmark.name", cfg.benchmark.name, benchmarks)
    zoo.card(cfg.benchmark.name, cfg.source)
    sets = list(cfg.benchmark.target_sets)
    if isinstance(cfg.targets, str):
        if cfg.targets not in sets:
            try:
                zoo.card(cfg.benchmark.name, cfg.targets, "targets")
            except InputError as error:
                near = [*sets, *zoo.names(cfg.benchmark.name)]
                raise unknown("targets", cfg.targets, near) from error
    elif not OmegaConf.is_list(cfg.targets) or not cfg.targets:
        raise InputError(
            f"targets={cfg.targets}: expected a list of at least one name, such as [vgg16], or one "
            f"of {', '.join(sets)}."
        )
    else:
        for target in cfg.targets:
            zoo.card(cfg.benchmark.name, target, "targets")
            if list(cfg.targets).count(target) > 1:
                raise InputError(f"targets: {target} is listed twice; name each target once.")
    lam = number(cfg.lam, "lam")
    if lam < 0:
        raise InputError(f"lam={cfg.lam}: the weight of the interaction term must be 0 or more.")
    if not 0 < number(cfg.eps, "eps") <= 1:
        raise InputError(
            f"eps={cfg.eps}: expected a radius in (0, 1] for images in [0, 1], such as 8/255."
        )
    for name, least in (("c", 0), ("p", 1), ("tau", 1e-6)):
        if number(cfg[name], name) < least:
            raise InputError(f"{name}={cfg[name]}: expected a number of {least} or more.")
    for name in ("steps", "samples", "cells", "grid", "images", "micro_batch", "block", "threads"):
        if type(cfg[name]) is not int or cfg[name] < 1:
            raise InputError(f"{name}={cfg[name]}: expected a whole number of 1 or more.")
    check_work(cfg)
    if type(cfg.seed) is not int:
        raise InputError(f"seed={cfg.seed}: expected a whole number.")
    if cfg.cells > cfg.grid**2:
        raise InputError(
            f"cells={cfg.cells}: a grid={cfg.grid} board has only {cfg.grid**2} cells; "
            "use fewer cells or a finer grid."
        )
    size = cfg.benchmark.size
    if cfg.grid > size:
        raise InputError(
            f"grid={cfg.grid}: finer than the image, which has {size} x {size} pixels; "
            f"use grid={size} or less."
        )
    if cfg.gamma is not None and not 0 < number(cfg.gamma, "gamma") <= 1:
        raise InputError(f"gamma={cfg.gamma}: expected a factor in (0, 1], or null.")
    settings = cfg.benchmark
    for name in settings.step_size:
        if number(settings.step_size[name], f"benchmark.step_size.{name}") <= 0:
            raise InputError(f"benchmark.step_size.{name}: expected a number above 0.")
    for name in ("copies", "kernel", "relaxed.steps"):
        value = OmegaConf.select(settings, name)
        if type(value) is not int or value < 1 or (name == "kernel" and value % 2 == 0):
            odd = "odd " if name == "kernel" else ""
            raise InputError(f"benchmark.{name}={value}: expected an {odd}whole number above 0.")
    if ("penalty" in cfg.attack) != cfg.norm._target_.endswith("Free"):
        raise InputError(
            "norm=free and attack=relaxed belong together: the relaxed attack (Eq. 8) has no ball, "
            "all others need one; leave norm out, or choose linf or l2 for another attack."
        )
    if "backward" in cfg.attack:
        check_skips(cfg)
    if cfg.loss not in LOSSES:
        raise unknown("loss", cfg.loss, LOSSES)
    if cfg.start not in STARTS:
        raise unknown("start", cfg.start, STARTS)
    if cfg.precision not in PRECISIONS:
        raise unknown("precision", cfg.precision, PRECISIONS)
    if cfg.device not in ("auto", "cpu", "cuda"):
        raise unknown("device", cfg.device, ("auto", "cpu", "cuda"))
    if cfg.device == "cuda" and not has_cuda():
        raise InputError(
            "device=cuda: PyTorch finds no CUDA device; use device=cpu or device=auto."
        )


def without_effect(cfg: DictConfig, given: Sequence[str]) -> list[str]:
    """Those of the given settings of an attack that this attack does not use."""
    used = OmegaConf.to_yaml(cfg.attack, resolve=False)
    own: tuple[str, ...] = (
        "lam",
        "gamma",
        "start",
        "samples",
        "cells",
        "grid",
        "steps",
        "c",
        "p",
        "tau",
        "norm",
    )
    own = (*own, "eps") if "penalty" in cfg.attack else own
    names = [text.split("=")[0] for text in given]
    return [name for name in names if name in own and not re.search(rf"\$\{{{name}\b", used)]


class CheckAll(Callback):
    """Checks every combination of a multirun before the first of them runs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the program if one of the combinations cannot be used."""
        with one_sentence():
            loader = GlobalHydra.instance().config_loader()
            parser = OverridesParser.create(config_loader=loader)
            given = parser.parse_overrides(list(config.hydra.overrides.task))
            combinations = BasicSweeper.split_arguments(given, max_batch_size=None)[0]
            for choice in combinations:
                check(compose("config", overrides=list(choice)))


def check_work(cfg: DictConfig) -> None:
    """Raises InputError for the first setting of how the work is done that cannot be used."""
    kept = cfg.cache.steps
    numbers = OmegaConf.is_list(kept) and all(type(step) is int and step >= 1 for step in kept)
    if kept not in ("all", "none") and not numbers:
        raise InputError(
            f"cache.steps={kept}: expected all, none, or a list of steps such as [10,50,100]."
        )
    if numbers and max(kept, default=0) > cfg.attack.steps:
        raise InputError(
            f"cache.steps={kept}: this attack has only {cfg.attack.steps} steps; list no later one."
        )
    share = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", str(cfg.shard)) if cfg.shard else None
    if cfg.shard is not None and not (share and int(share[1]) <= int(share[2])):
        raise InputError(f"shard={cfg.shard}: expected i/n with i from 1 to n, such as 3/8.")
    for name in ("pretrained", "compile"):
        if type(cfg[name]) is not bool:
            raise InputError(f"{name}={cfg[name]}: expected true or false.")
    if cfg.manifest is not None and not Path(cfg.manifest).is_file():
        raise InputError(
            f"manifest={cfg.manifest}: no such file; name one such as "
            "outputs/photos/images/*.json, or leave it out and images are chosen."
        )


def check_skips(cfg: DictConfig) -> None:
    """Raises InputError if SGM does not know the skip connections of the source."""
    facts = zoo.card(cfg.benchmark.name, cfg.source)
    for name in facts.get("members", [cfg.source]):
        skip = zoo.card(cfg.benchmark.name, name).get("skip")
        if not skip or (cfg.protocol.sgm == "authors" and "relus" not in skip):
            able = [n for n in zoo.names(cfg.benchmark.name) if has_skips(cfg, n)]
            raise InputError(
                f"source={name}: attack={cfg.attack.name} with protocol={cfg.protocol.name} needs "
                "skip connections that conf/model describes, and this source has none; use one of "
                f"{', '.join(able)}."
            )


def has_skips(cfg: DictConfig, name: str) -> bool:
    """Whether the yaml of a model describes its skip connections for the protocol's SGM."""
    skip = zoo.card(cfg.benchmark.name, name).get("skip", {})
    return "relus" in skip if cfg.protocol.sgm == "authors" else bool(skip)
