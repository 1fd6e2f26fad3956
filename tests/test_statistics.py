"""Leave-one-out, margins and intervals against plain loops, closed forms and published values."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from irattack.attacks.losses import cross_entropy, margin, strongest_rival
from irattack.errors import InputError
from irattack.pipeline import statistics
from irattack.pipeline.statistics import Rule, cross_fit, leave_one_out
from scripts import coverage


def plain_leave_one_out(success: np.ndarray, drawn: list[int] | None = None) -> list[bool]:
    """Appendix M as a double loop, over the images drawn into a resample."""
    steps, n = success.shape
    drawn = list(range(n)) if drawn is None else drawn
    outcome = []
    for i in drawn:
        best, best_rate = 0, -1.0
        for t in range(steps):
            others = [success[t, j] for j in drawn if j != i]
            rate = sum(others) / max(len(others), 1)
            if rate > best_rate:
                best, best_rate = t, rate
        outcome.append(bool(success[best, i]))
    return outcome


def plain_cross_fit(success: np.ndarray, drawn: list[int]) -> list[bool]:
    """The step with most hits among the drawn images of the other half, as a double loop."""
    outcome = []
    for i in drawn:
        others = [j for j in drawn if (i - j) % 2]
        hits = [sum(success[t, j] for j in others) for t in range(len(success))]
        outcome.append(bool(success[hits.index(max(hits)), i]))
    return outcome


def some_success(seed: int, steps: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((steps, n)) + rng.standard_normal(n) / 2 > rng.normal()


@pytest.mark.parametrize("seed", range(20))
def test_leave_one_out_is_the_double_loop(seed: int) -> None:
    success = some_success(seed, 7, 11)
    assert statistics.transferred(success - 0.5).tolist() == plain_leave_one_out(success)


def test_leave_one_out_does_not_see_its_own_image() -> None:
    # Image 0 succeeds at step 1 alone, the others agree on step 0: its own success must not count.
    success = np.array([[False, True, True], [True, False, False]])
    assert statistics.chosen_steps(success).tolist() == [0, 0, 0]
    # Two steps tie without image 0; the first is taken although image 0 succeeds at the second.
    success = np.array([[False, True], [True, True]])
    assert statistics.chosen_steps(success)[0] == 0


def test_leave_one_out_judges_every_image_at_the_other_of_two_equal_steps() -> None:
    margins = np.array([[1, 1, 0, 0], [0, 0, 1, 1]]) - 0.5
    assert statistics.chosen_steps(margins > 0).tolist() == [1, 1, 0, 0]
    assert statistics.transferred(margins).sum() == 0
    assert statistics.rates(margins)["success_rate_percent"] == 0
    assert statistics.rates(margins)["optimistic_best_step_percent"] == 50


def test_margin_zero_is_robust() -> None:
    margins = np.array([[0.0, 1e-30, -1e-30]])
    assert statistics.successes(margins).tolist() == [[False, True, False]]
    assert statistics.transferred(margins).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        (np.array([[1.0, np.nan, 1.0], [np.inf, -np.inf, 1.0]]), "not finite on 2 of 3 images"),
        (np.ones((3, 0)), r"shape \(3, 0\): expected \(steps, images\)"),
        (np.ones(3), r"shape \(3,\): expected \(steps, images\)"),
    ],
)
def test_margins_that_say_nothing_are_refused(margins: np.ndarray, message: str) -> None:
    for function in (statistics.transferred, statistics.rates):
        with pytest.raises(InputError, match=message):
            function(margins)


def test_margin_is_the_definition() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, -1.0]])
    y = torch.tensor([1, 2])
    assert margin(logits, y).tolist() == [-1.0, 6.0]
    assert strongest_rival(logits, y).tolist() == [2, 0]
    assert margin(logits, y, torch.tensor([0, 1])).tolist() == [-2.0, 1.0]
    log_p = logits.log_softmax(1)[torch.arange(2), y]
    torch.testing.assert_close(cross_entropy(logits, y), -log_p)


@pytest.mark.parametrize("n", [2, 7, 12])
@pytest.mark.parametrize("seed", range(10))
def test_rules_on_resamples_are_the_double_loops(seed: int, n: int) -> None:
    success = some_success(seed, 6, n)
    copies = np.concatenate([np.ones((1, n)), statistics.resamples(n, seed)[:150]]).astype("f4")
    loops = ((leave_one_out, plain_leave_one_out), (cross_fit, plain_cross_fit))
    for rule, loop in loops:
        for row, outcome in zip(copies, rule(success, copies), strict=True):
            drawn = np.repeat(np.arange(n), row.astype(int))
            assert outcome[drawn].tolist() == loop(success, drawn.tolist())


def test_resamples_are_of_n_images_and_of_the_seed_alone() -> None:
    copies = statistics.resamples(9, seed=3).copy()
    assert copies.shape == (2000, 9)
    assert (copies.sum(axis=1) == 9).all()
    # Multinomial: mean 1, variance 1 − 1/n, covariance −1/n.
    np.testing.assert_allclose(np.cov(copies.T), np.eye(9) - 1 / 9, atol=0.15)
    statistics.resamples.cache_clear()
    statistics.resamples(5, seed=3)
    assert (statistics.resamples(9, seed=3) == copies).all()
    assert (statistics.resamples(9, seed=4) != copies).any()


def test_design_effect_by_hand() -> None:
    # All resamples of two images. Totals 2, 1, 1, 0 have variance 1/2; independent outcomes, of
    # rates 1, 1/2, 1/2, 0, have 0, 1/2, 1/2, 0.
    copies = np.array([[2, 0], [1, 1], [1, 1], [0, 2]], np.float32)
    assert statistics.design_effect(np.tile([True, False], (4, 1)), copies) == pytest.approx(2)
    # Totals 2, 0, 0, −2 have variance 2; scores of ±1 have 2 less the totals' squares halved.
    assert statistics.design_effect(np.tile([1, -1], (4, 1)), copies) == pytest.approx(2)
    # Totals that never differ while outcomes do: not below 1, nor where nothing differs at all.
    assert statistics.design_effect(np.array([[1, 0], [0, 1]]), copies[1:3]) == 1
    for constant in (0, 1):
        assert statistics.design_effect(np.full((4, 2), constant), copies) == 1


def test_without_a_choice_the_sample_keeps_its_size() -> None:
    success = np.arange(200)[None] % 5 < 2
    for rule in (leave_one_out, cross_fit):
        d = statistics.design_effect(
            rule(success, statistics.resamples(200)), statistics.resamples(200)
        )
        assert d == pytest.approx(1, abs=0.12)  # four standard errors of a variance from 2000


def test_wilson_interval_of_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17, Table I: 81/263 -> 0.2553 to 0.3662.
    low, high = statistics.wilson(81, 263)
    assert low == pytest.approx(0.2553, abs=1e-4)
    assert high == pytest.approx(0.3662, abs=1e-4)


@pytest.mark.parametrize("n", [1, 10, 12.5])
def test_wilson_interval_at_the_ends(n: float) -> None:
    z = stats.norm.ppf(0.975)
    none, all_ = statistics.wilson(0, n), statistics.wilson(n, n)
    assert none == pytest.approx((0, z**2 / (n + z**2)))
    assert all_ == pytest.approx((n / (n + z**2), 1))


def test_agresti_min_interval_is_walds_after_half_a_pair_in_each_cell() -> None:
    won, lost, n = 14, 5, 60
    weights = np.array([won + 0.5, lost + 0.5, n - won - lost + 1])
    differences = np.array([1, -1, 0])
    mean = np.average(differences, weights=weights)
    variance = np.average((differences - mean) ** 2, weights=weights)
    half = stats.norm.ppf(0.975) * (variance / weights.sum()) ** 0.5
    assert statistics.agresti_min(won, lost, n) == pytest.approx((mean - half, mean + half))
    assert statistics.agresti_min(0, 1, 1)[0] == -1
    assert statistics.agresti_min(1, 0, 1)[1] == 1


@pytest.mark.parametrize("rule", [leave_one_out, cross_fit])
def test_intervals_where_nothing_varies(rule: Rule) -> None:
    n = 50
    some = some_success(1, 6, n)
    assert statistics.gain(some, some, rule)[0] == 0
    low, high = statistics.agresti_min(0, 0, n)
    assert low < 0 < high
    assert statistics.gain(some, some, rule)[1:] == (100 * low, 100 * high)
    for hits, success in ((0, np.zeros((6, n), bool)), (n, np.ones((6, n), bool))):
        low, high = statistics.wilson(hits, n)
        assert statistics.rate(success, rule) == (100 * hits / n, 100 * low, 100 * high)


@pytest.mark.parametrize("rule", [leave_one_out, cross_fit])
def test_intervals_are_of_the_shortened_sample(rule: Rule) -> None:
    ours, baseline = some_success(2, 6, 40), some_success(3, 9, 40)
    copies, one = statistics.resamples(40, 5), np.ones((1, 40), np.float32)
    first, second = (rule(success, one)[0] for success in (ours, baseline))

    d = statistics.design_effect(rule(ours, copies), copies)
    assert d > 1.2
    expected = (first.mean(), *statistics.wilson(first.sum() / d, 40 / d))
    assert statistics.rate(ours, rule, 5) == pytest.approx([100 * value for value in expected])

    scores = rule(ours, copies) * 1 - rule(baseline, copies)
    d = statistics.design_effect(scores, copies)
    assert d > 1.2
    won, lost = (first & ~second).sum(), (second & ~first).sum()
    assert won != lost
    expected = ((won - lost) / 40, *statistics.agresti_min(won / d, lost / d, 40 / d))
    found = statistics.gain(ours, baseline, rule, 5)
    assert found == pytest.approx([100 * value for value in expected])
    value, low, high = statistics.gain(baseline, ours, rule, 5)
    assert (-value, -high, -low) == pytest.approx(found)
    # Another seed draws other resamples, which must say nearly the same.
    assert statistics.gain(ours, baseline, rule, 6) != found
    assert statistics.gain(ours, baseline, rule, 6) == pytest.approx(found, abs=3)


def test_gain_needs_the_same_images() -> None:
    with pytest.raises(InputError, match="5 images and 6; expected the same images"):
        statistics.gains(np.ones((2, 5)), np.ones((2, 6)))


def test_what_is_said_of_a_cell_and_of_a_gain() -> None:
    margins = some_success(4, 5, 30) - 0.5
    better = margins + (np.arange(30) % 4 == 0)
    success = margins > 0
    found = statistics.rates(margins)
    rate, crossfit = statistics.rate(success), statistics.rate(success, cross_fit)
    assert found == {
        "success_rate_percent": rate[0],
        "ci_low": rate[1],
        "ci_high": rate[2],
        "crossfit_percent": crossfit[0],
        "crossfit_ci_low": crossfit[1],
        "crossfit_ci_high": crossfit[2],
        "last_step_percent": pytest.approx(100 * success[4].mean()),
        "optimistic_best_step_percent": pytest.approx(100 * success.sum(axis=1).max() / 30),
    }
    assert found["success_rate_percent"] == pytest.approx(
        100 * statistics.transferred(margins).mean()
    )
    assert all(type(value) is float for value in found.values())
    gains = statistics.gains(better, margins)
    names = ["gain", "ci_low", "ci_high"]
    assert list(gains) == [*names, "crossfit_gain", "crossfit_ci_low", "crossfit_ci_high"]
    assert tuple(gains.values())[:3] == statistics.gain(better > 0, success)
    assert tuple(gains.values())[3:] == statistics.gain(better > 0, success, cross_fit)


@pytest.mark.parametrize("rule", [leave_one_out, cross_fit])
def test_intervals_hold_after_the_choice_of_the_step(rule: Rule) -> None:
    """A plateau of 20 steps at 40 % (ours at 50 %), correlation 0.9 between neighbours, n = 128.

    Every step has the same rate, so the truth is 40 %, and a gain of 10 points, whatever is chosen.
    """
    trials = 400
    found, truths = coverage.simulate("plateau", 20, 128, 0.9, 0.4, rule, trials)
    plain_rate, rate, plain_gain, gain = coverage.covered(found, truths)
    tolerance = 3 * (0.95 * 0.05 / trials) ** 0.5  # three standard errors, 3.3 points
    assert min(rate, gain) > 0.95 - tolerance
    if rule is leave_one_out:
        assert max(plain_rate, plain_gain) < 0.8
    # Not by being too long: 1.96 standard deviations of the estimates on either side, within 40 %.
    width = (found[..., 2] - found[..., 1]).mean(axis=0)
    ideal = 2 * statistics.Z * found[..., 0].std(axis=0)
    assert (np.abs(width / ideal - 1)[[1, 3]] < 0.4).all()
    # Leave-one-out and cross-fit are unbiased: no image has a say in its own step.
    bias = found[..., 0].mean(axis=0) - truths
    assert (np.abs(bias) < 3 * found[..., 0].std(axis=0) / trials**0.5).all()


def test_agresti_min_interval_covers_the_gain_of_a_fixed_step() -> None:
    rng = np.random.default_rng(0)
    true, covered, trials = 0.15, 0, 1000
    for _ in range(trials):
        u = rng.random((100, 2))
        baseline = u[:, 0] < 0.4
        ours = np.where(u[:, 1] < 0.5, u[:, 0] < 0.55, u[:, 0] > 0.45)
        won, lost = int((ours & ~baseline).sum()), int((baseline & ~ours).sum())
        low, high = statistics.agresti_min(won, lost, 100)
        covered += low <= true <= high
    assert 0.93 <= covered / trials <= 0.985


def test_mean_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(3, 2, 10)
    low, high = stats.t.interval(0.95, 9, loc=values.mean(), scale=stats.sem(values))
    assert statistics.mean_interval(values) == pytest.approx((values.mean(), low, high))
    mean, low, high = statistics.mean_interval(np.array([2.0]))
    assert mean == 2
    assert np.isnan([low, high]).all()


def test_statistics_start_without_torch_or_scipy() -> None:
    code = (
        "import sys, irattack.pipeline.statistics; "
        "print({'torch', 'scipy', 'pandas'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_mean_rates_of_few_images_have_wide_intervals() -> None:
    """Where most images count for one of two rates alone, the other's few decide."""
    rng = np.random.default_rng(0)
    counted = [np.ones(128, bool), np.arange(128) < 13]
    both = [rng.random((1, 128)) < 0.5 for _ in counted]
    low, high = statistics.mean_rate(both, statistics.leave_one_out, counted=counted)[0][1:]
    assert high - low > 2 * 1.96 * 50 * np.sqrt(1 / 128 + 1 / 13) / 2 * 0.8


