"""What makes networks fast leaves their results alone."""

import pytest
import torch
from torch import Tensor, nn

from irattack.attacks.skip import SkipGradient, named
from irattack.models import zoo
from irattack.models.fold import fold
from irattack.models.network import Network, in_bfloat16, networks

PHOTOS = zoo.names("photos")


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def gradient(model: nn.Module, x: Tensor, gamma: float | None = None) -> Tensor:
    x = x.clone().requires_grad_()
    if gamma is None:
        return torch.autograd.grad(model(x)[:, 3].sum(), x)[0]
    with SkipGradient(gamma)(model):
        return torch.autograd.grad(model(x)[:, 3].sum(), x)[0]


@pytest.mark.parametrize("name", PHOTOS)
def test_a_folded_network_is_the_same_function(name: str) -> None:
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    model, folded = zoo.build("photos", name).double(), zoo.build("photos", name)
    before = norms(folded)
    folded = fold(folded).double()
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient(folded, x), gradient(model, x), rtol=1e-3, atol=1e-3)
    assert not any(p.requires_grad for p in folded.parameters())
    assert norms(folded) < before or before == 0
    if "dense" not in name and name != "ensemble":
        assert norms(folded) == 0


@pytest.mark.parametrize(
    "name", [n for n in PHOTOS if zoo.card("photos", n).get("skip")] + ["ensemble"]
)
def test_sgm_finds_its_branches_in_a_folded_network(name: str) -> None:
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    model, folded = zoo.build("photos", name).double(), zoo.build("photos", name)
    folded = fold(folded, keep_branches=True).double()
    for part in networks(folded):
        assert part.skip is not None
        ends = named(part.body, part.skip["branches"])
        assert ends
        assert not any(isinstance(end, nn.Identity) for end in ends)
    expected = gradient(model, x, 0.4)
    torch.testing.assert_close(gradient(folded, x, 0.4), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(gradient(model, x), expected, rtol=1e-3, atol=1e-3)


class Shared(nn.Module):
    """A convolution whose output is used twice: folding would change the other use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean = torch.rand(4)

    def forward(self, x: Tensor) -> Tensor:
        between = self.conv(x)
        return (self.norm(between) + between).mean(dim=(2, 3))


def test_what_folding_would_change_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network(Shared(), [0.5] * 3, [0.5] * 3, 8).eval().requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    before = model(x)
    assert torch.equal(fold(model)(x), before)
    assert norms(model) == 1


def test_bfloat16_is_near_and_logits_stay_float32() -> None:
    x = torch.rand(64, 3, 32, 32)
    model = zoo.build("photos", "resnet34")
    reduced = in_bfloat16(fold(zoo.build("photos", "resnet34")))
    logits = reduced(x)
    assert logits.dtype == torch.float32
    assert 0 < (logits - model(x)).abs().max() < 0.3
    assert gradient(reduced, x).dtype == torch.float32
    assert all(part.reduced for part in networks(reduced))
