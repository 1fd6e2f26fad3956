"""Second derivatives of the loss with respect to the image (Appendix E.2, Figure 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from irattack.attacks.objective import Value


class Softplus(nn.Module):
    """(1/β) log(1 + e^{βx}), a ReLU that has a second derivative. (The paper prints e^{−βx}.)"""

    def __init__(self, beta: float):
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape; exact for large x too."""
        return torch.logaddexp(self.beta * x, torch.zeros_like(x)) / self.beta


def smoothed(model: nn.Module, beta: float) -> nn.Module:
    """Replaces every ReLU module of a model, in place, and returns the model."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, Softplus(beta))
    return model


def hessian_product(gradient: Tensor, x: Tensor, direction: Tensor) -> Tensor:
    """H v of each image, from its gradient (with graph) and v, all (B, C, H, W)."""
    return torch.autograd.grad((gradient * direction).sum(), x, retain_graph=True)[0]


def measure(
    model: nn.Module, loss: Value, x: Tensor, y: Tensor, columns: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Columns of the Hessian of ℓ(h(x), y), and the ratios of Figure 4 (b).

    Args:
        x: (B, C, H, W) with n = C·H·W, y: (B,).
        columns: for each image M input dimensions b.

    Returns:
        H_ab for all a, (B, M, n), and g_b H_bb / Σ_a g_a H_ab, (B, M).
    """
    x = x.detach().requires_grad_()
    gradient = torch.autograd.grad(loss(model(x), y, None).sum(), x, create_graph=True)[0]
    g, chosen = gradient.detach(), torch.tensor(columns, device=x.device)
    hg = hessian_product(gradient, x, g).flatten(1)
    elements = []
    for b in chosen.T:
        one = torch.zeros_like(x).flatten(1).scatter_(1, b[:, None], 1.0).view_as(x)
        elements.append(hessian_product(gradient, x, one).flatten(1))
    hessian = torch.stack(elements, dim=1)
    diagonal = hessian.gather(2, chosen[:, :, None]).squeeze(2)
    return hessian, g.flatten(1).gather(1, chosen) * diagonal / hg.gather(1, chosen)
