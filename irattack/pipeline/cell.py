"""A cell: one configuration, what decides its numbers, and where its work lies on disk."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from irattack.code import code_of
from irattack.conf import yamls
from irattack.data.images import Images
from irattack.errors import InputError, unknown
from irattack.hashing import key, sha256
from irattack.models import zoo
from irattack.pipeline.settings import AttackSettings, Settings, settings_of
from irattack.pipeline.values import PRECISIONS, number

if TYPE_CHECKING:
    from irattack.attacks.loop import Attack

VERSION = 4  # raise it when the same configuration starts to give other perturbations


@dataclass(frozen=True)
class Shard:
    """Images that are always worked together, so that results repeat to the bit."""

    index: int
    images: Images
    targeted: bool = False

    @cached_property
    def digest(self) -> str:
        """A hash of the images' names, labels and pixels, and of the classes that are wanted."""
        found = self.images.entries()
        return key([found, self.images.aims.tolist()] if self.targeted else found)


class Cell:
    """One configuration, and where its work lies on disk.

    Attributes:
        targeted: whether a class is wanted of each image.
        images_facts, steps_facts: all that decides the images and the perturbations; hashed to
            name their files.
        recorded: how many steps of the attack are recorded.
        kept: the positions of those that stay on disk.
    """

    def __init__(self, settings: Settings | DictConfig):
        cfg = settings if isinstance(settings, Settings) else settings_of(settings)
        self.cfg = cfg
        self.root = Path(cfg.output) / cfg.benchmark.name
        if cfg.manifest is not None:
            self.images_facts: dict[str, Any] = {
                "manifest": sha256(Path(cfg.manifest)),
                "count": cfg.images,
            }
        else:
            self.images_facts = {
                "data": cfg.benchmark.data,
                "sources": {name: self.identity(name) for name in cfg.benchmark.sources},
                "count": cfg.images,
                "seed": cfg.seed,
                **({"code": code} if (code := code_of(cfg.benchmark.data)) else {}),
            }
        attack = cfg.attack.model_dump(exclude_unset=True)
        self.name = attack_name(str(attack.pop("name")), attack.pop("pieces", {}))
        self.method = self.name  # what a table calls it
        self.uses_skips = "backward" in attack
        self.targeted = cfg.goal == "targeted"
        if self.targeted:
            attack["goal"] = cfg.goal
        self.steps_facts: dict[str, Any] = {
            "version": VERSION,
            "images": self.images_facts,
            "source": self.source_identity,
            "attack": attack,
            "skip": zoo.skips(cfg.benchmark.name, cfg.source) if self.uses_skips else None,
            "precision": PRECISIONS[cfg.precision],
            "compile": False if self.uses_skips else cfg.compile,
            "seed": cfg.seed,
            "block": cfg.block,
            "micro_batch": cfg.micro_batch,
        }
        if self.targeted:
            self.steps_facts["wanted"] = [cfg.wanted, self.classes]
        if code := code_of(attack):  # of the user's own functions
            self.steps_facts["code"] = code
        self.key = key(self.steps_facts)
        self.norm = attack["norm"]["_target_"].rsplit(".", 1)[-1].lower()
        self.recorded = cfg.attack.recorded
        goal = "-targeted" if self.targeted else ""
        self.label = f"{self.name}{goal}-{file_name(cfg.source)}-{self.norm}-{self.key}"
        steps = cfg.cache.steps
        every = {"all": range(self.recorded), "none": range(0)}
        wanted = every[steps] if isinstance(steps, str) else [step - 1 for step in steps]
        self.kept = sorted({step for step in wanted if step < self.recorded})

    @property
    def title(self) -> str:
        """What a progress bar and a log call it."""
        return f"{self.name} from {self.cfg.source}, {self.norm}{', targeted' * self.targeted}"

    @property
    def classes(self) -> int:
        """How many classes the source knows."""
        return zoo.classes(self.cfg.benchmark.name, self.cfg.source)

    @property
    def steps_folder(self) -> Path:
        """The folder of the step cache."""
        return self.root / "steps" / self.label

    @property
    def steps_bytes(self) -> int:
        """Of the steps that stay on disk, before they are compressed."""
        return self.cfg.images * len(self.kept) * 3 * self.cfg.benchmark.size**2

    def identity(self, model: str) -> dict[str, Any]:
        """What decides a model's outputs."""
        cfg = self.cfg
        return zoo.identity(cfg.benchmark.name, model, cfg.pretrained, cfg.weights_dir)

    @property
    def source_identity(self) -> dict[str, Any]:
        """What decides the outputs of the source, which may be sharpened (`confidence`)."""
        found = self.identity(self.cfg.source)
        if self.cfg.confidence is not None:
            found["confidence"] = number(self.cfg.confidence)
        return found

    @property
    def targets(self) -> list[str]:
        """The names of the target models, the source left out of a named set of targets."""
        given = self.cfg.targets
        if not isinstance(given, str):
            return list(given)
        if given not in self.cfg.benchmark.target_sets:
            return [given]
        return [name for name in self.cfg.benchmark.target_sets[given] if name != self.cfg.source]

    def shards(self, images: Images) -> list[Shard]:
        """All shards of these images, of `block` images each."""
        starts = range(0, len(images), self.cfg.block)
        rows = [range(start, min(start + self.cfg.block, len(images))) for start in starts]
        return [Shard(index, images.take(part), self.targeted) for index, part in enumerate(rows)]

    def share(self, images: Images) -> list[Shard]:
        """Those shards that `shard=i/n` leaves to this run: every n-th, from the i-th on."""
        number, count = (int(part) for part in str(self.cfg.shard or "1/1").split("/"))
        return self.shards(images)[number - 1 :: count]


