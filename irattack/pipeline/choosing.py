"""Settings of an attack chosen on validation images, and the attack measured with them on its own.

The search goes along one setting after the other: it starts at the first value of each, takes the
value with which success on the validation images is highest on average over the targets (the first
of equals), and goes on to the next setting from there. The test images have no part in it: those
among the validation images are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from irattack.errors import InputError
from irattack.hashing import key
from irattack.pipeline import statistics
from irattack.pipeline.artifact import Artifact, Card
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import Choice, listing
from irattack.pipeline.job import Job, ensure
from irattack.pipeline.results import Results, arrays
from irattack.pipeline.settings import Settings

VERSION = 1  # raise it when the same results would lead to another choice

Setting = dict[str, Any]  # values by the path of what they set, such as attack.norm.step_size


class Trial(BaseModel):
    """A setting that was tried, and its success on the validation images in percent."""

    model_config = ConfigDict(strict=True, extra="forbid")
    setting: Setting
    percent: float


class Chosen(Card):
    """The card of a choice.

    Attributes:
        settings: the chosen values, by what they set.
        tried: all that were tried, in their order.
        n: validation images that counted.
    """

    settings: Setting
    tried: list[Trial]
    n: int


def with_settings(cfg: Settings, values: Setting) -> Settings:
    """Settings with some of them changed, each by its path."""
    plain = cfg.plain()
    for path, value in values.items():
        *parents, last = path.split(".")
        reduce(getitem, parents, plain)[last] = value
    return Settings.model_validate(plain)


def along(
    coordinates: dict[str, list], rate: Callable[[Setting], float | None]
) -> tuple[Setting | None, list[Trial]]:
    """The search: the best setting found, and all that were tried with their rates.

    Args:
        coordinates: the values of each setting.
        rate: of a setting; None if it is not known yet, which ends the search without a result.
    """
    best = {path: values[0] for path, values in coordinates.items()}
    tried: list[Trial] = []
    for path, values in coordinates.items():
        rates = []
        for value in values:
            setting = best | {path: value}
            found = next((one.percent for one in tried if one.setting == setting), None)
            if found is None:
                if (found := rate(setting)) is None:
                    return None, tried
                tried.append(Trial(setting=setting, percent=found))
            rates.append(found)
        best = best | {path: values[rates.index(max(rates))]}
    return best, tried


@dataclass(frozen=True)
class Best(Job):
    """The cell with the best of some settings, found on validation images; see the module.

    Args:
        values: of settings of the attack, by their path.
        factors: the same, as multiples of what the cell has.
        validation_images: how many, at most as many as the cell has.

    Settings of slots that the attack does not fill are passed over.
    """

    values: dict[str, list] = field(default_factory=dict, hash=False)
    factors: dict[str, list] = field(default_factory=dict, hash=False)
    validation_images: int = 64
    kind: ClassVar[str] = "best settings"

    @cached_property
    def coordinates(self) -> dict[str, list]:
        """The values of each setting that the attack has, those by factors first."""
        plain = self.cell.cfg.plain()

        def present(path: str) -> Any:
            node: Any = plain
            for part in path.split("."):
                node = node.get(part) if isinstance(node, dict) else None
            return node

        scaled = {
            path: [present(path) * factor for factor in factors]
            for path, factors in self.factors.items()
            if present(path) is not None
        }
        return scaled | {
            path: list(values) for path, values in self.values.items() if present(path) is not None
        }

    @property
    def held_out(self) -> int:
        """How many validation images are attacked."""
        return min(self.validation_images, self.cell.cfg.images)

    @property
    def trials(self) -> int:
        """How many settings are tried."""
        return 1 + sum(len(values) - 1 for values in self.coordinates.values())

    def trial(self, setting: Setting) -> Results:
        """The attack with a setting, on validation images."""
        cfg = self.cell.cfg
        other = cfg.benchmark.validation or {"seed": cfg.seed + 1}
        fixed = {"images": self.held_out, "cache.steps": "none", "manifest": None}
        return Results(Cell(with_settings(cfg, {**other, **fixed, **setting})))

    def best(self, setting: Setting) -> Cell:
        """The cell with a setting, on its own images."""
        cell = Cell(with_settings(self.cell.cfg, setting))
        cell.method = f"{self.cell.method} tuned"
        return cell

    def counted(self, trial: Cell) -> list[int]:
        """The positions of the validation images that are not among the cell's own.

        Raises:
            InputError: there are none.
        """
        own, other = listing(self.cell), listing(trial)
        assert own is not None
        assert other is not None
        names = {entry.id for entry in own.images}
        rows = [row for row, entry in enumerate(other.images) if entry.id not in names]
        if not rows:
            raise InputError(
                f"benchmark={self.cell.cfg.benchmark.name}: no image is left to choose settings "
                "by, all are among those that are attacked; use a smaller images=…."
            )
        return rows

    def rate(self, trial: Results) -> float:
        """Mean success over the targets, in percent, on the images that count."""
        rows = self.counted(trial.cell)
        each = [
            statistics.transferred(arrays(trial.cell, target)["margins"][:, rows]).mean()
            for target in trial.names
        ]
        return 100 * float(sum(each)) / len(each)

    @property
    def needs(self) -> Sequence[Job]:
        """The images."""
        return [Choice(self.cell)]

    @property
    def folders(self) -> list[Path]:
        """Of the card, of what was tried, and of the cell that was chosen."""
        found = [self.path.parent]
        seen: list[Job] = []

        def known(setting: Setting) -> float | None:
            trial = self.trial(setting)
            seen.append(trial)
            return None if trial.missing() or listing(self.cell) is None else self.rate(trial)

        best, _ = along(self.coordinates, known)
        seen += [Results(self.best(best))] if best else []
        return found + [folder for job in seen for folder in job.folders]

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides the choice."""
        cell = self.cell
        return {
            "version": VERSION,
            "key": cell.key,
            "targets": {name: cell.identity(name) for name in cell.targets},
            "coordinates": self.coordinates,
            "validation": cell.cfg.benchmark.validation,
            "images": self.trial({}).cell.images_facts,
        }

    @property
    def path(self) -> Path:
        """Of the card."""
        return self.cell.root / "chosen" / self.cell.label / f"{key(self.facts)}.json"

    def artifact(self, name: str = "") -> Artifact[Chosen]:
        """The card, which is all there is beside the results."""
        return Artifact(self.path, self.facts, Chosen)

    def missing(self) -> list[str]:
        """Nothing, if the choice is made and its cell is measured."""
        card = self.artifact().card()
        done = card is not None and not Results(self.best(card.settings)).missing()
        return [] if done else [self.kind]

    def make(self, missing: list[str]) -> list[str]:
        """Attacks the validation images, chooses, and attacks the cell's own."""
        from irattack.pipeline.worker import Worker

        waiting: list[str] = []

        def measured(setting: Setting) -> float | None:
            trial = self.trial(setting)
            waiting.extend(ensure(trial))
            return None if waiting else self.rate(trial)

        best, tried = along(self.coordinates, measured)
        if best is None:
            return waiting
        if left := ensure(Results(self.best(best))):
            return left
        n = len(self.counted(self.trial(best).cell))
        self.artifact().keep(
            settings=best,
            tried=[one.model_dump() for one in tried],
            n=n,
            **Worker(self.cell).made(),
        )
        return []
