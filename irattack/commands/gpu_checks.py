"""What `make gpu` checks: that a GPU computes what a CPU does, every time alike, and how fast."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from irattack.attacks import philox
from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.pieces import GaussianNoise
from irattack.attacks.randomness import Draws
from irattack.data import photos
from irattack.data.classes import synsets
from irattack.data.images import Images
from irattack.models.network import resized
from irattack.pipeline import speed, tuning
from irattack.pipeline.cell import Cell, attack_of
from irattack.pipeline.codec import read_frames
from irattack.pipeline.compute import build, device, gpus_of, has_tf32, prepare, to_device
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.memory import MicroBatch, peak, release
from irattack.pipeline.results import Results
from irattack.pipeline.steps import of_shard
from irattack.pipeline.worker import Worker

PIECES = ("pgd", "mi", "vr", "sgm", "ti", "di", "ir", "maskaug", "ironly", "relaxed", "hybridir")
TOLERANCE = 1e-3  # ‖a − b‖₂ / ‖b‖₂ of gradients in float32 and in float64, all images together
NEAR = 4  # or so many times what float32 on the CPU is off
WORST = 1e-2  # which must not be further off than this
SIGNS = 0.999  # part of the elements whose sign agrees, on which alone an L∞ step depends
ROOM = 2**28  # bytes that the check of memory leaves
Found = dict[str, Any]


class DisprovedError(Exception):
    """What was to be shown does not hold; the message says how far it is off."""


def demand(holds: bool, sentence: str) -> None:
    """Raises DisprovedError unless something holds."""
    if not holds:
        raise DisprovedError(sentence)


@cache
def crops(count: int) -> Images:
    """The first test crops of the photos benchmark."""
    return photos.candidates("test").take(range(count))


class Lab:
    """An attack on photographs' crops and a trained network, as the pipeline has them."""

    def __init__(self, cfg: DictConfig, attack: str, where: str, *given: str):
        source, count = cfg.checks.source, cfg.checks.images
        overrides = [f"attack={attack}", f"source={source}", f"device={where}", *given]
        overrides += ["benchmark.generator=philox"]  # of the paper's scale, drawn on the device
        self.cell = Cell(compose("config", overrides=[*overrides, "benchmark.sources=[]"]))
        prepare(self.cell.cfg)
        self.images = crops(count)
        self.x = to_device(self.images.pixels, self.cell.cfg)
        self.y = torch.from_numpy(self.images.labels).to(self.x.device)
        self.attack: Attack = attack_of(self.cell)
        self.model: nn.Module = build(self.cell, source, "source")

    def delta(self) -> Tensor:
        """The same small perturbation on every device, (B, 3, H, W)."""
        drawn = Draws(0).uniform(self.images.ids, 0, "check", self.x.shape[1:])
        return ((drawn - 0.5) * 16 / 255).to(self.x)

    def direction(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """m of the loop after one step from `delta`, (B, 3, H, W) float64 on the CPU."""
        x, delta = self.x.to(dtype), self.delta().to(dtype)
        given = (self.model.to(dtype), x, self.y, delta, torch.zeros_like(x))
        _, m = self.attack.update(*given, self.images.ids, 1, Draws(0), 64)
        return m.double().cpu()

    def trajectory(self, steps: int) -> Tensor:
        """The first perturbations of the attack, (T, B, 3, H, W) on the CPU."""
        given = (self.attack, self.model, self.x, self.y, self.images.ids, Draws(0), 64)
        found = zip(range(steps), perturbations(*given), strict=False)
        return torch.stack([delta.cpu() for _, delta in found])


def repeat(cfg: DictConfig) -> Found:
    """An attack run twice on the device is the same to the bit, in every precision it has."""
    precisions = ["fp32", *["tf32"] * has_tf32(cfg.device), *["bf16"] * bool(gpus_of(cfg.device))]
    for precision in precisions:
        lab = Lab(cfg, "hybridir", cfg.device, f"precision={precision}")
        first, second = (lab.trajectory(cfg.checks.steps) for _ in range(2))
        off = int((first != second).sum())
        demand(off == 0, f"{precision}: {off} of {first.numel()} elements differ between two runs")
    x = lab.x.repeat(1, 1, 9, 9)[..., :224, :224].requires_grad_()  # where networks see fewer px
    first, second = (torch.autograd.grad(resized(x, 160).square().sum(), x)[0] for _ in range(2))
    demand(torch.equal(first, second), "the gradient of a resize differs between two runs")
    return {"bit-identical": " ".join(precisions), "steps": cfg.checks.steps}


def agreement(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """The relative L2 distance of two gradients, and the part of the elements of equal sign."""
    distance = (found - expected).norm() / expected.norm()
    return float(distance), float((found.sign() == expected.sign()).float().mean())


def agree(cfg: DictConfig) -> Found:
    """The step of every piece in float32 is that of float64 on the CPU.

    It may be `TOLERANCE` off, or `NEAR` times as far as the CPU's in float32. The interaction is a
    difference of gradients that nearly cancel, so that float32 itself is 1e-3 off where it stands
    alone (`ironly`).
    """
    each = {}
    for name in PIECES:
        there = Lab(cfg, name, "cpu")
        single, expected = (there.direction(kind) for kind in (torch.float32, torch.float64))
        rounding, _ = agreement(single, expected)
        distance, signs = agreement(Lab(cfg, name, cfg.device).direction(), expected)
        each[name] = distance, signs, rounding
    off = [
        f"{name}: {distance:.1e} from float64, where the CPU is {rounding:.1e}, and "
        f"{100 * signs:.2f} % of the signs agree"
        for name, (distance, signs, rounding) in each.items()
        if not (
            distance <= max(TOLERANCE, NEAR * rounding) and rounding <= WORST and signs >= SIGNS
        )
    ]
    demand(not off, "; ".join(off))
    return {
        "largest distance": max(distance for distance, _, _ in each.values()),
        "least agreement of signs": min(signs for _, signs, _ in each.values()),
        "pieces": {name: list(values) for name, values in each.items()},
    }


def noise(cfg: DictConfig) -> Found:
    """VR's noise has its moments, is the CPU's, and does not depend on the batch."""
    here, there = (Lab(cfg, "vr", where) for where in (cfg.device, "cpu"))

    samples = here.attack.samples
    assert isinstance(samples, GaussianNoise)

    def drawn(lab: Lab, count: int | None = None) -> Tensor:
        return samples.noise(lab.x[:count], lab.images.ids[:count], 1, Draws(0)).cpu()

    if here.x.is_cuda:
        found = philox.on_cuda([(1, 2)], 2, here.x.device)
        demand(found is not None, "Triton cannot compile: the noise is drawn on the CPU and copied")
    ours, sigma = drawn(here), samples.sigma
    demand(torch.equal(ours[:1], drawn(here, 1)), "the noise of an image depends on its batch")
    mean, std = float(ours.mean()) / sigma, float(ours.std()) / sigma
    slack = 5 / ours.numel() ** 0.5
    demand(abs(mean) < slack and abs(std - 1) < slack, f"mean {mean:.2e} σ, deviation {std:.4f} σ")
    distance, _ = agreement(ours, drawn(there))
    demand(distance < 1e-5, f"the noise is {distance:.1e} from the CPU's")
    return {"mean / σ": mean, "deviation / σ": std, "distance": distance}


def memory(cfg: DictConfig) -> Found:
    """Where memory ends, a micro-batch is halved, and the device goes on with the same numbers."""
    lab, most = Lab(cfg, "pgd", cfg.device), 2**14
    where, few = lab.x.device, lab.x[:8]
    expected = speed.forward_backward(lab.model, few)()

    def work(size: int) -> Tensor:
        if where.type == "cpu" and size > 64:  # which has no end of its own
            raise torch.OutOfMemoryError("as if there were no memory")
        images = few.repeat(-(-size // len(few)), 1, 1, 1)[:size]
        return speed.forward_backward(lab.model, images)()[: len(few)]

    batch = MicroBatch(most, cfg.device)
    with little_memory(where):
        found = batch.fit(work, "the check")
    demand(batch.size < most, f"a micro-batch of {most} fits in {ROOM / 2**20:.0f} MB")
    distance, _ = agreement(found, expected[: len(found)])
    demand(distance < TOLERANCE, f"after the memory ended, gradients are {distance:.1e} off")
    return {"from": most, "fits": batch.size, "distance": distance}


@contextlib.contextmanager
def little_memory(where: torch.device) -> Iterator[None]:
    """Leaves PyTorch ROOM bytes beside what it has taken, on a GPU."""
    release()
    if where.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(where).total_memory
    limit = min((torch.cuda.memory_reserved(where) + ROOM) / total, 1.0)
    torch.cuda.set_per_process_memory_fraction(limit, where)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, where)
        release()


def photographs(folder: Path, size: int, count: int) -> Path:
    """Photographs and parts of them as PNG files, named as the paper's authors name theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(synsets())[: len(photos.CLASSES)]  # of classes that these photographs are not of
    for number in range(count):
        which, part = number % len(names), number // len(names)
        whole = photos.photograph(photos.CLASSES[which])
        height, width = (length - part * length // 8 for length in whole.shape[:2])
        image = Image.fromarray(np.ascontiguousarray(whole[-height:, -width:]))
        path = folder / f"{names[which]}_{part}.png"
        if not path.is_file():
            image.resize((size, size), Image.Resampling.BILINEAR).save(path)
    return folder


def trial_cell(cfg: DictConfig, *given: str) -> Cell:
    """The cell of the trial, whose images are made where they are missing."""
    overrides = [*cfg.trial, "pretrained=false", "benchmark.sources=[]", f"device={cfg.device}"]
    overrides += [f"output={cfg.output}/gpu", *given]
    cell = Cell(compose("config", overrides=overrides))
    if "folder" not in cell.cfg.benchmark.data:
        return cell
    size, count = cell.cfg.benchmark.size, cell.cfg.images
    folder = photographs(Path(cfg.output) / "gpu" / "photographs", size, count)
    return Cell(compose("config", overrides=[*overrides, f"benchmark.data.folder={folder}"]))


def tuned(cfg: DictConfig) -> Found:
    """What `auto` finds for the source of the trial, without SGM so that it may be compiled."""
    found = tuning.tuned(trial_cell(cfg, "attack=ir"))
    demand(bool(found.rates), f"not even a micro-batch of {found.micro_batch} fits the memory")
    best = found.rates[str(found.micro_batch)]
    return {
        "micro-batch": found.micro_batch,
        "images per s": best,
        "compiled": found.compile,
        "compiling gains": found.compiled_rate / best if found.compiled_rate else "nothing known",
        "rates": found.rates,
    }


def trial(cfg: DictConfig) -> Found:
    """The pipeline at full size: its rate, its memory, and the same bits in a second run."""
    cell = trial_cell(cfg)
    for folder in (cell.root / "results" / cell.label, cell.steps_folder):
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier run, or of another machine
    where = device(cell.cfg)
    begin = time.perf_counter()
    ensure(Results(cell))
    whole = time.perf_counter() - begin
    (shard, *_), worker = cell.shards(images_of(cell)), Worker(cell)
    worker.model(cell.cfg.source, "source")
    card = of_shard(cell, shard).card()
    assert card is not None
    kept = read_frames(of_shard(cell, shard).path, shard.images.pixels, len(card.kept))
    speed.synchronise(where)
    peak(where)
    begin = time.perf_counter()
    again = list(worker.attacked(shard, {}))
    speed.synchronise(where)
    spent = time.perf_counter() - begin
    off = sum(int((a != b).sum()) for a, b in zip(again, kept, strict=True))
    demand(off == 0, f"{off} bytes of the perturbations differ between two runs")
    probes = speed.probes(worker.attack)
    rate = len(shard.images) * len(again) / spent
    return {
        "attack": cell.label,
        "image-steps per s": rate,
        "probes per s": rate * probes,
        "micro-batch": worker.micro_batch,
        "peak MB": round(peak(where) / 1e6),
        "with evaluation and loading, s": round(whole, 2),
    }
