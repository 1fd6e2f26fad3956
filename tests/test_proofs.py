"""The attacks of the propositions against the formulas of their proofs (Appendices E, I, J)."""

import pytest
import torch
from torch import Tensor, nn

from irattack.attacks.losses import margin
from irattack.attacks.randomness import Draws
from irattack.interactions.proofs import perturb

SETTINGS = {"loss": "margin", "step_size": 0.03, "steps": 4, "copies": 3, "sigma": 0.1}


@pytest.fixture
def found(smooth: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return perturb(SETTINGS, smooth, images, smooth(images).argmax(dim=1), list("abcdefghi"), 7)


def slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(margin(model(x), y).sum(), x)[0]


def test_gradients_add_up_as_in_the_proofs(
    found: dict[str, Tensor], smooth: nn.Module, images: Tensor
) -> None:
    y = smooth(images).argmax(dim=1)
    multi, vr, mi, g = (torch.zeros_like(images) for _ in range(4))
    for t in range(1, 5):
        multi = multi + 0.03 * slope(smooth, images + multi, y)
        noise = 0.1 * Draws(7).normal(list("abcdefghi"), t, "noise", (3, 3, 16, 16)).double()
        mean = sum(slope(smooth, images + vr + noise[:, k], y) for k in range(3)) / 3
        vr = vr + 0.03 * mean
        g = (t - 1) / t * g + slope(smooth, images + mi, y) / t  # Eq. 33
        mi = mi + 0.03 * g
    torch.testing.assert_close(found["multi"], multi)
    torch.testing.assert_close(found["single"], 0.03 * 4 * slope(smooth, images, y))
    torch.testing.assert_close(found["vr"], vr)
    torch.testing.assert_close(found["mi"], mi)
    assert (images + multi).min() < 0  # nothing is clipped


def test_noise_is_as_long_as_the_multi_step_attack(found: dict[str, Tensor]) -> None:
    lengths = {name: delta.flatten(1).norm(dim=1) for name, delta in found.items()}
    torch.testing.assert_close(lengths["noise"], lengths["multi"])
    direction = torch.nn.functional.normalize(found["noise"].flatten(1))
    draws = Draws(7).normal(list("abcdefghi"), 0, "noise", (3, 16, 16)).double().flatten(1)
    torch.testing.assert_close(direction, torch.nn.functional.normalize(draws))
