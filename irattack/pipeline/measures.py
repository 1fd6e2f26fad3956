"""Jobs that look inside perturbations: interactions, Hessians, and the attacks of the proofs.

Each is measured on the source, at the level of grid cells where it is one of interactions. Of a
targeted attack they are those of v(S) = h_t − max_{y' ≠ t} h_y' for the wanted class t.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from irattack.errors import InputError, ranged
from irattack.hashing import key
from irattack.pipeline.artifact import Arrays, Card, Shapes
from irattack.pipeline.cell import Shard
from irattack.pipeline.job import Job
from irattack.pipeline.sharded import ByShards
from irattack.pipeline.steps import LastStep

if TYPE_CHECKING:
    from irattack.pipeline.worker import Worker

VERSION = 2  # raise it when the same configuration starts to give other values


@dataclass(frozen=True)
class OfAttack(ByShards):
    """What is measured on the last step of an attack."""

    @property
    def needs(self) -> Sequence[Job]:
        """The images and the last step of the attack."""
        return [*super().needs, LastStep(self.cell)]

    @property
    def folders(self) -> list[Path]:
        """Of the measurement and of the step cache."""
        return [*super().folders, self.cell.steps_folder]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside the attack."""
        raise NotImplementedError

    def whole(self, name: str) -> tuple[Path, dict[str, Any], type[Card]]:
        """An array file of the cell."""
        cell, settings = self.cell, self.settings | {"grid": self.cell.cfg.grid}
        facts = {"version": VERSION, "key": cell.key, "settings": settings}
        file = f"{self.kind}-{key(facts)}.safetensors"
        return cell.root / "interactions" / cell.label / file, facts, Card

    def values(self) -> Arrays:
        """The arrays, from the disk."""
        return self.artifact(self.kind).arrays()


@dataclass(frozen=True)
class Contributions(OfAttack):
    """Σ_j I_ij of every cell i of the grid at the last step (Eq. 28), (N, L, L).

    Args:
        length: scale each δ to this ‖δ‖₂ first, in units of [0, 1] images; None for as it is.
            Interactions grow with the perturbation, so that attacks compare at equal length only.
    """

    length: float | None = None
    kind: ClassVar[str] = "interactions"

    def __post_init__(self) -> None:
        if self.length is not None:
            ranged("length", self.length, 0, above=True)

    @property
    def passes(self) -> float:
        """2 L² + 2 an image."""
        return self.images * (2 * self.cell.cfg.grid**2 + 2)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside the attack."""
        return {"length": self.length}

    def shapes(self, name: str, images: int) -> Shapes:
        """(N, L, L)."""
        return {"contributions": (images, self.cell.cfg.grid, self.cell.cfg.grid)}

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The contributions of the cells of a shard's perturbations."""
        from irattack.attacks.norms import of_length
        from irattack.interactions.cells import contributions

        x, y = worker.tensors(shard.images)
        delta = worker.last_delta(shard)
        delta = delta if self.length is None else of_length(delta, self.length)
        grid = self.cell.cfg.grid
        found = contributions(worker.source, x, delta, y, grid, worker.micro_batch)
        step()
        return {self.kind: {"contributions": worker.of_goal(found).numpy()}}, worker.made()


