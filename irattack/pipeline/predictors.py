"""What may predict transfer, measured of a perturbation at one length, and the transfer there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from irattack.errors import InputError
from irattack.hashing import key
from irattack.pipeline.artifact import Arrays, Card, Shapes
from irattack.pipeline.cell import Shard
from irattack.pipeline.job import Job, untargeted
from irattack.pipeline.measures import OfAttack

if TYPE_CHECKING:
    from irattack.pipeline.worker import Worker

VERSION = 1  # raise it when the same configuration starts to give other values
OF_SOURCE = ("regions", "regions_error", "sharpness", "worst", "variation", "margin", "own_length")
OF_TARGETS = ("alignment", "target_margins")


@dataclass(frozen=True)
class Predictors(OfAttack):
    """Properties of x + δ with δ of the last step scaled to one L2 length, as `Contributions`.

    Arrays (N,): `regions` and its standard error, E[I_ij] over neighbouring cells (Eq. 3);
    `sharpness` and `worst`, the rise of −ℓ of the source around x + δ; `variation`, the total
    variation of δ at length 1; `margin` of the source; `own_length`, ‖δ‖₂ before it was scaled.
    Arrays (N, targets): `alignment`, the cosine of the gradients of the cross-entropy of source
    and target at x + δ; `target_margins`.

    Args:
        length: ‖δ‖₂, in units of [0, 1] images; x + δ is not clipped.
        pairs: K of the interaction of neighbours.
        directions: random directions and as many opposite ones for the sharpness.
        radius: how far they go, ‖·‖₂ in units of [0, 1] images.
    """

    length: float = 3
    pairs: int = 32
    directions: int = 8
    radius: float = 1
    kind: ClassVar[str] = "predictors"

    def __post_init__(self) -> None:
        if self.pairs < 2 or self.directions < 1 or min(self.length, self.radius) <= 0:
            raise InputError(
                f"pairs={self.pairs}, directions={self.directions}, length={self.length}, "
                f"radius={self.radius}: expected at least two pairs, for a standard error, one "
                "direction, and lengths above 0."
            )

    @property
    def needs(self) -> Sequence[Job]:
        """The images and the last step of an untargeted attack."""
        untargeted(self.cell, "predictors of transfer")
        return super().needs

    @property
    def passes(self) -> float:
        """Through the source, an image; those through the targets are few."""
        return self.images * (4 * self.pairs + 2 * self.directions + 3)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside the attack."""
        names = ("length", "pairs", "directions", "radius")
        return {name: getattr(self, name) for name in names} | {"seed": self.cell.cfg.seed}

    def whole(self, name: str) -> tuple[Path, dict[str, Any], type[Card]]:
        """An array file of the cell and its targets."""
        path, facts, schema = super().whole(name)
        targets = [self.cell.identity(target) for target in self.cell.targets]
        facts |= {"predictors": VERSION, "targets": targets}
        return path.with_name(f"{self.kind}-{key(facts)}.safetensors"), facts, schema

    def shapes(self, name: str, images: int) -> Shapes:
        """One number an image, or an image and target."""
        both = (images, len(self.cell.targets))
        return dict.fromkeys(OF_SOURCE, (images,)) | dict.fromkeys(OF_TARGETS, both)

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The properties of a shard's perturbations."""
        import numpy as np
        import torch

        from irattack.attacks.losses import margin
        from irattack.attacks.norms import l2_length, of_length
        from irattack.interactions import rivals
        from irattack.interactions.cells import neighbour_average
        from irattack.models.network import check_finite

        cfg, ids, size = self.cell.cfg, shard.images.ids, worker.micro_batch
        x, y = worker.tensors(shard.images)
        own = worker.last_delta(shard)
        delta = of_length(own, self.length)
        z, source = x + delta, worker.source
        regions = neighbour_average(
            *(source, x, delta, y, ids, worker.draws, self.pairs, cfg.grid, size)
        )
        shape = (self.directions, *x.shape[1:])
        directions = worker.draws.normal(ids, 0, "directions", shape).to(x)
        mean, worst = rivals.sharpness(source, z, y, directions, self.radius, size)
        with torch.no_grad():
            logits = torch.cat([source(part) for part in z.split(size)])
        gradient = rivals.loss_gradient(source, z, y, size)
        aligned = [
            rivals.alignment(
                gradient, rivals.loss_gradient(worker.model(name, "target"), z, y, size)
            )
            for name in self.cell.targets
        ]
        answers = worker.measured(z, y, self.cell.targets)
        values = [
            *(regions.value, regions.error, mean, worst, rivals.total_variation(delta)),
            *(margin(logits, y), l2_length(own).flatten()),
        ]
        found = {
            name: value.double().cpu().numpy()
            for name, value in zip(OF_SOURCE, values, strict=True)
        }
        found["alignment"] = torch.stack(aligned, dim=1).double().cpu().numpy()
        found["target_margins"] = np.stack([*answers.values()], axis=1).astype(np.float64)
        for name, array in found.items():
            check_finite(f"{cfg.source}: {name}", array.T, ids)
        step()
        return {self.kind: found}, worker.made()
