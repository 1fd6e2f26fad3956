"""The relaxed attack (Eq. 8) against a plain gradient descent."""

import pytest
import torch
from torch import Tensor, nn

from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.losses import margin_loss
from irattack.attacks.norms import Free
from irattack.attacks.pieces import LengthPenalty, Momentum, StopAtLength
from irattack.attacks.randomness import Draws

STEP_SIZE = 0.2


def relaxed(steps: int, c: float, p: float, tau: float, record: str = "after") -> Attack:
    return Attack(
        Free(STEP_SIZE),
        steps,
        loss=margin_loss,
        accumulate=Momentum(rule="none"),
        penalty=LengthPenalty(c, p),
        stop=StopAtLength(tau),
        start="zero",
        record=record,
    )


def run(attack: Attack, model: nn.Module, x: Tensor) -> Tensor:
    y = model(x).argmax(dim=1)
    ids = [f"image-{i}" for i in range(len(x))]
    return torch.stack(list(perturbations(attack, model, x, y, ids, Draws(0))))


@pytest.mark.parametrize(("c", "p"), [(0.0, 2.0), (0.3, 2.0), (1e3, 5.0)])
def test_is_gradient_descent_on_equation_8(
    c: float, p: float, smooth: nn.Module, images: Tensor
) -> None:
    tau, steps = 0.4, 40
    found = run(relaxed(steps, c, p, tau), smooth, images)
    y = smooth(images).argmax(dim=1)
    arrived = 0
    for image in range(len(images)):
        x, delta = images[image : image + 1], torch.zeros_like(images[:1])
        for step in range(steps):
            if delta.norm() < tau * (1 - 1e-6):
                delta.requires_grad_()
                objective = -margin_loss(smooth(x + delta), y[image : image + 1])
                objective = objective + c * (delta.abs() ** p).sum()
                (g,) = torch.autograd.grad(objective.sum(), delta)
                delta = (x + delta.detach() - STEP_SIZE * g).clamp(0, 1) - x
                if delta.norm() > tau:
                    delta = tau * delta / delta.norm()
            torch.testing.assert_close(found[step, image], delta[0], rtol=1e-9, atol=1e-12)
        arrived += bool(delta.norm() >= tau * (1 - 1e-6))
    stop = StopAtLength(tau)
    assert int(stop.arrived(found[-1]).sum()) == arrived
    assert arrived > 0
    assert found[-1].flatten(1).norm(dim=1).max() <= tau * (1 + 1e-9)


def test_a_heavy_penalty_keeps_images_from_tau(smooth: nn.Module, images: Tensor) -> None:
    found = run(relaxed(60, 2.0, 2.0, 0.4), smooth, images)
    assert not StopAtLength(0.4).arrived(found[-1]).any()
    assert (found[-1] != 0).any()


def test_last_is_the_last_of_all_steps(smooth: nn.Module, images: Tensor) -> None:
    every = run(relaxed(10, 0.1, 2.0, 0.4), smooth, images)
    last = run(relaxed(10, 0.1, 2.0, 0.4, record="last"), smooth, images)
    assert torch.equal(last, every[-1:])
