"""What `micro_batch=auto` and `compile=auto` stand for on this device.

Both change the last digits of a result and neither is in its name, which says `auto`, so that every
machine finds it; the values that were used stand on its card. They are found once for each
device, network, precision and image size, and remembered beside the results.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irattack.hashing import key
from irattack.models.network import networks
from irattack.pipeline import memory, speed
from irattack.pipeline.artifact import Artifact, Card, MadeWith
from irattack.pipeline.cell import Cell, file_name
from irattack.pipeline.compute import build, device, made_with

VERSION = 1  # raise it when the same device would be tuned otherwise
SMALLEST = 8
PIXELS = {"cpu": 2**21, "cuda": 2**28}  # of a micro-batch at most; a CPU's caches are small
SHARE = 0.7  # of the free memory; the targets and the images of the attack need some too
PAYS = 1.05  # times as fast: a larger micro-batch
COMPILE_PAYS = 1.1  # compiling takes minutes itself
ALIKE = 0.99  # cosine of the gradients with and without compiling; in bfloat16 they differ a little
LEAST = 0.3  # s, for each micro-batch

log = logging.getLogger(__name__)


class Tuned(Card):
    """What was found on a device.

    Attributes:
        rates: images forward and back per second, by micro-batch.
        compiled_rate: the same for the chosen one with torch.compile; None if it was not tried, or
            failed.
    """

    micro_batch: int
    compile: bool
    rates: dict[str, float]
    compiled_rate: float | None


@dataclass(frozen=True)
class Pace:
    """The micro-batch of a run, and whether torch.compile runs its source."""

    micro_batch: int
    compile: bool


def pace(cell: Cell) -> Pace:
    """The settings of a cell, with what `auto` stands for."""
    cfg = cell.cfg
    micro_batch, compiling = cfg.micro_batch, tries_compiling(cell)
    if micro_batch != "auto" and not compiling:
        return Pace(micro_batch, cfg.compile is True and not cell.uses_skips)
    found = tuned(cell)
    compiles = found.compile if compiling else cfg.compile is True and not cell.uses_skips
    return Pace(found.micro_batch, compiles)


def tries_compiling(cell: Cell) -> bool:
    """Whether torch.compile is left to a trial: on a GPU, and not where SGM's hooks are."""
    auto = cell.cfg.compile == "auto" and not cell.uses_skips
    return auto and device(cell.cfg).type == "cuda"


def remembered(cell: Cell) -> Artifact[Tuned]:
    """Where it is remembered, and what decides it."""
    cfg, where = cell.cfg, device(cell.cfg)
    cuda = where.type == "cuda"
    facts: dict[str, Any] = {
        "version": VERSION,
        "device": torch.cuda.get_device_name(where) if cuda else speed.cpu_name(),
        "memory": torch.cuda.get_device_properties(where).total_memory if cuda else None,
        "threads": None if cuda else cfg.threads,
        "torch": torch.__version__,
        "source": cell.identity(cfg.source),
        "skips": cell.uses_skips,
        "size": cfg.benchmark.size,
        "precision": cfg.precision,
        "micro_batch": cfg.micro_batch,
        "compile": tries_compiling(cell),
    }
    path = cell.root / "devices" / f"{file_name(cfg.source)}-{key(facts)}.json"
    return Artifact(path, facts, Tuned)


def tuned(cell: Cell) -> Tuned:
    """What was found on this device, now or earlier; of several processes, by the first."""
    artifact = remembered(cell)
    if (found := artifact.card()) is None or not found.rates:
        says = trial(cell)
        if not says["rates"]:  # others had the memory; not to be remembered
            log.warning(
                "%s: not even micro_batch=%d fits now; the next run tries again.",
                *(cell.cfg.source, says["micro_batch"]),
            )
            made = MadeWith(**made_with(cell.cfg))
            return Tuned(facts=artifact.facts, made_with=made, **says)
        for once in (found is None, False):  # what is there, and cannot be used, is replaced
            artifact.keep(once=once, made_with=made_with(cell.cfg), **says)
            if (found := artifact.card()) is not None:
                log.info("%s: micro_batch=%d here.", cell.cfg.source, found.micro_batch)
                return found
    assert found is not None, f"{artifact.path} cannot be read back"
    return found


