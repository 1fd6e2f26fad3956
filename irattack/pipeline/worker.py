"""The hands of the jobs: choosing, attacking and evaluating images on the device of this run."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from multiprocessing import parent_process
from typing import Any, TypeVar

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from tqdm import tqdm

from irattack.attacks.loop import perturbations
from irattack.attacks.losses import margin
from irattack.attacks.norms import Norm
from irattack.attacks.randomness import Draws
from irattack.data.images import Candidates, Images
from irattack.errors import InputError, some
from irattack.exact import without_tf32
from irattack.models.network import check_finite, scale_for, scaled
from irattack.pipeline import files
from irattack.pipeline.artifact import Arrays
from irattack.pipeline.cell import Cell, Shard, attack_of
from irattack.pipeline.codec import kept_frames, read_frames
from irattack.pipeline.compute import build, made_with, prepare, target, to_device
from irattack.pipeline.images import drawn, images_of
from irattack.pipeline.memory import MicroBatch
from irattack.pipeline.steps import last_frame, of_shard
from irattack.pipeline.tuning import Pace, pace
from irattack.pipeline.values import number

T = TypeVar("T")
JUDGED = 64  # candidate images at once; they cost little memory, and are not kept


def choose(cell: Cell, candidates: Candidates) -> Images:
    """The first images, in an order drawn from the seed, that all sources classify correctly."""
    cfg = cell.cfg
    prepare(cfg)
    with without_tf32(), torch.no_grad():
        models = {name: build(cell, name, "judge") for name in cfg.benchmark.sources}
        order = drawn(candidates.ids, cfg.seed)
        if not models and len(order) >= cfg.images:
            return candidates.take(order[: cfg.images])

        def correct(rows: list[int]) -> list[int]:
            batch = candidates.take(rows)
            x = to_device(batch.pixels, cfg)
            y = torch.from_numpy(batch.labels).to(x.device)
            right = torch.ones_like(y, dtype=torch.bool)
            for name, model in models.items():
                logits = model(x)
                check_finite(name, logits.T, batch.ids)
                right &= margin(logits, y) < 0
            return [rows[i] for i in right.nonzero().flatten().tolist()]

        found: list[int] = []
        batch, start = MicroBatch(JUDGED, cfg.device), 0
        while start < len(order):
            found += batch.fit(lambda size: correct(order[start : start + size]), "the choice")  # noqa: B023
            start += batch.size
            if len(found) >= cfg.images:
                return candidates.take(found[: cfg.images])
    cure = f"use images={len(found)} or fewer" if found else "give others"
    cure = cure if cfg.pretrained else "untrained networks need benchmark.sources=[]"
    known = "are classified correctly by every source model" if models else "are there"
    raise InputError(
        f"images={cfg.images}: only {len(found)} of {len(candidates)} candidate images {known}; "
        f"{cure}."
    )


def leaves_ball(norm: Norm, levels: Tensor) -> Tensor:
    """Which perturbations, (B, C, H, W) in 8-bit levels, are outside the ball, (B,) bool."""
    return (255 * norm.project(levels / 255) - levels).abs().amax(dim=(1, 2, 3)) > 0.01


def to_frame(images: Images, delta: Tensor, norm: Norm) -> np.ndarray:
    """x + δ in 8 bits, still inside ball and box: (B, C, H, W) uint8.

    Raises:
        InputError: δ of an image is not finite, or leaves the ball, or x + δ leaves [0, 1].
    """
    rounded = norm.round(255 * delta)
    beyond = leaves_ball(norm, rounded)
    levels = rounded.cpu().numpy()
    refuse(images, ~np.isfinite(levels), "the gradient of the source is not finite there; mend it")
    refuse(images, beyond.cpu().numpy(), "δ leaves the ball there; mend the norm's `round`")
    frame = images.pixels + levels
    outside = (frame < 0) | (frame > 255)
    refuse(images, outside, "x + δ leaves [0, 1] there; leave attack.clip as it is")
    return frame.astype(np.uint8)


def one_behind(found: Iterator[Tensor]) -> Iterator[Tensor]:
    """Each tensor on the CPU, once the next one has been asked for.

    So a GPU works on the next step while this one is rounded and written.
    """

    def arrived(copied: Tensor, event: torch.cuda.Event | None) -> Tensor:
        if event is not None:
            event.synchronize()
        return copied

    waiting: tuple[Tensor, torch.cuda.Event | None] | None = None
    for tensor in found:
        if waiting is not None:
            yield arrived(*waiting)
        waiting = tensor.to("cpu", non_blocking=True), None
        if tensor.is_cuda:
            waiting = waiting[0], torch.cuda.Event()
            waiting[1].record()
    if waiting is not None:
        yield arrived(*waiting)


def refuse(images: Images, bad: np.ndarray, why: str) -> None:
    """Raises InputError, which names the images in which something is bad, (B, …) bool."""
    rows = np.flatnonzero(bad.reshape(len(images), -1).any(axis=1)).tolist()
    if len(rows):
        raise InputError(
            f"{len(rows)} of {len(images)} images ({some([images.ids[i] for i in rows])}): {why}."
        )


class Worker:
    """Attacks and evaluates the shards of a cell; loads a model when it is first needed."""

    def __init__(self, cell: Cell):
        prepare(cell.cfg)
        self.cell = cell
        self.draws = Draws(cell.cfg.seed)
        self.model: Callable[[str, str], nn.Module] = cache(self._model)
        self.attack = attack_of(cell)
        backward = self.attack.backward
        self.attack_in_one_graph = backward is not None and backward.one_graph
        self.known: dict[tuple, np.ndarray] = {}

    def _model(self, name: str, role: str) -> nn.Module:
        if role == "target":
            return target(self.cell, name)
        return self.sharpened(build(self.cell, name, role, role == "source" and self.pace.compile))

    def sharpened(self, source: nn.Module) -> nn.Module:
        """The source, in place, with its logits scaled to the confidence of the cell."""
        return scaled(source, self.scale)

    @cached_property
    def scale(self) -> float:
        """By what the source's logits are multiplied for the cell's `confidence`; 1 without.

        Raises:
            InputError: the source is wrong on too many images to be made so confident.
        """
        cfg = self.cell.cfg
        if cfg.confidence is None:
            return 1.0
        model = self.model(cfg.source, "target")
        x, y = self.labelled(self.images)
        with torch.no_grad():
            logits = torch.cat([model(part) for part in x.split(self.micro_batch)])
        check_finite(cfg.source, logits.T, self.images.ids)
        try:
            return scale_for(logits.double(), y, number(cfg.confidence))
        except InputError as error:
            raise InputError(f"confidence={cfg.confidence}: {cfg.source} {error}") from None

    @cached_property
    def pace(self) -> Pace:
        """What `auto` stands for on this device."""
        return pace(self.cell)

    @cached_property
    def batch(self) -> MicroBatch:
        """How many probes are evaluated at once here."""
        return MicroBatch(self.pace.micro_batch, self.cell.cfg.device)

    @property
    def micro_batch(self) -> int:
        """How many probes are evaluated at once now."""
        return self.batch.size

    @property
    def source(self) -> nn.Module:
        """The source as it is measured: no attack's backward rule applies to it."""
        return self.model(self.cell.cfg.source, "measured")

    def labelled(self, images: Images) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] and their labels (B,), on the device."""
        x = to_device(images.pixels, self.cell.cfg)
        return x, torch.from_numpy(images.labels).to(x.device)

    def tensors(self, images: Images) -> tuple[Tensor, Tensor]:
        """The same, with the wanted classes instead of the labels if the attack is targeted."""
        x, y = self.labelled(images)
        return x, torch.from_numpy(images.aims).to(x.device) if self.cell.targeted else y

    def of_goal(self, value: Tensor) -> Tensor:
        """What the attack raises, of a margin or what is linear in it: v(S) negated if targeted."""
        return -value if self.cell.targeted else value

    @cached_property
    def images(self) -> Images:
        """All images of the cell."""
        return images_of(self.cell)

    def last_delta(self, shard: Shard, of: Cell | None = None) -> Tensor:
        """The perturbations of the last step, from the disk, (B, C, H, W).

        Args:
            shard: one of the cell, or the first images of one.
            of: another cell with the same images; None for that of this worker.
        """
        cfg, attacked = self.cell.cfg, self.cell.shards(self.images)[shard.index]
        frame = last_frame(of or self.cell, attacked)[: len(shard.images)]
        return to_device(frame, cfg) - to_device(shard.images.pixels, cfg)

    def made(self) -> dict[str, Any]:
        """What a card says of this run."""
        used = {"micro_batch": self.micro_batch, "compile": self.pace.compile}
        return {"made_with": made_with(self.cell.cfg) | used}

    def frames(
        self, shard: Shard, keep: Sequence[int], all_steps: bool
    ) -> tuple[Iterator[np.ndarray], dict[str, Any]]:
        """The frames of a shard in step order, and what its card says; attacks if they are missing.

        Args:
            keep: the steps that are kept on disk where the attack is run.
            all_steps: whether every step is asked for, or those of `keep` only.
        """
        cell, pixels = self.cell, shard.images.pixels
        steps = of_shard(cell, shard)
        card = steps.card()
        wanted = range(cell.recorded) if all_steps else keep
        if card is not None and card.holds(wanted):
            found = read_frames(steps.path, pixels, len(card.kept))
            return found, card.model_dump(include={"made_with", "below_tau"})
        keep = sorted({*keep, *card.kept} if card is not None else keep)
        config = OmegaConf.to_yaml(OmegaConf.create(cell.cfg.plain()))
        files.write_text(steps.path.parent / "config.yaml", config)
        says = self.made() | {"below_tau": None}

        def store(payload: bytes) -> None:
            with files.locked(steps.path.with_name(f".{steps.path.name}.lock")):
                there = steps.card()  # of another process, which may need steps that are not here
                if there is None or {*there.kept} <= {*keep}:
                    steps.keep(payload, kept=keep, **says)

        return kept_frames(pixels, self.attacked(shard, says), keep, store), says

    def attacked(self, shard: Shard, says: dict[str, Any]) -> Iterator[np.ndarray]:
        """Runs the attack on a shard: the frame of each recorded step.

        Adds to `says` how many images never reached ‖δ‖₂ = τ, if the attack has a τ.
        """
        images, attack = shard.images, self.attack
        x, y = self.tensors(images)
        model = self.model(self.cell.cfg.source, "source")
        found = perturbations(attack, model, x, y, images.ids, self.draws, self.micro_batch)
        for delta in one_behind(found):
            yield to_frame(images, delta, attack.norm)
        if attack.stop is not None:
            says["below_tau"] = int((~attack.stop.arrived(delta)).sum())

    def measured(self, x: Tensor, y: Tensor, targets: Sequence[str]) -> dict[str, np.ndarray]:
        """The margin of each image on each target, (b,); see `answers`."""
        return {name: margins for name, (_, margins) in self.answers(x, y, targets).items()}

    @torch.no_grad()  # the frames are computed between its calls, with gradients
    def answers(
        self, x: Tensor, y: Tensor, targets: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The likeliest class and the margin of each image on each target, (b,) float32 each.

        The margin is above 0 where the attack succeeds: max_{y' ≠ y} h_y' − h_y, or
        h_y − max_{y' ≠ y} h_y' of a wanted class y. It is NaN if any logit is not finite.
        """
        views: dict[Any, Tensor] = {}  # made once for all targets that see images alike
        found = {}
        for name in targets:
            model = self.model(name, "target")
            resize = getattr(model, "resize", None)  # an ensemble resizes for each member
            if resize not in views:
                views[resize] = x if resize is None else resize(x)
            answer: Any = model if resize is None else model.classify
            parts = [piece.split(self.micro_batch) for piece in (views[resize], y)]
            # + 0 · Σh: NaN if any logit is
            each = [
                torch.stack(
                    [h.argmax(dim=1).to(h.dtype), self.of_goal(margin(h, c)) + 0 * h.sum(dim=1)]
                )
                for h, c in ((answer(b), c) for b, c in zip(*parts, strict=True))
            ]
            classes, margins = torch.cat(each, dim=1).cpu().numpy()
            found[name] = classes, margins
        return found

    def clean(self, images: Images, targets: Sequence[str]) -> dict[str, np.ndarray]:
        """The margins of unperturbed images, (b,) for each target; measured once.

        Raises:
            InputError: a target gives NaN or infinity.
        """
        batch = (self.micro_batch, *images.ids)
        absent = [name for name in targets if (name, *batch) not in self.known]
        for name, values in self.measured(*self.tensors(images), absent).items():
            check_finite(name, values, images.ids)
            self.known[name, *batch] = values
        return {name: self.known[name, *batch] for name in targets}

    def margins(
        self,
        frames: Iterator[np.ndarray],
        images: Images,
        targets: Sequence[str],
        step: Callable[[], object],
    ) -> dict[str, Arrays]:
        """For each target the `margins` of all steps, (T, b), and of the `clean` images, (b,).

        With them go the L2 `lengths` of the perturbations, (T, b), in units of [0, 1] images, and
        the probability p_y that the source gives to each clean image, `confidence` (b,).
        """
        clean, y = self.tensors(images)
        _, labels = self.labelled(images)
        unperturbed = self.clean(images, targets)
        with torch.no_grad():
            source = self.model(self.cell.cfg.source, "source")
            belief = torch.cat([source(b) for b in clean.split(self.micro_batch)]).softmax(dim=1)
            check_finite(self.cell.cfg.source, belief.sum(dim=1), images.ids)
        probability = belief.gather(1, labels[:, None])[:, 0].cpu().numpy()
        each, lengths = [], []
        for frame in frames:
            x = to_device(frame, self.cell.cfg)
            lengths.append((x - clean).flatten(1).norm(dim=1).cpu().numpy())
            each.append(self.measured(x, y, targets))
            step()
        shared = {"lengths": np.stack(lengths), "confidence": probability}
        found = {}
        for name in targets:
            all_steps = np.stack([of_step[name] for of_step in [unperturbed, *each]])
            check_finite(name, all_steps, images.ids)
            found[name] = {"margins": all_steps[1:], "clean": all_steps[0], **shared}
        return found

    def retry(self, work: Callable[[], T]) -> T:
        """Runs the work on a shard; with half the micro-batch where the device lacks memory."""
        halves = not self.attack_in_one_graph
        return self.batch.fit(lambda _: work(), "this shard", halves)

    def progress(self, what: str, steps: int) -> tqdm:
        """A progress bar, on a terminal only, and not of one of several processes."""
        hidden = True if parent_process() else None
        return tqdm(
            total=steps, desc=what, unit="step", leave=False, disable=hidden, dynamic_ncols=True
        )
