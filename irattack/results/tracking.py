"""`track=mlflow` or `track=wandb`: each measured cell as a run of MLflow or of Weights & Biases.

Where runs go, those say themselves (MLFLOW_TRACKING_URI, WANDB_PROJECT …). Neither is imported
unless it is asked for.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from irattack.errors import InputError
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import jobs_of
from irattack.pipeline.results import Results, cards

logger = logging.getLogger(__name__)

FACTS = ("commit", "device", "torch")  # of what a cell was made with
UNSAFE = re.compile(r"[^\w.-]")  # in the name of a metric
METRICS = (
    *("success_rate_percent", "ci_low", "ci_high", "crossfit_percent", "last_step_percent"),
    *("clean_error_percent", "mean_l2"),
)


@dataclass(frozen=True)
class Run:
    """What a tracker is told of a cell.

    Attributes:
        name: the cell's label.
        settings: by their dotted names.
        metrics: `METRICS` of each target, as `vgg16/ci_low`, in the units of its result.
        tags: the cell's key, what made it, and what attacked, which may have been something else.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    tags: dict[str, str]


def check(track: str | None) -> None:
    """Raises InputError if the package of a tracker is not installed."""
    if track is None:
        return
    found = find_spec(track)
    if found is None or found.origin is None:  # a folder of that name, such as W&B's own, has none
        raise InputError(
            f"track={track}: the package {track} is not installed; `pip install {track}` where "
            "irattack is installed, or leave track out."
        )


def log(cell: Cell) -> None:
    """Logs a cell whose jobs are done; a tracker that fails costs a warning and no result."""
    track = cell.cfg.track
    if track is None:
        return
    try:
        TRACKERS[track](run_of(cell))
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        logger.warning(
            "track=%s: %s was not logged (%s); its results are on the disk.", track, cell.title, why
        )


def run_of(cell: Cell) -> Run:
    """What a tracker is told of a cell whose jobs are done."""
    jobs, tags = jobs_of(cell), {"key": cell.key}
    for artifact in (job.artifact(name) for job in jobs for name in job.names):
        if card := artifact.card():
            made = {fact: {getattr(run, fact) for run in card.runs} for fact in FACTS}
            tags |= {fact: " and ".join(sorted(found)) for fact, found in made.items()}
    measured = cards(cell) if any(isinstance(job, Results) for job in jobs) else []
    attacked = [run for card in measured for run in card.attacked_with]
    if attacked:
        runs = [f"{run.device}, torch {run.torch}, commit {run.commit}" for run in attacked]
        tags["attacked_with"] = "; ".join(dict.fromkeys(runs))
    metrics = {
        f"{UNSAFE.sub('_', card.target_name)}/{metric}": float(getattr(card, metric))
        for card in measured
        for metric in METRICS
    }
    return Run(cell.label, dict(flat(cell.cfg.plain())), metrics, tags)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_mlflow(run: Run) -> None:
    """Logs a run to MLflow."""
    mlflow = import_module("mlflow")
    with mlflow.start_run(run_name=run.name, tags=run.tags):
        mlflow.log_params(run.settings)
        mlflow.log_metrics(run.metrics)


def to_wandb(run: Run) -> None:
    """Logs a run to Weights & Biases."""
    wandb = import_module("wandb")
    quiet = wandb.Settings(silent=True, console="off")
    config = {"settings": run.settings, "made_with": run.tags}
    with wandb.init(name=run.name, config=config, settings=quiet) as open_run:
        open_run.log(run.metrics)


TRACKERS: dict[str, Callable[[Run], None]] = {"mlflow": to_mlflow, "wandb": to_wandb}
