"""Interactions of networks against the exact game of few cells; estimates and their errors."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from irattack.attacks.losses import margin, strongest_rival
from irattack.attacks.objective import to_pixels
from irattack.attacks.randomness import Draws
from irattack.interactions import cells as interactions
from irattack.interactions import game
from irattack.interactions.averages import average, per_pair

GRID = 3
IDS = [f"image-{i}" for i in range(9)]


def cell_game(
    model: nn.Module, x: Tensor, delta: Tensor, y: Tensor, rival: Tensor | None = None
) -> game.Game:
    """The game of one image's cells, evaluated set by set."""

    def v(sets: np.ndarray) -> np.ndarray:
        out = []
        for chosen in sets:
            cells = torch.from_numpy(np.ascontiguousarray(chosen)).view(GRID, GRID)
            present = to_pixels(cells, x.shape[-2], x.shape[-1])
            out.append(margin(model((x + delta * present)[None]), y[None], rival).item())
        return np.array(out)

    return v


@pytest.fixture
def case(smooth: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    delta = 0.4 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    return smooth, images, delta, smooth(images).argmax(dim=1)


Case = tuple[nn.Module, Tensor, Tensor, Tensor]


@pytest.mark.parametrize("micro_batch", [1, 7, 500])
def test_contributions_are_those_of_the_exact_game(case: Case, micro_batch: int) -> None:
    model, x, delta, y = case
    found = interactions.contributions(model, x, delta, y, GRID, micro_batch)
    fixed = interactions.rivals(model, x, delta, y)
    found_fixed = interactions.contributions(model, x, delta, y, GRID, micro_batch, fixed)
    for image in (0, 4):
        one = (model, x[image], delta[image], y[image])
        expected = game.contributions(cell_game(*one), GRID**2)
        np.testing.assert_allclose(found[image].flatten(), expected, atol=1e-10)
        rival = strongest_rival(model((x + delta)[image : image + 1]), y[image : image + 1])
        expected = game.contributions(cell_game(*one, rival), GRID**2)
        np.testing.assert_allclose(found_fixed[image].flatten(), expected, atol=1e-10)
        mean = per_pair(average(found), GRID)[image]
        pairs = game.shapley_interactions(cell_game(*one), GRID**2)
        off = pairs[~np.eye(GRID**2, dtype=bool)]
        assert mean.item() == pytest.approx(off.mean(), abs=1e-10)


def exact_neighbours(case: Case, image: int) -> np.ndarray:
    model, x, delta, y = case
    one = cell_game(model, x[image], delta[image], y[image])
    pairs = game.shapley_interactions(one, GRID**2)
    out = np.zeros((GRID, GRID))
    for row in range(GRID):
        for column in range(GRID):
            near = [
                r * GRID + c
                for r in range(GRID)
                for c in range(GRID)
                if abs(r - row) + abs(c - column) == 1
            ]
            out[row, column] = pairs[row * GRID + column, near].mean()
    return out


Measure = Callable[[Draws, int], interactions.Estimate]


def check_estimator(measure: Measure, exact: Tensor, seeds: int = 40, samples: int = 24) -> None:
    """The mean is right within its error, the stated error is the real one, and falls as 1/√K."""
    few = [measure(Draws(seed), samples) for seed in range(seeds)]
    values = torch.stack([e.value for e in few])
    spread = values.std(dim=0)
    z = (values.mean(dim=0) - exact) / (spread / seeds**0.5)
    assert z.abs().max() < 4.5
    assert (z**2).mean() < 2.5
    stated = torch.stack([e.error for e in few]).pow(2).mean(dim=0).sqrt()
    assert 0.7 < (spread / stated).mean() < 1.3
    many = torch.stack([measure(Draws(seed), 16 * samples).error for seed in range(4)])
    assert many.mean().item() / stated.mean().item() == pytest.approx(1 / 4, rel=0.2)


def test_sampling_single_cells_estimates_the_exact_average(case: Case) -> None:
    model, x, delta, y = case
    exact = average(interactions.contributions(model, x, delta, y, GRID))
    check_estimator(
        lambda draws, samples: interactions.sampled(
            model, x, delta, y, IDS, draws, samples, cells=1, grid=GRID
        ),
        exact,
    )


def test_neighbour_map_estimates_the_exact_interactions(case: Case) -> None:
    model, x, delta, y = case[0], case[1][:2], case[2][:2], case[3][:2]
    exact = torch.from_numpy(np.stack([exact_neighbours(case, image) for image in range(2)]))
    check_estimator(
        lambda draws, samples: interactions.neighbour_map(
            model, x, delta, y, IDS[:2], draws, samples, GRID
        ),
        exact,
    )


def test_larger_sets_have_the_same_mean_over_pairs_of_a_quadratic() -> None:
    class Quadratic(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            value = z.flatten(1) @ weight @ z.flatten(1).T
            return torch.stack([torch.zeros(len(z)).to(z), value.diagonal()], dim=1)

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * 36, 3 * 36, generator=generator, dtype=torch.float64)
    delta = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    x, y = torch.zeros_like(delta), torch.zeros(2, dtype=torch.long)
    exact = average(interactions.contributions(Quadratic(), x, delta, y, GRID))
    exact = per_pair(exact, GRID)
    found = interactions.sampled(Quadratic(), x, delta, y, IDS[:2], Draws(0), 2000, 4, GRID)
    error = per_pair(found.error, GRID, 4)
    assert ((per_pair(found.value, GRID, 4) - exact).abs() < 4 * error).all()