@dataclass(frozen=True)
class Strength(OfAttack):
    """How strong λ = 1 is: the gradients of ℓ and of the interaction loss I at the last step.

    Arrays (N,): `loss` and `interaction`, ‖∇ℓ‖₂ and ‖∇I‖₂ with the settings of the IR attack, and
    `cosine`, that of ∇ℓ and −∇I, which IR adds; NaN where one of them is 0.
    """

    kind: ClassVar[str] = "strength"

    @property
    def passes(self) -> float:
        """2 K + 2 forward and backward an image."""
        return self.images * 3 * (2 * self.cell.cfg.samples + 2)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside the attack."""
        return {"term": self.term, "loss": self.cell.cfg.loss, "seed": self.cell.cfg.seed}

    @property
    def term(self) -> dict[str, Any]:
        """The interaction term of Eq. 42 with λ = 1, by the names of its settings."""
        cfg = self.cell.cfg
        of_run = {name: getattr(cfg, name) for name in ("samples", "cells", "grid")}
        names = ("replacement", "border", "rival")
        return {"lam": 1.0} | of_run | {name: getattr(cfg.protocol, name) for name in names}

    def shapes(self, name: str, images: int) -> Shapes:
        """One number an image."""
        return dict.fromkeys(("loss", "interaction", "cosine"), (images,))

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The lengths and cosines of a shard."""
        import torch

        from irattack.attacks.losses import by_name
        from irattack.attacks.norms import l2_length
        from irattack.attacks.objective import Term, gradient
        from irattack.attacks.pieces import Interaction

        cfg, ids = self.cell.cfg, shard.images.ids
        x, y = worker.tensors(shard.images)
        delta = worker.last_delta(shard)
        alone = [Term(by_name(cfg.loss), torch.ones_like(delta[:, 0, 0, 0]))]
        # after the last step, so that the sets are no step's
        term = Interaction(**self.term).terms(delta, ids, worker.attack.steps + 1, worker.draws)
        loss, interaction = (
            gradient(worker.source, x, delta, y, part, worker.micro_batch) for part in (alone, term)
        )
        lengths = l2_length(loss).flatten(), l2_length(interaction).flatten()
        cosine = (loss * interaction).sum(dim=(1, 2, 3)) / (lengths[0] * lengths[1])
        found = {"loss": lengths[0], "interaction": lengths[1], "cosine": cosine}
        step()
        arrays = {name: values.double().cpu().numpy() for name, values in found.items()}
        return {self.kind: arrays}, worker.made()


@dataclass(frozen=True)
class NeighbourMaps(OfAttack):
    """E_{j ∈ N_i}[I_ij] of every cell i at the last step (Figures 2, 8), (N, L, L).

    With them goes δ in 8-bit levels, (N, 3, H, W), so that the figure does not need the step cache.

    Args:
        contexts: K, sampled contexts S for each pair of neighbours.
        drawn: how many images.
    """

    contexts: int = 64
    drawn: int = 6

    def __post_init__(self) -> None:
        if self.contexts < 2 or self.drawn < 1:
            raise InputError(
                f"contexts={self.contexts}, drawn={self.drawn}: expected at least two contexts, "
                "for a standard error, and one image."
            )

    kind: ClassVar[str] = "neighbours"

    @property
    def images(self) -> int:
        """The first few of the cell's."""
        return min(self.drawn, self.cell.cfg.images)

    @property
    def passes(self) -> float:
        """8 L (L − 1) K an image."""
        grid = self.cell.cfg.grid
        return self.images * 8 * grid * (grid - 1) * self.contexts

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside the attack."""
        return {"contexts": self.contexts, "drawn": self.images}

    def shapes(self, name: str, images: int) -> Shapes:
        """Values, their standard errors, and δ."""
        size, grid = self.cell.cfg.benchmark.size, self.cell.cfg.grid
        each = (images, grid, grid)
        return {"value": each, "error": each, "levels": (images, 3, size, size)}

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The maps of a shard."""
        from irattack.interactions.cells import neighbour_map

        x, y = worker.tensors(shard.images)
        delta = worker.last_delta(shard)
        found = neighbour_map(
            *(worker.source, x, delta, y, shard.images.ids, worker.draws),
            *(self.contexts, self.cell.cfg.grid, worker.micro_batch),
        )
        step()
        levels = (255 * delta).round().cpu().numpy()
        value = worker.of_goal(found.value).numpy()
        arrays = {"value": value, "error": found.error.numpy(), "levels": levels}
        return {self.kind: arrays}, worker.made()
