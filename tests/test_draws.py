"""Random numbers do not know their batch; sets have the right cells, cells the right pixels."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from irattack.attacks import philox, randomness
from irattack.attacks.objective import to_pixels
from irattack.attacks.randomness import Draws, smallest


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


@pytest.mark.parametrize("cores", [1, 3, 100])
def test_draws_do_not_depend_on_the_number_of_cores(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Draws(0).uniform(names(7), 1, "a", (2,)), noise(Draws(0), 7)
    monkeypatch.setattr(randomness, "CORES", cores)
    again = Draws(0).uniform(names(7), 1, "a", (2,)), noise(Draws(0), 7)
    assert all(map(torch.equal, drawn, again))


def noise(draws: Draws, count: int) -> torch.Tensor:
    return draws.philox(names(count), 1, "noise", (4,), torch.device("cpu"))


def test_philox_is_normal_and_depends_on_seed_image_step_and_purpose_alone() -> None:
    def draw(seed: int, ids: list[str], step: int, purpose: str) -> torch.Tensor:
        return Draws(seed).philox(ids, step, purpose, (3, 25_001), torch.device("cpu"))

    whole = draw(0, names(4), 3, "noise")
    assert torch.equal(
        torch.cat([draw(0, names(4)[i : i + 1], 3, "noise") for i in range(4)]), whole
    )
    others = [draw(1, names(4), 3, "noise"), draw(0, names(4), 4, "noise")]
    others += [draw(0, names(4), 3, "start"), draw(0, names(4)[::-1], 3, "noise")]
    for other in others:
        correlation = torch.corrcoef(torch.stack([whole.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 0.01
    each = whole.double().flatten(1)
    moments = torch.stack([(each**k).mean(dim=1) for k in range(1, 5)])
    expected = torch.tensor([0.0, 1.0, 0.0, 3.0]).double()[:, None].expand(4, 4)
    torch.testing.assert_close(moments, expected, rtol=0, atol=0.15)
    assert abs((each[:, 1:] * each[:, :-1]).mean()) < 0.01  # the two of a pair, too


def test_philox_numbers_are_box_and_muller_of_its_words() -> None:
    words = np.random.Philox(key=np.array([3, 2**64 - 5], dtype=np.uint64)).random_raw(20_001)
    found = philox.on_cpu((3, 2**64 - 5), 40_001)
    for j in (0, 1, 7, 16_383, 16_384, 20_000):
        u, v = ((int(word) >> 8) / 2**24 for word in (words[j] & 0xFFFFFFFF, words[j] >> 32))
        radius = math.sqrt(-2 * math.log(1 - u))
        assert found[2 * j] == pytest.approx(radius * math.cos(2 * math.pi * v), abs=2e-6)
        if j < 20_000:
            assert found[2 * j + 1] == pytest.approx(radius * math.sin(2 * math.pi * v), abs=2e-6)


KERNEL = """
import torch
from irattack.attacks import philox
found = torch.empty(2, 1001)
philox.fill(found, torch.tensor([[3, -5], [7, 9]]), 64)
for row, key in zip(found, [(3, 2**64 - 5), (7, 9)]):
    torch.testing.assert_close(row, philox.on_cpu(key, 1001), rtol=0, atol=2e-6)
"""


COMPILER = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from irattack.attacks import philox
types = {"found": "*fp32", "keys": "*i64", "count": "i32", "LANES": "constexpr"}
source = triton.compiler.ASTSource(philox._kernel, types, {"LANES": 128})
assert triton.compile(source, GPUTarget("cuda", int(sys.argv[1]), 32)).asm["cubin"]
"""


@pytest.mark.skipif(philox.triton is None, reason="Triton is there where PyTorch has CUDA")
def test_the_kernel_of_cuda_gives_the_same_numbers() -> None:
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    kernel = [sys.executable, "-W", "ignore", "-c", KERNEL]
    subprocess.run(kernel, check=True, env=os.environ | {"TRITON_INTERPRET": "1"})


@pytest.mark.skipif(philox.triton is None, reason="Triton is there where PyTorch has CUDA")
@pytest.mark.parametrize("capability", [75, 80, 90])
def test_the_kernel_of_cuda_compiles(capability: int, tmp_path: Path) -> None:
    """To the code of a GPU that need not be there; the interpreter above compiles nothing."""
    compiler = [sys.executable, "-W", "ignore", "-c", COMPILER, str(capability)]
    subprocess.run(compiler, check=True, env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)})


@pytest.mark.parametrize("count", [1, 5, 32, 255, 256])
@pytest.mark.parametrize("levels", [3, 2**24])
def test_the_smallest_numbers_are_as_many_as_asked_and_of_equal_ones_the_first(
    count: int, levels: int
) -> None:
    numbers = torch.randint(levels, (3, 20, 256)) / 2**24
    numbers[0, 0, :2] = torch.tensor([0.0, 1 - 2**-24])
    order = numbers.argsort(dim=-1, stable=True)[..., :count]
    expected = torch.zeros(3, 20, 256, dtype=torch.bool).scatter_(-1, order, True)
    assert torch.equal(smallest(numbers, count), expected)


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
