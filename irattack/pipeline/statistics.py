"""How success is measured: margins, leave-one-out choice of the step (Appendix M), intervals."""

import math

import numpy as np
from scipy import stats

LEVEL = 0.95


def chosen_steps(success: np.ndarray) -> np.ndarray:
    """The step chosen for each image by leave-one-out validation (Appendix M).

    t*_i is the step at which most of the *other* images succeed; the first of equals.

    Args:
        success: (T, N) bool.

    Returns:
        (N,) int, from 0 to T − 1.
    """
    others = success.sum(axis=1, keepdims=True) - success.astype(int)
    return others.argmax(axis=0)


def transferred(margins: np.ndarray) -> np.ndarray:
    """Which images are misclassified at the step chosen for them, (T, N) margins -> (N,) bool."""
    success = margins > 0
    return success[chosen_steps(success), np.arange(success.shape[1])]


def rate_interval(success: np.ndarray) -> tuple[float, float, float]:
    """Success rate of (N,) bool and its 95 % Wilson interval, in percent."""
    hits, n = int(success.sum()), len(success)
    interval = stats.binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return 100 * hits / n, 100 * float(interval.low), 100 * float(interval.high)


def gain_interval(ours: np.ndarray, baseline: np.ndarray) -> tuple[float, float, float]:
    """Difference of two success rates on the same images and its 95 % interval, in points.

    The interval is the adjusted Wald interval for matched pairs (Agresti and Min, 2005): half a
    pair is added to each of the four cells of the 2 x 2 table. It is not degenerate when the two
    attacks succeed on the same images.
    """
    n = len(ours)
    won = int((ours & ~baseline).sum())
    lost = int((~ours & baseline).sum())
    total, up, down = n + 2, won + 0.5, lost + 0.5
    centre = (up - down) / total
    half = stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt(up + down - (up - down) ** 2 / total) / total
    gain = (won - lost) / n
    return 100 * gain, 100 * max(centre - half, -1.0), 100 * min(centre + half, 1.0)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of (N,) values and its 95 % interval (Student's t)."""
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    mean = float(values.mean())
    return mean, mean - float(half), mean + float(half)
