"""A cell: one configuration, what decides its numbers, and where its work lies on disk."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from irattack.data.images import Images
from irattack.errors import unknown
from irattack.models import zoo
from irattack.models.network import in_bfloat16, networks
from irattack.pipeline import store

VERSION = 2  # raise it when the same configuration starts to give other perturbations
PRECISIONS = {  # how models compute; images, losses and perturbations are always float32
    "fp32": "float32, TF32 off",
    "tf32": "float32 with TF32 on CUDA",
    "bf16": "bfloat16 networks",
}


def plain(cfg: Any) -> Any:
    """A resolved configuration as plain lists and dicts."""
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


class Cell:
    """One configuration, and where its work lies on disk.

    Attributes:
        images_facts, steps_facts: all that decides the images and the perturbations; hashed to
            name their files.
        recorded: how many steps of the attack are recorded.
        kept: the positions of those that stay on disk.
    """

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        self.root = Path(cfg.output) / cfg.benchmark.name
        if cfg.manifest is not None:
            self.images_facts = {"manifest": store.sha256(Path(cfg.manifest)), "count": cfg.images}
        else:
            self.images_facts = {
                "data": plain(cfg.benchmark.data),
                "sources": {name: self.identity(name) for name in cfg.benchmark.sources},
                "count": cfg.images,
                "seed": cfg.seed,
            }
        attack = plain(cfg.attack)
        self.name = attack_name(str(attack.pop("name")), attack.pop("pieces", {}))
        self.method = self.name  # what a table calls it
        self.uses_skips = "backward" in attack
        self.steps_facts = {
            "version": VERSION,
            "images": self.images_facts,
            "source": self.identity(cfg.source),
            "attack": attack,
            "skip": zoo.skips(cfg.benchmark.name, cfg.source) if self.uses_skips else None,
            "precision": PRECISIONS[cfg.precision],
            "compile": cfg.compile and not self.uses_skips,
            "seed": cfg.seed,
            "block": cfg.block,
            "micro_batch": cfg.micro_batch,
        }
        self.key = store.key(self.steps_facts)
        self.norm = attack["norm"]["_target_"].rsplit(".", 1)[-1].lower()
        self.recorded = 1 if attack["record"] == "last" else int(attack["steps"])
        self.label = f"{self.name}-{file_name(cfg.source)}-{self.norm}-{self.key}"
        steps = cfg.cache.steps
        every = {"all": range(self.recorded), "none": range(0)}
        wanted = every[steps] if isinstance(steps, str) else [step - 1 for step in steps]
        self.kept = sorted({step for step in wanted if step < self.recorded})

    def identity(self, model: str) -> dict[str, Any]:
        """What decides a model's outputs."""
        cfg = self.cfg
        return zoo.identity(cfg.benchmark.name, model, cfg.pretrained, cfg.weights_dir)

    def build(self, model: str, role: str = "target") -> torch.nn.Module:
        """A model on the device of this run, made fast: folded, channels last, in its precision.

        Args:
            role: `target`; `source`, whose residual branches SGM may need; or `judge`, which
                decides which images are attacked, always in float32.
        """
        from irattack.models.fold import fold

        cfg = self.cfg
        network = zoo.build(cfg.benchmark.name, model, cfg.pretrained, cfg.weights_dir)
        network = network.to(memory_format=torch.channels_last).to(device(cfg))
        with without_tf32():
            fold(network, keep_branches=role == "source" and self.uses_skips)
        if cfg.precision == "bf16" and role != "judge":
            in_bfloat16(network)
        if cfg.compile and role == "source" and not self.uses_skips:
            for part in networks(network):
                part.body.compile()
        return network.to(memory_format=torch.channels_last)  # the folded weights are new

    @property
    def targets(self) -> list[str]:
        """The names of the target models, the source left out of a named set of targets."""
        given = self.cfg.targets
        if not isinstance(given, str):
            return list(given)
        if given not in self.cfg.benchmark.target_sets:
            return [given]
        return [name for name in self.cfg.benchmark.target_sets[given] if name != self.cfg.source]

    @property
    def images_path(self) -> Path:
        """The manifest of the attacked images."""
        if self.cfg.manifest is not None:
            return Path(self.cfg.manifest)
        return self.root / "images" / f"{store.key(self.images_facts)}.json"

    @property
    def steps_path(self) -> Path:
        """The folder of the step cache."""
        return self.root / "steps" / self.label

    def shards(self, images: Images) -> Iterator[tuple[Path, Images]]:
        """Path and images of each shard of the step cache."""
        for start in range(0, len(images), self.cfg.block):
            rows = range(start, min(start + self.cfg.block, len(images)))
            yield self.steps_path / f"{start // self.cfg.block:04}.b2", images.take(rows)

    def share(self, images: Images) -> Iterator[tuple[Path, Images]]:
        """Those shards that `shard=i/n` leaves to this run: every n-th, from the i-th on."""
        number, count = (int(part) for part in str(self.cfg.shard or "1/1").split("/"))
        for index, shard in enumerate(self.shards(images)):
            if index % count == number - 1:
                yield shard

    def margins_path(self, target: str) -> Path:
        """The (T, N) margins on a target; the result beside it has the suffix .json."""
        return self.root / "results" / self.label / f"{file_name(target)}.safetensors"

    def part_path(self, target: str, shard: Path) -> Path:
        """The margins of one shard on a target, until all of them are merged."""
        return (
            self.margins_path(target).parent
            / "parts"
            / f"{shard.stem}-{file_name(target)}.safetensors"
        )


def file_name(text: str) -> str:
    """A model's name as a file name."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".")


def attack_name(name: str, pieces: Iterable[str]) -> str:
    """The name of an attack: its yaml's, and the pieces that the command line adds to it."""
    known = {path.stem: path for path in (zoo.CONF / "attack").glob("*.yaml")}
    if name not in known:
        raise unknown("attack.name", name, sorted(known))
    defaults = OmegaConf.load(known[name]).defaults
    own = [entry["/piece"] for entry in defaults if "/piece" in entry]
    added = sorted(set(pieces) - {piece for listed in own for piece in listed})
    return "+".join(added if name == "pgd" and added else [name, *added])


def prepare(cfg: DictConfig) -> None:
    """Sets what every computation depends on: threads, precision, cuDNN without chance."""
    torch.set_num_threads(cfg.threads)
    set_tf32(cfg.precision == "tf32")
    torch.backends.cudnn.deterministic = True


def set_tf32(allowed: bool) -> None:
    """Whether CUDA may round the factors of a product to TF32; cuDNN does unless it is told."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Float32 in full, whatever the precision of the run."""
    before = torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        set_tf32(before)


def device(cfg: DictConfig) -> torch.device:
    """The device of this run."""
    if cfg.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(cfg.device)


def to_device(pixels: np.ndarray, cfg: DictConfig) -> Tensor:
    """8-bit images (B, C, H, W) as float32 in [0, 1] on the device."""
    where, images = device(cfg), torch.from_numpy(pixels)
    images = images.pin_memory() if where.type == "cuda" else images
    return images.to(where, non_blocking=True).float() / 255


def cpu_count() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
