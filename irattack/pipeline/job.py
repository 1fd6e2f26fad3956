"""Jobs: each names the artifacts it makes and what it needs first; `ensure` makes what is missing.

A job is a value: naming it, and looking for its artifacts, builds no network. What it has to import
for its work it imports when it works.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from irattack.errors import InputError
from irattack.pipeline.artifact import Artifact
from irattack.pipeline.cell import Cell

J = TypeVar("J", bound="Job")


@dataclass(frozen=True)
class Job(ABC):
    """Work on a cell that leaves artifacts.

    Attributes:
        kind: what a sentence calls it.
    """

    cell: Cell
    kind: ClassVar[str]

    @property
    def title(self) -> str:
        """What a progress bar and a log call that on which it works."""
        return self.cell.title

    @property
    def names(self) -> list[str]:
        """What tells its artifacts apart."""
        return [self.kind]

    @property
    def needs(self) -> Sequence["Job"]:
        """The jobs whose artifacts must be there before this one is made."""
        return ()

    @abstractmethod
    def artifact(self, name: str) -> Artifact:
        """The artifact of this name."""

    @abstractmethod
    def make(self, missing: list[str]) -> list[str]:
        """Makes the artifacts of these names; returns the shards left to others (`shard=i/n`)."""

    @property
    @abstractmethod
    def folders(self) -> list[Path]:
        """Where its work lies; nothing else lies there."""

    @property
    def passes(self) -> float:
        """Forward passes through the source that it takes beside what it needs."""
        return 0.0

    def missing(self) -> list[str]:
        """The names of the artifacts that are not on the disk, or cannot be used."""
        return [name for name in self.names if self.artifact(name).card() is None]


def untargeted(cell: Cell, what: str) -> None:
    """Raises InputError for a targeted attack, of which this cannot be measured."""
    if cell.targeted:
        raise InputError(f"goal=targeted: {what} are of untargeted attacks alone; leave goal out.")


def targets_of(cell: Cell) -> list[str]:
    """The networks that are asked.

    Raises:
        InputError: there is none.
    """
    if not cell.targets:
        raise InputError(
            f"targets={cell.cfg.targets}: this set holds no network but the source; name another, "
            f"or targets=[{cell.cfg.source}] for its white-box success."
        )
    return cell.targets


def jobs_of(cell: Cell) -> list[Job]:
    """What is measured of a cell: `jobs` in its configuration."""
    try:
        jobs = [instantiate(spec, _partial_=True)(cell) for spec in cell.cfg.jobs]
        if strange := [job for job in jobs if not isinstance(job, Job)]:
            raise TypeError(f"{strange[0]!r} is no job")
        return jobs
    except (InstantiationException, TypeError) as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        why = " ".join(str(error.__cause__ or error).split())[:200]
        raise InputError(
            f"jobs={cell.cfg.jobs}: cannot be made ({why}); each names a class, such as "
            "_target_: irattack.pipeline.measures.Contributions, and its parameters."
        ) from error


def job_of(cell: Cell, kind: type[J]) -> J:
    """The job of this kind that is measured of a cell.

    Raises:
        InputError: there is none.
    """
    for job in jobs_of(cell):
        if isinstance(job, kind):
            return job
    raise InputError(
        f"jobs: {kind.__module__}.{kind.__name__} is not among them, which what is made of "
        f"{cell.title} needs; add it."
    )


def ensure(job: Job) -> list[str]:
    """Does what is missing of this run's share of a job, and of what it needs.

    Returns:
        The shards that other shares (`shard=i/n`) have still to do; none if the job is done.
    """
    return do(job, job.missing())


def do(job: Job, missing: list[str]) -> list[str]:
    """`ensure`, where it is known what is missing."""
    if not missing:
        return []
    worked = False
    for need in job.needs:
        if absent := need.missing():  # asked in turn: what one makes decides what the next lacks
            do(need, absent)
            worked = True
    if worked:  # on what may be among the facts of this job
        missing = job.missing()
    return job.make(missing) if missing else []
