"""How a run computes: device, precision, and models made fast. Everything here takes PyTorch."""

import gc
import os
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from irattack.errors import InputError, UnfitError
from irattack.exact import set_tf32, without_tf32
from irattack.hashing import key
from irattack.models import zoo
from irattack.models.fold import fold
from irattack.models.network import compiled, in_bfloat16
from irattack.pipeline import devices, memory
from irattack.pipeline.artifact import provenance
from irattack.pipeline.cell import Cell
from irattack.pipeline.settings import Settings

SMALL = 10_000_000  # parameters; larger ones would take memory from attacks
KEPT = 16  # targets
_targets: dict[str, nn.Module] = {}


def prepare(cfg: Settings) -> None:
    """Sets what every computation depends on: threads, memory, GPU, precision, no chance.

    Raises:
        InputError: this machine has no such device or precision.
    """
    check_precision(cfg)
    torch.set_num_threads(cfg.threads)
    where = device(cfg)
    if where.type == "cuda":  # also of what names no GPU, such as pinned memory
        torch.cuda.set_device(where)
    else:
        memory.keep()
    set_tf32(cfg.precision == "tf32")
    torch.backends.cudnn.deterministic = True


def has_tf32(device: str) -> bool:
    """Whether what `device` names is of CUDA, and of a generation that computes in TF32."""
    gpus = gpus_of(device)
    return bool(gpus) and all(torch.cuda.get_device_capability(index) >= (8, 0) for index in gpus)


def check_precision(cfg: Settings) -> None:
    """Raises UnfitError for TF32 where there is none; float32 would be kept as if it were TF32."""
    if cfg.precision == "tf32" and not has_tf32(cfg.device):
        raise UnfitError(
            f"precision=tf32 is of CUDA devices of compute capability 8.0 on, and "
            f"device={cfg.device} has none here; use precision=fp32 or bf16, or another machine."
        )


def check_device(cfg: Settings) -> None:
    """Raises InputError for a device or precision that is not here; nothing is claimed yet."""
    gpus_of(cfg.device)
    check_precision(cfg)


def gpu_names(count: int) -> dict[int, str]:
    """A name for each of so many GPUs that all processes of this machine agree on, by index."""
    shown = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = {}
    for index in range(count):
        try:
            name = str(torch.cuda.get_device_properties(index).uuid)
        except (AttributeError, AssertionError, RuntimeError):  # the driver does not tell
            name = shown[index] if index < len(shown) else str(index)
        names[index] = re.sub(r"[^\w-]", "_", name)
    return names


def gpus_of(setting: str) -> dict[int, str]:
    """The GPUs that `device=…` allows, by index; none where it allows the CPU, and there is none.

    Raises:
        InputError: it is not there.
    """
    if setting == "cpu":
        return {}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = re.fullmatch(r"cuda:(\d+)", setting)
    first = int(named[1]) if named else 0
    if first >= count and setting != "auto":
        there = f"{count} CUDA devices here, cuda:0 to cuda:{count - 1}"
        there = {0: "no CUDA device here", 1: "one CUDA device here, cuda:0"}.get(count, there)
        cure = "name one of them or use device=auto" if count else "use device=auto or cpu"
        raise InputError(f"device={setting}: PyTorch finds {there}; {cure}.")
    names = gpu_names(count)
    return {first: names[first]} if named else names


def device(cfg: Settings) -> torch.device:
    """The device of this run; a GPU is claimed for this process, until `devices.release`.

    Where `device` names no GPU, it is the one on which fewest processes work.

    Raises:
        InputError: it is not there.
    """
    index = devices.held()
    if cfg.device == "cpu":
        return torch.device("cpu")
    if index is None or cfg.device not in ("auto", "cuda", f"cuda:{index}"):
        before, allowed = devices.last(), gpus_of(cfg.device)
        if not allowed:
            return torch.device("cpu")
        index = devices.hold(allowed)
        if before not in (None, index):  # what lies there is of an earlier cell
            _targets.clear()
            gc.collect()
            torch.cuda.empty_cache()
    return torch.device("cuda", index)


def to_device(pixels: np.ndarray, cfg: Settings) -> Tensor:
    """8-bit images (B, C, H, W) as float32 in [0, 1] on the device."""
    where, images = device(cfg), torch.from_numpy(pixels)
    images = images.pin_memory() if where.type == "cuda" else images
    return images.to(where, non_blocking=True).float() / 255


def made_with(cfg: Settings) -> dict[str, Any]:
    """Device, threads, versions and commit of this run."""
    where = device(cfg)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    return {"device": name, "threads": cfg.threads, **provenance()}


def target(cell: Cell, model: str) -> nn.Module:
    """A target as `build` makes it; the last few small ones are the same objects in later cells."""
    cfg = cell.cfg
    named = cfg.benchmark.name, model, cfg.pretrained, cfg.weights_dir
    settings = cfg.seed, cfg.precision, str(device(cfg))
    decisive = key([zoo.identity(*named), *settings])
    if decisive not in _targets:
        made = build(cell, model)
        if sum(parameter.numel() for parameter in made.parameters()) > SMALL:
            return made
        while len(_targets) >= KEPT:
            del _targets[next(iter(_targets))]
        _targets[decisive] = made
    return _targets[decisive]


def build(cell: Cell, model: str, role: str = "target", compiling: bool = False) -> nn.Module:
    """A model on the device of this run, made fast: folded, channels last, in its precision.

    Args:
        role: `target`; `measured`, the source as it is looked at; `source`, as it is attacked,
            whose residual branches SGM may need; or `judge`, which decides which images are
            attacked, always in float32.
        compiling: let torch.compile run it; SGM, whose hooks it would not see, does without.
    """
    cfg = cell.cfg
    named = cfg.benchmark.name, model, cfg.pretrained, cfg.weights_dir
    network = zoo.build(*named, cfg.seed)
    network = network.to(memory_format=torch.channels_last).to(device(cfg))
    with without_tf32():
        fold(network, keep_branches=role == "source" and cell.uses_skips)
    if cfg.precision == "bf16" and role != "judge":
        in_bfloat16(network)
    network = network.to(memory_format=torch.channels_last)  # the folded weights are new
    return compiled(network) if compiling else network
