"""What a device can do: rates of networks, measured here, on which bench and estimate stand."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from irattack.attacks.loop import Attack
from irattack.attacks.randomness import Draws
from irattack.pipeline.memory import lacks_memory, release


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, least: float = 0.0) -> float:
    """Seconds of one call, on average over as many calls as take `least` seconds together."""
    synchronise(device)
    start, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        synchronise(device)
        spent = time.perf_counter() - start
        if spent >= least:
            return spent / calls


def forward_backward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Bare work of a probe: logits and their gradient with respect to the images (B, C, H, W)."""

    def work() -> Tensor:
        x = images.detach().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)[0]

    return work


def forward(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Logits of images (B, C, H, W)."""

    def work() -> Tensor:
        with torch.no_grad():
            return model(images)

    return work


@dataclass(frozen=True)
class Rate:
    """Images per second, and the batch that gives them."""

    per_second: float
    batch: int


def best_rate(
    kind: Callable[[nn.Module, Tensor], Callable[[], object]],
    model: nn.Module,
    size: int,
    device: torch.device,
    batches: Sequence[int],
    least: float,
) -> Rate:
    """The most images of size x size pixels per second, over the batches that fit the memory.

    Larger batches are tried as long as they gain; `least` seconds each.
    """
    best = Rate(0.0, batches[0])
    for batch in sorted(batches):
        try:
            work = kind(model, torch.rand(batch, 3, size, size, device=device))
            seconds(work, device)  # warm-up
            rate = batch / seconds(work, device, least)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            release()
            break
        if rate > best.per_second:
            best = Rate(rate, batch)
        elif rate < 0.9 * best.per_second:
            break
    return best


def probes(attack: Attack, delta: Tensor | None = None) -> int:
    """How many images an attack sends forward and back for one step of one image.

    Args:
        delta: where, (1, C, H, W); None for anywhere but 0.
    """
    delta = torch.full((1, 3, 32, 32), 1e-3) if delta is None else delta
    count, draws = 0, Draws(0)

    def at(point: Tensor, name: str = "") -> Tensor:
        nonlocal count
        terms = attack.terms(point, ["image"], 1, draws)
        shared = [term.balance for term in terms if term.at_delta]
        if attack.backward is None or not attack.backward.one_graph:
            shared = list(set(shared))
        count += sum(term.probes for term in terms if not term.at_delta) + len(shared)
        return torch.ones_like(point)

    attack.estimated(at, delta, torch.zeros_like(delta), ["image"], 1, draws, {})
    return count


def most_gradients(attack: Attack) -> int:
    """As many as `gradients` if no step is at δ = 0: what a run is expected to take."""
    return attack.restarts * attack.steps * probes(attack)


def gradients(attack: Attack) -> int:
    """How many images an attack sends forward and back for one image, all steps and restarts.

    IR's term is left out at δ = 0, so that its first step takes one.
    """
    first = attack.first(torch.full((1, 3, 32, 32), 0.5), ["image"], Draws(0))
    return attack.restarts * (probes(attack, first) + (attack.steps - 1) * probes(attack))


def peak_memory_mb(where: torch.device) -> float:
    """The most memory in use so far, on the device if it is a GPU, else of this process."""
    if where.type == "cuda":
        return round(torch.cuda.max_memory_allocated(where) / 1e6)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def cpu_name() -> str:
    """The processor's name, as /proc/cpuinfo has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "cpu")
