"""Which images are attacked: chosen once for a seed, named in a manifest, checked whenever used."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from irattack.data.images import Images
from irattack.errors import InputError, some
from irattack.hashing import key
from irattack.models import zoo
from irattack.pipeline import files
from irattack.pipeline.artifact import Artifact, Card
from irattack.pipeline.cell import Cell
from irattack.pipeline.counting import candidates_of, readings
from irattack.pipeline.job import Job
from irattack.pipeline.settings import Settings

log = logging.getLogger(__name__)


class Entry(BaseModel):
    """An image: its name, its class and the SHA-256 of its pixels.

    Attributes:
        wanted: the class that a targeted attack aims at, if the data name one.
    """

    model_config = ConfigDict(strict=True)
    id: str
    label: int
    sha256: str
    wanted: int | None = None

    @property
    def facts(self) -> list[str | int]:
        """What the image is, whatever an attack aims at; as `Images.entries` has it."""
        return [self.id, self.label, self.sha256]


class Listing(BaseModel):
    """Images, each once."""

    model_config = ConfigDict(strict=True)
    images: list[Entry]

    @cached_property
    def digest(self) -> str:
        """A hash of the images' names, labels and pixels."""
        return key([entry.facts for entry in self.images])

    @field_validator("images")
    @classmethod
    def _each_once(cls, images: list[Entry]) -> list[Entry]:
        if not images or len({entry.id for entry in images}) < len(images):
            raise ValueError("no images, or one twice")
        return images