def trial(cell: Cell) -> dict[str, Any]:
    """Times the source of a cell, at growing micro-batches, then with torch.compile."""
    cfg, where = cell.cfg, device(cell.cfg)
    model = build(cell, cfg.source, "source")
    side = max(cfg.benchmark.size, *(network.size for network in networks(model)))
    given = cfg.micro_batch
    batches = sizes(PIXELS[where.type] // side**2) if given == "auto" else [given]
    chosen, rates = largest_that_pays(Rates(model, cfg.benchmark.size, where), batches)
    fast = compiled_rate(cell, model, chosen) if tries_compiling(cell) and rates else None
    return {
        "micro_batch": chosen,
        "compile": fast is not None and fast >= COMPILE_PAYS * rates[chosen],
        "rates": {str(batch): round(each, 3) for batch, each in rates.items()},
        "compiled_rate": fast,
    }


def sizes(most: int) -> list[int]:
    """The micro-batches that are tried: powers of two from the smallest to `most`."""
    first = SMALLEST.bit_length() - 1
    return [2**power for power in range(first, max(most, SMALLEST).bit_length())]


def largest_that_pays(
    rate: Callable[[int], float], batches: Iterable[int]
) -> tuple[int, dict[int, float]]:
    """The last micro-batch that is faster, by some per cent, than the one that paid before it.

    Ends after two in a row that do not pay, so that one slow size in between does no harm, and
    where the memory does.

    Args:
        rate: images per second of a micro-batch; raises OutOfMemoryError where it does not fit.
        batches: growing.

    Returns:
        It and all rates; the first micro-batch, without a rate, if none fits.
    """
    batches = list(batches)
    best, rates, vain = batches[0], dict[int, float](), 0
    for batch in batches:
        try:
            rates[batch] = rate(batch)
        except RuntimeError as error:
            if not memory.lacks_memory(error):
                raise
            break
        pays = batch == best or rates[batch] >= PAYS * rates[best]
        best, vain = (batch, 0) if pays else (best, vain + 1)
        if vain == 2:
            break
    memory.release()
    return best, rates


class Rates:
    """Images per second of a network, forward and back, as far as its memory goes.

    What a batch needs is foretold from the last, as it grows at most in proportion, so that a GPU
    that others use too is not driven to its end.
    """

    def __init__(self, model: nn.Module, size: int, where: torch.device):
        self.model, self.size, self.where = model, size, where
        self.per_image = 0.0

    def __call__(self, batch: int) -> float:
        """The rate at this batch; OutOfMemoryError if it will not fit, or does not."""
        memory.release()
        if self.per_image * batch > SHARE * memory.free(self.where):
            raise torch.OutOfMemoryError(f"a micro-batch of {batch} will not fit")
        memory.peak(self.where)
        before = memory.peak(self.where)  # of what is there already
        found = timed(self.model, batch, self.size, self.where)
        self.per_image = (memory.peak(self.where) - before) / batch
        return found


def timed(model: nn.Module, batch: int, size: int, where: torch.device) -> float:
    """Images forward and back per second, after a warm-up."""
    images = torch.rand(batch, 3, size, size, device=where)
    work = speed.forward_backward(model, images)
    speed.seconds(work, where)
    return batch / speed.seconds(work, where, LEAST)


def compiled_rate(cell: Cell, model: nn.Module, batch: int) -> float | None:
    """Images per second with torch.compile; None, and a warning, if it fails or is another network.

    Half a micro-batch comes first, as in an attack, whose last one is seldom full.
    """
    where, size = device(cell.cfg), cell.cfg.benchmark.size
    try:
        fast = build(cell, cell.cfg.source, "source", compiling=True)
        for count in dict.fromkeys((max(batch // 2, 1), batch)):
            images = torch.rand(count, 3, size, size, device=where)
            plain, other = (speed.forward_backward(m, images)() for m in (model, fast))
            check_alike(plain, other)
        return round(timed(fast, batch, size, where), 3)
    except Exception as error:  # a compiler can fail in any way, and nobody asked for it by name
        why = " ".join(str(error).split())[:200]
        log.warning("compile=auto: the source is not compiled (%s: %s).", type(error).__name__, why)
        return None
    finally:
        memory.release()


def check_alike(plain: Tensor, fast: Tensor) -> None:
    """Raises ValueError unless two gradients (B, C, H, W) point the same way for every image."""
    alike = F.cosine_similarity(plain.flatten(1).double(), fast.flatten(1).double())
    if not bool((alike >= ALIKE).all()):
        raise ValueError(f"its gradient has a cosine of {alike.min():.3f} to the plain one")
