"""Interactions inside perturbations of networks, at the level of grid cells (Appendices F, G, L).

The players are the L x L cells of an image. v(S) = max_{y' ≠ y} h_{y'}(x + δ^(S)) − h_y(x + δ^(S)),
the margin when only the cells in S are perturbed. Every measure is a list of sets whose margins
are taken in micro-batches: memory is bounded for any L, number of sets and images.

All measures are of a cell's contribution v(Λ) − v(Λ∖S) − v(S) + v(∅), without 1 / (L² − 1): the
`plain` value. `per_pair` turns it into the mean over pairs of cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irattack.attacks.losses import margin, strongest_rival
from irattack.attacks.objective import to_pixels
from irattack.attacks.randomness import Draws

Sets = Callable[[Tensor, Tensor], Tensor]  # images (b,), numbers of sets (b,) -> (b, L, L) bool


@dataclass(frozen=True)
class Estimate:
    """A value for each image and its standard error, both (B, …) float64; 0 where it is exact."""

    value: Tensor
    error: Tensor


@torch.no_grad()
def utilities(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    sets: Sets,
    count: int,
    micro_batch: int = 256,
    rival: Tensor | None = None,
) -> Tensor:
    """v(S) of sets 0 … count − 1 of each image, (B, count) float64.

    Args:
        x: (B, C, H, W), as delta.
        y: (B,).
        sets: called with images and numbers of sets, gives the sets.
        rival: y' of each image (B,); None for the maximum of each S (Section 3.1).
    """
    values = torch.empty(len(x) * count, dtype=torch.float64)
    for part in torch.arange(len(x) * count).split(micro_batch):
        image = part // count
        present = to_pixels(sets(image, part % count).to(x.device), x.shape[-2], x.shape[-1])
        where = image.to(x.device)
        logits = model(x[where] + delta[where] * present[:, None])
        chosen = None if rival is None else rival[where]
        values[part] = margin(logits, y[where], chosen).double().cpu()
    return values.view(len(x), count)


def rivals(model: nn.Module, x: Tensor, delta: Tensor, y: Tensor) -> Tensor:
    """argmax_{y' ≠ y} h_{y'}(x + δ), the y' of an interaction loss with rival=step, (B,)."""
    with torch.no_grad():
        return strongest_rival(model(x + delta), y)


def crossing(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    sets: Sets,
    count: int,
    micro_batch: int,
    rival: Tensor | None,
) -> Tensor:
    """v(Λ) − v(Λ∖S_k) − v(S_k) + v(∅) of sets 0 … count − 1 of each image, (B, count) float64."""

    def probes(image: Tensor, number: Tensor) -> Tensor:  # the sets, their complements, Λ, ∅
        drawn = sets(image, number % count) & (number < 2 * count)[:, None, None]
        rest = (number >= count) & (number <= 2 * count)
        return drawn ^ rest[:, None, None]

    v = utilities(model, x, delta, y, probes, 2 * count + 2, micro_batch, rival)
    whole, empty = v[:, 2 * count, None], v[:, 2 * count + 1, None]
    return whole - v[:, count : 2 * count] - v[:, :count] + empty


def contributions(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    grid: int,
    micro_batch: int = 256,
    rival: Tensor | None = None,
) -> Tensor:
    """v(Λ) − v(Λ∖{i}) − v({i}) + v(∅) = Σ_j I_ij of every cell (Eq. 28), (B, L, L), exact.

    Takes 2 L² + 2 forward passes an image.
    """
    cells = grid**2

    def single(image: Tensor, number: Tensor) -> Tensor:
        return (torch.arange(cells) == number[:, None]).view(-1, grid, grid)

    each = crossing(model, x, delta, y, single, cells, micro_batch, rival)
    return each.view(-1, grid, grid)


def sampled(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    ids: Sequence[str],
    draws: Draws,
    samples: int,
    cells: int,
    grid: int,
    micro_batch: int = 256,
    rival: Tensor | None = None,
) -> Estimate:
    """(1/K) Σ_k [v(Λ) − v(Λ∖S_k) − v(S_k) + v(∅)] for K ≥ 2 random sets (Eq. 41), (B,).

    Its mean over sets of one cell is `average`; of s cells, that of the loss of Eq. 42.
    """
    chosen = draws.subsets(ids, 0, samples, cells, grid)

    def drawn(image: Tensor, number: Tensor) -> Tensor:
        return chosen[image, number]

    each = crossing(model, x, delta, y, drawn, samples, micro_batch, rival)
    return Estimate(each.mean(dim=1), each.std(dim=1) / samples**0.5)


