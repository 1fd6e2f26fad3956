"""Images to other tools and from them: a cell's as PNG files, and the success of those of others.

Both work on the images of a cell, by their names; a folder that is exported and evaluated again
gives the same pixels, and so the same success.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from irattack.data.images import Images
from irattack.data.saved import Saved, as_png, files_in, path_in, read_saved
from irattack.errors import InputError, some, unknown
from irattack.hashing import sha256
from irattack.pipeline import files, statistics
from irattack.pipeline.artifact import provenance
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import Choice, images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.results import Results, arrays
from irattack.pipeline.sharded import distinct
from irattack.pipeline.steps import LastStep, frames_at, of_shard

STEPS = ("last", "leave-one-out", "clean")
MANIFEST = "manifest.json"


def check_step(cell: Cell, step: str) -> None:
    """Raises InputError unless images of a cell can be taken at this step; see `export`."""
    if step.isdecimal():
        if not 1 <= int(step) <= cell.recorded:
            raise InputError(
                f"step {step}: this attack has {cell.recorded} recorded steps, 1 to "
                f"{cell.recorded}; name one of them or {', '.join(STEPS)}."
            )
    elif step not in STEPS:
        raise unknown("step", step, [*STEPS, f"a number from 1 to {cell.recorded}"])
    if step == "leave-one-out" and len(cell.targets) != 1:
        raise InputError(
            f"leave-one-out: chooses the steps by the answers of one target, and there are "
            f"{len(cell.targets)}; give one, such as targets=[{cell.targets[0]}]."
        )


def places(cell: Cell, step: str, count: int) -> np.ndarray:
    """The position of each image's step among those that are recorded, (N,); -1 is clean."""
    if step == "clean":
        return np.full(count, -1)
    if step == "leave-one-out":
        ensure(Results(cell))
        margins = arrays(cell, cell.targets[0])["margins"]
        return statistics.chosen_steps(statistics.successes(margins))
    return np.full(count, (cell.recorded if step == "last" else int(step)) - 1)


def export(cell: Cell, folder: str | Path, step: str = "last") -> Path:
    """Writes the images of a cell as PNG files, and a manifest; runs the attack if it must.

    The manifest is written last, and removed before anything else is written: where it is, all that
    it lists is there. The same images of an earlier export are replaced.

    Args:
        cell: the images are all of its images.
        folder: gets NAME.png of each image, and manifest.json.
        step: last; the number of a recorded step, from 1 on; leave-one-out, the step that the
            others choose for each image by the answers of the one target (Appendix M); or clean.

    Returns:
        The path of the manifest.

    Raises:
        InputError: there is no such step, or the folder has other images, of whatever names.
    """
    root = Path(folder).expanduser()
    check_step(cell, step)
    if cell.cfg.shard is not None:
        raise InputError(f"shard={cell.cfg.shard}: all images are written; leave it out.")
    if root.exists() and not root.is_dir():
        raise InputError(f"{folder}: is a file; give a folder, which may be a new one.")
    ensure(Choice(cell))
    images = images_of(cell)
    paths = [path_in(root, name) for name in images.ids]
    others = sorted(set(files_in(root)) - {*images.ids}) if root.is_dir() else []
    if others:
        raise InputError(
            f"{folder}: has {len(others)} other images ({some(others)}); give an empty folder."
        )
    check_earlier(root, facts(cell, step))
    at = places(cell, step, len(images))
    made: list[dict[str, Any]] = []
    if step != "clean":
        ensure(LastStep(cell, also=tuple(sorted({*at.tolist()}))))
    (root / MANIFEST).unlink(missing_ok=True)
    listed, start = [], 0
    for shard in cell.shards(images):
        part = slice(start, start + len(shard.images))
        pixels, start = shard.images.pixels, part.stop
        if step != "clean":
            pixels = frames_at(cell, shard, at[part])
            card = of_shard(cell, shard).card()
            made += [card.made_with.model_dump()] if card else []
        for row, image in zip(range(part.start, part.stop), pixels, strict=True):
            files.write_bytes(paths[row], as_png(image))
            listed.append(
                {
                    "file": paths[row].relative_to(root).as_posix(),
                    "id": images.ids[row],
                    "label": int(images.labels[row]),
                    **({"wanted": int(images.aims[row])} if cell.targeted else {}),
                    "step": int(at[row]) + 1,  # 0 is the clean image
                    "sha256": sha256(paths[row]),
                }
            )
    made = distinct(made)
    files.write_json(root / MANIFEST, facts(cell, step) | {"made_with": made, "images": listed})
    return root / MANIFEST


def facts(cell: Cell, step: str) -> dict[str, Any]:
    """What a manifest says beside its images; of clean images, nothing of an attack."""
    cfg = cell.cfg
    attacked = {
        "source": cfg.source,
        "attack": cell.name,
        "goal": cfg.goal,
        "norm": cell.norm,
        "eps": cfg.eps if cfg.norm.eps is not None else None,
        "radius": cfg.norm.eps,
        "key": cell.key,
        "target": cell.targets[0] if step == "leave-one-out" else None,
    }
    if step == "clean":
        attacked = dict.fromkeys(attacked)
    whole = {"benchmark": cfg.benchmark.name, "size": cfg.benchmark.size, "step": step}
    return whole | attacked | {"commit": provenance()["commit"], "settings": cfg.plain()}


