"""The attack loop, written once. An attack is a value that fills its slots.

For step t and each image, with the paper's symbols:

    J(δ) = ℓ(h(x + δ), y) − λ (1/K) Σ_k [ v(Λ) − v(Λ∖S_k) − v(S_k) + v(∅) ]       (Eqs. 5, 42)
    g = ∇_δ J
    m ← μ m + g / ‖g‖₁
    δ ← Π_ε( δ + α · direction(m) ),  x + δ ∈ [0, 1]                             (Eqs. 9, 10, 11)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from irattack.losses import cross_entropy
from irattack.norms import Norm
from irattack.objective import Term, Value, gradient
from irattack.pieces import Interaction, Momentum
from irattack.randomness import Draws


@dataclass(frozen=True)
class Attack:
    """What fills the slots of the loop.

    Attributes:
        norm: the ball and the step in it.
        steps: T.
        loss: the classification loss ℓ.
        interaction: the interaction term, or None.
        accumulate: from the last m and the gradient to the next m.
        start: δ_0 is `random` (uniform in the ball), `zero`, or `auto`: zero with an interaction
            term and random without, as in the authors' code.
    """

    norm: Norm
    steps: int
    loss: Value = cross_entropy
    interaction: Interaction | None = None
    accumulate: Momentum = field(default_factory=Momentum)
    start: str = "auto"

    def first(self, x: Tensor, ids: Sequence[str], draws: Draws) -> Tensor:
        """δ_0, (B, C, H, W)."""
        interacts = self.interaction is not None and self.interaction.lam > 0
        if self.start == "zero" or (self.start == "auto" and interacts):
            return torch.zeros_like(x)
        return self.norm.start(x, draws.uniform(ids, 0, "start", x.shape[1:]).to(x))

    def terms(self, delta: Tensor, ids: Sequence[str], step: int, draws: Draws) -> list[Term]:
        """J(δ) as weighted probes."""
        terms = [Term(self.loss, torch.ones_like(delta[:, 0, 0, 0]))]
        if self.interaction is not None:
            terms += self.interaction.terms(delta, ids, step, draws)
        return terms


def perturbations(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ids: Sequence[str],
    draws: Draws,
    micro_batch: int = 256,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yields δ_1, …, δ_T, each (B, C, H, W) with ‖δ‖ ≤ ε and x + δ in [0, 1].

    Args:
        model: from images in [0, 1] to logits, frozen and in eval mode.
        x: clean images (B, C, H, W) in [0, 1].
        y: their labels (B,).
        ids: their names, on which the random numbers depend.
        micro_batch: probes evaluated at once.
        start: δ_0, instead of the attack's own.
    """
    delta = attack.first(x, ids, draws) if start is None else start
    delta = clip(x, delta)
    m = torch.zeros_like(x)
    for step in range(1, attack.steps + 1):
        terms = attack.terms(delta, ids, step, draws)
        g = gradient(model, x, delta, y, terms, micro_batch)
        m = attack.accumulate(m, g)
        delta = clip(x, attack.norm.project(delta + attack.norm.step(m)))
        yield delta


def clip(x: Tensor, delta: Tensor) -> Tensor:
    """The δ nearest to the given one with x + δ in [0, 1]."""
    return (x + delta).clamp(0, 1) - x
