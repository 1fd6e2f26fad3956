"""Game theory on games whose values are known."""

import itertools
import math

import numpy as np
import pytest

from irattack.errors import InputError
from irattack.interactions import game

N = 6


def random_game(seed: int) -> game.Game:
    table = np.random.default_rng(seed).standard_normal(2**N)
    return lambda sets: table[(sets * 2 ** np.arange(N)).sum(axis=1)]


def test_shapley_value_is_the_mean_over_all_orders() -> None:
    v = random_game(0)
    mean = np.zeros(N)
    for order in itertools.permutations(range(N)):
        before = np.zeros((N + 1, N), bool)
        for place, player in enumerate(order):
            before[place + 1 :, player] = True
        mean[list(order)] += np.diff(v(before))
    np.testing.assert_allclose(game.shapley_values(v, N), mean / math.factorial(N), atol=1e-12)


def test_linearity_dummy_symmetry_efficiency() -> None:
    v, w = random_game(1), random_game(2)
    both = game.shapley_values(lambda s: 2 * v(s) - 3 * w(s), N)
    parts = 2 * game.shapley_values(v, N) - 3 * game.shapley_values(w, N)
    np.testing.assert_allclose(both, parts, atol=1e-12)
    with_dummy = game.shapley_values(lambda s: v(s & (np.arange(N) != 3)) + 5.0 * s[:, 3], N)
    assert with_dummy[3] == pytest.approx(5.0, abs=1e-12)
    alike = game.shapley_values(lambda s: v(s) + v(s[:, [1, 0, 2, 3, 4, 5]]), N)
    assert alike[0] == pytest.approx(alike[1], abs=1e-12)
    total = v(np.ones((1, N), bool)) - v(np.zeros((1, N), bool))
    assert game.shapley_values(v, N).sum() == pytest.approx(total[0], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_equations_of_an_interaction_agree(seed: int) -> None:
    v = random_game(seed)
    pairs = game.shapley_interactions(v, N)
    np.testing.assert_array_equal(pairs, pairs.T)
    for i, j in itertools.permutations(range(N), 2):
        assert game.interaction_by_definition(v, N, i, j) == pytest.approx(pairs[i, j], abs=1e-12)
        assert game.interaction_by_presence(v, N, i, j) == pytest.approx(pairs[i, j], abs=1e-12)
    np.testing.assert_allclose(game.contributions(v, N), pairs.sum(axis=1), atol=1e-12)
    mean = pairs[~np.eye(N, dtype=bool)].mean()
    assert game.average_interaction(v, N) == pytest.approx(mean, abs=1e-12)


def test_known_games() -> None:
    weight = np.arange(1.0, N + 1)
    additive = lambda sets: sets @ weight  # noqa: E731
    np.testing.assert_allclose(game.shapley_values(additive, N), weight, atol=1e-12)
    np.testing.assert_allclose(game.shapley_interactions(additive, N), 0, atol=1e-12)

    needed = np.isin(np.arange(N), [0, 2, 5])
    unanimity = lambda sets: (sets | ~needed).all(axis=1) * 1.0  # noqa: E731
    np.testing.assert_allclose(game.shapley_values(unanimity, N), needed / 3, atol=1e-12)
    expected = np.outer(needed, needed) / 2 * ~np.eye(N, dtype=bool)  # 1 / (|T| − 1)
    np.testing.assert_allclose(game.shapley_interactions(unanimity, N), expected, atol=1e-12)

    generator = np.random.default_rng(3)
    delta, h = generator.standard_normal(N), generator.standard_normal((N, N))
    h = h + h.T
    quadratic = lambda sets: 0.5 * np.einsum("si,ij,sj->s", sets * delta, h, sets * delta)  # noqa: E731
    expected = np.outer(delta, delta) * h * ~np.eye(N, dtype=bool)
    np.testing.assert_allclose(game.shapley_interactions(quadratic, N), expected, atol=1e-12)


@pytest.mark.parametrize("n", [0, 21])
def test_too_few_or_too_many_players(n: int) -> None:
    with pytest.raises(InputError, match="1 to 20"):
        game.shapley_values(lambda sets: sets.sum(axis=1), n)


def test_one_player_has_the_whole_value() -> None:
    assert game.shapley_values(lambda sets: 3 + 4.0 * sets[:, 0], 1).tolist() == [4.0]
