"""How success is measured: margins, the choice of the step (Appendix M), intervals.

An attack leaves T perturbed images of each of N images, and a *rule* says at which step each is
judged. Leave-one-out is the paper's rule and gives the headline. A rule looks at the images that
it is judged on, so their outcomes depend on each other, and the intervals for N independent
outcomes are too short: at N = 128, on a plateau of 20 equally good steps, they cover the truth in
30 to 90 % of samples. Here a bootstrap over images repeats the choice in every resample, and what
its variance has in excess of independent outcomes' shortens the sample:

    d = Var*(total) / E*(variance of that total if outcomes were independent),  at least 1
    rate: Wilson's interval of hits / d among N / d
    gain: Agresti and Min's interval for matched pairs of won / d and lost / d among N / d

d is the design effect of survey sampling, N / d the effective sample size (Kish, 1965). What the
intervals cover is the rate to be expected of an image that had no say in its step, which the rule
chose by N − 1 others (leave-one-out) or N / 2 (cross-fit). They do in 95 to 100 % of samples of 32
or 128 images, and in 91 to 96 % of those of 1000 (`python -m scripts.coverage`); the bootstrap's
own quantiles do in nearly all on such a plateau, but in less than half near 0 or 100 %, where
resamples hardly differ.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from statistics import NormalDist
from typing import Any

import numpy as np

from irattack.errors import InputError

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
RESAMPLES = 2000

Interval = tuple[float, float, float]  # value, low, high
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (T, N), (R, N) -> (R, N) bool


def successes(margins: np.ndarray) -> np.ndarray:
    """Where an image is misclassified, (T, N) bool: its margin is above 0. A tie is no success."""
    if margins.ndim != 2 or 0 in margins.shape:
        raise InputError(f"margins of shape {margins.shape}: expected (steps, images), both ≥ 1.")
    if not np.isfinite(margins).all():
        lost = int((~np.isfinite(margins)).any(axis=0).sum())
        raise InputError(
            f"margins: not finite on {lost} of {margins.shape[1]} images; "
            "the target's logits are NaN or infinite there, mend the network and measure again."
        )
    return margins > 0


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
    """Which images are misclassified at the step chosen for them, (T, N) margins -> (N,) bool.

    When two steps have equal counts, leaving out an image lowers exactly the step at which it
    succeeds, so that it is judged at the other: the success [[1, 1, 0, 0], [0, 0, 1, 1]] has two
    hits of four at either step, and none by leave-one-out.
    """
    success = successes(margins)
    return success[chosen_steps(success), np.arange(success.shape[1])]


def leave_one_out(success: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Appendix M on resamples: which images succeed at the step that the others choose for them.

    All copies of an image are left out, since a twin among "the others" is the image itself.

    For all images at once: let c_t be the hits at step t, M the largest, and image i be there
    k times. Without i, step t has c_t − k hits if i succeeds there, else c_t. So a step of M hits
    where i fails is chosen if there is one. If there is none, the steps of M hits have M − k left,
    and lose to a step where i fails that has more, or as many and comes before the first of them.
    Image i succeeds if and only if it does at every step that could thus be chosen against it.

    Args:
        success: (T, N) bool.
        copies: (R, N), how often each image is in each resample.

    Returns:
        (R, N) bool; False for an image that is not in the resample.
    """
    hits = copies @ success.T.astype(np.float32)  # (R, T)
    missing = hits.max(axis=1, keepdims=True) - hits
    first = missing.argmin(axis=1)[:, None]
    earlier = np.arange(len(success)) < first
    failure = (~success).astype(np.float32)
    outcome = np.zeros(copies.shape, dtype=bool)
    for k in range(1, int(copies.max()) + 1):
        decisive = (missing < k) | ((missing == k) & earlier)
        outcome |= (copies == k) & (decisive.astype(np.float32) @ failure == 0)
    return outcome


