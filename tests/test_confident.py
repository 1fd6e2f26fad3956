"""Sharpened sources, and the balance of two gradients, in closed form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose
from torch import Tensor, nn

from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.losses import cross_entropy, margin_loss
from irattack.attacks.norms import Free, Linf
from irattack.attacks.objective import Term, gradient
from irattack.attacks.pieces import Interaction, Momentum
from irattack.attacks.randomness import Draws
from irattack.commands import composing, settings
from irattack.errors import InputError
from irattack.models import zoo
from irattack.models.network import Ensemble, networks, scale_for, scaled
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import ensure
from irattack.pipeline.results import Results, rows
from irattack.pipeline.worker import Worker

IDS = [f"image-{i}" for i in range(9)]
SMALL = ["images=8", "steps=2", "samples=2", "grid=4", "cells=3", "threads=1", "source=resnet34"]


def cell(folder: Path, *overrides: str) -> Cell:
    settings.register_resolvers()
    with composing.hydra():
        return Cell(compose("config", overrides=[*SMALL, f"output={folder}", *overrides]))


def test_temperature_1_is_the_identity_and_others_scale_logits() -> None:
    model = zoo.build("photos", "resnet34")
    x = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model(x)
    assert torch.equal(scaled(model, 1.0)(x), before)
    assert torch.equal(scaled(model, 4.0)(x), 4 * before)
    members = [zoo.build("photos", name) for name in ("resnet34", "alexnet")]
    whole = Ensemble(members)(x)
    torch.testing.assert_close(scaled(Ensemble(members), 4.0)(x), 4 * whole)


@pytest.mark.parametrize("confidence", [0.6, 0.9, 0.9999])
def test_the_scale_of_two_classes_is_known(confidence: float) -> None:
    """p_y = 1 / (1 + exp(−s d)) for a difference d of logits: s = log(p / (1 − p)) / d."""
    differences = torch.tensor([0.5, 1.0, 2.0, 3.0, 9.0]).double()
    logits, y = torch.zeros(5, 2).double(), torch.tensor([0, 1, 0, 1, 1])
    logits[torch.arange(5), y] = differences
    found = scale_for(logits, y, confidence)
    assert found == pytest.approx(np.log(confidence / (1 - confidence)) / 2)
    with pytest.raises(InputError, match="whatever its temperature"):
        scale_for(logits, 1 - y, confidence)


def test_a_confident_source_is_another_source(tmp_path: Path) -> None:
    plain, sure = cell(tmp_path), cell(tmp_path, "confidence=0.999", "targets=[resnet34,vgg16]")
    assert "confidence" not in str(plain.steps_facts)  # so that no key has changed
    assert cell(tmp_path, "confidence=0.99").key != sure.key != plain.key
    assert sure.key == cell(tmp_path, "confidence=999/1000").key
    ensure(Results(sure))
    assert rows(sure).source_confidence[0] == pytest.approx(0.999, abs=1e-5)
    worker = Worker(sure)
    for role, expected in (("source", worker.scale), ("measured", worker.scale), ("target", 1.0)):
        assert [net.scale for net in networks(worker.model("resnet34", role))] == [expected]
    assert worker.scale > 1
    for value in (0, 1, 1.5, "true"):
        with pytest.raises(InputError, match="confidence="):
            cell(tmp_path, f"confidence={value}")


def test_balance_is_the_ratio_that_it_says(smooth: nn.Module, images: Tensor) -> None:
    """λ_eff = λ ‖∇ℓ‖ / ‖∇I‖ for each image, against the gradients taken one by one."""
    generator = torch.Generator().manual_seed(3)
    delta = 0.1 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    y, draws = smooth(images).argmax(dim=1), Draws(0)
    kind: dict[str, Any] = {"samples": 3, "cells": 4, "grid": 4}
    own = [Term(cross_entropy, delta.new_ones(9))]
    g = gradient(smooth, images, delta, y, own, 64)
    for lam in (0.3, -2.0):
        plain = Interaction(lam=lam, **kind).terms(delta, IDS, 2, draws)
        i = gradient(smooth, images, delta, y, plain, 64) / -lam  # ∇I
        balanced = Interaction(lam=lam, balance=True, **kind).terms(delta, IDS, 2, draws)
        found = gradient(smooth, images, delta, y, [*own, *balanced], 64)
        ratio = g.flatten(1).norm(dim=1) / i.flatten(1).norm(dim=1)
        torch.testing.assert_close(found, g - lam * ratio.view(-1, 1, 1, 1) * i)
        lengths = (found - g).flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, abs(lam) * g.flatten(1).norm(dim=1))


def test_balance_of_a_product_of_two_cells_by_hand() -> None:
    """h = (0, a b) of two pixels: ℓ's gradient is the margin's, I = v(Λ) − v(a) − v(b) = a b."""

    class Product(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            a, b = z[:, 0, 0, 0], z[:, 0, 0, 1]
            return torch.stack([torch.zeros_like(a), a * b + 3 * a], dim=1)

    x, y = torch.zeros(1, 1, 1, 2).double(), torch.tensor([0])
    delta = torch.tensor([[[[0.2, 0.5]]]]).double()

    def value(logits: Tensor, y: Tensor, rival: Tensor | None) -> Tensor:
        return margin_loss(logits, y)

    alone = torch.tensor([[[[True, False]], [[False, True]]]])  # v({a}) and v({b})
    half = [
        Term(value, -torch.ones(1).double(), balance=0.5),
        Term(value, torch.ones(1).double(), sets=alone, balance=0.5),
    ]
    own = [Term(value, torch.ones(1).double())]
    found = gradient(Product(), x, delta, y, [*own, *half], 8).flatten()
    g = torch.tensor([0.5 + 3, 0.2]).double()  # ∇(a b + 3 a)
    i = torch.tensor([0.5, 0.2]).double()  # ∇(a b): 3 a is in v(Λ) and in v({a})
    torch.testing.assert_close(found, g - 0.5 * g.norm() / i.norm() * i)


def steps_of(attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return list(perturbations(attack, model, x, y, IDS, Draws(0)))[-1]


def test_what_confidence_changes(smooth: nn.Module, images: Tensor) -> None:
    """Margin and balance keep their direction on a source of any scale; λ with ce does not."""

    class Times(nn.Module):
        def __init__(self, scale: float):
            super().__init__()
            self.scale = scale

        def forward(self, z: Tensor) -> Tensor:
            return self.scale * smooth(z)

    y = smooth(images).argmax(dim=1)
    kind: dict[str, Any] = {"samples": 3, "cells": 4, "grid": 4}

    def run(scale: float, loss, **more) -> Tensor:  # type: ignore[no-untyped-def]
        interaction = Interaction(lam=0.5, **kind, **more)
        return steps_of(
            Attack(Linf(0.1, 0.02), 3, loss=loss, interaction=interaction), Times(scale), images, y
        )

    # smooth's gradients are never exactly 0, so that signs are what doubles say
    torch.testing.assert_close(run(8, margin_loss), run(1, margin_loss))
    assert (run(8, cross_entropy) != run(1, cross_entropy)).double().mean() > 0.02
    # of two classes ce and margin have one direction, and balance any scale
    two = nn.Sequential(smooth, Pair())
    y = two(images).argmax(dim=1)

    def balanced(scale: float) -> Tensor:
        class Scaled(nn.Module):
            def forward(self, z: Tensor) -> Tensor:
                return scale * two(z)

        interaction = Interaction(lam=0.5, balance=True, **kind)
        attack = Attack(Linf(0.1, 0.02), 3, interaction=interaction)
        return steps_of(attack, Scaled(), images, y)

    torch.testing.assert_close(balanced(8), balanced(1))


class Pair(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, :2]


def test_balance_without_interaction_at_the_start(smooth: nn.Module, images: Tensor) -> None:
    """At δ = 0 the interaction's gradient is left out; the first step is that of PGD."""
    y = smooth(images).argmax(dim=1)
    interaction = Interaction(lam=1, samples=2, cells=4, grid=4, balance=True)
    kind: dict[str, Any] = {
        "norm": Free(0.1),
        "steps": 1,
        "accumulate": Momentum(rule="none"),
        "clip": False,
    }
    found = steps_of(Attack(**kind, interaction=interaction), smooth, images, y)
    z = images.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(smooth(z), y, reduction="sum"), z)
    torch.testing.assert_close(found, 0.1 * g)
    mixed = torch.zeros_like(images)
    mixed[1:] = 0.01 * images[1:]  # image 0 is still at 0: no NaN, and its step is PGD's
    attack = Attack(Free(0.1), 1, interaction=interaction, accumulate=Momentum(rule="none"))
    moved, _ = attack.update(smooth, images, y, mixed, mixed * 0, IDS, 2, Draws(0))
    assert moved.isfinite().all()
    torch.testing.assert_close(moved[0], (images[0] + 0.1 * g[0]).clamp(0, 1) - images[0])
    with pytest.raises(InputError, match="no classification loss"):
        Attack(Linf(0.1, 0.02), 3, interaction=interaction, classify=False)
