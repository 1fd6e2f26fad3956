"""Jobs that ask the targets more of a cell's perturbations than `Results` does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from irattack.errors import InputError
from irattack.hashing import key
from irattack.models.defences import through_file
from irattack.pipeline.artifact import Arrays, Card, Shapes
from irattack.pipeline.cell import Cell, Shard, file_name, with_attack
from irattack.pipeline.job import Job, targets_of, untargeted
from irattack.pipeline.sharded import ByShards
from irattack.pipeline.steps import LastStep

if TYPE_CHECKING:
    from irattack.pipeline.worker import Worker

VERSION = 1  # raise it when the same configuration starts to give other values


@dataclass(frozen=True)
class OnTargets(ByShards):
    """An artifact a network that is asked."""

    image_axis: ClassVar[int] = -1

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside the attack and the network."""
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        """The targets."""
        return targets_of(self.cell)

    @property
    def folders(self) -> list[Path]:
        """Of the answers and of the step cache."""
        return [*super().folders, self.cell.steps_folder]

    def whole(self, name: str) -> tuple[Path, dict[str, Any], type[Card]]:
        """The answers of a network."""
        cell = self.cell
        facts = {"version": VERSION, "key": cell.key, "settings": self.settings}
        facts |= {"target": cell.identity(name)}
        file = f"{self.kind}-{file_name(name)}-{key(facts)}.safetensors"
        return cell.root / "transfer" / cell.label / file, facts, Card

    def values(self, name: str) -> Arrays:
        """The arrays of a network, from the disk."""
        return self.artifact(name).arrays()


@dataclass(frozen=True)
class EqualLength(OnTargets):
    """Margins (2, N) of this attack and another, both at one L2 length, image by image.

    The last step of each is taken, which no target has a say in, and the longer of the two
    perturbations of an image is scaled to the length of the shorter. So both stay in the ball and
    x + δ in [0, 1]; what is scaled is not rounded to 8 bits again. `lengths` (2, N) are those
    after scaling, in units of [0, 1] images.

    Args:
        against: the other attack, a name of conf/attack; all else is as in this cell.
    """

    against: str = "pgd"
    kind: ClassVar[str] = "equal-length"

    @cached_property
    def other(self) -> Cell:
        """The cell of the other attack."""
        return with_attack(self.cell, self.against)

    @property
    def needs(self) -> Sequence[Job]:
        """The images and the last step of both attacks."""
        return [*super().needs, LastStep(self.cell), LastStep(self.other)]

    @property
    def folders(self) -> list[Path]:
        """Those of the other attack's steps too."""
        return [*super().folders, self.other.steps_folder]

    @property
    def settings(self) -> dict[str, Any]:
        """The key of the other cell."""
        return {"against": self.other.key}

    def shapes(self, name: str, images: int) -> Shapes:
        """This attack's, and the other's."""
        return {"margins": (2, images), "lengths": (2, images)}

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The targets' answers to a shard's scaled perturbations."""
        from irattack.attacks.norms import l2_length
        from irattack.interactions.rivals import equalised
        from irattack.models.network import check_finite

        x, y = worker.tensors(shard.images)
        both = equalised(worker.last_delta(shard), worker.last_delta(shard, self.other))
        lengths = np.stack([l2_length(delta).flatten().cpu().numpy() for delta in both])
        answers = [worker.measured(x + delta, y, names) for delta in both]
        found = {}
        for name in names:
            margins = np.stack([of_attack[name] for of_attack in answers])
            check_finite(name, margins, shard.images.ids)
            found[name] = {"margins": margins, "lengths": lengths}
        step()
        return found, worker.made()


FORMATS = {"png": {}, "jpeg95": {"quality": 95}, "jpeg75": {"quality": 75}}


def saved(pixels: np.ndarray, name: str) -> np.ndarray:
    """8-bit images (B, 3, H, W) as they come back from files of a format, encoded by Pillow.

    Args:
        name: png, which changes nothing, or jpeg95 and jpeg75, JPEG of that quality with Pillow's
            chroma subsampling (4:2:0).
    """
    if name not in FORMATS:
        raise InputError(f"formats: {name}; expected some of {', '.join(FORMATS)}.")
    form, options = name.rstrip("0123456789"), FORMATS[name]
    return np.stack([through_file(image, form, **options) for image in pixels])


@dataclass(frozen=True)
class Answers(OnTargets):
    """The class that each target, and the source, gives to each step, saved as image files.

    Arrays `classes <format>` and `margins <format>`, (1 + T, N): first of the clean image saved
    alike, then of each recorded step. A margin above 0 is an error; a tie is none, whatever the
    class is then.

    Args:
        formats: names of `FORMATS`.
    """

    formats: Sequence[str] = tuple(FORMATS)
    kind: ClassVar[str] = "answers"

    @property
    def names(self) -> list[str]:
        """The targets and the source."""
        return list(dict.fromkeys([*self.cell.targets, self.cell.cfg.source]))

    @property
    def needs(self) -> Sequence[Job]:
        """The images; of an untargeted attack, as criteria are about wrong classes."""
        untargeted(self.cell, "criteria of success")
        return super().needs

    @property
    def ticks(self) -> int:
        """The recorded steps of the attack."""
        return self.cell.recorded

    @property
    def settings(self) -> dict[str, Any]:
        """The formats."""
        return {"formats": list(self.formats)}

    def shapes(self, name: str, images: int) -> Shapes:
        """The clean image, and each step."""
        each = (1 + self.cell.recorded, images)
        return {f"{what} {form}": each for what in ("classes", "margins") for form in self.formats}

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The answers to a shard."""
        from irattack.models.network import check_finite
        from irattack.pipeline.compute import to_device

        _, y = worker.tensors(shard.images)
        frames, _ = worker.frames(shard, self.cell.kept, all_steps=True)

        def every() -> Iterator[np.ndarray]:
            yield shard.images.pixels
            for frame in frames:
                yield frame
                step()

        found: dict[str, dict[str, list[np.ndarray]]] = {
            name: {array: [] for array in self.shapes(name, 0)} for name in names
        }
        for frame in every():
            for form in self.formats:
                x = to_device(saved(frame, form), self.cell.cfg)
                for name, (classes, margins) in worker.answers(x, y, names).items():
                    check_finite(name, margins, shard.images.ids)
                    found[name][f"classes {form}"].append(classes)
                    found[name][f"margins {form}"].append(margins)
        arrays = {
            name: {array: np.stack(rows) for array, rows in of_name.items()}
            for name, of_name in found.items()
        }
        return arrays, worker.made()