def cross_fit(success: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Which images succeed at the best step of the other half, the halves by even and odd place.

    No image has a say in its own step or in that of its half. All copies of an image are in one
    half. Shapes as for `leave_one_out`; the first of equal steps.
    """
    outcome = np.empty(copies.shape, dtype=bool)
    for half, other in ((0, 1), (1, 0)):
        hits = copies[:, other::2] @ success[:, other::2].T.astype(np.float32)  # (R, T)
        outcome[:, half::2] = success[hits.argmax(axis=1), half::2]
    return outcome


def last_step(success: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Which images succeed at the last step, which nobody chose. Shapes as for `leave_one_out`."""
    return np.broadcast_to(success[-1], copies.shape)


def best_step(success: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Which images succeed at the step at which most do, the first of equals: optimistic.

    Each image has a say in the step at which it is judged. Shapes as for `leave_one_out`.
    """
    hits = copies @ success.T.astype(np.float32)  # (R, T)
    return success[hits.argmax(axis=1)]


@lru_cache(maxsize=4)
def resamples(n: int, seed: int = 0) -> np.ndarray:
    """How often each of n images is in each bootstrap resample, (RESAMPLES, n) float32.

    The same for every cell of n images, so that no result depends on what was computed before.
    """
    drawn = np.random.default_rng([seed, n]).integers(n, size=(RESAMPLES, n))
    places = drawn + n * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(places.ravel(), minlength=RESAMPLES * n).astype(np.float32)
    counts.flags.writeable = False
    return counts.reshape(RESAMPLES, n)


def design_effect(scores: np.ndarray, copies: np.ndarray) -> float:
    """By what the choice of the step multiplies the variance of the total score; at least 1.

    Args:
        scores: (R, N), an image's outcome (0 or 1) or the difference of two (−1, 0 or 1), maybe
            less a constant, which is to be the mean where resamples differ in size.
        copies: (R, N), how often each image is in each resample.
    """
    scores = scores.astype(np.float32)
    totals = np.einsum("rn,rn->r", copies, scores).astype(float)
    squares = np.einsum("rn,rn->r", copies, scores**2).astype(float)
    independent = float((squares - totals**2 / copies.shape[1]).mean())
    return max(1.0, float(totals.var()) / independent) if independent > 0 else 1.0


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate, as fractions; hits and n need not be whole."""
    rate, total = hits / n, n + Z**2
    centre = (hits + Z**2 / 2) / total
    half = Z * (n * rate * (1 - rate) + Z**2 / 4) ** 0.5 / total
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return min(low, rate), max(high, rate)  # which rounding may put outside


def wilson_of_scores(
    total: float, squares: float, n: float, least: float = 1.0
) -> tuple[float, float]:
    """Wilson's interval for the mean of n scores, by their sum and squares.

    Scores that vary more than successes of the same mean do, as where images count for few of the
    rates, count as so many fewer; those that vary less, as means of several rates, as more. How
    much less is not known of few hits or misses: it is shrunk towards none by two of them.

    Args:
        least: by what the variance of successes is multiplied at least: one over the rates of
            which a score is the mean, as if they were independent.
    """
    mean = total / n
    if not 0 < mean < 1:
        return wilson(total, n)
    few = n * min(mean, 1 - mean)
    found = (squares / n - mean**2) / (mean * (1 - mean))
    spread = max(least, found, (few * found + 2) / (few + 2))
    return wilson(total / spread, n / spread)


def agresti_min(won: float, lost: float, n: float) -> tuple[float, float]:
    """The 95 % interval for a difference of matched rates, as fractions (Agresti and Min, 2005).

    The Wald interval after half a pair is added to each of the four cells of the 2 x 2 table.

    Args:
        won: pairs in which only the first succeeds.
        lost: pairs in which only the second succeeds.
        n: pairs.
    """
    return interval_of_scores(won - lost, won + lost, n)


def interval_of_scores(total: float, squares: float, n: float) -> tuple[float, float]:
    """Agresti and Min's interval for the mean of n scores from −1 to 1, by their sum and squares.

    Of scores −1, 0 and 1 it is theirs: the four halves add 2 scores, of sum 0 and squares 1.
    """
    n, squares = n + 2, squares + 1
    centre = total / n
    half = Z * (squares - total**2 / n) ** 0.5 / n
    return max(centre - half, -1.0), min(centre + half, 1.0)


def rate(success: np.ndarray, rule: Rule = leave_one_out, seed: int = 0) -> Interval:
    """The rate of success at the steps that a rule chooses, and its 95 % interval, in percent.

    Args:
        success: (T, N) bool.
        rule: how the step is chosen.
        seed: of the bootstrap.
    """
    n = success.shape[1]
    copies = resamples(n, seed)
    hits = int(rule(success, np.ones((1, n), np.float32)).sum())
    d = design_effect(rule(success, copies), copies)
    low, high = wilson(hits / d, n / d)
    return 100 * hits / n, 100 * low, 100 * high


def gain(
    ours: np.ndarray, baseline: np.ndarray, rule: Rule = leave_one_out, seed: int = 0
) -> Interval:
    """The difference of two attacks' rates and its 95 % interval, in points, paired over images.

    Args:
        ours: (T, N) bool.
        baseline: (T′, N) bool, the same images in the same order.
        rule: how the step is chosen, for each attack by itself.
        seed: of the bootstrap; both attacks meet the same resamples.
    """
    return mean_gain([(ours, baseline)], rule, seed)[0]


def mean_gain(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    rule: Rule | tuple[Rule, Rule] = leave_one_out,
    seed: int = 0,
    counted: Sequence[np.ndarray] | None = None,
) -> tuple[Interval, list[Interval]]:
    """The mean of several gains, and each of them, with 95 % intervals, in points.

    Targets and sources share their images, so that an image's score is the mean of its differences
    and images are what is drawn: the interval says nothing of further networks.

    Args:
        pairs: two attacks' successes as for `gain`, all on the same images.
        rule: how the step is chosen, for each attack and pair by itself; or one for each attack.
        seed: of the bootstrap.
        counted: of each pair, the (N,) images of which its rates are; None for all.

    Raises:
        InputError: the attacks are not of the same images, or a pair has no image that counts.
    """
    return _means(pairs, rule, seed, counted, interval_of_scores)


def _means(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    rule: Rule | tuple[Rule, Rule],
    seed: int,
    counted: Sequence[np.ndarray] | None,
    interval: Callable[[float, float, float], tuple[float, float]],
) -> tuple[Interval, list[Interval]]:
    """`mean_gain`, with an interval from the sum of n scores and of their squares."""
    n = pairs[0][0].shape[1]
    for other in {success.shape[1] for pair in pairs for success in pair} - {n}:
        raise InputError(f"gain: {n} images and {other}; expected the same images.")
    copies, whole = resamples(n, seed), np.ones((1, n), np.float32)
    score, scores, each = np.zeros((1, n)), np.zeros(copies.shape), list[Interval]()
    first, second = rule if isinstance(rule, tuple) else (rule, rule)
    parts: list[Any] = [slice(None)] * (len(pairs) + 1)
    if counted is not None:
        parts = [np.flatnonzero(one) for one in (*counted, np.any(counted, axis=0))]
    *parts, used = parts  # the images that count for a pair; those that do for any
    for (ours, baseline), part in zip(pairs, parts, strict=True):
        a, b, drawn_part = ours[:, part], baseline[:, part], copies[:, part]
        if not a.shape[1]:
            raise InputError("gain: a target is right on none of the clean images; leave it out.")
        own, drawn = (
            first(a, c).astype(np.int8) - second(b, c) for c in (whole[:, part], drawn_part)
        )
        each.append(_of_scores(own, drawn, drawn_part, interval))
        mean, weight = own.mean(), score[:, used].size / own.size
        for total, scored in (score, own), (scores, drawn):
            total += mean  # and no more for an image that does not count
            total[:, part] += (scored - mean) * weight
    score, scores, copies = (drawn[:, used] for drawn in (score, scores, copies))
    return _of_scores(score / len(pairs), scores / len(pairs), copies, interval), each


def mean_rate(
    rates: Sequence[np.ndarray],
    rule: Rule = leave_one_out,
    seed: int = 0,
    counted: Sequence[np.ndarray] | None = None,
) -> tuple[Interval, list[Interval]]:
    """The mean of several rates of one attack, and each of them, in percent, as `mean_gain`.

    They are gains over an attack that never succeeds, with Wilson's intervals.

    Args:
        rates: (T, N) bool each, all on the same images.
    """
    pairs = [(own, np.zeros_like(own)) for own in rates]
    interval = partial(wilson_of_scores, least=1 / len(pairs))
    return _means(pairs, rule, seed, counted, interval)


def _of_scores(
    score: np.ndarray,
    scores: np.ndarray,
    copies: np.ndarray,
    interval: Callable[[float, float, float], tuple[float, float]],
) -> Interval:
    """The mean of (1, N) scores in percent, by how (R, N) vary over resamples."""
    n, d = score.size, design_effect(scores - score.mean(), copies)
    low, high = interval(score.sum() / d, (score.astype(float) ** 2).sum() / d, n / d)
    return 100 * float(score.sum()) / n, 100 * low, 100 * high


def rates(margins: np.ndarray) -> dict[str, float]:
    """What is said of one cell on one target, in percent, from its (T, N) margins.

    The headline is leave-one-out. The best step's rate is optimistic: that step was chosen by the
    very answers that it is judged by.
    """
    success = successes(margins)
    of_step = 100 * success.mean(axis=1)
    names = ("success_rate_percent", "ci_low", "ci_high")
    crossfit_names = ("crossfit_percent", "crossfit_ci_low", "crossfit_ci_high")
    return {
        **dict(zip(names, rate(success), strict=True)),
        **dict(zip(crossfit_names, rate(success, cross_fit), strict=True)),
        "last_step_percent": float(of_step[-1]),
        "optimistic_best_step_percent": float(of_step.max()),
    }


def gains(ours: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """What is said of the gain of one attack over another on the same images, in points.

    Args:
        ours: (T, N) margins.
        baseline: (T′, N) margins.
    """
    both = successes(ours), successes(baseline)
    names = ("gain", "ci_low", "ci_high")
    crossfit_names = ("crossfit_gain", "crossfit_ci_low", "crossfit_ci_high")
    return {
        **dict(zip(names, gain(*both), strict=True)),
        **dict(zip(crossfit_names, gain(*both, cross_fit), strict=True)),
    }


def mean_interval(values: np.ndarray) -> Interval:
    """The mean of (N,) values and its 95 % interval (Student's t); NaN limits for one value."""
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / n**0.5)
    return mean, mean - half, mean + half