def with_attack(cell: Cell, name: str) -> Cell:
    """The cell that differs from this one in its attack alone, which is as conf/attack has it.

    Raises:
        InputError: there is no such attack, or its yaml is not of a base and pieces alone.
    """
    known, pieces = yamls("attack"), yamls("piece")
    if name not in known:
        raise unknown("against", name, known)
    own: Any = OmegaConf.load(known[name])
    parts = [known["base"]]
    for entry in own.pop("defaults", ["base"]):
        listed = entry.get("/piece", [""]) if isinstance(entry, DictConfig) else []
        if any(piece not in pieces for piece in listed):
            raise InputError(f"against={name}: its yaml changes more than pieces; name another.")
        parts += [pieces[piece] for piece in listed]
    attack = OmegaConf.merge(*(OmegaConf.load(part) for part in parts), own)
    root: Any = OmegaConf.create(cell.cfg.plain() | {"attack": attack})
    settings = AttackSettings.model_validate(OmegaConf.to_container(root.attack, resolve=True))
    return Cell(cell.cfg.model_copy(update={"attack": settings}))


def attack_of(cell: Cell) -> "Attack":
    """The attack of a cell.

    Raises:
        InputError: a slot or a parameter that there is not, or a value that cannot be used.
    """
    try:
        return instantiate(cell.steps_facts["attack"])
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        why = " ".join(str(cause).split())[:200]
        if found := re.search(r"Attack.__init__\(\) .* unexpected keyword argument '(\w+)'", why):
            from irattack.attacks.loop import Attack

            slots = [field.name for field in fields(Attack)]
            raise unknown(f"attack={cell.name}: slot", found[1], slots) from error
        raise InputError(
            f"attack={cell.name}: cannot be made ({why}); see its yaml and conf/attack/base.yaml "
            "for the slots that there are."
        ) from error


def file_name(text: str) -> str:
    """A model's name as a file name, another for each."""
    safe = re.sub(r"[^\w.-]", "_", text).lstrip(".")
    return safe if safe == text else f"{safe}-{key(text)[:6]}"


@cache
def pieces_of(path: Path) -> frozenset[str]:
    """The pieces that the yaml of an attack lists."""
    yaml: Any = OmegaConf.to_container(OmegaConf.load(path))
    listed = [entry["/piece"] for entry in yaml.get("defaults", []) if "/piece" in entry]
    return frozenset(piece for pieces in listed for piece in pieces)


def attack_name(name: str, pieces: Iterable[str]) -> str:
    """The name of an attack: its yaml's, and the pieces that the command line adds to it."""
    known = yamls("attack")
    if name not in known:
        cure = "`name` in an attack's yaml is that of its file"
        raise unknown("attack.name", name, known, f"{cure}; expected one of {', '.join(known)}")
    added = sorted(set(pieces) - pieces_of(known[name]))
    return "+".join(added if name == "pgd" and added else [name, *added])