class Manifest(Listing, Card):
    """A listing that was chosen here, of as many images as its facts say."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="after")
    def _as_many(self) -> "Manifest":
        if len(self.images) != self.facts["count"]:
            raise ValueError("another number of images")
        return self


def manifest(cell: Cell) -> Artifact[Manifest]:
    """The list of the images of a cell."""
    path = cell.root / "images" / f"{key(cell.images_facts)}.json"
    return Artifact(path, cell.images_facts, Manifest)


def drawn(ids: Sequence[str], seed: int) -> list[int]:
    """The positions of candidates in the order, drawn from the seed, in which they are tried."""
    return sorted(range(len(ids)), key=lambda row: key([seed, ids[row]]))


_read: dict[tuple[Path, int, int, str], Listing] = {}  # manifests, while they do not change


def check_data(settings: Settings) -> None:
    """Raises InputError, before any weights are looked for, if images or labels cannot be used.

    Labels are read where no images were chosen by them yet; later, when images are.
    """
    data = settings.benchmark.data
    if "folder" not in data:
        return
    folder = Path(settings.output) / settings.benchmark.name / "images"
    there = data["folder"] and Path(data["folder"]).expanduser().exists()
    cards = (files.read_json(path) or {} for path in sorted(folder.glob("*.json")))
    same = json.loads(json.dumps(data))
    if not there or all((card.get("facts") or {}).get("data") != same for card in cards):
        readings(data)


def listing(cell: Cell) -> Listing | None:
    """The images of a cell, if they are chosen.

    Raises:
        InputError: the user's own manifest lists no images, or not enough.
    """
    own = manifest(cell)
    path = own.path if cell.cfg.manifest is None else Path(cell.cfg.manifest)
    try:
        state = path.stat()
    except OSError:
        return None
    known = (path.absolute(), state.st_mtime_ns, state.st_size, key(cell.images_facts))
    if known not in _read:
        found = listed(path, cell.cfg.images) if path != own.path else own.card()
        if found is None:
            return None
        _read[known] = found
    return _read[known]


def listed(path: str | Path, count: int = 0) -> Listing:
    """The first images of a manifest that the user gives, or all."""
    try:
        found = Listing.model_validate(files.read_json(Path(path)) or {})
    except ValidationError:
        raise InputError(
            f"manifest={path}: is no list of images, each with a name of its own, a label and a "
            "SHA-256; give a file such as outputs/photos/images/*.json, or leave it out."
        ) from None
    if len(found.images) < count:
        raise InputError(
            f"manifest={path}: lists only {len(found.images)} images; use "
            f"images={len(found.images)}."
        )
    return Listing(images=found.images[: count or None])


@dataclass(frozen=True)
class Choice(Job):
    """Chooses the images that every source model classifies correctly."""

    kind = "images"

    @property
    def folders(self) -> list[Path]:
        """None of its own."""
        return []

    def artifact(self, name: str = "") -> Artifact[Manifest]:
        """The manifest."""
        return manifest(self.cell)

    def missing(self) -> list[str]:
        """Nothing is missing of images that are listed, by the user or by an earlier choice."""
        return [] if listing(self.cell) else [self.kind]

    def make(self, missing: list[str]) -> list[str]:
        """Writes the manifest; of several processes, the first to finish decides."""
        from irattack.pipeline.worker import choose, made_with

        log.info("Choosing %d images that every source classifies correctly…", self.cell.cfg.images)
        candidates = candidates_of(self.cell)
        check_classes(self.cell, self.cell.cfg.benchmark.sources, candidates.ids, candidates.labels)
        chosen = choose(self.cell, candidates)
        aims = repeat(None) if chosen.wanted is None else chosen.wanted.tolist()
        images = [
            dict(zip(Entry.model_fields, [*entry, aim], strict=True))
            for entry, aim in zip(chosen.entries(), aims, strict=False)
        ]
        for once in (True, False):  # what is there, and cannot be used, is replaced
            self.artifact().keep(once=once, made_with=made_with(self.cell.cfg), images=images)
            if listing(self.cell):
                break
        return []


def images_of(cell: Cell) -> Images:
    """The images of a cell, which must be chosen, and the classes that attacks aim at.

    Raises:
        InputError: an image has changed since, or a model does not know a class.
    """
    candidates = candidates_of(cell)
    chosen = listing(cell)
    wanted = chosen.images if chosen else []
    rows = {name: row for row, name in enumerate(candidates.ids)}
    changed = [entry.id for entry in wanted if entry.id not in rows]
    if not changed:
        found = candidates.take([rows[entry.id] for entry in wanted])
        changed = [
            entry.id
            for entry, seen in zip(wanted, found.entries(), strict=True)
            if entry.facts != seen
        ]
    if changed:
        named = ", ".join(ascii(name)[1:-1][:80] for name in changed[:3])
        path = cell.cfg.manifest or manifest(cell).path
        raise InputError(
            f"{path}: {len(changed)} of {len(wanted)} images are missing or have "
            f"changed since they were chosen ({named}…); restore them, or "
            "delete the manifest to choose anew."
        )
    models = [cell.cfg.source, *cell.targets]
    check_classes(cell, models, found.ids, found.labels)
    if cell.targeted:
        found = aimed(cell, found, [entry.wanted for entry in wanted])
        check_classes(cell, models, found.ids, found.aims)
    return found


def aimed(cell: Cell, images: Images, chosen: Sequence[int | None]) -> Images:
    """Images with the classes that a targeted attack wants of them, none its label.

    They are those of the data, or drawn by seed and image, each of the others as likely.

    Args:
        images: with the classes that the data name now, if they do.
        chosen: those that the manifest lists; None where it lists none.

    Raises:
        InputError: the data name none, others than the manifest, or one that is the label.
    """
    labels = images.labels
    if cell.cfg.wanted == "seed":
        hashes = [int(key([cell.cfg.seed, name, "wanted"]), 16) for name in images.ids]
        further = np.array([number % (cell.classes - 1) for number in hashes])
        return replace(images, wanted=(labels + 1 + further) % cell.classes)
    if images.wanted is None:
        raise InputError(
            f"wanted=data: the images of benchmark={cell.cfg.benchmark.name} name no class to aim "
            "at; give a file of labels with a column TargetClass (benchmark.data.ground_truth), or "
            "use wanted=seed."
        )
    pairs = zip(images.wanted.tolist(), chosen, strict=True)
    if other := [row for row, (now, then) in enumerate(pairs) if now != then]:
        raise InputError(
            f"{cell.cfg.manifest or manifest(cell).path}: lists other wanted classes than the file "
            f"of labels, or none, for {len(other)} of {len(images)} images "
            f"({some([images.ids[row] for row in other])}); restore that file, or delete the "
            "manifest to choose anew."
        )
    if same := np.flatnonzero(images.wanted == labels).tolist():
        named = some([images.ids[row] for row in same])
        raise InputError(
            f"wanted=data: {len(same)} of {len(images)} images aim at their own class ({named}); "
            "correct the file of labels and delete the manifest, or use wanted=seed."
        )
    return images


def wanted_facts(cell: Cell) -> dict[str, str]:
    """What decides an attack beside its cell: the wanted classes, where the data name them."""
    if not cell.targeted or cell.cfg.wanted == "seed":
        return {}
    chosen = listing(cell)
    return {"wanted": key([entry.wanted for entry in chosen.images] if chosen else None)}


def check_classes(
    cell: Cell, models: Sequence[str], ids: Sequence[str], labels: np.ndarray
) -> None:
    """Raises InputError if a model does not know the class of an image."""
    for name in models:
        beyond = np.flatnonzero(labels >= zoo.classes(cell.cfg.benchmark.name, name))
        if len(beyond):
            some = ", ".join(ids[i] for i in beyond[:3])
            raise InputError(
                f"{name}: does not know the classes of {len(beyond)} of {len(ids)} images "
                f"({some}…); use a network for all classes of benchmark={cell.cfg.benchmark.name}."
            )
