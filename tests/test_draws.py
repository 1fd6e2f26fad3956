"""Random numbers do not know their batch; sets have the right cells, cells the right pixels."""

import pytest
import torch

from irattack.attacks.objective import to_pixels
from irattack.attacks.randomness import Draws


def names(n: int) -> list[str]:
    return [f"image-{i}" for i in range(n)]


def test_draws_depend_on_seed_image_step_and_purpose_alone() -> None:
    ids = names(64)
    whole = Draws(0).subsets(ids, 3, 5, 8, 8)
    for size in (1, 7):
        parts = [Draws(0).subsets(ids[i : i + size], 3, 5, 8, 8) for i in range(0, 64, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert whole.flatten(2).sum(dim=2).eq(8).all()
    others = [
        Draws(1).uniform(ids, 3, "a", (4,)),
        Draws(0).uniform(ids, 4, "a", (4,)),
        Draws(0).uniform(ids, 3, "b", (4,)),
        Draws(0).uniform(ids[::-1], 3, "a", (4,)),
    ]
    assert not any((Draws(0).uniform(ids, 3, "a", (4,)) == other).any() for other in others)


def test_replacement_draws_fewer_distinct_cells() -> None:
    sets = Draws(0).subsets(names(50), 1, 20, 32, 16, replacement=True)
    distinct = sets.flatten(2).sum(dim=2).double().mean()
    assert distinct == pytest.approx(256 * (1 - (1 - 1 / 256) ** 32), abs=0.1)  # 30.1


@pytest.mark.parametrize(("grid", "size"), [(4, 16), (3, 16), (16, 37), (5, 5)])
def test_cells_cover_the_image_evenly(grid: int, size: int) -> None:
    cells = torch.eye(grid * grid, dtype=torch.bool).view(-1, grid, grid)
    pixels = to_pixels(cells, size, size)
    assert pixels.sum(dim=0).eq(1).all()
    sides = pixels.any(dim=1).sum(dim=1)
    assert sides.max() - sides.min() <= 1
