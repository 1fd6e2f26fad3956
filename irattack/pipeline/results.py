"""A cell's results: images, steps, margins on the targets, the step by leave-one-out."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from irattack.hashing import key
from irattack.pipeline import statistics
from irattack.pipeline.artifact import Arrays, Card, MadeWith, Shapes
from irattack.pipeline.cell import Cell, Shard, file_name
from irattack.pipeline.job import targets_of
from irattack.pipeline.sharded import ByShards, Part, distinct
from irattack.pipeline.values import PRECISIONS

if TYPE_CHECKING:
    import pandas as pd

    from irattack.pipeline.worker import Worker

log = logging.getLogger(__name__)

WRONG = 50  # percent of clean images on which a target may be wrong without a warning
FORMAT = 5  # raise it when results hold something else


class Result(Card):
    """The card of the margins of a cell on a target.

    Attributes:
        attacked_with: what produced the perturbations; `measured_with` evaluated them.
        below_tau: of an attack with a τ, how many images never reached it.
    """

    source: str
    attack: str
    norm: str
    target_name: str
    n: int
    success_rate_percent: float
    ci_low: float
    ci_high: float
    crossfit_percent: float
    crossfit_ci_low: float
    crossfit_ci_high: float
    last_step_percent: float
    optimistic_best_step_percent: float
    clean_error_percent: float
    mean_l2: float
    source_confidence: float
    below_tau: int | None
    precision: str
    attacked_with: list[MadeWith]
    config: dict[str, Any]

    @property
    def runs(self) -> list[MadeWith]:
        """All that its numbers come from, the attack first."""
        return [*self.attacked_with, *super().runs]


COLUMNS = [
    *("source", "attack", "norm", "target", "n", "success_rate_percent", "ci_low", "ci_high"),
    *("crossfit_percent", "crossfit_ci_low", "crossfit_ci_high", "last_step_percent"),
    *("optimistic_best_step_percent", "clean_error_percent", "mean_l2", "source_confidence"),
    "below_tau",
]


@dataclass(frozen=True)
class Results(ByShards):
    """Attacks the images, evaluates every step on every target, and chooses the step.

    An artifact a target: `margins` and `lengths` (T, N), `clean` and `confidence` (N,).
    """

    kind: ClassVar[str] = "results"
    image_axis: ClassVar[int] = -1

    @property
    def names(self) -> list[str]:
        """The targets."""
        return targets_of(self.cell)

    @property
    def ticks(self) -> int:
        """The recorded steps of the attack."""
        return self.cell.recorded

    @property
    def folders(self) -> list[Path]:
        """Of the results and of the step cache."""
        return [*super().folders, self.cell.steps_folder]

    def whole(self, name: str) -> tuple[Path, dict[str, Any], type[Card]]:
        """The result on a target."""
        cell = self.cell
        target = cell.identity(name)
        file = f"{file_name(name)}-{key(target)}.safetensors"  # of other weights another
        facts = {"format": FORMAT, "key": cell.key, "target": target, "steps": cell.recorded}
        return cell.root / "results" / cell.label / file, facts, Result

    def shapes(self, name: str, images: int) -> Shapes:
        """Of the four arrays."""
        each, once = (self.cell.recorded, images), (images,)
        return {"margins": each, "lengths": each, "clean": once, "confidence": once}

    def begin(self, worker: "Worker", shards: Sequence[Shard], names: Sequence[str]) -> None:
        """Logs how accurate each target is on the images, before the first of them is attacked."""
        found = worker.retry(lambda: [worker.clean(shard.images, names) for shard in shards])
        margins = {name: np.concatenate([each[name] for each in found]) for name in names}
        wrong = {name: 100 * float((values > 0).mean()) for name, values in margins.items()}
        count = sum(len(shard.images) for shard in shards)
        told = ", ".join(f"{name} {100 - error:.1f}" for name, error in wrong.items())
        if worker.cell.targeted:
            told = ", ".join(f"{name} {error:.1f}" for name, error in wrong.items())
            log.info("Given the wanted class on the %d clean images, %%: %s.", count, told)
            return
        log.info("Accuracy on the %d clean images, %%: %s.", count, told)
        for name in [name for name in wrong if wrong[name] > WRONG]:
            network, *chain = name.split("+")
            why = "check its classes, normalisation and size"
            log.warning(
                "%s is wrong on %.0f %% of the clean images: %s (`python -m irattack accuracy`); "
                "its success rates mean nothing.",
                *(name, wrong[name], f"compare with {network} alone" if chain else why),
            )

    def measure(
        self, worker: "Worker", shard: Shard, names: Sequence[str], step: Callable[[], object]
    ) -> tuple[dict[str, Arrays], dict[str, Any]]:
        """The steps, and the margins of each on the targets."""
        frames, steps = worker.frames(shard, self.cell.kept, all_steps=True)
        margins = worker.margins(frames, shard.images, names, step)
        return margins, worker.made() | {
            "attacked_with": steps["made_with"],
            "below_tau": steps["below_tau"],
        }

    def summary(self, name: str, arrays: Arrays, parts: list[Part]) -> dict[str, Any]:
        """The result: the step chosen by leave-one-out, the rate, and what it was made with."""
        cell, margins = self.cell, arrays["margins"]
        clean_error = 100 * float((arrays["clean"] > 0).mean())
        chosen = statistics.chosen_steps(margins > 0)
        runs = [part.attacked_with.model_dump() for part in parts if part.attacked_with]
        short = [part.below_tau for part in parts if part.below_tau is not None]
        return {
            "source": cell.cfg.source,
            "attack": cell.name,
            "norm": cell.norm,
            "target_name": name,
            "n": margins.shape[1],
            **statistics.rates(margins),
            "clean_error_percent": clean_error,
            "mean_l2": float(arrays["lengths"][chosen, np.arange(len(chosen))].mean()),
            "source_confidence": float(np.median(arrays["confidence"])),
            "below_tau": sum(short) if len(short) == len(parts) else None,
            "precision": PRECISIONS[cell.cfg.precision],
            "attacked_with": distinct(runs),
            "config": cell.cfg.plain(),
        }


def cards(cell: Cell) -> list[Result]:
    """The results of a cell that is measured, one a target."""
    job = Results(cell)
    found = [job.artifact(target).card() for target in cell.targets]
    return [card for card in found if isinstance(card, Result)]


def rows(cell: Cell) -> "pd.DataFrame":
    """The results of a cell that is measured, one row a target."""
    import pandas as pd

    frame = pd.DataFrame([card.model_dump() for card in cards(cell)])
    method = f"{cell.method} targeted" if cell.targeted else cell.method
    return frame.assign(attack=method, target=frame.target_name)[COLUMNS]


def arrays(cell: Cell, target: str) -> Arrays:
    """The margins of a cell that is measured, and what goes with them."""
    return Results(cell).artifact(target).arrays()


def transfer_utility(cell: Cell, target: str) -> np.ndarray:
    """The margin of x + δ minus that of x on a target (Section 3.2), every step, (T, N)."""
    found = arrays(cell, target)
    return found["margins"] - found["clean"]
