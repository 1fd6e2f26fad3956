"""How often the intervals of irattack.pipeline.statistics cover the truth, as a Markdown table.

    python -m scripts.coverage --images 128 --steps 20 --trials 400

A simulated attack succeeds on an image at a step where a standard normal number lies below the
quantile of that step's level. Along the steps these numbers are an autoregressive process of
correlation ρ; two attacks share half their variance, as images differ in how easy they are. Every
step of a plateau has the same level, so that the truth is that level whatever is chosen; where the
level rises, the truth is the mean over the trials, which is unbiased, since no image has a say in
its own step. The gain is that of an attack whose level is 10 points higher.
"""

import argparse
from collections.abc import Callable
from itertools import product

import numpy as np
from scipy.special import ndtri
from tabulate import tabulate

from irattack.pipeline import statistics
from irattack.pipeline.statistics import Interval, Rule, cross_fit, leave_one_out

RULES = {"leave-one-out": leave_one_out, "cross-fit": cross_fit}
GAIN = 0.1
SHAPES: dict[str, Callable[[int], np.ndarray]] = {
    "plateau": np.ones,
    "rise": lambda steps: 1 - np.exp(-5 * np.arange(1, steps + 1) / steps),
}


def walks(rng: np.random.Generator, steps: int, n: int, rho: float) -> np.ndarray:
    """Stationary autoregressive processes of standard normal numbers, (steps, n)."""
    z = rng.standard_normal((steps, n))
    for t in range(1, steps):
        z[t] = rho * z[t - 1] + (1 - rho**2) ** 0.5 * z[t]
    return z


def pair(
    rng: np.random.Generator, ours: np.ndarray, baseline: np.ndarray, n: int, rho: float
) -> tuple[np.ndarray, np.ndarray]:
    """Successes of two attacks with these levels on the same n images, each (T, n) bool."""
    shared, *own = (walks(rng, len(ours), n, rho) for _ in range(3))
    levels = (ours, baseline)
    first, second = (
        (shared + z) / 2**0.5 < ndtri(p)[:, None] for z, p in zip(own, levels, strict=True)
    )
    return first, second


def plain_rate(success: np.ndarray, rule: Rule) -> Interval:
    """The rate and Wilson's interval, as if nothing had been chosen."""
    hits, n = int(rule(success, np.ones((1, success.shape[1]))).sum()), success.shape[1]
    low, high = statistics.wilson(hits, n)
    return 100 * hits / n, 100 * low, 100 * high


def plain_gain(ours: np.ndarray, baseline: np.ndarray, rule: Rule) -> Interval:
    """The gain and Agresti and Min's interval, as if nothing had been chosen."""
    n = ours.shape[1]
    first, second = (rule(success, np.ones((1, n))) for success in (ours, baseline))
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    low, high = statistics.agresti_min(won, lost, n)
    return 100 * (won - lost) / n, 100 * low, 100 * high


def trial(ours: np.ndarray, baseline: np.ndarray, rule: Rule) -> list[Interval]:
    """Plain and bootstrapped interval of the baseline's rate and of the gain over it."""
    return [
        plain_rate(baseline, rule),
        statistics.rate(baseline, rule),
        plain_gain(ours, baseline, rule),
        statistics.gain(ours, baseline, rule),
    ]


def simulate(
    shape: str, steps: int, n: int, rho: float, level: float, rule: Rule, trials: int
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of `trial`, (trials, 4, 3), in percent, and the four truths."""
    rng = np.random.default_rng(0)
    factor = SHAPES[shape](steps)
    levels = (factor * (level + GAIN), factor * level)
    found = np.array([trial(*pair(rng, *levels, n, rho), rule) for _ in range(trials)])
    truths = np.repeat([100 * level, 100 * GAIN], 2)
    return found, truths if shape == "plateau" else found[..., 0].mean(axis=0)


def covered(found: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """The share of trials whose interval holds the truth, (4,)."""
    return ((found[..., 1] <= truths) & (truths <= found[..., 2])).mean(axis=0)


def main() -> None:
    """Prints a line for each combination of the options and each rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["plateau"])
    parser.add_argument("--images", nargs="+", type=int, default=[32, 128, 1000])
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 100])
    parser.add_argument("--rho", nargs="+", type=float, default=[0.5, 0.9, 0.99])
    parser.add_argument("--level", nargs="+", type=float, default=[0.1, 0.4, 0.8])
    parser.add_argument("--trials", type=int, default=400)
    args = parser.parse_args()
    lines = []
    grid = product(args.shape, args.steps, args.images, args.rho, args.level, RULES)
    for shape, steps, n, rho, level, rule in grid:
        found, truths = simulate(shape, steps, n, rho, level, RULES[rule], args.trials)
        share = 100 * covered(found, truths)
        width = (found[..., 2] - found[..., 1]).mean(axis=0)
        ideal = 2 * statistics.Z * found[..., 0].std(axis=0)
        cells = [
            text
            for i in (0, 2)
            for text in (
                f"{share[i]:.0f} % ({width[i]:.0f})",
                f"{share[i + 1]:.1f} % ({width[i + 1]:.0f})",
                f"{ideal[i]:.0f}",
            )
        ]
        lines.append([shape, steps, n, rho, level, rule, *cells])
    heads = ["shape", "T", "N", "ρ", "level", "rule"]
    heads += [f"{what} {of}" for what in ("rate", "gain") for of in ("plain", "ours", "±1.96 SD")]
    print(tabulate(lines, heads, tablefmt="github", disable_numparse=True))
    print(f"\nCoverage and, in brackets, mean width in points; {args.trials} trials a line.")


if __name__ == "__main__":
    main()
