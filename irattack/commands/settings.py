"""What Hydra needs for the settings: values it computes, and checks before a multirun."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from irattack.commands.cli import one_sentence
from irattack.models import zoo
from irattack.pipeline.settings import settings_of
from irattack.pipeline.values import number
from irattack.results import tracking

OF_ATTACK = (  # settings that some attacks use
    *("lam", "gamma", "start", "samples", "cells", "grid", "steps", "c", "p", "tau"),
)


def cpu_count() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def of_source(benchmark: str, source: Any, name: str) -> Any:
    """A fact of the source's yaml; of what is no name, nothing, and the schema says so."""
    return zoo.card(benchmark, source)[name] if isinstance(source, str) else None


def register_resolvers() -> None:
    """Makes ${number:…}, ${of_source:…} and the others known to the configuration."""
    resolvers: dict[str, Callable[..., Any]] = {
        "number": number,
        "number_or_null": lambda value: None if value is None else number(value),
        "cpu_count": cpu_count,
        "product": lambda a, b: (a if type(a) is int else number(a)) * b,
        "quotient": lambda a, b: number(a) / b,
        "probes": lambda samples: 2 * samples + 1,
        "half_of_board": lambda grid: max(grid**2 // 2, 1),
        "of_source": of_source,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def without_effect(cfg: DictConfig, given: Sequence[str]) -> list[str]:
    """Those of the given settings of an attack that this attack does not use.

    What is measured beside success rates is measured on the grid, whatever the attack.
    """
    used = OmegaConf.to_yaml(cfg.attack, resolve=False)
    own = [*OF_ATTACK, "norm"]
    own += ["eps"] if "penalty" in cfg.attack else []
    own += ["wanted"] if cfg.goal == "untargeted" else []
    if not cfg.attack.get("classify", True) and "masked" not in cfg.attack:
        own, used = [*own, "loss"], used.replace("${loss}", "")  # which every attack has
    if any(not str(job.get("_target_")).endswith(".Results") for job in cfg.jobs):
        used += "${grid}"
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
                tracking.check(settings_of(compose("config", overrides=list(choice))).track)
