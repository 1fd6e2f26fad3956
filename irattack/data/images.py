"""Labelled 8-bit images, the input of everything."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Images:
    """Images in memory.

    Attributes:
        ids: (N,) names; all randomness of an image depends on its name.
        labels: (N,) class indices.
        pixels: (N, C, H, W) uint8.
        wanted: (N,) class indices that a targeted attack aims at; None if the data name none.
    """

    ids: Sequence[str]
    labels: np.ndarray
    pixels: np.ndarray
    wanted: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def aims(self) -> np.ndarray:
        """The wanted classes, (N,), of images of which they are known."""
        assert self.wanted is not None
        return self.wanted

    def take(self, indices: Sequence[int]) -> "Images":
        """The images at these positions, in this order; a range of them shares their memory."""
        rows: Any = list(indices)
        if isinstance(indices, range) and indices.step == 1:
            rows = slice(indices.start, indices.stop)
        wanted = None if self.wanted is None else self.wanted[rows]
        ids = [self.ids[i] for i in indices]
        return Images(ids, self.labels[rows], self.pixels[rows], wanted)

    def digest(self, index: int) -> str:
        """SHA-256 of an image's pixels."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels[index]).tobytes()).hexdigest()

    def entries(self) -> list[list[str | int]]:
        """Name, label and digest of each image: what it is, to the pixel."""
        labels = self.labels.tolist()
        return [[name, labels[i], self.digest(i)] for i, name in enumerate(self.ids)]


@dataclass(frozen=True)
class Candidates:
    """Images that may be attacked, read when they are needed.

    Attributes:
        ids: (N,) names, each once.
        labels: (N,) class indices.
        read: from b positions to (b, C, H, W) uint8.
        wanted: (N,) class indices that a targeted attack aims at; None if the data name none.
    """

    ids: Sequence[str]
    labels: np.ndarray
    read: Callable[[Sequence[int]], np.ndarray]
    wanted: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> Images:
        """Reads the images at these positions, in this order."""
        rows = list(indices)
        wanted = None if self.wanted is None else self.wanted[rows]
        return Images([self.ids[i] for i in rows], self.labels[rows], self.read(rows), wanted)