def check_earlier(root: Path, new: dict[str, Any]) -> None:
    """Raises InputError if a folder has the manifest of other images, or of another tool."""
    if not (root / MANIFEST).exists():
        return
    found = files.read_json(root / MANIFEST) or {}
    deciding = ("benchmark", "size", "source", "attack", "key", "step", "target")
    if other := [name for name in deciding if found.get(name) != new[name]]:
        differs = ", ".join(f"{name}={found[name]}" for name in other if name in found)
        what = f"of other images ({differs})" if "step" in found else "and is of no export"
        raise InputError(
            f"{root / MANIFEST}: is there already, {what}; it would be replaced. Give another "
            "folder, or remove that file."
        )


class Aim(BaseModel):
    """An image of a manifest, and the class that its attack aimed at, if it was targeted."""

    model_config = ConfigDict(strict=True)
    id: str
    wanted: int | None = None


class Exported(BaseModel):
    """What a manifest says of goals; of clean images there is none."""

    model_config = ConfigDict(strict=True)
    goal: Literal["untargeted", "targeted"] | None
    images: list[Aim]


def check_goal(cell: Cell, folder: str | Path, images: Images) -> None:
    """Raises InputError if a folder's manifest names another goal than that of a cell.

    Args:
        images: the clean images, with the wanted classes if the cell is targeted.
    """
    try:
        said = Exported.model_validate(files.read_json(Path(folder).expanduser() / MANIFEST) or {})
    except ValidationError:  # a file of another tool
        return
    if said.goal is None:
        return
    if said.goal != cell.cfg.goal:
        raise InputError(
            f"goal={cell.cfg.goal}: the images of {folder} are of goal={said.goal}, as its "
            f"{MANIFEST} says; give goal={said.goal}, or remove that file."
        )
    if not cell.targeted:
        return
    aims = {image.id: image.wanted for image in said.images}
    pairs = zip(images.ids, images.aims.tolist(), strict=True)
    if other := [name for name, aim in pairs if aims.get(name, aim) != aim]:
        raise InputError(
            f"wanted={cell.cfg.wanted}, seed={cell.cfg.seed}: {len(other)} images of {folder} aim "
            f"at other classes, as its {MANIFEST} says ({some(other)}); give wanted= and seed= of "
            "their attack, or remove that file."
        )


@dataclass(frozen=True)
class Evaluation:
    """What success the images of a folder have.

    Attributes:
        saved: the images and what is to be said of their files.
        images: the clean images of the same names.
        exceeds: which of them leave the ball, (n,) bool.
        linf: ‖δ‖∞ of each in 8-bit levels, (n,).
        l2: ‖δ‖₂ of each in units of [0, 1] images, (n,).
        margins, clean: of each target, of these images and of the clean ones, (n,).
        made_with: what measured it.
    """

    saved: Saved
    images: Images
    exceeds: np.ndarray
    linf: np.ndarray
    l2: np.ndarray
    margins: dict[str, np.ndarray]
    clean: dict[str, np.ndarray]
    made_with: dict[str, Any]


def evaluate(cell: Cell, folder: str | Path) -> Evaluation:
    """Measures images that another tool has made of a cell's clean images on the cell's targets.

    Args:
        cell: what it attacks with is of no matter, but for the ball.
        folder: see `saved.read_saved`.

    Raises:
        InputError: the images cannot be used, were made for another goal, or a target gives NaN or
            infinity.
    """
    if cell.cfg.shard is not None:
        raise InputError(f"shard={cell.cfg.shard}: all images are measured; leave it out.")
    files_in(folder)  # before images are chosen
    ensure(Choice(cell))
    every = images_of(cell)
    check_goal(cell, folder, every)
    saved = read_saved(folder, every.ids, cell.cfg.benchmark.size)

    import torch

    from irattack.models.network import check_finite
    from irattack.pipeline.compute import to_device
    from irattack.pipeline.worker import Worker, leaves_ball

    worker, images, names = Worker(cell), every.take(saved.rows), cell.targets
    levels = saved.pixels.astype(np.float32) - images.pixels
    exceeds = leaves_ball(worker.attack.norm, torch.from_numpy(levels)).numpy()
    shards = cell.shards(images)
    parts: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    start = 0
    with worker.progress(f"{folder}", len(shards)) as bar:
        for shard in shards:
            pixels = saved.pixels[start : start + len(shard.images)]
            start += len(shard.images)

            def work(pixels: np.ndarray = pixels, images: Images = shard.images) -> Sequence:
                x, (_, y) = to_device(pixels, cell.cfg), worker.tensors(images)
                return worker.measured(x, y, names), worker.clean(images, names)

            margins, clean = worker.retry(work)
            parts.append((margins, clean))
            bar.update()
    margins, clean = (
        {name: np.concatenate([part[place][name] for part in parts]) for name in names}
        for place in (0, 1)
    )
    for name in names:
        check_finite(name, margins[name], images.ids)
    return Evaluation(
        saved=saved,
        images=images,
        exceeds=exceeds,
        linf=np.abs(levels).max(axis=(1, 2, 3)),
        l2=np.sqrt((levels.astype(np.float64) ** 2).sum(axis=(1, 2, 3))) / 255,
        margins=margins,
        clean=clean,
        made_with=worker.made()["made_with"],
    )
