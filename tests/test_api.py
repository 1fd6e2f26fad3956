"""Attacks and interactions in Python, without Hydra on the user's side."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

import irattack
from irattack import InputError, attack, interactions, models, success
from irattack.api import _made
from irattack.commands.composing import hydra
from irattack.commands.settings import register_resolvers
from irattack.pipeline.cell import Cell, attack_of

GRID = 4


class Pair(nn.Module):
    """h = (0, w·x), in a tuple: the gradient of the cross-entropy has the sign of w, always."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(3 * 64, generator=torch.Generator().manual_seed(3))
        self.weight = nn.Parameter(weight.double())
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, str]:
        score = self.drop(images).flatten(1) @ self.weight
        return torch.stack([0 * score, score], dim=1), "more"


class Square(nn.Module):
    """h = (0, (Σ x)²): cells i and j of δ interact by 2 d_i d_j, d the sum of a cell."""

    def forward(self, images: Tensor) -> Tensor:
        total = images.flatten(1).sum(dim=1)
        return torch.stack([0 * total, total**2], dim=1)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(60, 190, (5, 3, 8, 8), generator=generator).double() / 255
    return x, torch.zeros(5, dtype=torch.long)


def test_pgd_on_a_network_of_ones_own(batch: tuple[Tensor, Tensor]) -> None:
    """α T sign(w) inside the ball; the network is left as it was, its dropout off meanwhile."""
    x, y = batch
    net = Pair().train()
    settings: dict[str, Any] = {"start": "zero", "benchmark.step_size.linf": "2/255"}
    for steps, levels in ((3, 6), (5, 7)):
        delta = attack("pgd", net, x, y, eps=7 / 255, steps=steps, **settings)
        expected = levels / 255 * net.weight.detach().sign().view(3, 8, 8).expand_as(x)
        torch.testing.assert_close(delta, expected)
    assert net.training
    assert net.drop.training
    assert net.weight.requires_grad
    every = attack("pgd", net, x, y, eps=7 / 255, steps=5, every_step=True, **settings)
    assert every.shape == (5, *x.shape)
    torch.testing.assert_close(every[-1], delta)
    scores = (x + every).flatten(2) @ net.weight.detach()
    assert 0 < (scores > 0).sum() < scores.numel()
    assert torch.equal(success(net, x + every, y), scores > 0)


def test_an_image_does_not_depend_on_its_batch(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    net = Pair()
    whole = attack(["vr", "ir"], net, x, y, start="random", steps=2, samples=2)
    single = attack(["vr", "ir"], net, x[3:4], y[3:4], start="random", steps=2, samples=2)
    torch.testing.assert_close(whole[3:4], single)
    other = attack("pgd", net, x, y, steps=1, start="random", seed=1)
    assert not torch.equal(other, attack("pgd", net, x, y, steps=1, start="random"))
    named = attack("pgd", net, x, y, steps=1, start="random", ids=["a", "b", "a", "c", "d"])
    moved = named - 2 / 255 * net.weight.detach().sign().view(3, 8, 8)
    assert torch.isclose(moved[0], moved[2]).float().mean() > 0.7  # but where clipped
    assert torch.isclose(moved[0], moved[1]).float().mean() < 0.7


def test_average_interaction_of_a_square(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    delta = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).double() / 10
    cells = delta.view(5, 3, GRID, 2, GRID, 2).sum(dim=(1, 3, 5)).flatten(1)
    pairs = 2 * cells[:, :, None] * cells[:, None]
    off = pairs.sum(dim=(1, 2)) - pairs.diagonal(dim1=1, dim2=2).sum(dim=1)
    n = GRID**2
    found = interactions.average(Square(), x, delta, y, grid=GRID)
    torch.testing.assert_close(found, off / (n * (n - 1)))
    each = interactions.contributions(Square(), x, delta, y, grid=GRID)
    torch.testing.assert_close(each.sum(dim=(1, 2)), off)


@pytest.mark.parametrize(
    ("how", "given", "line"),
    [
        ("ir", {}, ["attack=ir"]),
        (
            ["mi", "sgm", "ir"],
            {"norm": "l2", "eps": "8/255"},
            ["+piece=[mi,sgm,ir]", "norm=l2", "eps=8/255"],
        ),
        ("vr", {"protocol": "authors", "steps": 3}, ["attack=vr", "protocol=authors", "steps=3"]),
    ],
)
def test_it_is_the_attack_of_the_command_line(how: Any, given: dict, line: list[str]) -> None:
    """Also inside a program that has a Hydra of its own; AlexNet's λ is that of its yaml."""
    net = models.load("alexnet")
    register_resolvers()
    with hydra():
        own = GlobalHydra.instance().hydra
        made, _ = _made(how, net, torch.rand(1, 3, 32, 32), "photos", given)
        assert GlobalHydra.instance().hydra is own
        cfg = compose(
            "config", overrides=[f"source={'alexnet' if how == 'ir' else 'resnet34'}", *line]
        )
    if how == "ir":
        assert made.interaction is not None
        assert made.interaction.lam == 2
    else:
        made, _ = _made(how, models.load("resnet34"), torch.rand(1, 3, 32, 32), "photos", given)
    assert made == attack_of(Cell(cfg))


def test_sgm_finds_the_branches_of_a_wrapped_network(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(144, 2)
    ).double()
    skip = {"branches": "0$", "gamma": 0.5}
    net = models.Network(body, [0.5] * 3, [0.25] * 3, 8, skip).double()
    assert torch.equal(attack("sgm", net, x, y, steps=2), attack("pgd", net, x, y, steps=2))
    with pytest.raises(InputError, match="lacks gamma"):
        attack("sgm", models.Network(body, [0.5] * 3, [0.25] * 3, 8, {"branches": "0$"}), x, y)


class Detached(Pair):
    """As networks are that were made for evaluation alone."""

    def forward(self, images: Tensor) -> tuple[Tensor, str]:
        return super().forward(images.detach())


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"how": "irr"}, "attack=irr: did you mean ir"),
    ({"how": ["mi", "irr"]}, "piece=irr: did you mean ir"),
    ({"net": "resnet34"}, "net: is a str; expected a torch.nn.Module"),
    ({"x": 255 * torch.rand(5, 3, 8, 8)}, r"x: has values from .* expected images in \[0, 1\]"),
    ({"x": torch.zeros(5, 3, 8, 8, dtype=torch.uint8)}, "x: is torch.uint8"),
    ({"y": torch.zeros(4, dtype=torch.long)}, r"y: is torch.int64 \(4,\); expected a tensor of 5"),
    ({"y": torch.full((5,), 2)}, "y: has classes from 2 to 2; this network knows 0 to 1"),
    ({"eps": 2}, r"eps=2: expected a radius in \(0, 1\]"),
    ({"epz": 2}, "epz: did you mean eps"),
    ({"benchmark": "photo"}, "did you mean photos"),
    ({"ids": ["a"]}, "ids: are 1 for 5 images"),
    ({"norm": "l3"}, "norm=l3: did you mean l2"),
    ({"net": nn.Sequential(nn.Flatten(), nn.Linear(192, 1).double())}, "of two classes or more"),
    ({"net": nn.Flatten(0)}, r"gives a tensor \(192,\) for one image"),
    (
        {"net": nn.Sequential(nn.Flatten(), nn.Linear(192, 2))},
        r"net: fails on one image, .*float64",
    ),
    ({"norm": 2}, "norm=2: expected a word"),
    ({"mu": 0.9}, r"attack\(\)=mu: .*attack.accumulate.mu"),
    ({"how": "mi,ir"}, r"attack\('mi,ir'\): expected one attack, or a list of pieces"),
    ({"how": []}, r"attack\(\[\]\): names nothing"),
    ({"how": "sgm"}, "SGM needs a source with skip connections"),
    ({"net": Detached()}, "net: no gradient goes through it to its images"),
]


