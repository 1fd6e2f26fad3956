"""Labelled 8-bit images, the input of everything."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """Images that may be attacked.

    Attributes:
        ids: (N,) names; all randomness of an image depends on its name.
        labels: (N,) class indices.
        pixels: (N, C, H, W) uint8.
    """

    ids: Sequence[str]
    labels: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> "Candidates":
        """The images at these positions, in this order."""
        rows = list(indices)
        return Candidates([self.ids[i] for i in rows], self.labels[rows], self.pixels[rows])

    def digest(self, index: int) -> str:
        """SHA-256 of an image's pixels."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels[index]).tobytes()).hexdigest()
