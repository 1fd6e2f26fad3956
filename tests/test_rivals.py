"""What may predict transfer: each measure in closed form, correlations against a formula."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose
from scipy import stats
from torch import Tensor, nn

from irattack.attacks.randomness import Draws
from irattack.commands import composing, reproduce, settings
from irattack.errors import InputError
from irattack.interactions import cells as interactions
from irattack.interactions import rivals
from irattack.models import zoo
from irattack.pipeline import correlation
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.predictors import Predictors
from irattack.pipeline.steps import last_frame

SMALL = ["images=8", "steps=2", "samples=2", "grid=4", "cells=3", "threads=1", "block=5"]


class Quadratic(nn.Module):
    """Logits (0, q) with ℓ of class 1 = log(1 + e^−q); q is such that ℓ = ½ zᵀAz + c exactly."""

    def __init__(self, a: Tensor, c: float):
        super().__init__()
        self.a, self.c = a, c

    def forward(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        loss = 0.5 * torch.einsum("bi,ij,bj->b", flat, self.a, flat) + self.c
        q = -torch.log(torch.expm1(loss))
        return torch.stack([torch.zeros_like(q), q], dim=1)


@pytest.mark.parametrize("micro_batch", [1, 5, 100])
def test_sharpness_of_a_quadratic(micro_batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    a, radius = half + half.T, 0.3
    model, y = Quadratic(a, 40.0), torch.ones(4, dtype=torch.long)
    z = 0.3 * torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    directions = torch.randn(4, 6, 3, 2, 2, generator=generator, dtype=torch.float64)
    mean, worst = rivals.sharpness(model, z, y, directions, radius, micro_batch)
    u = directions.flatten(2)
    u = u / u.norm(dim=2, keepdim=True)
    curved = radius**2 / 2 * torch.einsum("bki,ij,bkj->bk", u, a, u)
    slope = radius * torch.einsum("bki,bi->bk", u, z.flatten(1) @ a)
    torch.testing.assert_close(mean, -curved.mean(dim=1))
    torch.testing.assert_close(worst, (slope.abs() - curved).amax(dim=1))
    # over many directions, the mean is −r² tr A / 2n
    many = torch.randn(4, 4000, 3, 2, 2, generator=generator, dtype=torch.float64)
    mean, _ = rivals.sharpness(model, z, y, many, radius, 1000)
    expected = -(radius**2) * a.trace().item() / 24
    assert mean.mean().item() == pytest.approx(expected, abs=0.02)


def test_alignment_of_two_linear_networks() -> None:
    """Of two classes, ∇ℓ is a positive multiple of w_other − w_y, wherever x is."""

    class Linear(nn.Module):
        def __init__(self, seed: int):
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.weight = torch.randn(2, 12, generator=generator, dtype=torch.float64)

        def forward(self, z: Tensor) -> Tensor:
            return z.flatten(1) @ self.weight.T

    first, second = Linear(0), Linear(1)
    z = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(2)).double()
    y = torch.tensor([0, 1, 1, 0, 1])
    a, b = (rivals.loss_gradient(net, z, y, 2) for net in (first, second))
    normals = [net.weight[0] - net.weight[1] for net in (first, second)]
    cosine = torch.nn.functional.cosine_similarity(normals[0], normals[1], dim=0)
    torch.testing.assert_close(rivals.alignment(a, b), cosine.expand(5))
    torch.testing.assert_close(rivals.alignment(a, a), torch.ones(5).double())
    torch.testing.assert_close(rivals.alignment(a, -3 * a), -torch.ones(5).double())
    assert not rivals.alignment(a, torch.zeros_like(a)).any()


def test_total_variation_by_hand() -> None:
    delta = torch.zeros(3, 3, 4, 4).double()
    delta[0, 0, 1, 1] = -0.2  # a pixel with four neighbours, of length 1 once scaled
    delta[1] = 0.1  # constant
    found = rivals.total_variation(delta)
    torch.testing.assert_close(found, torch.tensor([4.0, 0.0, 0.0]).double())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 4, 4, generator=generator).double()
    torch.testing.assert_close(rivals.total_variation(7 * noise), rivals.total_variation(noise))
    stripes = torch.tensor([1.0, -1.0, 1.0, -1.0]).double().expand(1, 1, 4, 4)
    # 12 horizontal differences of 2 at length 4
    torch.testing.assert_close(rivals.total_variation(stripes), torch.tensor([6.0]).double())


def test_neighbours_are_the_pairs_that_share_a_side() -> None:
    found = {tuple(pair) for pair in interactions.neighbours(3).tolist()}
    beside = {(i, i + 1) for i in range(9) if i % 3 < 2}
    assert found == beside | {(i, i + 3) for i in range(6)}


def test_the_interaction_of_neighbours_is_the_mean_of_the_map() -> None:
    """Of v = Σ_pairs w_ij [i and j present], every I_ij is w_ij, whatever the context."""

    class Pairs(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            cells = z[:, 0].flatten(1)
            value = torch.einsum("bi,ij,bj->b", cells, weight, cells)
            return torch.stack([torch.zeros_like(value), value], dim=1)

    generator = torch.Generator().manual_seed(0)
    weight = torch.triu(torch.randn(16, 16, generator=generator, dtype=torch.float64), 1)
    delta = torch.ones(6, 1, 4, 4).double()
    x, y = torch.zeros_like(delta), torch.zeros(6, dtype=torch.long)
    ids = [f"image-{i}" for i in range(6)]
    found = interactions.neighbour_average(Pairs(), x, delta, y, ids, Draws(0), 3000, 4)
    pairs = interactions.neighbours(4)
    exact = weight[pairs[:, 0], pairs[:, 1]]
    assert ((found.value - exact.mean()).abs() < 4 * found.error).all()
    spread = exact.std() / 3000**0.5
    torch.testing.assert_close(found.error, spread.expand(6), rtol=0.1, atol=0)


def test_spearman_is_scipys() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 5, 20))
    x[0, :4] = 1.0  # ties
    found = correlation.spearman(x, y)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(found, expected)
    assert np.isnan(correlation.spearman(np.ones((1, 20)), y[:1]))[0]


def test_partial_correlation_is_that_of_the_inverse() -> None:
    """−P_xy / √(P_xx P_yy), P the inverse of the matrix of rank correlations."""
    random = np.random.default_rng(1)
    x, y, u, v = random.normal(size=(4, 30))
    x, y = x + u - v, y + u + 2 * v
    inverse = np.linalg.inv(stats.spearmanr(np.stack([x, y, u, v], axis=1)).statistic)
    expected = -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
    found = correlation.spearman(x[None], y[None], [u[None], v[None]])[0]
    assert found == pytest.approx(expected)
    assert correlation.spearman(x[None], y[None])[0] != pytest.approx(expected, abs=0.05)


def test_what_a_third_variable_explains_is_gone_when_it_is_held() -> None:
    random = np.random.default_rng(2)
    u = random.normal(size=(1, 2000))
    x, y = u + random.normal(size=u.shape), u + random.normal(size=u.shape)
    assert correlation.spearman(x, y)[0] > 0.4
    assert abs(correlation.spearman(x, y, [u])[0]) < 0.06
    assert correlation.spearman(x, y, [-u])[0] == pytest.approx(correlation.spearman(x, y, [u])[0])


def test_intervals_over_attacks_and_over_images() -> None:
    random = np.random.default_rng(3)
    level = np.arange(12.0)
    x = np.broadcast_to(level[None, :, None], (2, 12, 40))
    noise = random.normal(size=(2, 12, 40))
    # the same order of attacks in any sample of images, and of attacks
    for interval in correlation.correlate(x, x + 1e-3 * noise):
        assert interval == pytest.approx((1, 1, 1))
    # attacks in no order: their interval is wide; images that agree say so surely
    shuffled = random.permuted(x[0, :, 0])[None, :, None] + np.zeros((2, 12, 40))
    by_attack, by_image = correlation.correlate(x, shuffled)
    assert by_attack[1] < by_attack[0] < by_attack[2]
    assert by_attack[2] - by_attack[1] > 0.6
    assert by_image == pytest.approx((by_attack[0],) * 3)
    # images that disagree
    _, (value, low, high) = correlation.correlate(x, x + 30 * noise)
    assert high - low > 0.3
    assert low < value < high
    with pytest.raises(InputError, match="over 3 attacks"):
        correlation.correlate(x[:, :3], x[:, :3])
    with pytest.raises(InputError, match="over 7 attacks; select 8 or more"):
        correlation.correlate(x[:, :7], noise[:, :7], [noise[:, :7], noise[:, 4:11]])


def test_the_interval_over_attacks_covers_the_truth() -> None:
    """14 attacks of a bivariate normal whose Spearman is 0.48: covered in most samples."""
    random = np.random.default_rng(4)
    true, covered = 6 / np.pi * np.arcsin(0.5 / 2), 0
    for seed in range(60):
        x, y = random.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=14).T
        (_, low, high), _ = correlation.correlate(
            np.repeat(x[None, :, None], 2, axis=2), np.repeat(y[None, :, None], 2, axis=2), (), seed
        )
        covered += low <= true <= high
    assert covered >= 50


def test_the_job_measures_what_it_says(tmp_path: Path) -> None:
    settings.register_resolvers()
    given = [
        *SMALL,
        f"output={tmp_path}",
        "source=alexnet",
        "targets=[vgg16,resnet34]",
        "attack=mi",
    ]
    with composing.hydra():
        one = Cell(compose("config", overrides=given))
    job = Predictors(one, length=2.0, pairs=4, directions=3, radius=0.5)
    ensure(job)
    found, images = job.values(), images_of(one)
    frames = np.concatenate([last_frame(one, shard) for shard in one.shards(images)])
    x, y = torch.from_numpy(images.pixels).float() / 255, torch.from_numpy(images.labels)
    own = torch.from_numpy(frames).float() / 255 - x
    lengths = own.flatten(1).norm(dim=1)
    np.testing.assert_allclose(found["own_length"], lengths, rtol=1e-5)
    z = x + own * (2 / lengths).view(-1, 1, 1, 1)
    nets = {name: zoo.build("photos", name) for name in ("alexnet", "vgg16", "resnet34")}
    gradients, margins = {}, {}
    for name, net in nets.items():
        at = z.clone().requires_grad_()
        logits = net(at)
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="sum")
        gradients[name] = torch.autograd.grad(loss, at)[0].flatten(1)
        rest = logits.scatter(1, y[:, None], -np.inf).amax(dim=1)
        margins[name] = (rest - logits.gather(1, y[:, None])[:, 0]).detach().numpy()
    np.testing.assert_allclose(found["margin"], margins["alexnet"], atol=1e-3)
    for column, name in enumerate(one.targets):
        np.testing.assert_allclose(found["target_margins"][:, column], margins[name], atol=1e-3)
        cosine = torch.nn.functional.cosine_similarity(gradients["alexnet"], gradients[name])
        np.testing.assert_allclose(found["alignment"][:, column], cosine, atol=1e-3)
    assert (found["worst"] >= found["sharpness"]).all()
    with pytest.raises(InputError, match="at least two pairs"):
        Predictors(one, pairs=1)


def test_the_table_and_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [*SMALL, f"output={tmp_path}", "attack=pgd,mi,noise,ti,di,sgm,singlestep,maskaug"]
    monkeypatch.setattr("sys.argv", ["reproduce", "rivals", *given])
    reproduce.main()
    tables = list((tmp_path / "photos/tables").glob("rivals-*.csv"))
    data = pd.read_csv(next(path for path in tables if "_points" not in path.name))
    points = pd.read_csv(next((tmp_path / "photos/tables").glob("rivals-*_points.csv")))
    for source, group in points.groupby("source"):
        for measure in ("interaction", "variation", "alignment"):
            row = data[(data.source == source) & (data.measure == measure)].iloc[0]
            expected = stats.spearmanr(group[measure], group.success).statistic
            assert row.spearman == pytest.approx(expected, abs=1e-3, nan_ok=True)
    assert {path.suffix for path in (tmp_path / "photos/figures").glob("rivals-*")} == {
        *(".png", ".pdf", ".csv", ".json")
    }
