"""Jobs that look at a source and its images, whatever the attack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from irattack.errors import InputError
from irattack.hashing import key
from irattack.pipeline.artifact import Arrays, Card, Shapes
from irattack.pipeline.cell import VERSION as CELL_VERSION
from irattack.pipeline.cell import Shard, file_name
from irattack.pipeline.measures import VERSION
from irattack.pipeline.sharded import ByShards
from irattack.pipeline.values import PRECISIONS

if TYPE_CHECKING:
    from irattack.pipeline.worker import Worker


@dataclass(frozen=True)
class OfSource(ByShards):
    """What is measured on a source and its images, whatever the attack."""

    folder: ClassVar[str] = "interactions"
    of_attack: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """The source's name."""
        return self.cell.cfg.source

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside source and images."""
        raise NotImplementedError

    def whole(self, name: str) -> tuple[Path, dict[str, Any], type[Card]]:
        """A folder a source and settings."""
        cell = self.cell
        facts = {
            "version": [VERSION, CELL_VERSION],
            "precision": PRECISIONS[cell.cfg.precision],
            "choice": cell.images_facts,
            "source": cell.source_identity,
            "settings": self.settings | {"seed": cell.cfg.seed},
            "batches": [cell.cfg.block, cell.cfg.micro_batch],  # change last digits
        }
        label = f"{self.kind}-{file_name(cell.cfg.source)}-{key(facts)}"
        return cell.root / self.folder / label / f"{self.kind}.safetensors", facts, Card

    def values(self) -> Arrays:
        """The arrays, from the disk."""
        return self.artifact(self.kind).arrays()


@dataclass(frozen=True)
class Accuracy(OfSource):
    """How the source classifies the clean images, an array (N,) each.

    `rank`: other classes that are at least as likely as the true one; 0 is right, below 5 among
    the first five. `shift`: the index of the likeliest class minus that of the true one.
    `probability`: of the true class. `largest`: of the likeliest.
    """

    kind: ClassVar[str] = "accuracy"
    folder: ClassVar[str] = "accuracy"

    @property
    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def shapes(self, name: str, images: int) -> Shapes:
        """One number an image."""
        return dict.fromkeys(("rank", "shift", "probability", "largest"), (images,))

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """Classifies a shard."""
        import torch

        from irattack.models.network import check_finite

        x, y = worker.labelled(shard.images)
        with torch.no_grad():
            logits = torch.cat([worker.source(b) for b in x.split(worker.micro_batch)])
        check_finite(self.cell.cfg.source, logits.T, shard.images.ids)
        probability, true = logits.softmax(dim=1), y[:, None]
        found = {
            "rank": (logits >= logits.gather(1, true)).sum(dim=1) - 1,
            "shift": logits.argmax(dim=1) - y,
            "probability": probability.gather(1, true)[:, 0],
            "largest": probability.amax(dim=1),
        }
        step()
        arrays = {name: values.float().cpu().numpy() for name, values in found.items()}
        return {self.kind: arrays}, worker.made()


@dataclass(frozen=True)
class Hessians(OfSource):
    """H_ab (N, M, n) and the ratios (N, M) of Figure 4, in float64 (Appendix E.2).

    Args:
        columns: M dimensions b of each, at random.
        beta: β of the Softplus that replaces ReLU.
    """

    columns: int = 32
    beta: float = 10

    def __post_init__(self) -> None:
        most = 3 * self.cell.cfg.benchmark.size**2
        if not 1 <= self.columns <= most or not self.beta > 0:
            raise InputError(
                f"columns={self.columns}, beta={self.beta}: expected 1 to {most} input dimensions "
                "and a number above 0."
            )

    kind: ClassVar[str] = "hessians"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside source and images."""
        return {"columns": self.columns, "beta": self.beta}

    def shapes(self, name: str, images: int) -> Shapes:
        """n is the input dimension."""
        each = (images, self.columns)
        return {"element": (*each, 3 * self.cell.cfg.benchmark.size**2), "ratio": each}

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """Columns of the Hessian of the cross-entropy of a shard's clean images."""
        from irattack.attacks.losses import cross_entropy
        from irattack.interactions.hessian import measure, smoothed
        from irattack.pipeline.compute import build

        x, y = worker.labelled(shard.images)
        x = x.double()
        model = worker.sharpened(build(self.cell, self.cell.cfg.source))
        model = smoothed(model, self.beta).double()
        draw = worker.draws.uniform(shard.images.ids, 0, "columns", (x[0].numel(),))
        columns = draw.argsort(dim=1)[:, : self.columns].tolist()
        elements, ratio = measure(model, cross_entropy, x, y, columns)
        step()
        arrays = {"element": elements.float().cpu().numpy(), "ratio": ratio.cpu().numpy()}
        return {self.kind: arrays}, worker.made()


@dataclass(frozen=True)
class Proofs(OfSource):
    """Contributions (N, L, L) and lengths (N,) of the attacks of the proofs.

    `own multi` is of the perturbation as in the proof, `equal multi` of the same scaled to the
    length of the multi-step attack's, `length multi` its ‖δ‖₂; so for every attack.

    Args:
        loss: ce or margin.
        step_size: α.
        steps: m.
        copies, sigma: M and σ of VR's noise.
    """

    loss: str
    step_size: float
    steps: int
    copies: int
    sigma: float
    kind: ClassVar[str] = "proofs"

    @property
    def passes(self) -> float:
        """Five attacks at two lengths, 2 L² + 2 each."""
        return self.images * 10 * (2 * self.cell.cfg.grid**2 + 2)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside source and images."""
        names = ("loss", "step_size", "steps", "copies", "sigma")
        return {name: getattr(self, name) for name in names} | {"grid": self.cell.cfg.grid}

    def shapes(self, name: str, images: int) -> Shapes:
        """Of five attacks."""
        grid = (images, self.cell.cfg.grid, self.cell.cfg.grid)
        return {
            f"{what} {attack}": (images,) if what == "length" else grid
            for what in ("length", "own", "equal")
            for attack in ("multi", "single", "vr", "mi", "noise")
        }

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The attacks of the proofs on a shard, and the contributions inside each."""
        import torch

        from irattack.attacks.norms import l2_length, of_length
        from irattack.interactions.cells import contributions
        from irattack.interactions.proofs import perturb
        from irattack.models.network import check_finite

        cfg, model = self.cell.cfg, worker.source
        x, y = worker.labelled(shard.images)
        found = perturb(self.settings, model, x, y, shard.images.ids, cfg.seed)
        length, arrays = l2_length(found["multi"]), {}
        lengths = torch.stack([l2_length(delta).flatten() for delta in found.values()])
        check_finite(cfg.source, lengths, shard.images.ids)
        for attack, delta in found.items():
            arrays[f"length {attack}"] = l2_length(delta).flatten().cpu().numpy()
            for scale, scaled in (("own", delta), ("equal", of_length(delta, length))):
                values = contributions(model, x, scaled, y, cfg.grid, worker.micro_batch)
                arrays[f"{scale} {attack}"] = values.numpy()
        step()
        return {self.kind: arrays}, worker.made()
