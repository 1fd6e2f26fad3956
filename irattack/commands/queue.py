"""Slurm's queue, and what its jobs are going to leave on the disk.

Each submission has a folder, and in it a list of what each of its jobs will make, written before
the jobs are submitted. Slurm knows the script of a job, which lies in the same folder. So the queue
alone tells what is still to come, whatever became of the process that submitted it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from irattack.errors import InputError
from irattack.pipeline import files
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import jobs_of

PROGRAMS = ("sbatch", "srun", "squeue")
LIST = "promises.json"
Promise = tuple[str, str]  # the path of an artifact, and the share of it (`shard=i/n`, or nothing)


@dataclass(frozen=True)
class Task:
    """A job in the queue that was submitted from here.

    Attributes:
        array: the number of the array it belongs to, or its own.
        index: its place in the array, or nothing.
        running: whether it has started.
        folder: of its submission.
    """

    array: str
    index: str
    running: bool
    folder: Path

    @property
    def number(self) -> str:
        """What Slurm calls it, such as 12_3."""
        return f"{self.array}_{self.index}" if self.index else self.array


def promised(cell: Cell) -> list[Promise]:
    """What a job that runs this cell will make: each artifact that is not on the disk."""
    lacking = [job.artifact(name) for job in jobs_of(cell) for name in job.missing()]
    return [(str(one.path.resolve()), cell.cfg.shard or "") for one in lacking]


def note(folder: Path, promises: Iterable[Iterable[Promise]]) -> None:
    """Writes what each job of a submission will make, in the order of the array."""
    files.write_json(folder / LIST, {"jobs": [[*map(list, of_job)] for of_job in promises]})


def absent() -> list[str]:
    """The programs of Slurm that are not on this machine."""
    return [name for name in PROGRAMS if not shutil.which(name)]


def queue() -> dict[Promise, Task]:
    """What the jobs in this user's queue will make, and which of them makes it.

    Raises:
        InputError: Slurm does not answer.
    """
    command = ["squeue", "--user", str(os.getuid()), "--array", "--noheader"]
    done = subprocess.run([*command, "--format=%F|%K|%t|%o"], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise InputError(f"Slurm's squeue does not answer ({why}); what is queued is not known.")
    found: dict[Promise, Task] = {}
    lists: dict[Path, list[list[Promise]]] = {}
    for line in done.stdout.splitlines():
        array, index, state, script = line.split("|", 3)
        folder = Path(script).parent
        if folder not in lists:
            jobs = (files.read_json(folder / LIST) or {}).get("jobs", [])
            lists[folder] = [[(path, share) for path, share in of_job] for of_job in jobs]
        place = index if index.isdecimal() else ""
        task = Task(array, place, state != "PD", folder)
        of_array = lists[folder]
        if int(place or 0) < len(of_array):
            found |= dict.fromkeys(of_array[int(place or 0)], task)
    return found


def makers(wanted: Iterable[Promise], queued: dict[Promise, Task]) -> list[Task] | None:
    """The jobs in the queue that make all that is wanted; None if they do not."""
    found = [queued.get(one) or queued.get((one[0], "")) for one in wanted]
    tasks = [task for task in found if task is not None]
    return list(dict.fromkeys(tasks)) if len(tasks) == len(found) else None
