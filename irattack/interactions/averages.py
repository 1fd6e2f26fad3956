"""Averages of interactions: arithmetic alone, for arrays of NumPy and PyTorch alike."""

from typing import Any


def average(contribution: Any) -> Any:
    """The mean over an image's cells of `contributions`, (B, L, L) -> (B,)."""
    return contribution.reshape(len(contribution), -1).mean(-1)


def per_pair(plain: Any, grid: int, cells: int = 1) -> Any:
    """The mean over pairs of cells (Eq. 28): plain / (s (L² − s)) for sets of s cells.

    A set of s cells and its complement share s (L² − s) pairs, so that this is the mean over pairs
    for any s if v has no interactions of more than two cells; for s = 1 always.
    """
    return plain / (cells * (grid**2 - cells))
