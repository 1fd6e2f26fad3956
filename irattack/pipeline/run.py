"""From a cell to its results: images, attack, step cache, margins, leave-one-out.

What is on disk is named by a hash of everything that changes the numbers: work that is done is
never done again, a change never reuses old work. The unit of work is a shard of images, whose
margins are kept until those of all shards can be merged; so any number of processes may share a
cell, and each may be killed at any time.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from tqdm import tqdm

from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.losses import margin
from irattack.attacks.norms import Norm
from irattack.attacks.randomness import Draws
from irattack.data.images import Candidates, Images
from irattack.errors import InputError
from irattack.models import zoo
from irattack.models.network import resized
from irattack.pipeline import statistics as evaluation
from irattack.pipeline import steps, store
from irattack.pipeline.cell import PRECISIONS, Cell, device, plain, prepare, to_device, without_tf32

FORMAT = 4  # raise it when results hold something else
MEASURED = [
    *("success_rate_percent", "ci_low", "ci_high"),
    *("last_step_percent", "mean_l2", "source_confidence", "below_tau"),
]

log = logging.getLogger(__name__)


def chosen_images(cell: Cell) -> Images:
    """The images of this benchmark, all of which every source model classifies correctly.

    Chosen by seed and written to a manifest of names and hashes, which is read from then on.
    """
    candidates: Candidates = instantiate(cell.cfg.benchmark.data)
    wanted = listed(cell) or chosen_anew(cell, candidates)
    rows = {name: row for row, name in enumerate(candidates.ids)}
    changed = [image["id"] for image in wanted if image["id"] not in rows]
    if not changed:
        found = candidates.take([rows[image["id"]] for image in wanted])
        changed = [
            image["id"]
            for i, image in enumerate(wanted)
            if (found.digest(i), found.labels[i]) != (image["sha256"], image["label"])
        ]
    if changed:
        named = ", ".join(ascii(name)[1:-1][:80] for name in changed[:3])
        raise InputError(
            f"{cell.images_path}: {len(changed)} of {len(wanted)} images are missing or have "
            f"changed since they were chosen ({named}…); restore them, or "
            "delete the manifest to choose anew."
        )
    check_classes(cell, [cell.cfg.source, *cell.targets], found.ids, found.labels)
    return found


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


def listed(cell: Cell) -> list[dict[str, Any]] | None:
    """The images in the manifest of this cell; None if it has to be written.

    Raises:
        InputError: the user's own manifest lists no images.
    """
    path, given = cell.images_path, cell.cfg.manifest is not None
    manifest = store.read_json(path) or {}
    images = manifest["images"] if lists_images(manifest.get("images")) else []
    if given and not images:
        raise InputError(
            f"manifest={path}: is no list of images, each with a name of its own, a label and a "
            "SHA-256; give a file such as outputs/photos/images/*.json, or leave it out."
        )
    count = cell.cfg.images
    if given and len(images) < count:
        raise InputError(
            f"manifest={path}: lists only {len(images)} images; use images={len(images)}."
        )
    if given:
        return images[:count]
    facts = json.loads(json.dumps(cell.images_facts))
    if manifest.get("facts") == facts and len(images) == facts["count"]:
        return images
    if path.exists():
        log.warning("%s is damaged, or of another configuration; images are chosen anew.", path)
    return None


def lists_images(images: Any) -> bool:
    """Whether this is a list of images as `choose` writes it, each once."""
    kinds = {"id": str, "label": int, "sha256": str}
    return (
        isinstance(images, list)
        and all(isinstance(image, dict) for image in images)
        and all(type(image.get(name)) is kinds[name] for image in images for name in kinds)
        and len({image["id"] for image in images}) == len(images)
    )


def chosen_anew(cell: Cell, candidates: Candidates) -> list[dict[str, Any]]:
    """Chooses the images and writes the manifest; another process may be the first to finish."""
    with without_tf32():
        manifest = choose(cell, candidates)
    store.write_json_once(cell.images_path, manifest)
    found = listed(cell)
    if found is None:  # it was there, and cannot be used
        store.write_json(cell.images_path, manifest)
    return found or manifest["images"]


def choose(cell: Cell, candidates: Candidates) -> dict[str, Any]:
    """The manifest of the first images, in an order drawn from the seed, that all sources know."""
    cfg = cell.cfg
    check_classes(cell, list(cfg.benchmark.sources), candidates.ids, candidates.labels)
    models = [cell.build(name, "judge") for name in cfg.benchmark.sources]
    order = sorted(range(len(candidates)), key=lambda i: store.key([cfg.seed, candidates.ids[i]]))
    images: list[dict[str, Any]] = []
    for start in range(0, len(order), cfg.micro_batch):
        batch = candidates.take(order[start : start + cfg.micro_batch])
        x = to_device(batch.pixels, cfg)
        y = torch.from_numpy(batch.labels).to(x.device)
        correct = torch.ones_like(y, dtype=torch.bool)
        with torch.no_grad():
            for model in models:
                correct &= margin(model(x), y) < 0
        images += [
            {"id": batch.ids[i], "label": int(batch.labels[i]), "sha256": batch.digest(i)}
            for i in correct.nonzero().flatten().tolist()
        ]
        if len(images) >= cfg.images:
            break
    if len(images) < cfg.images:
        cure = f"use images={len(images)} or fewer" if images else "give others"
        cure = cure if cfg.pretrained else "untrained networks need benchmark.sources=[]"
        raise InputError(
            f"images={cfg.images}: only {len(images)} of {len(candidates)} candidate images are "
            f"classified correctly by every source model; {cure}."
        )
    return {"facts": cell.images_facts, "images": images[: cfg.images]}


def to_frame(pixels: np.ndarray, delta: Tensor, norm: Norm) -> np.ndarray:
    """x + δ in 8 bits, still inside the ball: (B, C, H, W) uint8."""
    levels = norm.round(255 * delta).cpu().numpy()
    return (pixels + levels).astype(np.uint8)


def shard_facts(cell: Cell, images: Images) -> dict[str, Any]:
    """What a valid shard of this cell must say of itself."""
    return {
        "key": cell.key,
        "steps": cell.recorded,
        "images": {
            name: [images.digest(i), int(images.labels[i])] for i, name in enumerate(images.ids)
        },
    }


def made_with(cfg: DictConfig) -> dict[str, Any]:
    """Device, threads, versions and commit of this run."""
    where = device(cfg)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    return {"device": name, "threads": cfg.threads, **store.provenance()}


class Worker:
    """Attacks and evaluates the shards of a cell; loads a model when it is first needed."""

    def __init__(self, cell: Cell):
        self.cell = cell
        self.model: Callable[[str, str], nn.Module] = cache(cell.build)
        self.attack: Attack = instantiate(cell.steps_facts["attack"])
        self.micro_batch = cell.cfg.micro_batch
        backward = self.attack.backward
        self.attack_in_one_graph = backward is not None and backward.one_graph

    def frames(self, path: Any, part: Images, keep: Sequence[int], all_steps: bool) -> tuple:
        """The frames of a shard in step order and what made them; attacks if they are not on disk.

        Args:
            keep: the steps that are kept on disk where the attack is run.
            all_steps: whether every step is asked for, or those of `keep` only.
        """
        cell = self.cell
        facts = shard_facts(cell, part)
        card = store.kept(
            path,
            facts,
            lambda card: steps.says_steps(card, cell.recorded) and is_made(card.get("made_with")),
        )
        wanted = range(cell.recorded) if all_steps else keep
        if card is not None and steps.has_steps(card, wanted):
            return steps.read_shard(path, part.pixels, len(card["kept"])), card["made_with"]
        keep = sorted({*keep, *card["kept"]} if card is not None else keep)
        made = made_with(cell.cfg) | {"micro_batch": self.micro_batch}
        store.write_text(cell.steps_path / "config.yaml", OmegaConf.to_yaml(cell.cfg, resolve=True))
        fresh = self.attacked(part, made)
        made_facts = facts | {"facts": cell.steps_facts}
        return steps.kept_frames(path, part.pixels, fresh, keep, made_facts, made), made

    def attacked(self, part: Images, made: dict[str, Any]) -> Iterator[np.ndarray]:
        """Runs the attack on a shard: the frame of each recorded step.

        Adds to `made` how many images never reached ‖δ‖₂ = τ, if the attack has a τ.
        """
        cfg = self.cell.cfg
        x = to_device(part.pixels, cfg)
        y = torch.from_numpy(part.labels).to(x.device)
        model, draws = self.model(cfg.source, "source"), Draws(cfg.seed)
        found = perturbations(self.attack, model, x, y, part.ids, draws, self.micro_batch)
        for delta in found:
            yield to_frame(part.pixels, delta, self.attack.norm)
        if self.attack.stop is not None:
            made["below_tau"] = int((~self.attack.stop.arrived(delta)).sum())

    def margins(
        self, frames: Iterator[np.ndarray], part: Images, targets: Sequence[str], bar: tqdm
    ) -> dict[str, dict[str, np.ndarray]]:
        """For each target the `margins` of all steps, (T, b), and of the `clean` images, (b,).

        With them go the L2 `lengths` of the perturbations, (T, b), in units of [0, 1] images, and
        the probability p_y that the source gives to each clean image, `confidence` (b,).
        """
        cfg = self.cell.cfg
        models = {name: self.model(name, "target") for name in targets}
        clean = to_device(part.pixels, cfg)
        y = torch.from_numpy(part.labels).to(clean.device)

        @torch.no_grad()  # the frames are computed between its calls, with gradients
        def measured(x: Tensor) -> dict[str, np.ndarray]:
            at_size: dict[int, Tensor] = {}  # resized once for all targets of an input size
            found = {}
            for name, model in models.items():
                size = getattr(model, "size", x.shape[-1])
                if size not in at_size:
                    at_size[size] = resized(x, size)
                pieces = zip(
                    at_size[size].split(self.micro_batch), y.split(self.micro_batch), strict=True
                )
                found[name] = torch.cat([margin(model(b), c) for b, c in pieces]).cpu().numpy()
            return found

        with torch.no_grad():
            source = self.model(cfg.source, "source")
            belief = torch.cat([source(b) for b in clean.split(self.micro_batch)]).softmax(dim=1)
        probability = belief.gather(1, y[:, None])[:, 0].cpu().numpy()
        unperturbed = measured(clean)
        each, lengths = [], []
        for frame in frames:
            x = to_device(frame, cfg)
            lengths.append((x - clean).flatten(1).norm(dim=1).cpu().numpy())
            each.append(measured(x))
            bar.update()
        shared = {"lengths": np.stack(lengths), "confidence": probability}
        return {
            name: {
                "margins": np.stack([found[name] for found in each]),
                "clean": unperturbed[name],
                **shared,
            }
            for name in targets
        }

    def retry(self, work: Callable[[], Any]) -> Any:
        """Runs the work on a shard; with half the micro-batch where the device lacks memory."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.micro_batch == 1 or self.attack_in_one_graph:
                    raise InputError(
                        f"device={self.cell.cfg.device}: out of memory, and no smaller micro_batch "
                        "helps; use a smaller block or another device."
                    ) from None
            self.micro_batch //= 2
            torch.cuda.empty_cache()
            log.warning(
                "The device is out of memory: this shard starts again with micro_batch=%d.",
                self.micro_batch,
            )


