"""The attack loop, written once. An attack is a value that fills its slots.

For step t and each image, with the paper's symbols:

    J(δ) = Σ_ξ ℓ(h(T(x + δ + ξ)), y) / M
           − λ (1/K) Σ_k [ v(Λ) − v(Λ∖S_k) − v(S_k) + v(∅) ]                      (Eqs. 5, 42)
    g = ∇_δ [ J − c ‖δ‖_p^p ]
                        (SGM: the backward pass through each residual branch is scaled by γ;
                         LinBP: that through later ReLUs is linear;
                         NI, RAP: ∇J at another point; EMI, VMI, PGN, GRA: of several points;
                         c = 0 but in the relaxed attack, Eq. 8)
    g ← W ∗ g                                                                     (TI)
    m ← μ m + g / ‖g‖₁                                                            (MI)
    δ ← Π_ε( δ + α · direction(m) ),  x + δ ∈ [0, 1]                       (Eqs. 9, 10, 11)
                        (PI, GRA: another step than α · direction(m))

Targeted, y is the wanted class and J is negated: −ℓ is raised, and the interaction of −v, which is
h_y − max_{y' ≠ y} h_y', is lowered.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count, islice

import torch
from torch import Tensor, nn

from irattack.attacks.linear import LinearBackward
from irattack.attacks.losses import cross_entropy
from irattack.attacks.moves import PatchWise, SignDecay
from irattack.attacks.norms import Norm
from irattack.attacks.objective import Term, Transform, Value, gradient
from irattack.attacks.pieces import (
    Copies,
    GaussianKernel,
    GaussianNoise,
    Interaction,
    LengthPenalty,
    MaskedLoss,
    Momentum,
    StopAtLength,
)
from irattack.attacks.points import (
    At,
    EnhancedMomentum,
    GradientNorm,
    GradientRelevance,
    Lookahead,
    Past,
    ReversePerturbation,
    VarianceTuning,
)
from irattack.attacks.randomness import Draws, to_device
from irattack.attacks.skip import SkipGradient
from irattack.errors import InputError, one_of, ranged

Estimate = EnhancedMomentum | VarianceTuning | GradientNorm | GradientRelevance
STARTS = ("auto", "random", "zero", "noise")
GOALS = ("untargeted", "targeted")


@dataclass(frozen=True)
class Attack:
    """What fills the slots of the loop.

    Attributes:
        norm: the ball and the step in it.
        steps: T.
        loss: the classification loss ℓ.
        interaction: the interaction term, or None.
        classify: whether J has the classification loss at all.
        masked: the loss under random masks, or None.
        samples: the noise ξ, or copies without noise for the transform, or None.
        transform: the input transform T, or None.
        backward: a context in which gradients of the model are taken, or None.
        look: to the point at which the gradient is taken, or None for δ itself.
        estimate: the gradient from those at several points, or None for that at the point.
        smooth: W, or None.
        accumulate: from the last m and the gradient to the next m.
        move: from m to what is added to δ, or None for α · direction(m).
        penalty: c ‖δ‖_p^p, or None.
        stop: an image that it says has arrived keeps its δ, or None.
        start: δ_0 is `random` (uniform in the ball), `noise` (a Gaussian direction, on the surface
            of the ball), `zero`, or `auto`: zero with an interaction term and random without, as
            in the authors' code.
        record: steps are yielded `after` each update (x^1 … x^T), `before` it (start … T − 1,
            the authors' code), or only the `last` one is (x^T).
        every: only every so many steps is yielded, the last one always among them.
        restarts: so many runs, each with random numbers of its own; of each image the run is
            yielded whose last step has the highest loss ℓ on the model that is attacked; targeted,
            the lowest.
        goal: `untargeted`, or `targeted`: the labels are the classes that images shall be given.
        clip: whether x + δ is kept in [0, 1]; the proofs of the propositions do without, and what
            they give cannot be stored as images.
    """

    norm: Norm
    steps: int
    loss: Value = cross_entropy
    interaction: Interaction | None = None
    classify: bool = True
    masked: MaskedLoss | None = None
    samples: GaussianNoise | Copies | None = None
    transform: Transform | None = None
    backward: SkipGradient | LinearBackward | None = None
    look: Lookahead | ReversePerturbation | None = None
    estimate: Estimate | None = None
    smooth: GaussianKernel | None = None
    accumulate: Momentum = field(default_factory=Momentum)
    move: PatchWise | SignDecay | None = None
    penalty: LengthPenalty | None = None
    stop: StopAtLength | None = None
    start: str = "auto"
    record: str = "after"
    every: int = 1
    restarts: int = 1
    clip: bool = True
    goal: str = "untargeted"

    def __post_init__(self) -> None:
        one_of("start", self.start, STARTS)
        one_of("goal", self.goal, GOALS)
        one_of("record", self.record, ("after", "before", "last"))
        for name in ("steps", "every", "restarts"):
            ranged(name, getattr(self, name), 1, whole=True)
        if isinstance(self.samples, Copies) and self.transform is None:
            raise InputError(
                "attack: copies without noise are all alike without an input transform; add one "
                "(+piece=[di]), or noise (+piece=[vr])."
            )
        if isinstance(self.look, Lookahead) and self.accumulate.rule != "original":
            raise InputError(
                f"attack: NI looks ahead along the momentum of accumulate.rule=original, and this "
                f"is rule={self.accumulate.rule}; use that rule, or leave NI out."
            )
        if isinstance(self.look, Lookahead) and self.look.mu not in (0, self.accumulate.mu):
            raise InputError(
                f"attack: NI looks ahead by look.mu={self.look.mu:g} of a momentum of "
                f"accumulate.mu={self.accumulate.mu:g}; set both alike (+piece=[mi] has 1), or "
                "leave NI out."
            )
        if self.interaction is not None and self.interaction.balance and not self.classify:
            raise InputError(
                "interaction.balance=true: there is no classification loss to balance with; set "
                "classify=true, or leave balance out."
            )

    @property
    def recorded(self) -> range:
        """The t of each δ_t that is yielded."""
        last, every = self.steps, self.every
        first = (last - 1) % every + 1
        return {
            "after": range(first, last + 1, every),
            "before": range(first - 1, last, every),
            "last": range(last, last + 1),
        }[self.record]

    def first(self, x: Tensor, ids: Sequence[str], draws: Draws) -> Tensor:
        """δ_0, (B, C, H, W)."""
        interacts = self.interaction is not None and self.interaction.lam != 0
        if self.start == "zero" or (self.start == "auto" and interacts):
            return torch.zeros_like(x)
        if self.start == "noise":  # from far outside, Π_ε puts it on the surface of the ball
            noise = draws.normal(ids, 0, "start", x.shape[1:]).to(x)
            return self.norm.project(1e6 * self.norm.step(noise))
        return self.norm.start(x, draws.uniform(ids, 0, "start", x.shape[1:]).to(x))

    def terms(self, delta: Tensor, ids: Sequence[str], step: int, draws: Draws) -> list[Term]:
        """J(δ) as weighted probes."""
        terms = [self.classification(delta, ids, step, draws)] if self.classify else []
        if self.masked is not None:
            terms += self.masked.terms(self.loss, delta, ids, step, draws)
        if self.interaction is not None:
            terms += self.interaction.terms(delta, ids, step, draws)
        return terms

    def classification(self, delta: Tensor, ids: Sequence[str], step: int, draws: Draws) -> Term:
        """Σ_i ℓ(h(T_i(x + δ + ξ_i)), y) / M; each of the M probes has a draw of T of its own.

        A transform that is itself a mean over copies has as many draws for each of the M.
        """
        weight, copies, noise, random = delta.new_ones(len(delta)), 1, None, None
        if self.samples is not None:
            copies = self.samples.samples
            if isinstance(self.samples, GaussianNoise):
                noise = self.samples.noise(delta, ids, step, draws)
            if self.samples.reduction == "mean":
                weight = weight / copies
        if self.transform is not None:
            if hasattr(self.transform, "drawn"):
                random = self.transform.drawn(ids, step, draws, copies, delta.shape[1:])
            else:
                random = draws.uniform(ids, step, "transform", (copies, 4))
            random = to_device(random, delta.device)
            each = random.shape[1] // copies
            if each > 1:
                weight = weight / each
                noise = None if noise is None else noise.repeat_interleave(each, dim=1)
        return Term(self.loss, weight, noise=noise, transform=self.transform, draws=random)

    def estimated(
        self,
        at: At,
        delta: Tensor,
        m: Tensor,
        ids: Sequence[str],
        step: int,
        draws: Draws,
        past: Past,
    ) -> Tensor:
        """The gradient of step t, (B, C, H, W), by as many calls of `at` as the slots take.

        Args:
            at: called with a δ (B, C, H, W) and a name, the gradient of J there.
            past: what the slots remember of earlier steps, which is changed.
        """
        drawing = ids, step, draws
        point = delta if self.look is None else self.look(at, delta, m, self.norm, *drawing)
        if self.estimate is None:
            return at(point)
        return self.estimate(at, point, self.norm, past, *drawing)

    def update(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        delta: Tensor,
        m: Tensor,
        ids: Sequence[str],
        step: int,
        draws: Draws,
        micro_batch: int = 256,
        past: Past | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Step t ≥ 1 of the loop: the next δ and m from the last, all (B, C, H, W).

        An image whose gradient is not finite gets δ = NaN.

        Args:
            past: what the slots remember of earlier steps, which is changed; None for nothing.
        """
        past = {} if past is None else past
        sign = -1 if self.goal == "targeted" else 1

        def at(point: Tensor, name: str = "") -> Tensor:
            terms = self.terms(point, ids, step, draws.at(name))
            with self.backward(model) if self.backward else nullcontext():
                one_graph = self.backward is not None and self.backward.one_graph
                return sign * gradient(model, x, point, y, terms, micro_batch, one_graph)

        g = self.estimated(at, delta, m, ids, step, draws, past)
        if self.penalty is not None:
            g = g - self.penalty.gradient(delta)
        if self.smooth is not None:
            g = self.smooth(g)
        m = self.accumulate(m, g, step)
        added = self.norm.step(m) if self.move is None else self.move(m, self.norm, past)
        moved = self.norm.project(delta + added)
        moved = clip(x, moved) if self.clip else moved
        # sign(NaN) = 0 and g / ∞ = 0 would pass for an attack that stands still; where, unlike an
        # `if`, does not wait for the device
        finite = g.abs().sum(dim=(1, 2, 3), keepdim=True).isfinite()
        moved = torch.where(finite, moved, torch.nan)
        return moved if self.stop is None else self.stop(delta, moved), m


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
    """The perturbation of each recorded step, (B, C, H, W) with ‖δ‖ ≤ ε and x + δ in [0, 1].

    An image whose gradient is not finite at some step has δ = NaN from then on.

    Args:
        model: from images in [0, 1] to logits, frozen and in eval mode.
        x: clean images (B, C, H, W) in [0, 1].
        y: their labels (B,), or the wanted classes of a targeted attack.
        ids: their names, on which the random numbers depend.
        micro_batch: probes evaluated at once.
        start: δ_0, instead of the attack's own.
    """

    def trajectory(draws: Draws) -> Iterator[Tensor]:  # δ_0, δ_1, …
        delta = attack.first(x, ids, draws) if start is None else start
        delta = clip(x, delta) if attack.clip else delta
        m, past = torch.zeros_like(x), Past()
        for step in count(1):
            yield delta
            delta, m = attack.update(model, x, y, delta, m, ids, step, draws, micro_batch, past)

    kept = attack.recorded
    runs = (
        islice(trajectory(draws.restart(number)), kept.start, kept.stop, kept.step)
        for number in range(attack.restarts)
    )
    return next(runs) if attack.restarts == 1 else _highest(attack, model, x, y, runs, micro_batch)


@torch.no_grad()
def _highest(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    runs: Iterator[Iterator[Tensor]],
    micro_batch: int,
) -> Iterator[Tensor]:
    """Of each image, the run whose last recorded δ has the highest loss; NaN counts as highest.

    Of a targeted attack, the lowest.
    """
    chosen, highest = list[Tensor](), torch.full(y.shape, -torch.inf, device=x.device)
    for run in runs:
        with torch.enable_grad():
            found = list(run)
        parts = zip(*(each.split(micro_batch) for each in (x + found[-1], y)), strict=True)
        loss = torch.cat([attack.loss(model(z), label, label) for z, label in parts])
        loss = -loss if attack.goal == "targeted" else loss
        better = ((loss > highest) | loss.isnan()).view(-1, 1, 1, 1)
        highest = torch.where(better.flatten(), loss, highest)
        pairs = zip(found, chosen or found, strict=True)
        chosen = [torch.where(better, new, old) for new, old in pairs]
    yield from chosen


def clip(x: Tensor, delta: Tensor) -> Tensor:
    """The δ nearest to the given one with x + δ in [0, 1]."""
    return (x + delta).clamp(0, 1) - x
