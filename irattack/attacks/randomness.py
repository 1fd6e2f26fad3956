"""Random numbers that depend on seed, image, step and purpose, never on the batch they meet in."""

import hashlib
import math
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irattack.attacks import philox

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of a process, which a fork does not inherit; PyTorch draws without the GIL."""
    return ThreadPoolExecutor(CORES)


def _each(draw: Callable[[Any], Tensor], keys: Sequence[Any]) -> Tensor:
    """What each key draws, (len(keys), …), in as many tasks as cores: one costs more than a set."""
    share = math.ceil(len(keys) / CORES)
    parts = [keys[first : first + share] for first in range(0, len(keys), share)]
    drawn = _threads(os.getpid()).map(lambda part: [draw(key) for key in part], parts)
    return torch.stack(list(chain.from_iterable(drawn)))


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """What was drawn on the CPU, on the device, without a wait for it."""
    if device.type == "cuda" and drawn.device.type == "cpu":
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=True)


class Draws:
    """All randomness of an attack. The same (seed, image id, step, purpose) gives the same numbers.

    Numbers are drawn image by image, so neither batch size, shard nor device matters. All but
    `philox` draw on the CPU: sets and uniform numbers are few, and are drawn while a GPU works.
    """

    def __init__(self, seed: int, run: int = 0, point: str = ""):
        self.seed, self.run, self.point = seed, run, point

    def restart(self, run: int) -> "Draws":
        """The randomness of a restart of the attack; number 0 is the attack itself."""
        return Draws(self.seed, run) if run else self

    def at(self, point: str) -> "Draws":
        """The randomness of another point at which a step takes a gradient; "" is δ's own."""
        return Draws(self.seed, self.run, point) if point else self

    def _digest(self, image: str, step: int, purpose: str) -> bytes:
        purpose = f"{purpose}/restart {self.run}" if self.run else purpose
        purpose = f"{purpose}/{self.point}" if self.point else purpose
        return hashlib.sha256(f"{self.seed}/{image}/{step}/{purpose}".encode()).digest()

    def _stack(
        self,
        draw: Callable[[torch.Generator], Tensor],
        ids: Sequence[str],
        step: int,
        purpose: str,
    ) -> Tensor:
        def row(image: str) -> Tensor:
            number = int.from_bytes(self._digest(image, step, purpose)[:8], "little") >> 1
            return draw(torch.Generator().manual_seed(number))

        return _each(row, ids)

    def uniform(self, ids: Sequence[str], step: int, purpose: str, shape: Sequence[int]) -> Tensor:
        """U[0, 1) of shape (B, *shape), float32."""
        return self._stack(lambda g: torch.rand(*shape, generator=g), ids, step, purpose)

    def normal(self, ids: Sequence[str], step: int, purpose: str, shape: Sequence[int]) -> Tensor:
        """N(0, 1) of shape (B, *shape), float32."""
        return self._stack(lambda g: torch.randn(*shape, generator=g), ids, step, purpose)

    def philox(
        self,
        ids: Sequence[str],
        step: int,
        purpose: str,
        shape: Sequence[int],
        device: torch.device,
    ) -> Tensor:
        """N(0, 1) of shape (B, *shape), float32, drawn on the device; others than `normal`'s.

        Devices differ in last digits, as they do in all else.
        """
        words = [struct.unpack("<2Q", self._digest(image, step, purpose)[:16]) for image in ids]
        found, count = None, math.prod(shape)
        if device.type == "cuda":
            found = philox.on_cuda(words, count, device)
        if found is None:
            found = to_device(_each(lambda key: philox.on_cpu(key, count), words), device)
        return found.view(len(ids), *shape)

    def subsets(
        self,
        ids: Sequence[str],
        step: int,
        samples: int,
        cells: int,
        grid: int,
        replacement: bool = False,
    ) -> Tensor:
        """Random sets S_1 … S_K of `cells` cells of a grid x grid board (paper, Eq. 41).

        Returns:
            (B, samples, grid, grid) bool, true for a cell in the set.
        """

        board = grid * grid
        if replacement:
            shape = samples, cells
            chosen = self._stack(
                lambda g: torch.randint(board, shape, generator=g), ids, step, "subsets"
            )
            sets = torch.zeros(len(ids), samples, board, dtype=torch.bool).scatter_(2, chosen, True)
        else:
            sets = smallest(self.uniform(ids, step, "subsets", (samples, board)), cells)
        return sets.view(len(ids), samples, grid, grid)


def smallest(numbers: Tensor, count: int) -> Tensor:
    """Which are the `count` smallest of the n numbers in the last axis, of equal ones the first.

    Args:
        numbers: (…, n) as `Draws.uniform` gives them, whole multiples of 2⁻²⁴.
        count: 1 to n.

    Returns:
        (…, n) bool.
    """
    size = numbers.shape[-1]
    keys = (numbers * 2**24).long().numpy() * size + np.arange(size)  # no two are equal
    return torch.from_numpy(keys <= np.partition(keys, count - 1, axis=-1)[..., count - 1 : count])