def progress(cell: Cell, shards: int) -> tqdm:
    """A progress bar over the steps of some shards, on a terminal only."""
    what, total = cell.label[:-13], shards * cell.recorded
    return tqdm(total=total, desc=what, unit="step", leave=False, disable=None)


def attack_images(cell: Cell, images: Images, keep: Sequence[int]) -> None:
    """Runs the attack on every shard of which these steps are not on disk yet."""
    worker = Worker(cell)
    shards = list(cell.shards(images))
    with progress(cell, len(shards)) as bar:
        for path, part in shards:

            def work() -> None:
                for _ in worker.frames(path, part, keep, all_steps=False)[0]:  # noqa: B023
                    bar.update()

            worker.retry(work)


def measure_shards(cell: Cell, images: Images, targets: Sequence[str]) -> None:
    """Margins of this run's share of the shards: one file a shard and target, kept until merged."""
    worker = Worker(cell)
    shards = list(cell.share(images))
    with progress(cell, len(shards)) as bar:
        for path, part in shards:
            facts = {target: part_facts(cell, target, part) for target in targets}
            paths = {target: cell.part_path(target, path) for target in targets}
            missing = [
                name
                for name in targets
                if kept_part(cell, paths[name], facts[name], len(part)) is None
            ]
            if not missing:
                continue

            def work() -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
                frames, made = worker.frames(path, part, cell.kept, all_steps=True)  # noqa: B023
                return worker.margins(frames, part, missing, bar), made  # noqa: B023

            found, made = worker.retry(work)
            for target in missing:
                store.write_arrays(paths[target], **found[target])
                try:
                    store.keep(paths[target], facts[target], attacked_with=made)
                except FileNotFoundError:  # another process was faster, and has merged all
                    if not is_measured(cell, target):
                        raise


