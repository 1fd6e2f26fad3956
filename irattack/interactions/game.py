"""Game theory, exact, by enumeration: for any set function of few players.

A game v is a callable on boolean masks, (m, n) -> (m,): v(S) for m sets of n players at once. All
2^n sets are evaluated, so n is limited to MOST.
"""

import math
from collections.abc import Callable

import numpy as np

from irattack.errors import InputError

Game = Callable[[np.ndarray], np.ndarray]
MOST = 20  # players; 2^20 sets


def subsets(n: int) -> np.ndarray:
    """All sets of n players, (2^n, n) bool; set s has player i where bit i of s is 1."""
    if not 1 <= n <= MOST:
        raise InputError(f"n={n} players: enumeration takes 1 to {MOST}; sample instead.")
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)


def shapley_values(game: Game, n: int) -> np.ndarray:
    """φ(i | Ω) of every player (Eqs. 1, 6), (n,)."""
    sets = subsets(n)
    v = np.asarray(game(sets), dtype=np.float64)
    size, number = sets.sum(axis=1), np.arange(2**n)
    weight = np.array([math.factorial(s) * math.factorial(n - s - 1) for s in range(n)])
    weight = weight / math.factorial(n)
    phi = np.empty(n)
    for i in range(n):
        without = number[~sets[:, i]]
        phi[i] = (weight[size[without]] * (v[without | 1 << i] - v[without])).sum()
    return phi


def shapley_interactions(game: Game, n: int) -> np.ndarray:
    """I_ij of every pair in closed form (Eq. 26), (n, n); the diagonal is 0."""
    sets = subsets(n)
    v = np.asarray(game(sets), dtype=np.float64)
    size, number = sets.sum(axis=1), np.arange(2**n)
    weight = np.array([math.factorial(s) * math.factorial(n - s - 2) for s in range(n - 1)])
    weight = weight / math.factorial(n - 1)
    pairs = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            s = number[~sets[:, i] & ~sets[:, j]]
            both, one, other = s | 1 << i | 1 << j, s | 1 << i, s | 1 << j
            pairs[i, j] = (weight[size[s]] * (v[both] - v[other] - v[one] + v[s])).sum()
    return pairs + pairs.T


def fixed(game: Game, player: int, present: bool) -> Game:
    """The game of the other players in which one is always present, or always absent."""
    return lambda sets: game(np.insert(sets, player, present, axis=1))


def merged(game: Game, i: int, j: int) -> Game:
    """The game on Ω∖{i, j} ∪ {S_ij}: i and j are one player, the last."""
    low, high = sorted((i, j))

    def v(sets: np.ndarray) -> np.ndarray:
        others, joint = sets[:, :-1], sets[:, -1]
        return game(np.insert(np.insert(others, low, joint, axis=1), high, joint, axis=1))

    return v


def interaction_by_definition(game: Game, n: int, i: int, j: int) -> float:
    """I_ij = φ(S_ij | Ω') − [φ(i | Ω∖{j}) + φ(j | Ω∖{i})] (Eqs. 3, 12)."""
    joint = shapley_values(merged(game, i, j), n - 1)[-1]
    alone_i = shapley_values(fixed(game, j, False), n - 1)[i - (j < i)]
    alone_j = shapley_values(fixed(game, i, False), n - 1)[j - (i < j)]
    return float(joint - (alone_i + alone_j))


def interaction_by_presence(game: Game, n: int, i: int, j: int) -> float:
    """I'_ij = φ_{i, w/ j} − φ_{i, w/o j} (Eq. 13)."""
    row = i - (j < i)
    with_j = shapley_values(fixed(game, j, True), n - 1)[row]
    return float(with_j - shapley_values(fixed(game, j, False), n - 1)[row])


def contributions(game: Game, n: int) -> np.ndarray:
    """Σ_{j ≠ i} I_ij = v(Ω) − v(Ω∖{i}) − v({i}) + v(∅) of every player, (n,), by 2n + 2 sets."""
    single = np.eye(n, dtype=bool)
    whole, empty = game(np.array([[True] * n, [False] * n]))
    return whole - game(~single) - game(single) + empty


def average_interaction(game: Game, n: int) -> float:
    """E_ij[I_ij], the mean over all pairs of two different players (Eqs. 4, 27)."""
    return float(contributions(game, n).mean() / (n - 1))
