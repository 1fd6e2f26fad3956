"""`python -m irattack submit table1 [name=value …]`: leaves what a table lacks to Slurm.

The command returns at once. The cells go into an array, as those of `reproduce` do, and one job
that depends on them makes the table. What the queue is going to make is not submitted again.
"""

import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf
from submitit.slurm.slurm import SlurmJob

from irattack.commands import queue, reproduce
from irattack.commands.cli import one_sentence
from irattack.commands.composing import composed, hydra
from irattack.commands.launch import EVERY_S, as_sweep, failures, of_slurm, ready_for_slurm
from irattack.commands.plans import Plan, once
from irattack.errors import InputError
from irattack.pipeline import files
from irattack.pipeline.cell import Cell

Queued = dict[queue.Promise, queue.Task]
Chosen = list[tuple[Cell, dict[str, Any]]]


@contextlib.contextmanager
def without_waiting() -> Iterator[list[SlurmJob]]:
    """Lets Hydra's launcher return as soon as it has submitted its jobs, which are listed here."""
    jobs: list[SlurmJob] = []
    real = SlurmJob.results

    def results(job: SlurmJob) -> list[JobReturn]:
        jobs.append(job)
        return [JobReturn(status=JobStatus.COMPLETED)]

    SlurmJob.results = results
    try:
        yield jobs
    finally:
        SlurmJob.results = real


class Collector(SlurmLauncher):
    """Hydra's launcher of Slurm; its job is the command `aggregate` with the words it is given."""

    def __call__(self, words: list[str], *_: Any) -> None:
        """Makes the table on the node."""
        sys.argv = ["aggregate", *words]
        reproduce.aggregate()


class Submission:
    """Cells that Slurm runs, with the launcher's settings.

    Attributes:
        root: the folder of the benchmark's output.
        new: the jobs that were submitted.
        earlier: those in the queue already that make what is wanted here too.
    """

    def __init__(self, root: Path, overrides: list[str]):
        self.root, self.overrides = root, overrides
        settings = [text for text in overrides if not text.startswith("-")]
        with hydra():
            self.cfg = composed(settings, with_hydra=True)
        self.new: list[SlurmJob] = []
        self.earlier: list[queue.Task] = []

    @property
    def of_slurm(self) -> bool:
        """Whether the launcher is one of Slurm."""
        return of_slurm(self.cfg)

    @cached_property
    def folder(self) -> Path:
        """For what Slurm and submitit write of this submission; a new one."""
        given = Path(str(self.cfg.hydra.launcher.submitit_folder)).resolve()
        names = (given.with_name(f"{given.name}-{i}") for i in count(2))
        return next(path for path in chain([given], names) if not path.exists())

    @contextlib.contextmanager
    def alone(self) -> Iterator[Queued]:
        """What is in the queue; no other submission of this output folder begins meanwhile.

        But where its file system has no locks.
        """
        ready_for_slurm(self.cfg.hydra.callbacks.prepare.get("every_s", EVERY_S))
        with files.locked(self.root / "log" / "slurm" / ".lock"):
            yield queue.queue()

    def submit(self, chosen: Chosen, queued: Queued) -> None:
        """Submits the cells of which something is neither on the disk nor in the queue."""
        from irattack.commands.run import job

        choices, promises, earlier = [], [], dict[queue.Task, None]()
        for cell, choice in once(chosen):
            wanted = queue.promised(cell)
            tasks = queue.makers(wanted, queued)
            if tasks is None:
                choices.append(choice)
                promises.append(wanted)
            else:
                earlier |= dict.fromkeys(tasks)
        self.earlier = list(earlier)
        if not choices:
            return
        queue.note(self.folder, promises)
        quoted = str(self.folder).replace("'", r"\'")
        place = f"hydra.launcher.submitit_folder='{quoted}'"
        sys.argv = ["irattack", "-m", as_sweep(choices), *self.overrides, place]
        with failures(several=True), without_waiting() as jobs:
            job()
        self.new = jobs

    def collect(self, called: str, words: list[str], queued: Queued) -> str:
        """Submits a job that makes the table when the others have ended, if there is none.

        Returns:
            Its number, and where its log will be.
        """
        promise = (str((self.root / called).resolve()), "table")
        if not self.new and promise in queued:
            number, folder = queued[promise].number, queued[promise].folder
            return f"{number} (log: {folder}/{number}_0_log.out)"
        folder = self.folder / "table"
        queue.note(folder, [[promise]])
        params: Any = OmegaConf.to_container(self.cfg.hydra.launcher, resolve=True)
        del params["_target_"]
        arrays = [job.job_id.split("_")[0] for job in self.new]
        arrays += [task.array for task in self.earlier]
        after = f"afterany:{':'.join(dict.fromkeys(arrays))}" if arrays else None
        params |= {"submitit_folder": str(folder), "dependency": after}
        launcher = Collector(**params)
        launcher.config = self.cfg
        with failures(several=True), without_waiting() as jobs:
            launcher.launch([words], 0)
        return f"{jobs[0].job_id} (log: {jobs[0].paths.stdout})"

    def __str__(self) -> str:
        """Which jobs of Slurm do the work."""
        arrays = Counter(job.job_id.split("_")[0] for job in self.new)
        found = [f"{counted(n)} submitted as Slurm's job {array}" for array, n in arrays.items()]
        arrays = Counter(task.array for task in self.earlier)
        found += [f"{counted(n)} in job {array} already" for array, n in arrays.items()]
        return ", ".join(found)

    def wait(self) -> None:
        """Waits until all these jobs have ended.

        Raises:
            InputError: one of them failed.
        """
        others = [SlurmJob(task.folder, task.number, [0]) for task in self.earlier]
        with failures(several=True):
            for job in (jobs := [*self.new, *others]):
                job.wait()
            for job in jobs:
                job.results()[0].return_value  # noqa: B018 (raises what the job raised)


def counted(cells: int) -> str:
    """So many cells, in words."""
    return "1 cell" if cells == 1 else f"{cells} cells"


def submit(table: Plan, launcher: list[str], words: list[str]) -> str:
    """Submits what a table lacks, and a job that makes it; returns what to print.

    Args:
        words: what the command `aggregate` needs to make the same table.
    """
    if not any(text.startswith("hydra/launcher=") for text in launcher):
        launcher = [*launcher, "hydra/launcher=slurm"]
    reproduce.writer(table)  # may refuse the cells, which may take hours
    name, later = words[0], f"python -m irattack aggregate {shlex.join(words)}"
    if not any(job.missing() for job in table.jobs):
        return f"{name}: nothing is missing; `{later}` makes it."
    submission = Submission(table.cells[0].root, [*table.overrides, *launcher])
    if not submission.of_slurm:
        raise InputError(
            f"hydra/launcher={submission.cfg.hydra.runtime.choices['hydra/launcher']}: has no "
            "queue to leave jobs in; use hydra/launcher=slurm, or `reproduce` to run them now."
        )
    with submission.alone() as queued:
        submission.submit(table.chosen, queued)
        collector = submission.collect(table.called, words, queued)
    return (
        f"{name}: {submission}; job {collector} makes the table when they have ended.\n"
        f"What is done by then, `python -m irattack status` says; to make the table again: {later}"
    )


def main() -> None:
    """The entry point."""
    with one_sentence():
        print(submit(*reproduce.asked()))
