"""What of every table and figure is done or in Slurm's queue, and cleaning away what none needs.

    irattack status [TABLE] [name=value …]
    irattack clean [name=value …]

Settings are those of `make reproduce-…`; a cell of other settings is another cell. Steps and
interactions of tables and figures that were made, with whatever settings, are not cleaned away
while their files lie in the output folder; those of single cells are.
"""

import contextlib
import re
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.plans import Plan, named_table, plans
from irattack.commands.queue import absent, queue
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.pipeline.job import Job
from irattack.pipeline.sharded import ByShards
from irattack.pipeline.steps import is_whole

CACHES = ("steps", "interactions")
STATES = ("done", "begun", "pending")


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder, nothing for what a link points to."""
    total = 0
    for entry in [path] if path.is_symlink() or path.is_file() else path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has been moved to its place meanwhile
            found = entry.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def leftovers(root: Path) -> Iterator[Path]:
    """Temporary files (`files.replacing`) of processes that were killed while they wrote."""
    paths = (path for path in root.rglob(".*") if re.search(r"\.[0-9a-f]{32}$", path.name))
    old = time.time() - 3600  # a younger one may be in use
    return (path for path in paths if path.is_file() and path.lstat().st_mtime < old)


@dataclass(frozen=True)
class Folder:
    """What lies in a folder of the output: bytes, and whole and broken shards of steps."""

    bytes: int
    whole: int
    broken: int


def look(folder: Path) -> Folder:
    """What lies in a folder."""
    names = {path.stem for kind in ("b2", "json") for path in folder.glob(f"[0-9]*.{kind}")}
    whole = sum(is_whole(folder / f"{name}.b2") for name in sorted(names))
    return Folder(size(folder), whole, len(names) - whole)


def state(job: Job, folders: dict[Path, Folder]) -> str:
    """Whether a job is `done`, else `begun` or `pending`."""
    missing = job.missing()
    if not missing:
        return "done"
    parts = isinstance(job, ByShards) and any(job.parts(name) for name in job.names)
    some = len(missing) < len(job.names) or parts or any(folders[f].whole for f in job.folders)
    return "begun" if some else "pending"


def in_queue() -> dict[Path, bool]:
    """What Slurm's jobs will make, and whether they run yet; nothing where there is no Slurm."""
    if absent():
        return {}
    try:
        return {Path(path): task.running for (path, _), task in queue().items()}
    except InputError as error:
        print(f"irattack: {error}", file=sys.stderr)
        return {}


def status(tables: dict[str, Plan]) -> str:
    """A line a table: its jobs, how many are done, begun or not, and what lies on disk.

    Of those that are not done, how many wait in Slurm's queue, and how many run.
    """
    lines, folders, queued = [], dict[Path, Folder](), in_queue()
    seen: dict[tuple[Path, ...], tuple[str, str]] = {}
    for name, table in tables.items():
        states: Counter[str] = Counter()
        slurm: Counter[str] = Counter()
        own = {folder for job in table.jobs for folder in job.folders}
        folders |= {folder: look(folder) for folder in own - folders.keys()}
        for job in table.jobs:
            which = tuple(job.artifact(name).path for name in job.names)
            if which not in seen:
                runs = {queued[path] for path in map(Path.resolve, which) if path in queued}
                waits = "running" if True in runs else "queued" if runs else ""
                seen[which] = state(job, folders), waits
            done, waits = seen[which]
            states[done] += 1
            slurm[waits if done != "done" else ""] += 1
        broken = sum(folders[folder].broken for folder in own)
        megabytes = sum(folders[folder].bytes for folder in own) / 1e6
        counts = [states[what] for what in STATES]
        waiting = [slurm["queued"], slurm["running"]]
        lines.append([name, states.total(), *counts, broken, f"{megabytes:.1f}", *waiting])
    heads = ["table or figure", "jobs", *STATES, "broken shards", "MB", "queued", "running"]
    return tabulate(lines, heads)


def made(root: Path) -> set[Path]:
    """The caches of all that tables and figures in an output folder say they are made of."""
    from irattack.results import record

    return {
        root / kind / label
        for found in record.read(root)
        for label in found.cells
        for kind in CACHES
    }


def cleaned(tables: dict[str, Plan]) -> str:
    """Removes steps and interactions of cells of no table; says how much.

    Neither of these tables, nor of one that was made with other settings and lies there. And what
    killed processes left, and the parts of what is merged. Results stay: they are small. Of a link
    only the link is removed, and nothing outside the output folder.
    """
    jobs = [job for table in tables.values() for job in table.jobs]
    root, home = jobs[0].cell.root, Path(jobs[0].cell.cfg.output).resolve()
    known = {folder for job in jobs for folder in job.folders} | made(root)
    found = [path for kind in CACHES for path in sorted((root / kind).glob("*"))]
    doomed = [path for path in found if path not in known and path.name[0] != "."]
    for job in jobs:
        if isinstance(job, ByShards):
            merged = [name for name in job.names if job.artifact(name).card() is not None]
            doomed += [path for name in merged for path in job.parts(name)]
    doomed += [path for path in leftovers(root) if not {*doomed} & {*path.parents}]
    inside = [path for path in doomed if path.parent.resolve().is_relative_to(home)]
    doomed = list(dict.fromkeys(inside))
    freed = sum(size(path) for path in doomed)
    for path in doomed:
        linked = path.is_symlink() or not path.is_dir()
        path.unlink(missing_ok=True) if linked else shutil.rmtree(path, ignore_errors=True)
    names = "".join(f"  {path.relative_to(root)}\n" for path in doomed)
    return f"{names}Removed {len(doomed)} of {root}, {freed / 1e6:.1f} MB."


def main(work: Callable[[dict[str, Plan]], str] = status, strict: bool = False) -> None:
    """Prints the status."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        words = [word for word in sys.argv[1:] if word[0] != "-"]
        name, given = named_table("clean" if strict else "status", words)
        if strict and name:
            raise InputError(f"clean {name}: takes no name; what no table needs is removed.")
        tables = plans(given, strict, name)
        print(f"With {' '.join(given) or 'the default settings'}:\n\n{work(tables)}")


def clean() -> None:
    """Removes what no table needs; nothing where it cannot be read what one needs."""
    main(cleaned, strict=True)
