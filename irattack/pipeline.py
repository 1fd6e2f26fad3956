"""From a configuration to results: images, attack, step cache, margins, leave-one-out.

Each stage reads the stage before it from disk. What is on disk is named by a hash of everything
that changes the numbers: a stage that is done is never done again, a change never reuses old work.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from irattack import evaluation, steps, store
from irattack.attack import Attack, perturbations
from irattack.data.images import Candidates, Images
from irattack.errors import InputError
from irattack.losses import margin
from irattack.models import zoo
from irattack.norms import Norm
from irattack.randomness import Draws

VERSION = 1  # raise it when the same configuration starts to give other perturbations
FORMAT = 3  # raise it when results hold something else
PRECISION = "float32, TF32 off"


def plain(cfg: Any) -> Any:
    """A resolved configuration as plain lists and dicts."""
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


MEASURED = [
    *("success_rate_percent", "ci_low", "ci_high"),
    *("last_step_percent", "mean_l2", "source_confidence"),
]


class Cell:
    """One configuration, and where its work lies on disk.

    Attributes:
        images_facts, steps_facts: all that decides the images and the perturbations; hashed to
            name their files.
        recorded: how many steps of the attack are kept.
    """

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        self.root = Path(cfg.output) / cfg.benchmark.name
        self.images_facts = {
            "data": plain(cfg.benchmark.data),
            "sources": {name: self.identity(name) for name in cfg.benchmark.sources},
            "count": cfg.images,
            "seed": cfg.seed,
        }
        attack = plain(cfg.attack)
        self.name = attack_name(str(attack.pop("name")), attack.pop("pieces", {}))
        self.method = self.name  # what a table calls it
        self.steps_facts = {
            "version": VERSION,
            "images": self.images_facts,
            "source": self.identity(cfg.source),
            "attack": attack,
            "skip": zoo.skips(cfg.benchmark.name, cfg.source) if "backward" in attack else None,
            "precision": PRECISION,
            "seed": cfg.seed,
            "block": cfg.block,
            "micro_batch": cfg.micro_batch,
        }
        self.key = store.key(self.steps_facts)
        self.norm = attack["norm"]["_target_"].rsplit(".", 1)[-1].lower()
        self.recorded = 1 if attack["record"] == "last" else int(attack["steps"])
        self.label = f"{self.name}-{cfg.source}-{self.norm}-{self.key}"

    def identity(self, model: str) -> dict[str, Any]:
        """What decides a model's outputs."""
        return zoo.identity(self.cfg.benchmark.name, model)

    def build(self, model: str) -> torch.nn.Module:
        """A model on the device of this run."""
        network = zoo.build(self.cfg.benchmark.name, model)
        return network.to(memory_format=torch.channels_last).to(device(self.cfg))

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
        return self.root / "images" / f"{store.key(self.images_facts)}.json"

    def shards(self, images: Images) -> Iterator[tuple[Path, Images]]:
        """Path and images of each shard of the step cache."""
        for start in range(0, len(images), self.cfg.block):
            rows = range(start, min(start + self.cfg.block, len(images)))
            path = self.root / "steps" / self.label / f"{start // self.cfg.block:04}.b2"
            yield path, images.take(rows)

    def margins_path(self, target: str) -> Path:
        """The (T, N) margins on a target; the result beside it has the suffix .json."""
        return self.root / "results" / self.label / f"{target}.safetensors"


def attack_name(name: str, pieces: Iterable[str]) -> str:
    """The name of an attack: its yaml's, and the pieces that the command line adds to it."""
    defaults = OmegaConf.load(zoo.CONF / "attack" / f"{name}.yaml").defaults
    own = [entry["/piece"] for entry in defaults if "/piece" in entry]
    added = sorted(set(pieces) - {piece for listed in own for piece in listed})
    return "+".join(added if name == "pgd" and added else [name, *added])


