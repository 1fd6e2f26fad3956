"""The step cache as a job: the adversarial images of an attack at every step, shard by shard."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import model_validator

from irattack.errors import InputError
from irattack.pipeline import files
from irattack.pipeline.artifact import Artifact, Card
from irattack.pipeline.cell import Cell, Shard
from irattack.pipeline.images import Choice, images_of, listing
from irattack.pipeline.job import Job, ensure


class StepsCard(Card):
    """The card of the steps of a shard.

    Attributes:
        kept: the positions of the steps that the shard holds, in order.
        below_tau: of an attack with a τ, how many images never reached it.
    """

    kept: list[int]
    below_tau: int | None = None

    def holds(self, steps: Iterable[int]) -> bool:
        """Whether the shard holds the steps at all of these positions."""
        return {*steps} <= {*self.kept}

    @model_validator(mode="after")
    def _in_order(self) -> "StepsCard":
        if not self.kept or self.kept != sorted({*self.kept} & {*range(self.facts["steps"])}):
            raise ValueError("kept: no steps in order")
        return self


def of_shard(cell: Cell, shard: Shard) -> Artifact[StepsCard]:
    """The kept steps of one shard."""
    path = cell.steps_folder / f"{shard.index:04}.b2"
    facts = {"key": cell.key, "steps": cell.recorded, "images": shard.digest}
    return Artifact(path, facts, StepsCard)


def is_whole(path: Path) -> bool:
    """Whether a shard on the disk is what its own card says."""
    found = files.read_json(path.with_suffix(".json")) or {}
    return Artifact(path, found.get("facts", {}), StepsCard).card() is not None


@dataclass(frozen=True)
class LastStep(Job):
    """Runs an attack where its last step is not on the disk.

    Args:
        also: the positions of other steps that must be there.
    """

    also: tuple[int, ...] = ()
    kind = "steps"

    @property
    def wanted(self) -> set[int]:
        """The positions of the steps that must be there."""
        return {*self.also, self.cell.recorded - 1}

    @property
    def needs(self) -> Sequence[Job]:
        """The images."""
        return [Choice(self.cell)]

    @property
    def folders(self) -> list[Path]:
        """The folder of the step cache."""
        return [self.cell.steps_folder]

    def artifact(self, name: str) -> Artifact[StepsCard]:
        """The steps of the shard whose number is `name`."""
        return of_shard(self.cell, self.cell.shards(images_of(self.cell))[int(name)])

    @property
    def names(self) -> list[str]:
        """The numbers of the shards."""
        return [str(i) for i in range(-(-self.cell.cfg.images // self.cell.cfg.block))]

    def missing(self) -> list[str]:
        """The shards of this run's share that lack a step."""
        if listing(self.cell) is None:
            return self.names
        share = self.cell.share(images_of(self.cell))
        cards = {str(shard.index): of_shard(self.cell, shard).card() for shard in share}
        return [name for name, card in cards.items() if card is None or not card.holds(self.wanted)]

    def make(self, missing: list[str]) -> list[str]:
        """Attacks shard by shard."""
        from irattack.pipeline.worker import Worker

        cell, worker = self.cell, Worker(self.cell)
        shards = [cell.shards(worker.images)[int(name)] for name in missing]
        keep = sorted({*cell.kept, *self.wanted})
        with worker.progress(cell.title, len(shards) * cell.recorded) as bar:
            for shard in shards:

                def work(shard: Shard = shard) -> None:
                    for _ in worker.frames(shard, keep, all_steps=False)[0]:
                        bar.update()

                worker.retry(work)
        return []


def last_frame(cell: Cell, shard: Shard) -> np.ndarray:
    """The adversarial images of a shard at the last step, from the disk, (B, C, H, W) uint8."""
    return frames_at(cell, shard, np.full(len(shard.images), cell.recorded - 1))


def frames_at(cell: Cell, shard: Shard, places: np.ndarray) -> np.ndarray:
    """The adversarial images of a shard, each at a step of its own, (B, C, H, W) uint8.

    Args:
        places: (B,) positions of steps that `LastStep` has put on the disk; where another process
            has replaced them since, they are made anew.

    Raises:
        InputError: another process goes on replacing them.
    """
    from irattack.pipeline.codec import read_frames

    steps, wanted = of_shard(cell, shard), {*places.tolist()}
    card = steps.card()
    if card is None or not card.holds(wanted):
        ensure(LastStep(cell, also=tuple(sorted(wanted))))
        card = steps.card()
    if card is None or not card.holds(wanted):
        raise InputError(
            f"{steps.path}: other processes keep other steps there; when they are done, run the "
            "same command again."
        )
    clean = shard.images.pixels
    found = np.empty_like(clean)
    for step, frame in zip(card.kept, read_frames(steps.path, clean, len(card.kept)), strict=True):
        found[places == step] = frame[places == step]
    return found
