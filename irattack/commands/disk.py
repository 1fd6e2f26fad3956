"""The rates of the step cache and of leave-one-out, on which bench and estimate stand."""

import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.norms import Linf
from irattack.attacks.randomness import Draws
from irattack.data import photos
from irattack.models import zoo
from irattack.pipeline import files
from irattack.pipeline import statistics as evaluation
from irattack.pipeline.codec import kept_frames, read_frames
from irattack.pipeline.worker import to_frame


def cache_speed(where: torch.device, folder: Path, length: int = 20) -> dict[str, float]:
    """MB/s and ratio of the step cache on real attack output at 224 px.

    PGD on the trained ResNet-34 of the photos benchmark; 7 x 7 crops make an image, of eight.
    """
    crops = photos.candidates("test").take(range(8 * 49))
    x = torch.from_numpy(crops.pixels).to(where).float() / 255
    y = torch.from_numpy(crops.labels).to(where)
    attack, model = Attack(Linf(16 / 255, 2 / 255), length), zoo.build("photos", "resnet34")
    found = perturbations(attack, model.to(where), x, y, crops.ids, Draws(0))

    def tiled(pixels: np.ndarray) -> np.ndarray:
        rows = pixels.reshape(8, 7, 7, 3, 32, 32).transpose(0, 3, 1, 4, 2, 5)
        return np.ascontiguousarray(rows.reshape(8, 3, 224, 224))

    pixels = tiled(crops.pixels)
    frames = [tiled(to_frame(crops, delta, attack.norm)) for delta in found]
    raw, path = sum(frame.nbytes for frame in frames) / 1e6, folder / "bench.b2"
    rates: dict[str, list[float]] = {"write": [], "read": []}
    for _ in range(5):
        begin = time.perf_counter()
        keep = partial(files.write_bytes, path)
        for _frame in kept_frames(pixels, frames, range(length), keep):
            pass
        rates["write"].append(raw / (time.perf_counter() - begin))
        begin = time.perf_counter()
        for _frame in read_frames(path, pixels, length):
            pass
        rates["read"].append(raw / (time.perf_counter() - begin))
    ratio = path.stat().st_size / 1e6 / raw
    path.unlink()
    return {
        "ratio": round(ratio, 4),
        "write_mb_per_s": round(statistics.median(rates["write"]), 1),
        "read_mb_per_s": round(statistics.median(rates["read"]), 1),
    }


def leave_one_out_seconds() -> float:
    """Leave-one-out for seven targets at (100, 1000) margins, in seconds."""
    margins = np.random.default_rng(0).normal(size=(7, 100, 1000))
    begin = time.perf_counter()
    for of_target in margins:
        evaluation.transferred(of_target)
    return round(time.perf_counter() - begin, 5)
