"""Leave-one-out, margins and intervals against plain loops and published values."""

import numpy as np
import pytest
import torch

from irattack.attacks.losses import cross_entropy, margin, strongest_rival
from irattack.pipeline import statistics as evaluation


def plain_leave_one_out(success: np.ndarray) -> list[bool]:
    """Appendix M as a double loop."""
    steps, n = success.shape
    outcome = []
    for i in range(n):
        best, best_rate = 0, -1.0
        for t in range(steps):
            rate = sum(success[t, j] for j in range(n) if j != i) / (n - 1)
            if rate > best_rate:
                best, best_rate = t, rate
        outcome.append(bool(success[best, i]))
    return outcome


@pytest.mark.parametrize("seed", range(20))
def test_leave_one_out_is_the_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    margins = rng.standard_normal((7, 11)) + rng.standard_normal((7, 1))
    assert evaluation.transferred(margins).tolist() == plain_leave_one_out(margins > 0)


def test_leave_one_out_does_not_see_its_own_image() -> None:
    # Image 0 succeeds at step 1 alone, the others agree on step 0: its own success must not count.
    success = np.array([[False, True, True], [True, False, False]])
    assert evaluation.chosen_steps(success).tolist() == [0, 0, 0]
    # Two steps tie without image 0; the first is taken although image 0 succeeds at the second.
    success = np.array([[False, True], [True, True]])
    assert evaluation.chosen_steps(success)[0] == 0


def test_margin_is_the_definition() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]])
    y = torch.tensor([1, 2])
    assert margin(logits, y).tolist() == [-1.0, 6.0]
    assert strongest_rival(logits, y).tolist() == [2, 0]
    assert margin(logits, y, torch.tensor([0, 1])).tolist() == [-2.0, 1.0]
    log_p = logits.log_softmax(1)[torch.arange(2), y]
    torch.testing.assert_close(cross_entropy(logits, y), -log_p)


def test_wilson_interval_of_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17, Table I: 81/263 -> 0.2553 to 0.3662.
    success = np.array([True] * 81 + [False] * 182)
    rate, low, high = evaluation.rate_interval(success)
    assert rate == pytest.approx(100 * 81 / 263)
    assert low == pytest.approx(25.53, abs=0.01)
    assert high == pytest.approx(36.62, abs=0.01)


def test_gain_interval_covers_the_true_gain() -> None:
    rng = np.random.default_rng(0)
    true, covered, trials = 0.15, 0, 1000
    for _ in range(trials):
        u = rng.random((100, 2))
        baseline = u[:, 0] < 0.4
        ours = np.where(u[:, 1] < 0.5, u[:, 0] < 0.55, u[:, 0] > 0.45)
        gain, low, high = evaluation.gain_interval(ours, baseline)
        assert gain == pytest.approx(100 * (ours.mean() - baseline.mean()))
        covered += low <= 100 * true <= high
    assert 0.93 <= covered / trials <= 0.985


def test_gain_interval_is_not_degenerate() -> None:
    same = np.array([True, False] * 20)
    gain, low, high = evaluation.gain_interval(same, same)
    assert gain == 0
    assert low < 0 < high