def neighbours(grid: int) -> Tensor:
    """The 2 L (L − 1) pairs of cells that share a side, (P, 2)."""
    number = torch.arange(grid**2).view(grid, grid)
    beside = torch.stack([number[:, :-1].flatten(), number[:, 1:].flatten()], dim=1)
    below = torch.stack([number[:-1].flatten(), number[1:].flatten()], dim=1)
    return torch.cat([beside, below])


def contexts(ids: Sequence[str], draws: Draws, samples: int, cells: int) -> tuple[Tensor, Tensor]:
    """K contexts S of each image: random numbers, (B, K, L²), by which cells come first, and |S|.

    |S| is uniform from 0 to L² − 2, (B, K); see `corners`.
    """
    order = draws.uniform(ids, 0, "contexts", (samples, cells))
    return order, (draws.uniform(ids, 0, "context sizes", (samples,)) * (cells - 1)).long()


def corners(order: Tensor, size: Tensor, pair: Tensor, corner: Tensor) -> Tensor:
    """A context S without the cells i and j, and of them none, i, j or both: (b, L²) bool.

    Args:
        order: random numbers that decide which cells come first in S, (b, L²).
        size: |S|, (b,).
        pair: i and j, (b, 2).
        corner: 0 for S, 1 for S ∪ {i}, 2 for S ∪ {j}, 3 for both, (b,).
    """
    rank = order.clone()
    rank.scatter_(1, pair, 2.0)  # i and j come last, so that they are in no context
    chosen = rank.argsort(dim=1).argsort(dim=1) < size[:, None]
    chosen.scatter_(1, pair[:, :1], (corner & 1).bool()[:, None])
    return chosen.scatter_(1, pair[:, 1:], (corner & 2).bool()[:, None])


def neighbour_map(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    ids: Sequence[str],
    draws: Draws,
    samples: int,
    grid: int,
    micro_batch: int = 256,
    rival: Tensor | None = None,
) -> Estimate:
    """E_{j ∈ N_i}[I_ij] of every cell i and its up to four neighbours (Figures 2, 8), (B, L, L).

    I_ij is Eq. 26 with its sum over contexts S sampled: |S| uniform in 0 … L² − 2, then S uniform
    among sets of that size. Takes 8 L (L − 1) K forward passes an image, K ≥ 2 `samples`.
    """
    cells = grid**2
    pairs = neighbours(grid)
    order, size = contexts(ids, draws, samples, cells)

    def sets(image: Tensor, which: Tensor) -> Tensor:
        corner, which = which % 4, which // 4  # 4 sets for each pair and context
        pair, context = pairs[which // samples], which % samples
        chosen = corners(order[image, context], size[image, context], pair, corner)
        return chosen.view(-1, grid, grid)

    v = utilities(model, x, delta, y, sets, 4 * len(pairs) * samples, micro_batch, rival)
    neither, first, second, both = v.view(len(x), len(pairs), samples, 4).unbind(dim=-1)
    each = both - second - first + neither  # (B, pairs, K)
    total = torch.zeros(len(x), cells, samples, dtype=torch.float64)
    degree = torch.zeros(cells, dtype=torch.float64)
    for column in pairs.unbind(dim=1):
        total.index_add_(1, column, each)
        degree.index_add_(0, column, torch.ones(len(pairs), dtype=torch.float64))
    mean = total / degree[:, None]  # over the neighbours, for each context
    error = mean.std(dim=2) / samples**0.5
    return Estimate(mean.mean(dim=2).view(-1, grid, grid), error.view(-1, grid, grid))


def neighbour_average(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    ids: Sequence[str],
    draws: Draws,
    samples: int,
    grid: int,
    micro_batch: int = 256,
    rival: Tensor | None = None,
) -> Estimate:
    """E[I_ij] over the pairs of neighbouring cells of an image (Eqs. 3, 26), (B,).

    Each of K ≥ 2 `samples` draws a pair and a context, as `neighbour_map` does for every pair;
    4 K forward passes an image.
    """
    pairs = neighbours(grid)
    order, size = contexts(ids, draws, samples, grid**2)
    drawn = pairs[(draws.uniform(ids, 0, "pairs", (samples,)) * len(pairs)).long()]  # (B, K, 2)

    def sets(image: Tensor, which: Tensor) -> Tensor:
        at = image, which // 4
        return corners(order[at], size[at], drawn[at], which % 4).view(-1, grid, grid)

    v = utilities(model, x, delta, y, sets, 4 * samples, micro_batch, rival)
    neither, first, second, both = v.view(len(x), samples, 4).unbind(dim=-1)
    each = both - second - first + neither
    return Estimate(each.mean(dim=1), each.std(dim=1) / samples**0.5)
