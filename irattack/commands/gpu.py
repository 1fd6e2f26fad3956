"""`make gpu`: what a machine with a GPU has to prove in its first ten minutes.

    python -m irattack gpu [minutes=10] ['parts=[repeat,agree]'] [output=outputs]

The parts run in the order of conf/gpu.yaml while there is time. One that fails is reported and the
others go on; `outputs/gpu.json` is written after each, and a page is printed at the end.

Needed: an NVIDIA GPU; PyTorch with CUDA, torchvision and timm; the other packages of pyproject.toml
but seaborn, matplotlib and the launchers of Hydra; for compiling, Triton and a C compiler. Not
needed: a network, ImageNet, any weights but those of the package. Where a machine comes with
PyTorch alone, carry wheels made elsewhere (`pip download hydra-core omegaconf blosc2 pydantic …`
for its version of Python, hydra-core and omegaconf with `antlr4-python3-runtime` built to a wheel)
and install them with `pip install --no-index --find-links`.
"""

import contextlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate

from irattack.commands import gpu_checks
from irattack.commands.bench import bench
from irattack.commands.cli import one_sentence, stop, tidy_arguments
from irattack.commands.composing import hydra
from irattack.commands.estimate import estimate
from irattack.commands.plans import plans
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError, UnfitError, unknown
from irattack.pipeline import files, speed
from irattack.pipeline.artifact import provenance
from irattack.pipeline.compute import gpus_of
from irattack.pipeline.memory import release
from irattack.pipeline.values import number

Found = dict[str, Any]
TEXT = "text"  # what a part found, ready to be printed


def timed_bench(precision: str, cfg: DictConfig) -> Found:
    """`make bench` in one precision."""
    path = Path(cfg.output) / f"gpu_bench_{precision}.json"
    given = [*cfg.bench, f"precision={precision}", f"device={cfg.device}", f"output={path}"]
    composed = compose("bench", overrides=given)
    OmegaConf.resolve(composed)
    text = bench(composed)
    return {"bench": files.read_json(path), TEXT: text}


def estimated(cfg: DictConfig) -> Found:
    """`make estimate`."""
    given = [*cfg.estimate.settings, f"device={cfg.device}", f"output={cfg.output}"]
    return {TEXT: estimate(plans(given), cfg.estimate.seconds)}


PARTS: dict[str, Callable[[DictConfig], Found]] = {
    "repeat": gpu_checks.repeat,
    "agree": gpu_checks.agree,
    "noise": gpu_checks.noise,
    "memory": gpu_checks.memory,
    "tuning": gpu_checks.tuned,
    "trial": gpu_checks.trial,
    "fp32": lambda cfg: timed_bench("fp32", cfg),
    "tf32": lambda cfg: timed_bench("tf32", cfg),
    "bf16": lambda cfg: timed_bench("bf16", cfg),
    "estimate": estimated,
}


class OutOfTime(BaseException):
    """The time is over; no library that catches every Exception may catch it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises OutOfTime once so many seconds are over, where signals can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def done(name: str, cfg: DictConfig, left: float) -> Found:
    """Runs one part; what became of it: `outcome`, `seconds`, and what it found or why not."""
    begin = time.perf_counter()
    found: Found
    try:
        with within(left):
            found = {"outcome": "ok", **PARTS[name](cfg)}
    except OutOfTime:
        found = {"outcome": "out of time"}
    except (gpu_checks.DisprovedError, InputError) as error:
        unfit = name == "tf32" and isinstance(error, UnfitError)  # a device that has none
        found = {"outcome": "not for it" if unfit else "failed", "why": str(error)}
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found = {"outcome": "failed", "why": why, "traceback": traceback.format_exc()}
    release()
    return found | {"seconds": round(time.perf_counter() - begin, 1)}


def page(report: Found, path: Path) -> str:
    """What is printed: a line a part, then what the parts have to say."""
    lines = []
    for name, found in report["parts"].items():
        figures = found.get("why") or ", ".join(
            f"{fact} {value:.4g}" if isinstance(value, float) else f"{fact} {value}"
            for fact, value in found.items()
            if isinstance(value, int | float | str) and fact not in ("outcome", "seconds", TEXT)
        )
        lines.append([name, found["outcome"], found.get("seconds", ""), figures[:160]])
    texts = [f"{name}: {f[TEXT]}" for name, f in report["parts"].items() if TEXT in f]
    head = f"{report['device']}, torch {report['torch']}, commit {report['commit']}"
    table = tabulate(lines, ["part", "outcome", "s", "found"])
    return "\n\n".join([head, table, *texts, f"Written to {path}."])


def gpu(cfg: DictConfig) -> tuple[str, bool]:
    """Runs the parts of conf/gpu.yaml; returns the page, and whether all ran and held.

    But those that are not for this device, as TF32 is not for a CPU.

    Raises:
        InputError: a part that there is not, no time, or no such device.
    """
    chosen = [cfg.parts] if isinstance(cfg.parts, str) else cfg.parts
    for name in chosen:
        if name not in PARTS:
            raise unknown("parts", name, PARTS, f"expected some of {', '.join(PARTS)}")
    minutes = number(cfg.minutes)
    if not 0 < minutes < float("inf"):
        raise InputError(f"minutes={cfg.minutes}: expected a number above 0, such as 10.")
    gpus_of(cfg.device)
    end = time.perf_counter() + 60 * minutes
    cuda = cfg.device != "cpu" and torch.cuda.is_available()
    given = None if cfg.device == "auto" else cfg.device
    path, parts = Path(cfg.output) / "gpu.json", dict[str, Found]()
    report = {
        "device": torch.cuda.get_device_name(given) if cuda else speed.cpu_name(),
        "cuda": torch.version.cuda,
        **provenance(),
        "settings": OmegaConf.to_container(cfg, resolve=True),
        "parts": parts,
    }
    for name in chosen:
        left = end - time.perf_counter()
        if left > 0:
            print(f"gpu: {name} …", file=sys.stderr, flush=True)
            parts[name] = done(name, cfg, left)
        else:
            parts[name] = {"outcome": "left out"}
        files.write_json(path, report)
    held = all(found["outcome"] in ("ok", "not for it") for found in parts.values())
    return page(report, path), held


def main() -> None:
    """Runs the parts and prints the page; exit status 1 unless all of them ran and held."""
    tidy_arguments()
    register_resolvers()
    with one_sentence(), hydra():
        text, held = gpu(compose("gpu", overrides=sys.argv[1:]))
        print(text)
    if not held:
        stop("not all parts ran and held; see the table above.", 1)