def part_facts(cell: Cell, target: str, part: Images) -> dict[str, Any]:
    """What valid margins of a shard must say of themselves."""
    facts = {"format": FORMAT, "target": cell.identity(target)}
    return facts | shard_facts(cell, part)


def kept_part(cell: Cell, path: Path, facts: dict[str, Any], count: int) -> dict[str, Any] | None:
    """The card of the margins of a shard of so many images, if they are whole; else None."""
    return store.kept(
        path,
        facts,
        lambda card: is_made(card.get("attacked_with")) and holds(path, cell.recorded, count),
    )


def is_made(facts: Any) -> bool:
    """Whether this can be what `made_with` says, and of an attack with τ `below_tau`."""
    return (
        isinstance(facts, dict)
        and all(isinstance(facts.get(name), str) for name in ("device", "torch", "commit"))
        and type(facts.get("below_tau", 0)) is int
    )


def holds(path: Path, recorded: int, count: int) -> bool:
    """Whether a file has the margins of so many steps and images."""
    try:
        arrays = store.read_arrays(path)
    except (InputError, FileNotFoundError):
        return False
    each, once = (recorded, count), (count,)
    shapes = {"margins": each, "lengths": each, "clean": once, "confidence": once}
    found = {name: array.shape for name, array in arrays.items() if array.dtype.kind == "f"}
    return found == shapes and len(arrays) == len(found)


