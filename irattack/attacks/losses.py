"""What is maximised: functions of logits. All take logits (B, C), labels (B,) and rivals (B,).

A targeted attack minimises them, with the wanted classes as labels: the negated margin,
h_t − max_{y' ≠ t} h_y', is above 0 where the wanted class t is given.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from irattack.errors import one_of


def strongest_rival(logits: Tensor, y: Tensor) -> Tensor:
    """argmax over y' ≠ y of h_{y'}, (B, C) -> (B,)."""
    return logits.scatter(1, y[:, None], -torch.inf).argmax(dim=1)


def margin(logits: Tensor, y: Tensor, rival: Tensor | None = None) -> Tensor:
    """max_{y' ≠ y} h_{y'} − h_y (Section 3.1 and Appendix E.1), positive when misclassified.

    With `rival` (B,), y' is that class instead of the strongest one.
    """
    rival = strongest_rival(logits, y) if rival is None else rival
    return (logits.gather(1, rival[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def cross_entropy(logits: Tensor, y: Tensor, rival: Tensor | None = None) -> Tensor:
    """ℓ(h, y) = −log softmax_y(h), the classification loss of the paper."""
    return F.cross_entropy(logits, y, reduction="none")


def margin_loss(logits: Tensor, y: Tensor, rival: Tensor | None = None) -> Tensor:
    """The margin whose y' is always its own strongest class, whatever rival is given."""
    return margin(logits, y)


def logit_loss(logits: Tensor, y: Tensor, rival: Tensor | None = None) -> Tensor:
    """−h_y; for a wanted class y it is minimised (Zhao et al., 2021)."""
    return -logits.gather(1, y[:, None]).squeeze(1)


LOSSES = {  # margin: Appendix E.1
    "ce": cross_entropy,
    "logit": logit_loss,
    "margin": margin_loss,
}
UTILITIES = {"set": margin_loss, "step": margin}  # v(S), with y' of each set or of each step


def by_name(name: str) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The classification loss that `loss=` names: ce, logit or margin."""
    one_of("loss", name, LOSSES)
    return LOSSES[name]
