"""What a terminal shows of a table while its cells are run: one bar, over that of a cell.

Cells are counted on the disk, as their artifacts appear: so alike for every launcher. Where stderr
is no terminal there is no bar, but a line at the end of a cell, at most one in 30 s.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from multiprocessing import parent_process
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

from hydra.core.hydra_config import HydraConfig
from tqdm import tqdm

from irattack.pipeline.cell import Cell
from irattack.pipeline.images import Choice
from irattack.pipeline.job import jobs_of
from irattack.pipeline.measures import OfAttack
from irattack.pipeline.results import Results

LOOK_S = 1.0  # between two looks at the disk
LINE_S = 30.0  # at least so long between two lines, where there is no bar
BACK = 2  # a pass forward and back takes so many forward passes more
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} cells{postfix}"


def say(text: str, stream: TextIO) -> None:
    """Prints a line above the bars, or in the place of those of the process that started this."""
    if parent_process() is not None and stream.isatty():
        text = f"\r\033[K{text}"
    tqdm.write(text, file=stream)


def of_table() -> bool:
    """Whether this job is a cell of a table, `+cell=…`, which shows its rows with the others."""
    return "cell" in HydraConfig.get().runtime.choices


class Console(logging.StreamHandler):
    """What is logged, on the terminal; of a cell of a table, warnings alone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record above the bars."""
        try:
            if record.levelno >= logging.WARNING or not of_table():
                say(self.format(record), self.stream)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """A log file whose folder is made with it; where it cannot be, nothing is written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        try:
            super().emit(record)
        except OSError:  # on opening; on writing, `logging` itself sees to it
            self.handleError(record)

    def _open(self) -> TextIO:  # type: ignore[override]
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()


def passes(cell: Cell) -> float:
    """The work of a cell, in forward passes: of its attack, evaluation and analyses."""
    from irattack.pipeline.cell import attack_of
    from irattack.pipeline.speed import most_gradients

    jobs, attack = jobs_of(cell), attack_of(cell)
    found = sum(job.passes for job in jobs)
    if any(isinstance(job, Results | OfAttack) for job in jobs):
        found += cell.cfg.images * most_gradients(attack) * (1 + BACK)
    if any(isinstance(job, Results) for job in jobs):
        found += cell.cfg.images * cell.recorded * len(cell.targets)
    return found or 1.0


def span(seconds: float) -> str:
    """A time in words."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min" if minutes else "less than 1 min"
    return f"{hours} h {minutes} min"


class Files:
    """Files, and whether they have been written since."""

    def __init__(self, paths: list[Path]):
        self.before = {path: self.state(path) for path in paths}

    @staticmethod
    def state(path: Path) -> tuple[int, int] | None:
        """What changes when a file is written; None if it is not there."""
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    @property
    def written(self) -> bool:
        """Whether all of them have been; a damaged one that lay there has not."""
        return all(self.state(path) not in (None, was) for path, was in self.before.items())


class Progress:
    """How far a table is.

    Attributes:
        lacking: of each cell, the cards that were not on the disk, or could not be used.
    """

    def __init__(self, name: str, cells: list[Cell]):
        self.name, self.cells = name, cells
        self.lacking = [
            Files([job.artifact(one).card_path for job in jobs_of(cell) for one in job.missing()])
            for cell in cells
        ]
        self.waiting = [i for i, lacks in enumerate(self.lacking) if lacks.before]
        choices = [Choice(cells[i]) for i in self.waiting]
        self.images = Files([one.artifact().path for one in choices if one.missing()])
        self.work = {i: passes(cells[i]) for i in self.waiting}
        self.started = self.ended = time.monotonic()

    def look(self) -> None:
        """Counts the cells that are done."""
        now = time.monotonic()
        if len(self.waiting) == len(self.work) and not self.images.written:
            self.started = now  # to choose the images takes its own time
        if done := [i for i in self.waiting if self.lacking[i].written]:
            self.ended = now
            self.waiting = [i for i in self.waiting if i not in done]

    @property
    def done(self) -> int:
        """How many cells are done."""
        return len(self.cells) - len(self.waiting)

    @property
    def rest(self) -> str:
        """What is said after the count: the time left, once a cell has told how fast it goes.

        Cells go as fast as those before them, by their passes.
        """
        left = sum(self.work[i] for i in self.waiting)
        if not left:
            return ""
        if (gone := sum(self.work.values()) - left) == 0:
            return "" if self.images.written else "choosing images…"
        now = time.monotonic()
        seconds = (self.ended - self.started) * left / gone - (now - self.ended)
        return f"{span(max(0.0, seconds))} left"

    def __str__(self) -> str:
        """In one line."""
        count = f"{self.name}: {self.done} of {len(self.cells)} cells"
        return ", ".join(filter(None, [count, self.rest]))

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows it until the context ends, if anything is lacking."""
        if not self.waiting:
            yield
            return
        over = Event()
        kind = {"bar_format": BAR, "leave": False, "disable": None, "dynamic_ncols": True}
        with tqdm(total=len(self.cells), desc=self.name, initial=self.done, **kind) as bar:
            show = Thread(target=self._lines if bar.disable else self._bar, args=(over, bar))
            show.daemon = True
            show.start()
            try:
                yield
            finally:
                over.set()
                show.join()

    def _bar(self, over: Event, bar: tqdm) -> None:
        while True:
            self.look()
            bar.n = self.done
            bar.set_postfix_str(self.rest)
            if over.wait(LOOK_S):
                return

    def _lines(self, over: Event, bar: tqdm) -> None:
        told, at = self.done, time.monotonic() - LINE_S
        if not self.images.written:
            say(str(self), sys.stderr)
        while not over.wait(LOOK_S):
            self.look()
            if self.done > told and time.monotonic() - at >= LINE_S:
                told, at = self.done, time.monotonic()
                say(str(self), sys.stderr)