@pytest.mark.parametrize(("n", "level"), [(128, 0.4), (128, 0.01), (32, 0.03), (32, 0.97)])
def test_the_mean_of_several_rates_has_an_interval_that_covers_and_is_not_that_of_one(
    n: int, level: float
) -> None:
    """Seven targets that an image fools with a chance of its own, at the last step."""
    rng, covered, widths = np.random.default_rng(0), list[bool](), list[float]()
    for _ in range(300):
        chance = rng.beta(2 * level, 2 * (1 - level), (1, n))
        rates = [rng.random((1, n)) < chance for _ in range(7)]
        _, low, high = statistics.mean_rate(rates, statistics.last_step)[0]
        covered.append(low <= 100 * level <= high)
        widths.append(high - low)
    variance = level * (1 - level) * (1 / 3 + 2 / 3 / 7) / n  # two thirds are the targets' own
    assert sum(covered) >= 280  # 93 %
    if n * min(level, 1 - level) > 5:
        assert np.mean(widths) < 1.2 * 2 * 1.96 * 100 * variance**0.5


@pytest.mark.parametrize("n", [1, 10, 120, 256, 404, 512])
def test_a_rate_lies_in_its_interval(n: int) -> None:
    for hits in (0, n // 3, n):
        low, high = statistics.wilson(hits, n)
        assert 0 <= low <= hits / n <= high <= 1


def test_rates_have_no_interval_below_zero() -> None:
    never, seldom = np.zeros((20, 128), bool), np.zeros((3, 128), bool)
    seldom[:, :2] = True
    mean, (first, second) = statistics.mean_rate([never, seldom])
    assert first == pytest.approx(statistics.rate(never))
    assert second == pytest.approx(statistics.rate(seldom))
    assert 0 < mean[1] < mean[0] == 100 / 128
