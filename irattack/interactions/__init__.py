"""Shapley games, interactions inside perturbations of networks, Hessians: tensors in, tensors out.

Knows attacks as values; never a disk or a configuration.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["average", "contributions"]


def average(
    net: "nn.Module",
    x: "Tensor",
    delta: "Tensor",
    y: "Tensor",
    grid: int = 8,
    micro_batch: int = 256,
) -> "Tensor":
    """E_ij[I_ij], the average interaction inside perturbations (Eqs. 4, 28), (B,) float64, exact.

    The players are the L x L cells of δ, and v(S) = max_{y' ≠ y} h_y' − h_y at x + δ^(S), the
    margin when only the cells in S are perturbed. See `contributions`.

    Args:
        net: from images in [0, 1] to logits; as it was afterwards.
        x: images (B, C, H, W) in [0, 1].
        delta: their perturbations, (B, C, H, W).
        y: their labels, (B,).
        grid: L ≥ 2.
        micro_batch: images that go through the network at once.

    Raises:
        InputError: these do not fit together.
    """
    from irattack.interactions import averages

    each = contributions(net, x, delta, y, grid, micro_batch)
    return averages.per_pair(averages.average(each), grid)


def contributions(
    net: "nn.Module",
    x: "Tensor",
    delta: "Tensor",
    y: "Tensor",
    grid: int = 8,
    micro_batch: int = 256,
) -> "Tensor":
    """Σ_j I_ij = v(Λ) − v(Λ∖{i}) − v({i}) + v(∅) of every cell i (Eq. 28), exact.

    Returns (B, L, L) float64, by 2 L² + 2 forward passes an image. Arguments and errors are those
    of `average`.
    """
    from irattack.errors import InputError, ranged
    from irattack.interactions import cells
    from irattack.models.own import check_finite, classifier

    if getattr(delta, "shape", None) != x.shape or x.ndim != 4:
        raise InputError(
            f"delta: is {tuple(getattr(delta, 'shape', ()))} where x is {tuple(x.shape)}; expected "
            "both (B, C, H, W), of one step."
        )
    if not delta.isfinite().all():
        raise InputError("delta: has values that are NaN or infinite; give finite ones.")
    ranged("grid", grid, 2, min(x.shape[-2:]), whole=True)
    ranged("micro_batch", micro_batch, 1, whole=True)
    with classifier(net, x, y) as model:
        found = cells.contributions(model, x, delta, y.long(), int(grid), int(micro_batch))
    check_finite("logits", found.flatten(1).sum(dim=1))
    return found
