"""Other properties of a perturbation that may predict transfer, beside its interactions.

All take images x, perturbations δ, (B, C, H, W), and labels y (B,), and give one number an image.
"""

import torch
from torch import Tensor, nn

from irattack.attacks.losses import cross_entropy
from irattack.attacks.norms import l2_length, of_length


def equalised(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two perturbations of each image at the L2 length of the shorter, which stays as it is."""
    shorter = l2_length(first).minimum(l2_length(second))
    return of_length(first, shorter), of_length(second, shorter)


def total_variation(delta: Tensor) -> Tensor:
    """Σ |differences of δ between neighbouring pixels| / ‖δ‖₂, (B,): small where δ is smooth.

    Horizontal and vertical neighbours in each channel; 0 where δ is 0.
    """
    unit = of_length(delta, 1.0)
    across = unit.diff(dim=3).abs().sum(dim=(1, 2, 3))
    return across + unit.diff(dim=2).abs().sum(dim=(1, 2, 3))


@torch.no_grad()
def sharpness(
    model: nn.Module,
    z: Tensor,
    y: Tensor,
    directions: Tensor,
    radius: float,
    micro_batch: int = 256,
) -> tuple[Tensor, Tensor]:
    """By how much the attack's loss −ℓ rises around z: on average, and towards the worst of a few.

    ℓ(z) − ℓ(z ± r u_k) of the cross-entropy ℓ, for K directions and their opposites, so that the
    mean has no part of first order: −r² uᵀHu / 2 where ℓ is quadratic with the Hessian H.

    Args:
        z: (B, C, H, W).
        directions: (B, K, C, H, W), scaled to ‖u‖₂ = 1 here.
        radius: r, in units of [0, 1] images.

    Returns:
        The mean and the largest of the 2K rises, (B,) each.
    """
    count = directions.shape[1]
    unit = of_length(directions.flatten(0, 1), radius).view_as(directions)
    moves = torch.cat([torch.zeros_like(unit[:, :1]), unit, -unit], dim=1)
    probes = (z[:, None] + moves).flatten(0, 1)
    labels = y.repeat_interleave(2 * count + 1)
    parts = zip(probes.split(micro_batch), labels.split(micro_batch), strict=True)
    losses = torch.cat([cross_entropy(model(part), label) for part, label in parts])
    losses = losses.view(len(z), -1)
    rises = losses[:, :1] - losses[:, 1:]
    return rises.mean(dim=1), rises.amax(dim=1)


def loss_gradient(model: nn.Module, z: Tensor, y: Tensor, micro_batch: int = 256) -> Tensor:
    """∇ of the cross-entropy at z, (B, C, H, W)."""
    found = []
    for part, label in zip(z.split(micro_batch), y.split(micro_batch), strict=True):
        at = part.detach().requires_grad_()
        found.append(torch.autograd.grad(cross_entropy(model(at), label).sum(), at)[0])
    return torch.cat(found)


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """The cosine between two gradients of each image, (B, C, H, W) -> (B,); 0 where one is 0."""
    return (of_length(first, 1.0) * of_length(second, 1.0)).sum(dim=(1, 2, 3))
