"""Rank correlations over attacks, simple and partial, and their bootstrap intervals.

A measure has one value for each attack and image. What is correlated are the means over images,
one point an attack. Attacks and images are both samples: an interval is found by drawing the one or
the other anew, and says nothing of the other.
"""

from collections.abc import Callable, Sequence

import numpy as np

from irattack.errors import InputError
from irattack.pipeline.statistics import LEVEL, RESAMPLES, Interval, resamples

LEAST = 4  # attacks more than twice the variables held, of which there is one at least
Points = np.ndarray  # (..., A), a value for each of A attacks


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r over the last axis, (...); NaN where one does not vary."""
    x, y = (values - values.mean(axis=-1, keepdims=True) for values in (x, y))
    length = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (x * y).sum(axis=-1) / length
    return np.where(length > 1e-12, found, np.nan)


def residuals(values: np.ndarray, held: Sequence[np.ndarray]) -> np.ndarray:
    """What least squares on other variables and a constant leave of values, all (..., A)."""
    design = np.stack([np.ones_like(values), *held], axis=-1)  # (..., A, k + 1)
    weights = np.linalg.pinv(design) @ values[..., None]
    return values - (design @ weights)[..., 0]


def spearman(x: Points, y: Points, held: Sequence[Points] = ()) -> np.ndarray:
    """Spearman's rank correlation, partial if variables are held fixed, (...).

    The partial one is Pearson's of the residuals of the ranks, which is what the formula from
    the inverse of the matrix of rank correlations gives.
    """
    from scipy.stats import rankdata

    ranks = [np.asarray(rankdata(values, axis=-1), float) for values in (x, y, *held)]
    if not held:
        return pearson(*ranks)
    return pearson(*(residuals(ranked, ranks[2:]) for ranked in ranks[:2]))


def limits(drawn: np.ndarray) -> tuple[float, float]:
    """The central 95 % of (R,) resampled values, those that are none left out."""
    whole = drawn[np.isfinite(drawn)]
    if not len(whole):
        return float("nan"), float("nan")
    low, high = np.quantile(whole, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def enough(attacks: int, held: int) -> None:
    """Raises InputError for so few attacks that a correlation is ±1, or its interval too short."""
    least = LEAST + 2 * max(held, 1)
    if attacks < least:
        raise InputError(f"a correlation over {attacks} attacks; select {least} or more.")


def correlate(
    x: np.ndarray, y: np.ndarray, held: Sequence[np.ndarray] = (), seed: int = 0
) -> tuple[Interval, Interval]:
    """The mean over sources of the rank correlation over attacks, with two 95 % intervals.

    Args:
        x, y, held: (S, A, N), of S sources, A attacks and N images; the same attacks and images
            of each source.
        seed: of the bootstraps.

    Returns:
        The correlation with the interval over attacks, and with that over images. Of measures as
        noisy as their attacks differ, both are nearer to 0 than the correlation of true means.

    Raises:
        InputError: there are too few attacks.
    """
    attacks, n = x.shape[1:]
    enough(attacks, len(held))

    def over(means: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        own, other, *rest = (means(values) for values in (x, y, *held))
        return spearman(own, other, rest).mean(axis=0)

    value = float(over(lambda values: values.mean(axis=2)))
    rows = np.random.default_rng([seed, attacks]).integers(attacks, size=(RESAMPLES, attacks))
    by_attack = over(lambda values: values.mean(axis=2)[:, rows])  # (S, R, A)
    copies = resamples(n, seed).astype(float) / n
    by_image = over(lambda values: np.einsum("rn,san->sra", copies, values))
    return (value, *limits(by_attack)), (value, *limits(by_image))
