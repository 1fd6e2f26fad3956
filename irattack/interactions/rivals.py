"""Other properties of a perturbation that may predict transfer, beside its interactions.

All take images x, perturbations δ, (B, C, H, W), and labels y (B,), and give one number an image.
"""

from torch import Tensor

from irattack.attacks.norms import l2_length, of_length


def equalised(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two perturbations of each image at the L2 length of the shorter, which stays as it is."""
    shorter = l2_length(first).minimum(l2_length(second))
    return of_length(first, shorter), of_length(second, shorter)
