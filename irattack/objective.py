"""The gradient of J(δ): a weighted sum of functions of the logits at x + m ⊙ δ + ξ.

Every attack's objective is a list of terms. Their points ("probes") are evaluated in micro-batches
of one size that run across images and masks together: memory stays bounded for any number of probes
and the device stays full.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irattack.losses import strongest_rival

Value = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Transform = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """weight · Σ_p value(h(T(x + m_p ⊙ δ + ξ_p))) for each image, P probes an image.

    Attributes:
        value: from logits (B, C), labels (B,) and rivals (B,) to (B,).
        weight: (B,).
        sets: which cells of the perturbation are present, (B, P, L, L) bool; None for all.
        noise: ξ, (B, P, C, H, W); None for none.
        transform: the input transform T, called with images (b, C, H, W) and their draws (b, d).
        draws: (B, P, d) random numbers in [0, 1) for the transform.
    """

    value: Value
    weight: Tensor
    sets: Tensor | None = None
    noise: Tensor | None = None
    transform: Transform | None = None
    draws: Tensor | None = None

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


def to_pixels(sets: Tensor, height: int, width: int) -> Tensor:
    """Cells (..., L, L) to pixels (..., height, width); cells as equal as possible, none left."""
    grid = sets.shape[-1]
    rows = torch.arange(height, device=sets.device) * grid // height
    columns = torch.arange(width, device=sets.device) * grid // width
    return sets[..., rows[:, None], columns]


def gradient(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    terms: Sequence[Term],
    micro_batch: int,
) -> Tensor:
    """∇_δ of the sum of the terms, (B, C, H, W).

    The terms at x + δ itself come first, in one forward pass; their strongest wrong class is the
    y' of every other term (the authors' choice: one y' a step, taken at full δ).
    """
    total = torch.zeros_like(delta)
    rival = torch.zeros_like(y)
    shared = [term for term in terms if term.at_delta]
    if shared:
        for part in torch.arange(len(x), device=x.device).split(micro_batch):
            z = (x[part] + delta[part]).requires_grad_()
            logits = model(z)
            rival[part] = strongest_rival(logits.detach(), y[part])
            total[part] += _backward(z, logits, y[part], rival[part], shared, part)
    for term in terms:
        if term.at_delta:
            continue
        pairs = torch.arange(len(x) * term.probes, device=x.device)
        for part in pairs.split(micro_batch):
            image, probe = part // term.probes, part % term.probes
            present = None
            if term.sets is not None:
                present = to_pixels(term.sets[image, probe], *x.shape[-2:])[:, None]
            move = delta[image] if present is None else delta[image] * present
            z = x[image] + move
            if term.noise is not None:
                z = z + term.noise[image, probe]
            z.requires_grad_()
            seen = z
            if term.transform is not None and term.draws is not None:
                seen = term.transform(z, term.draws[image, probe])
            g = _backward(z, model(seen), y[image], rival[image], [term], image)
            total.index_add_(0, image, g if present is None else g * present)
    return total


def _backward(
    z: Tensor, logits: Tensor, y: Tensor, rival: Tensor, terms: Sequence[Term], image: Tensor
) -> Tensor:
    values = [term.weight[image] * term.value(logits, y, rival) for term in terms]
    (g,) = torch.autograd.grad(torch.stack(values).sum(), z)
    return g