def merge(cell: Cell, images: Images, target: str) -> list[str]:
    """Writes the result on a target if the margins of all shards are there; names those missing."""
    cards, paths = [], []
    for shard, part in cell.shards(images):
        path = cell.part_path(target, shard)
        cards.append(kept_part(cell, path, part_facts(cell, target, part), len(part)))
        paths.append(path)
    missing = [path.name for path, card in zip(paths, cards, strict=True) if card is None]
    if missing:
        return missing
    try:
        parts = [store.read_arrays(path) for path in paths]
    except FileNotFoundError:  # another process has merged them
        return [path.name for path in paths if not path.is_file()]
    whole = {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
    path = cell.margins_path(target)
    store.write_arrays(path, **whole)
    made = [card["attacked_with"] for card in cards if card is not None]
    short = [run.pop("below_tau", None) for run in made]
    more = {
        "below_tau": None if None in short else sum(short),
        "attacked_with": [run for i, run in enumerate(made) if run not in made[:i]],
        "evaluated_with": made_with(cell.cfg),
    }
    store.keep(path, result_facts(cell, target), **record(cell, target), **more)
    return []


def remove_parts(cell: Cell, images: Images, target: str) -> None:
    """Removes the margins of single shards on a target that is measured."""
    for shard, _ in cell.shards(images):
        path = cell.part_path(target, shard)
        store.card_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def result_facts(cell: Cell, target: str) -> dict[str, Any]:
    """What a valid result of this cell on this target must say of itself."""
    facts = {"format": FORMAT, "key": cell.key, "target": cell.identity(target)}
    return facts | {"images": images_digest(cell)}


def images_digest(cell: Cell) -> str | None:
    """SHA-256 of the manifest, which names the pixels of every image; None if there is none."""
    return store.sha256(cell.images_path) if cell.images_path.is_file() else None


def pixels(cell: Cell) -> dict[str, Any]:
    """The fact of which images, to the pixel, something else than a result was computed."""
    if images_digest(cell) is None:
        chosen_images(cell)
    return {"pixels": images_digest(cell)}


def record(cell: Cell, target: str) -> dict[str, Any]:
    """The result of one cell on one target, from its margins on disk."""
    path = cell.margins_path(target)
    arrays = store.read_arrays(path)
    margins, lengths = arrays["margins"], arrays["lengths"]
    rate, low, high = evaluation.rate_interval(evaluation.transferred(margins))
    chosen = evaluation.chosen_steps(margins > 0)
    return {
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
        "margins": path.name,
        "config": plain(cell.cfg),
        "precision": PRECISIONS[cell.cfg.precision],
    }


def is_measured(cell: Cell, target: str) -> bool:
    """Whether the margins on this target are on disk, whole, and of this configuration."""
    path = cell.margins_path(target)

    def usable(card: dict[str, Any]) -> bool:
        texts = ("source", "attack", "norm", "target_name")
        runs = card.get("attacked_with")
        return (
            all(isinstance(card.get(name), str) for name in texts)
            and all(type(card.get(name)) in (int, float) for name in MEASURED[:-1])
            and type(card.get("below_tau")) in (int, type(None))
            and isinstance(runs, list)
            and all(is_made(run) for run in [*runs, card.get("evaluated_with")])
            and type(card.get("n")) is int
            and holds(path, cell.recorded, card["n"])
        )

    return store.kept(path, result_facts(cell, target), usable) is not None


def missing_targets(cell: Cell) -> list[str]:
    """The targets on which this cell is not measured yet."""
    return [name for name in cell.targets if not is_measured(cell, name)]


def run(cell: Cell) -> list[str]:
    """Does whatever is missing of this run's share of a cell.

    Returns:
        The shards that other shares (`shard=i/n`) have still to do; none if the cell is measured.
    """
    prepare(cell.cfg)
    missing = missing_targets(cell)
    if not missing:
        return []
    images = chosen_images(cell)
    missing = missing_targets(cell)  # their facts include the images
    measure_shards(cell, images, missing)
    waiting: dict[str, None] = {}
    for target in missing:
        left = merge(cell, images, target)
        if left and not is_measured(cell, target):  # another process may have merged them
            waiting |= dict.fromkeys(name.split("-")[0] for name in left)
        else:
            remove_parts(cell, images, target)
    return list(waiting)


def rows(cell: Cell) -> pd.DataFrame:
    """The results of a cell that is measured, one row a target."""
    paths = [store.card_of(cell.margins_path(target)) for target in cell.targets]
    frame = pd.DataFrame([store.read_json(path) or {} for path in paths])
    frame = frame.assign(attack=cell.method, target=frame.target_name)
    return frame[["source", "attack", "norm", "target", "n", *MEASURED]]
