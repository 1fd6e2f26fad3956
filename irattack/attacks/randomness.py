"""Random numbers that depend on seed, image, step and purpose, never on the batch they meet in."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of a process, which a fork does not inherit; PyTorch draws without the GIL."""
    return ThreadPoolExecutor()


class Draws:
    """All randomness of an attack. The same (seed, image id, step, purpose) gives the same numbers.

    Numbers are drawn on the CPU image by image, so neither batch size, shard nor device matters.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def _stack(
        self,
        draw: Callable[[torch.Generator], Tensor],
        ids: Sequence[str],
        step: int,
        purpose: str,
    ) -> Tensor:
        def row(image: str) -> Tensor:
            name = f"{self.seed}/{image}/{step}/{purpose}".encode()
            number = int.from_bytes(hashlib.sha256(name).digest()[:8], "little") >> 1
            return draw(torch.Generator().manual_seed(number))

        return torch.stack(list(_threads(os.getpid()).map(row, ids)))

    def uniform(self, ids: Sequence[str], step: int, purpose: str, shape: Sequence[int]) -> Tensor:
        """U[0, 1) of shape (B, *shape), float32."""
        return self._stack(lambda g: torch.rand(*shape, generator=g), ids, step, purpose)

    def normal(self, ids: Sequence[str], step: int, purpose: str, shape: Sequence[int]) -> Tensor:
        """N(0, 1) of shape (B, *shape), float32."""
        return self._stack(lambda g: torch.randn(*shape, generator=g), ids, step, purpose)

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

        def draw(generator: torch.Generator) -> Tensor:
            board = grid * grid
            if replacement:
                chosen = torch.randint(board, (samples, cells), generator=generator)
            else:
                chosen = torch.rand(samples, board, generator=generator).argsort(dim=1)[:, :cells]
            sets = torch.zeros(samples, board, dtype=torch.bool)
            return sets.scatter_(1, chosen, True).view(samples, grid, grid)

        return self._stack(draw, ids, step, "subsets")
