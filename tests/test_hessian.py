"""Hessian-vector products against the whole Hessian of a small network."""

import torch
from torch import Tensor, nn

from irattack.attacks.losses import cross_entropy
from irattack.interactions.hessian import Softplus, measure, smoothed


def test_columns_and_ratios_are_those_of_the_whole_hessian(smooth: nn.Module) -> None:
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    y, columns = torch.tensor([1, 2]), [[0, 5, 107], [3, 60, 61]]
    hessian, ratio = measure(smooth, cross_entropy, x, y, columns)
    for image in range(2):

        def loss(z: Tensor, image: int = image) -> Tensor:
            logits = smooth(z.view(1, 3, 6, 6))
            return cross_entropy(logits, y[image : image + 1]).sum()

        flat = x[image].flatten()
        whole = torch.autograd.functional.hessian(loss, flat)
        assert isinstance(whole, Tensor)
        g = torch.autograd.functional.jacobian(loss, flat)
        b = torch.tensor(columns[image])
        torch.testing.assert_close(hessian[image], whole[b])
        expected = g[b] * whole[b, b] / (whole @ g)[b]
        torch.testing.assert_close(ratio[image], expected)


def test_softplus_replaces_every_relu() -> None:
    x = torch.linspace(-50, 50, 101, dtype=torch.float64)
    torch.testing.assert_close(Softplus(1e4)(x), x.relu(), rtol=0, atol=1e-4)
    expected = torch.log1p(torch.exp(2 * x)) / 2
    torch.testing.assert_close(Softplus(2.0)(x), expected)
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.ReLU())
    found = [module for module in smoothed(net, 2.0).modules() if isinstance(module, nn.ReLU)]
    assert found == []