def full_precision() -> None:
    """Makes PRECISION true: without this, cuDNN's convolutions run in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def prepare(cfg: DictConfig) -> None:
    """Sets what every computation depends on: threads and precision."""
    torch.set_num_threads(cfg.threads)
    full_precision()


def device(cfg: DictConfig) -> torch.device:
    """The device of this run."""
    if cfg.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(cfg.device)


def to_device(pixels: np.ndarray, cfg: DictConfig) -> Tensor:
    """8-bit images (B, C, H, W) as float32 in [0, 1] on the device."""
    return torch.from_numpy(pixels).to(device(cfg)).float() / 255


def chosen_images(cell: Cell) -> Images:
    """The images of this benchmark, all of which every source model classifies correctly.

    Chosen by seed and written to a manifest of names and hashes, which is read from then on.
    """
    cfg = cell.cfg
    candidates: Candidates = instantiate(cfg.benchmark.data)
    manifest = store.read_json(cell.images_path)
    if manifest is not None:
        rows = {name: row for row, name in enumerate(candidates.ids)}
        listed = manifest["images"]
        changed = [image["id"] for image in listed if image["id"] not in rows]
        if not changed:
            found = candidates.take([rows[image["id"]] for image in listed])
            changed = [
                image["id"] for i, image in enumerate(listed) if found.digest(i) != image["sha256"]
            ]
        if changed:
            raise InputError(
                f"{cell.images_path}: {len(changed)} of {len(listed)} images are missing or have "
                f"changed since they were chosen ({', '.join(changed[:3])}…); restore them, or "
                "delete the manifest to choose anew."
            )
        return found
    models = [cell.build(name) for name in cfg.benchmark.sources]
    order = sorted(range(len(candidates)), key=lambda i: store.key([cfg.seed, candidates.ids[i]]))
    kept: list[int] = []
    for start in range(0, len(order), cfg.micro_batch):
        rows_ = order[start : start + cfg.micro_batch]
        batch = candidates.take(rows_)
        x = to_device(batch.pixels, cfg)
        y = torch.from_numpy(batch.labels).to(x.device)
        with torch.no_grad():
            correct = torch.stack([margin(model(x), y) < 0 for model in models]).all(dim=0)
        kept += [row for row, good in zip(rows_, correct.tolist(), strict=True) if good]
        if len(kept) >= cfg.images:
            break
    if len(kept) < cfg.images:
        raise InputError(
            f"images={cfg.images}: only {len(kept)} of {len(candidates)} candidate images are "
            f"classified correctly by every source model; use images={len(kept)} or fewer."
        )
    chosen = candidates.take(kept[: cfg.images])
    images = [
        {"id": name, "label": int(chosen.labels[i]), "sha256": chosen.digest(i)}
        for i, name in enumerate(chosen.ids)
    ]
    store.write_json(cell.images_path, {"facts": cell.images_facts, "images": images})
    return chosen


def to_frame(pixels: np.ndarray, delta: Tensor, norm: Norm) -> np.ndarray:
    """x + δ in 8 bits, still inside the ball: (B, C, H, W) uint8."""
    levels = norm.round(255 * delta).cpu().numpy()
    return (pixels + levels).astype(np.uint8)


def shard_manifest(cell: Cell, images: Images) -> dict[str, Any]:
    """What a valid shard of this cell must say of itself."""
    return {
        "key": cell.key,
        "steps": cell.recorded,
        "images": {name: images.digest(i) for i, name in enumerate(images.ids)},
    }


def progress(total: int, what: str) -> tqdm:
    """A progress bar over steps and shards, on a terminal only."""
    return tqdm(total=total, desc=what, unit="step", leave=False, disable=None)


def attack_images(cell: Cell, images: Images) -> None:
    """Runs the attack on every shard that is not on disk yet."""
    cfg = cell.cfg
    shards = list(cell.shards(images))
    missing = [
        (path, part)
        for path, part in shards
        if not steps.is_valid(path, shard_manifest(cell, part))
    ]
    if not missing:
        return
    resolved = OmegaConf.to_yaml(cfg, resolve=True)
    store.write_text(cell.root / "steps" / cell.label / "config.yaml", resolved)
    model = cell.build(cfg.source)
    attack: Attack = instantiate(cell.steps_facts["attack"])
    draws = Draws(cfg.seed)
    total = len(missing) * cell.recorded
    with tqdm(
        total=total, desc=f"attack {cell.label[:-13]}", unit="step", leave=False, disable=None
    ) as bar:
        for path, part in missing:
            x = to_device(part.pixels, cfg)
            y = torch.from_numpy(part.labels).to(x.device)

            made = {"facts": cell.steps_facts, "made_with": made_with(cfg)}
            manifest = shard_manifest(cell, part) | made

            def frames(
                part: Images, x: Tensor, y: Tensor, manifest: dict[str, Any]
            ) -> Iterator[np.ndarray]:
                ids = part.ids
                for delta in perturbations(attack, model, x, y, ids, draws, cfg.micro_batch):
                    yield to_frame(part.pixels, delta, attack.norm)
                    bar.update()
                if attack.stop is not None:
                    manifest["below_tau"] = int((~attack.stop.arrived(delta)).sum())

            steps.write_shard(path, part.pixels, frames(part, x, y, manifest), manifest)


def device_name(cfg: DictConfig) -> str:
    """The device as results record it."""
    where = device(cfg)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"


@torch.no_grad()
def measure_margins(cell: Cell, images: Images, targets: Sequence[str]) -> None:
    """Margins of every step on the targets: reads the step cache once, writes (T, N) a target.

    Beside them go the margins of the clean images, (N,), the L2 lengths of the perturbations, in
    units of [0, 1] images, and the probability p_y that the source gives to the true class of each
    clean image, (N,).
    """
    cfg = cell.cfg
    source, models = cell.build(cfg.source), {name: cell.build(name) for name in targets}
    unperturbed = {name: f"clean {name}" for name in targets}
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in (*targets, *unperturbed.values(), "lengths", "confidence")
    }
    shards = list(cell.shards(images))
    total = len(shards) * cell.recorded
    with tqdm(
        total=total, desc=f"evaluate {cell.label[:-13]}", unit="step", leave=False, disable=None
    ) as bar:
        for path, part in shards:
            clean = to_device(part.pixels, cfg)
            y = torch.from_numpy(part.labels).to(clean.device)
            probability = source(clean).softmax(dim=1).gather(1, y[:, None])[:, 0]
            parts["confidence"].append(probability.cpu().numpy())
            for name, model in models.items():
                parts[unperturbed[name]].append(margin(model(clean), y).cpu().numpy())
            measured: dict[str, list[np.ndarray]] = {name: [] for name in (*targets, "lengths")}
            for frame in steps.read_shard(path, part.pixels):
                x = to_device(frame, cfg)
                measured["lengths"].append((x - clean).flatten(1).norm(dim=1).cpu().numpy())
                for name, model in models.items():
                    measured[name].append(margin(model(x), y).cpu().numpy())
                bar.update()
            for name, values in measured.items():
                parts[name].append(np.stack(values))
    whole = {name: np.concatenate(values, axis=-1) for name, values in parts.items()}
    for name in targets:
        path = cell.margins_path(name)
        store.write_arrays(
            path,
            margins=whole[name],
            clean=whole[unperturbed[name]],
            lengths=whole["lengths"],
            confidence=whole["confidence"],
        )
        store.write_json(path.with_suffix(".json"), result(cell, name))


def result_facts(cell: Cell, target: str) -> dict[str, Any]:
    """What a valid result of this cell on this target must say of itself."""
    return {"format": FORMAT, "key": cell.key, "target": cell.identity(target)}


def result(cell: Cell, target: str) -> dict[str, Any]:
    """The record of one cell on one target, from its margins on disk."""
    path = cell.margins_path(target)
    arrays = store.read_arrays(path)
    margins, lengths = arrays["margins"], arrays["lengths"]
    rate, low, high = evaluation.rate_interval(evaluation.transferred(margins))
    chosen = evaluation.chosen_steps(margins > 0)
    return {
        **result_facts(cell, target),
        "source": cell.cfg.source,
        "attack": cell.name,
        "norm": cell.norm,
        "target_name": target,
        "n": margins.shape[1],
        "steps": margins.shape[0],
        "success_rate_percent": rate,
        "ci_low": low,
        "ci_high": high,
        "last_step_percent": 100 * float((margins[-1] > 0).mean()),
        "mean_l2": float(lengths[chosen, np.arange(len(chosen))].mean()),
        "source_confidence": float(np.median(arrays["confidence"])),
        "below_tau": below_tau(cell),
        "margins": path.name,
        "margins_sha256": store.sha256(path),
        "config": plain(cell.cfg),
        "precision": PRECISION,
        "attacked_with": attacked_with(cell),
        "evaluated_with": made_with(cell.cfg),
    }


def made_with(cfg: DictConfig) -> dict[str, Any]:
    """Device, threads, versions and commit of this run."""
    return {"device": device_name(cfg), "threads": cfg.threads, **store.provenance()}


def below_tau(cell: Cell) -> int | None:
    """How many images never reached ‖δ‖₂ = τ; None for an attack that has no τ."""
    shards = sorted((cell.root / "steps" / cell.label).glob("*.json"))
    found = [(store.read_json(path) or {}).get("below_tau") for path in shards]
    return sum(count or 0 for count in found) if any(c is not None for c in found) else None


def attacked_with(cell: Cell) -> dict[str, Any]:
    """The same of the run that made the perturbations, from their first shard."""
    path = cell.root / "steps" / cell.label / "0000.json"
    return (store.read_json(path) or {}).get("made_with", {})


def is_measured(cell: Cell, target: str) -> bool:
    """Whether the margins on this target are on disk, whole, and of this configuration."""
    path = cell.margins_path(target)
    found = store.read_json(path.with_suffix(".json"))
    return (
        found is not None
        and path.is_file()
        and all(found.get(name) == value for name, value in result_facts(cell, target).items())
        and found["margins_sha256"] == store.sha256(path)
    )


def run(cell: Cell) -> pd.DataFrame:
    """Does whatever is missing of a cell and returns its rows, one a target."""
    prepare(cell.cfg)
    missing = [name for name in cell.targets if not is_measured(cell, name)]
    if missing:
        images = chosen_images(cell)
        attack_images(cell, images)
        measure_margins(cell, images, missing)
    return rows(cell)


def rows(cell: Cell) -> pd.DataFrame:
    """The results of a cell, one row a target, computed from the margins on disk."""
    records = [result(cell, target) for target in cell.targets]
    frame = pd.DataFrame(records)
    frame = frame.assign(attack=cell.method, target=frame.target_name)
    return frame[["source", "attack", "norm", "target", "n", *MEASURED]]
