"""Jobs that work shard by shard of a cell's images; they may be shared, or killed at any time."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from irattack.code import code_of
from irattack.data.images import Images
from irattack.pipeline.artifact import Arrays, Artifact, Card, MadeWith, Shapes
from irattack.pipeline.cell import Shard, file_name
from irattack.pipeline.images import Choice, images_of, listing, wanted_facts
from irattack.pipeline.job import Job

if TYPE_CHECKING:
    from irattack.pipeline.worker import Worker


class Part(Card):
    """The card of the arrays of one shard.

    Attributes:
        attacked_with: what produced the perturbations, where that is another run.
        below_tau: of an attack with a τ, how many images never reached it.
    """

    attacked_with: MadeWith | None = None
    below_tau: int | None = None


@dataclass(frozen=True)
class ByShards(Job):
    """A job that works shard by shard of the images.

    The arrays of a shard are an artifact of their own until those of all shards can be merged. So
    any number of processes may share a job, and each may be killed at any time.
    """

    @abstractmethod
    def whole(self, name: str) -> tuple[Path, dict[str, Any], type[Card]]:
        """Path, facts (besides the images) and schema of an artifact."""

    @abstractmethod
    def shapes(self, name: str, images: int) -> Shapes:
        """The shapes of its arrays for so many images."""

    @abstractmethod
    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The arrays of a shard by name, and what their cards say; calls `step` as it goes on."""

    def summary(self, name: str, arrays: Arrays, parts: list[Part]) -> dict[str, Any]:
        """What the card of the merged arrays says."""
        return {}

    def begin(self, worker: "Worker", shards: Sequence[Shard], names: Sequence[str]) -> None:
        """What is done once, before the first of the shards that are left is measured."""

    image_axis: ClassVar[int] = 0
    of_attack: ClassVar[bool] = True  # whether the attack is of matter

    @property
    def images(self) -> int:
        """How many of the cell's images are worked on."""
        return self.cell.cfg.images

    @property
    def ticks(self) -> int:
        """How often a shard calls `step`."""
        return 1

    @property
    def needs(self) -> Sequence[Job]:
        """The images."""
        return [Choice(self.cell)]

    @property
    def folders(self) -> list[Path]:
        """Of the artifacts."""
        return [self.whole(self.names[0])[0].parent]

    @property
    def _code(self) -> dict[str, Any]:
        """The fact of a user's own job."""
        code = code_of({"_target_": f"{type(self).__module__}.{type(self).__name__}"})
        return {"code": code} if code else {}

    def artifact(self, name: str) -> Artifact:
        """The merged arrays."""
        path, facts, schema = self.whole(name)
        chosen = listing(self.cell)
        images = {"images": chosen.digest if chosen else None, "n": self.images}
        facts = facts | self._code | images | (wanted_facts(self.cell) if self.of_attack else {})
        return Artifact(path, facts, schema, self.shapes(name, self.images))

    def part(self, name: str, shard: Shard) -> Artifact[Part]:
        """The arrays of one shard."""
        path, facts, _ = self.whole(name)
        path = path.parent / "parts" / f"{shard.index:04}-{file_name(path.stem)}.safetensors"
        facts = facts | self._code | {"shard": shard.digest}
        return Artifact(path, facts, Part, self.shapes(name, len(shard.images)))

    def parts(self, name: str) -> list[Path]:
        """What lies of single shards on the disk."""
        path = self.whole(name)[0]
        found = (path.parent / "parts").glob(f"[0-9]*-{file_name(path.stem)}.*")
        return sorted(found)

    def make(self, missing: list[str]) -> list[str]:
        """The parts of this run's share of the shards; then the whole, if no part is missing."""
        from irattack.pipeline.worker import Worker

        images = images_of(self.cell).take(range(self.images))
        worker = Worker(self.cell)
        shards = self.cell.share(images)
        begun = False
        with worker.progress(f"{self.title} {self.kind}", len(shards) * self.ticks) as bar:
            for place, shard in enumerate(shards):
                todo = [name for name in missing if self.part(name, shard).card() is None]
                if not todo:
                    continue
                if not begun:
                    self.begin(worker, shards[place:], missing)
                    begun = True
                found, says = worker.retry(
                    lambda s=shard, t=todo: self.measure(worker, s, t, bar.update)  # type: ignore[misc]
                )
                for name in todo:
                    self._keep(self.part(name, shard), name, found[name], says)
        waiting: dict[str, None] = {}
        for name in missing:
            left = self._merge(name, images)
            if left and self.artifact(name).card() is None:  # else another process has merged them
                waiting |= dict.fromkeys(left)
            else:
                for shard in self.cell.shards(images):
                    self.part(name, shard).remove()
        return list(waiting)

    def _keep(self, part: Artifact[Part], name: str, arrays: Arrays, says: dict[str, Any]) -> None:
        try:
            part.keep(arrays, **says)
        except FileNotFoundError:  # another process was faster, and has merged all
            if self.artifact(name).card() is None:
                raise

    def _merge(self, name: str, images: Images) -> list[str]:
        """Writes the whole if the parts of all shards are there; names the shards that are not."""
        import numpy as np

        from irattack.pipeline.worker import made_with

        parts = {f"{shard.index:04}": self.part(name, shard) for shard in self.cell.shards(images)}
        cards = {shard: part.card() for shard, part in parts.items()}
        if absent := [shard for shard, card in cards.items() if card is None]:
            return absent
        try:
            found = [part.arrays() for part in parts.values()]
        except FileNotFoundError:  # another process has merged them
            return [shard for shard, part in parts.items() if not part.path.is_file()]
        whole = {
            array: np.concatenate([part[array] for part in found], axis=self.image_axis)
            for array in found[0]
        }
        made = [card for card in cards.values() if card is not None]
        used = {
            fact: distinct([getattr(card.made_with, fact, None) for card in made])
            for fact in ("micro_batch", "compile")
        }
        says = {"made_with": made_with(self.cell.cfg) | used, **self.summary(name, whole, made)}
        runs = distinct([card.made_with.model_dump() for card in made])
        self.artifact(name).keep(whole, measured_with=runs, **says)
        return []


def distinct(values: list[Any]) -> list[Any]:
    """The values, each once, in their order; shards may have been made otherwise than others."""
    return [value for i, value in enumerate(values) if value not in values[:i]]
