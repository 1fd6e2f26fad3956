"""Configurations composed by Hydra from conf and from a folder of the user's own."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import getitem
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from irattack.conf import CONF, folders, is_group
from irattack.errors import InputError
from irattack.pipeline.settings import Settings, settings_of


@contextlib.contextmanager
def hydra() -> Iterator[None]:
    """Hydra, ready to compose the configurations of conf; a program's own is put back."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def benchmark(overrides: list[str]) -> str:
    """The benchmark that the overrides choose."""
    chosen = [text.split("=")[1] for text in overrides if text.startswith("benchmark=")]
    return [*OmegaConf.load(CONF / "config.yaml").defaults[0].values(), *chosen][-1]


def composed(overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """conf/config.yaml with overrides, the user's own folder of yamls searched first.

    Args:
        with_hydra: with the node `hydra`, of which the launcher is a part.
    """
    own = [f"hydra.searchpath=[{','.join(f'file://{path}' for path in folders()[:-1])}]"]
    found = compose("config", overrides=[*own, *overrides], return_hydra_config=with_hydra)
    called("benchmark", benchmark(overrides), found.benchmark.get("name"))
    return found


def called(group: str, chosen: str, name: str | None) -> None:
    """Raises InputError if a yaml calls itself otherwise than its file: results go by the name."""
    if name != chosen:
        raise InputError(
            f"{group}={chosen}: its yaml has `name: {name}`; write `name: {chosen}` there."
        )


def nearest(of_benchmark: Mapping[str, Any], name: str, size: int) -> Any:
    """What is said of a benchmark, or of that whose images are nearest in size.

    Args:
        of_benchmark: anything by the benchmark's name.
        name: of the benchmark.
        size: of its images, px.
    """
    if name in of_benchmark:
        return of_benchmark[name]
    sizes = {other: composed([f"benchmark={other}"]).benchmark.size for other in of_benchmark}
    return of_benchmark[min(sizes, key=lambda other: abs(sizes[other] - size))]


@dataclass
class Composer:
    """Configurations of cells; what groups of conf decide is composed by Hydra once.

    Attributes:
        overrides: of the command line.
    """

    overrides: list[str]
    composed: dict[tuple[str, ...], tuple[DictConfig, Any]] = field(default_factory=dict)

    @cached_property
    def benchmark(self) -> DictConfig:
        """The settings of the benchmark that the overrides choose."""
        pattern = r"benchmark(\.(source|target)_sets.*)?="
        given = [text for text in self.overrides if re.match(pattern, text)]
        return composed(given).benchmark

    def __call__(self, choice: dict[str, Any]) -> Settings:
        """The settings of conf/config.yaml with this choice and the overrides."""
        groups = tuple(f"{name}={value}" for name, value in choice.items() if is_group(name))
        if groups not in self.composed:
            cfg = composed([*groups, *self.overrides])
            self.composed[groups] = cfg, OmegaConf.to_container(cfg)
        cfg, raw = self.composed[groups]
        values = {name: value for name, value in choice.items() if not is_group(name)}
        before = {}
        for name in values:
            try:
                before[name] = reduce(getitem, name.split("."), raw)
            except (LookupError, TypeError):
                raise InputError(
                    f"{name}=…: no such setting with {' '.join(groups)}; `irattack --cfg job "
                    f"{' '.join(groups)}` lists them."
                ) from None
        try:
            for name, value in values.items():
                OmegaConf.update(cfg, name, value)
            return settings_of(cfg)
        finally:  # a copy of the configuration for each cell would take longer than all the rest
            for name, value in before.items():
                OmegaConf.update(cfg, name, value)
