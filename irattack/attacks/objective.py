"""The gradient of J(δ): a weighted sum of functions of the logits at x + m ⊙ δ + ξ.

Every attack's objective is a list of terms. Their points ("probes") are evaluated in micro-batches,
as many whole images as fit one, or even parts of one image: memory stays bounded for any number of
probes, and the device is busy with many at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from irattack.attacks.losses import strongest_rival
from irattack.attacks.norms import l2_length
from irattack.errors import InputError

Value = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Transform = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """weight · Σ_p value(h(T(x + m_p ⊙ δ + ξ_p))) for each image, P probes an image.

    Attributes:
        value: from logits (B, C), labels (B,) and rivals (B,) to (B,).
        weight: (B,).
        sets: which cells of the perturbation are present, (B, P, L, L) bool; None for all.
        side: pixels in a cell's side; None for cells as even as possible.
        noise: ξ, (B, P, C, H, W); None for none.
        transform: the input transform T, called with images (b, C, H, W) and their draws (b, d).
        draws: (B, P, d) random numbers in [0, 1) for the transform.
        balance: let the gradients of all terms that say so be, together, this many times as long
            (‖·‖₂, image by image) as that of all others; None for as they are.
        share: how many probes of an image share a forward pass where a backward rule's result
            depends on it; None for all.
        moves_all: the gradient is that by the input x + m_p ⊙ δ, at all pixels, instead of ∇_δ.
    """

    value: Value
    weight: Tensor
    sets: Tensor | None = None
    side: int | None = None
    noise: Tensor | None = None
    transform: Transform | None = None
    draws: Tensor | None = None
    share: int | None = None
    balance: float | None = None
    moves_all: bool = False

    @property
    def probes(self) -> int:
        """P, the number of probes of each image."""
        for tensor in (self.sets, self.noise, self.draws):
            if tensor is not None:
                return tensor.shape[1]
        return 1

    @property
    def at_delta(self) -> bool:
        """Whether the only probe is x + δ itself, so that its forward pass can be shared."""
        return self.sets is None and self.noise is None and self.transform is None


def to_pixels(sets: Tensor, height: int, width: int, side: int | None = None) -> Tensor:
    """Cells (..., L, L) to pixels (..., height, width).

    Cells are as even as possible and leave no pixel out; with `side`, they are squares of that
    many pixels, and what remains belongs to the last row and column.
    """
    cells = [cell_of_pixel(length, sets.shape[-1], side, sets.device) for length in (height, width)]
    return sets.index_select(-1, cells[1]).index_select(-2, cells[0])


@cache
def cell_of_pixel(length: int, grid: int, side: int | None, device: torch.device) -> Tensor:
    """The row (or column) of cells to which each row of so many pixels belongs, (length,)."""
    pixel = torch.arange(length, device=device)
    return pixel * grid // length if side is None else (pixel // side).clamp_max(grid - 1)


def gradient(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    terms: Sequence[Term],
    micro_batch: int,
    one_graph: bool = False,
) -> Tensor:
    """∇_δ of the sum of the terms, (B, C, H, W).

    With `one_graph`, each term of each image has forward passes of its own (`Term.share`), for
    backward rules whose result depends on what shares one.

    The terms at x + δ itself come first, in one forward pass; their strongest wrong class is the
    rival that every other term's value is given. Nothing here waits for the device.
    """
    if apart := [term for term in terms if term.balance is not None]:
        rest = [term for term in terms if term.balance is None]
        alone = [replace(term, balance=None) for term in apart]
        g, other = (
            gradient(model, x, delta, y, part, micro_batch, one_graph) for part in (rest, alone)
        )
        unit = other / l2_length(other).clamp_min(torch.finfo(other.dtype).tiny)
        ratio = apart[0].balance or 0.0
        return g + ratio * l2_length(g) * unit
    total = torch.zeros_like(delta)
    rival = torch.zeros_like(y)
    shared = [term for term in terms if term.at_delta]
    others = [[term] for term in terms if not term.at_delta]
    groups = [[term] for term in shared] if one_graph else [shared] if shared else []
    clean, move = x[:, None], delta[:, None]
    for group in [*groups, *others]:
        first = group[0]
        count = first.probes
        size = (first.share or count) if one_graph else micro_batch
        labels, weights = per_probe(y, count), [per_probe(term.weight, count) for term in group]
        rivals = rival if first.at_delta else per_probe(rival, count)
        for images, probes in micro_batches(len(x), count, size, one_graph):
            shape = images.stop - images.start, probes.stop - probes.start
            low = images.start * count + probes.start
            part, present = slice(low, low + math.prod(shape)), None  # of all images' probes
            if first.sets is None:
                z = clean[images] + move[images]
            else:
                cells = first.sets[images, probes].to(x.dtype)
                present = to_pixels(cells, x.shape[-2], x.shape[-1], first.side).unsqueeze(2)
                z = torch.addcmul(clean[images], present, move[images])
            if first.noise is not None:
                z = z + first.noise[images, probes]
            z = seen = z.expand(*shape, *x.shape[1:]).flatten(0, 1).requires_grad_()
            if first.transform is not None and first.draws is not None:
                seen = first.transform(z, first.draws[images, probes].flatten(0, 1))
                check_one_each("transform", seen, z)
            logits, label = model(seen), labels[part]
            if not logits.requires_grad:
                raise InputError(
                    "net: no gradient goes through it to its images; it, or a transform, detaches "
                    "them or computes under torch.no_grad()."
                )
            if first.at_delta:
                rival[images] = strongest_rival(logits.detach(), label)
            values = [term.value(logits, label, rivals[part]) for term in group]
            for value in values:
                check_one_each("loss", value, label)
            weighted = [weight[part] * value for weight, value in zip(weights, values, strict=True)]
            (g,) = torch.autograd.grad(torch.stack(weighted).sum(), z)
            g = g.contiguous().unflatten(0, shape)
            if present is not None and not first.moves_all:
                g = g * present
            # sums of the probes in an order that does not change, which index_add_ has not
            total[images].add_(g.sum(dim=1))
    return total


def check_one_each(what: str, found: object, given: Tensor) -> None:
    """Raises InputError unless a piece gave a tensor with an entry for each image.

    Args:
        given: (b, …), what it was given, with as many dimensions as it has to give.
    """
    shape = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
    if isinstance(shape, str) or len(shape) != given.ndim or shape[0] != len(given):
        raise InputError(
            f"{what}: gave {shape} for {tuple(given.shape)}; expected a "
            f"tensor of {given.ndim} dimensions, with an entry for each of the {len(given)} images."
        )


def per_probe(of_images: Tensor, probes: int) -> Tensor:
    """What images (B,) have, for each of their probes: (B · P,), those of an image in turn."""
    return of_images if probes == 1 else of_images.repeat_interleave(probes)


def micro_batches(
    images: int, probes: int, size: int, alone: bool = False
) -> Iterator[tuple[slice, slice]]:
    """Images x probes in micro-batches of at most `size`: as many whole images as it holds.

    Where it does not hold one, the probes of each image are split as evenly as can be.

    Args:
        alone: each image by itself.
    """
    at_once = 1 if alone else max(1, size // probes)
    wide = math.ceil(probes / math.ceil(probes / size))
    for image in range(0, images, at_once):
        for probe in range(0, probes, wide):
            yield (
                slice(image, min(image + at_once, images)),
                slice(probe, min(probe + wide, probes)),
            )
