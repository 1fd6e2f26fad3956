"""What an attack costs: gradients of the source for an image, counted, and seconds, timed here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from irattack.pipeline.artifact import Artifact, Card
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import Choice
from irattack.pipeline.job import Job

VERSION = 2  # raise it when the same attack would be counted or timed otherwise
TIMED = 32  # images at once
ROUNDS = 2  # of which the faster counts; one more warms up


class Priced(Card):
    """The card of a price.

    Attributes:
        gradients: images sent forward and back through the source for each attacked image.
        seconds: of each attacked image, on the device and threads that `made_with` names: of a
            CPU, the time that all threads worked, else what passed.
    """

    gradients: int
    seconds: float


@dataclass(frozen=True)
class Price(Job):
    """Counts an attack's gradients and times one step of it, away from δ = 0.

    The seconds are the time of that step times the gradients of the attack over those of the step;
    evaluation on targets and the step cache are not in them. On a CPU they are processor time, so
    that other work on the machine matters little.
    """

    kind: ClassVar[str] = "price"

    @property
    def needs(self) -> Sequence[Job]:
        """The images."""
        return [Choice(self.cell)]

    @property
    def folders(self) -> list[Path]:
        """Of the card."""
        return [self.cell.root / "prices" / self.cell.label]

    def artifact(self, name: str = "") -> Artifact[Priced]:
        """The card, which is all there is."""
        facts = {"version": VERSION, "key": self.cell.key}
        return Artifact(self.folders[0] / "price.json", facts, Priced)

    def make(self, missing: list[str]) -> list[str]:
        """Times a step on the first images."""
        from irattack.pipeline import speed
        from irattack.pipeline.worker import Worker

        worker = Worker(self.cell)
        attack, images = worker.attack, self.cell.shards(worker.images)[0].images
        images = images.take(range(min(TIMED, len(images))))
        x, y = worker.tensors(images)
        model = worker.model(self.cell.cfg.source, "source")
        delta = attack.norm.project(0 * x + 1e-3)

        def step() -> object:
            return attack.update(
                *(model, x, y, delta, 0 * x, images.ids, 2, worker.draws, worker.micro_batch)
            )

        def once() -> float:
            clock = time.process_time if x.device.type == "cpu" else time.perf_counter
            speed.synchronise(x.device)
            start = clock()
            step()
            speed.synchronise(x.device)
            return clock() - start

        def timed() -> float:
            return min(once() for _ in range(ROUNDS))

        worker.retry(step)
        count, each = speed.gradients(attack), speed.probes(attack)
        seconds = worker.retry(timed) / len(images) * count / max(each, 1)
        self.artifact().keep(gradients=count, seconds=seconds, **worker.made())
        return []


def price_of(cell: Cell) -> Priced:
    """The price of a cell, from the disk."""
    card = Price(cell).artifact().card()
    assert card is not None, f"{cell.label}: Price comes first"
    return card