@pytest.mark.parametrize(("given", "sentence"), MISTAKES)
def test_a_mistake_is_a_sentence(
    given: dict[str, Any], sentence: str, batch: tuple[Tensor, Tensor]
) -> None:
    arguments: dict[str, Any] = {"how": "pgd", "net": Pair(), "x": batch[0], "y": batch[1]}
    with pytest.raises(InputError, match=sentence):
        attack(**(arguments | {"steps": 1} | given))


def test_mistakes_with_interactions_and_without_effect(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    with pytest.raises(InputError, match=r"delta: is \(2, 5, 3, 8, 8\) where x is"):
        interactions.average(Pair(), x, torch.stack([x, x]), y)
    with pytest.raises(InputError, match="delta: has values that are NaN or infinite"):
        interactions.average(Pair(), x, x / 0, y)
    softmax = nn.Sequential(nn.Flatten(), nn.Linear(192, 2).double(), nn.Softmax(1))
    with pytest.warns(UserWarning, match="net: gives numbers that sum to 1, as a softmax does"):
        attack("pgd", softmax, x, y, steps=1)
    with pytest.raises(InputError, match="grid=1: expected a whole number from 2 to 8"):
        interactions.average(Pair(), x, 0 * x, y, grid=1)
    with pytest.raises(InputError, match="micro_batch=0: expected a whole number from 1 on"):
        interactions.average(Pair(), x, 0 * x, y, micro_batch=0)
    with torch.inference_mode(), pytest.raises(InputError, match="call it outside"):
        attack("pgd", Pair(), x, y, steps=1)
    with pytest.raises(InputError, match="weights_dir=/nope: there is no such folder"):
        models.load("resnet34", weights_dir="/nope")
    whole = interactions.average(Pair(), x, 0 * x, y, grid=2)
    assert torch.equal(interactions.average(Pair(), x, 0 * x, y, grid=2.0), whole)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="micro_batch=0: expected a whole number from 1 on"):
        success(Pair(), x, y, micro_batch=0)
    with pytest.raises(InputError, match=r"logits that are NaN or infinite on 1 of 5 .*number 2\)"):
        success(Log(), torch.where(torch.arange(5).view(-1, 1, 1, 1) == 2, 0, x), y)
    with pytest.warns(UserWarning, match="lam=… has no effect: attack=pgd does not use it"):
        attack("pgd", Pair(), x, y, steps=1, lam=2)


class Log(nn.Module):
    """Infinite on a black image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).sum(dim=1, keepdim=True).log().expand(-1, 3)


def test_importing_the_package_waits_for_no_pytorch() -> None:
    code = "import sys, irattack, irattack.models, irattack.interactions, irattack.commands.help\n"
    code += "assert not {'torch', 'hydra'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert {*irattack.__all__} <= {*dir(irattack)}
    with pytest.raises(AttributeError, match="no attribute 'atack'"):
        irattack.atack  # noqa: B018
