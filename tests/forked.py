"""A small Table 1, made here or by processes that are forked warm and may be killed at any moment.

A fork server imports this module once, so that a process of its own starts in milliseconds. The
cells are composed once too; `output` is relative, and a process works in the folder it is given.
"""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from irattack.commands import composing, plans, reproduce
from irattack.commands.cli import one_sentence
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF
from irattack.data import photos
from irattack.pipeline import worker
from irattack.pipeline.artifact import provenance
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import ensure, jobs_of

SMALL = [
    *("images=8", "block=4", "steps=3", "samples=2", "grid=4", "cells=3", "threads=1"),
    *("source=alexnet", "targets=[alexnet,vgg16]"),
]
STAGES = {"images": "choosing", "steps": "shards", "parts": "evaluating", "tables": "table"}
ROOT = CONF.parent
Changes = dict[str, Any]


def planned() -> dict[str, plans.Plan]:
    """The plan of the table alone, in place of those of all."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with composing.hydra():
        return {"table1": plans.plan("table1", SMALL)}


PLAN = planned()["table1"]


def plan(changes: Changes, only: int | slice | None = None) -> plans.Plan:
    """The plan with other settings, or of some cells alone."""
    chosen = []
    some = slice(only, only + 1) if isinstance(only, int) else only or slice(None)
    for cell, choice in PLAN.chosen[some]:
        cfg = OmegaConf.create(cell.cfg.plain())
        for name, value in changes.items():
            OmegaConf.update(cfg, name, value, force_add=True)
        other = Cell(cfg)
        other.method = cell.method
        chosen.append((other, choice))
    return plans.Plan(PLAN.called, PLAN.definition, chosen, [])


def make(
    changes: Changes | None = None, only: int | slice | None = None, aggregate: bool = False
) -> str:
    """Makes the table in the current folder, without Hydra between the table and its cells."""

    def run(_: str, chosen: list[tuple[Cell, Changes]], *__: Any) -> None:
        for cell, _settings in chosen:
            for job in jobs_of(cell):
                ensure(job)

    with contextlib.ExitStack() as stack:
        replace(stack, reproduce, "run", run)
        return reproduce.reproduce(plan(changes or {}, only), [], aggregate)


def replace(stack: contextlib.ExitStack, where: Any, name: str, value: Any) -> None:
    """Replaces an attribute until the stack is left."""
    stack.callback(setattr, where, name, getattr(where, name))
    setattr(where, name, value)


class Ticks:
    """Counts what a process does: files that change, steps of an attack, batches of a network.

    At the n-th thing of a stage, if one is named, the process kills itself.
    """

    def __init__(self, last: tuple[str, int] | None):
        self.counts: Counter[str] = Counter()
        self.last = last

    def __call__(self, stage: str) -> None:
        self.counts[stage] += 1
        if (stage, self.counts[stage]) == self.last:
            os.write(2, f"killed while {stage}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(self, event: str, arguments: tuple) -> None:
        """An audit hook; a change of a file is reported just before it happens."""
        changes = event in ("os.rename", "os.link", "os.remove", "os.mkdir")
        if not changes and not (event == "open" and arguments[1] in ("w", "wb")):
            return
        parts = re.split("/", str(arguments[0]))
        if parts[0] == "outputs":
            stages = [STAGES[part] for part in parts if part in STAGES]
            self(stages[-1] if stages else "merging")

    def watch(self) -> None:
        """Counts from now on, in this process and for good."""
        sys.addaudithook(self.on_event)
        real, project = worker.margin, worker.to_frame

        def margin(*arguments: Any) -> Any:
            self("evaluating" if list(Path("outputs").glob("*/images/*.json")) else "choosing")
            return real(*arguments)

        def to_frame(*arguments: Any) -> Any:
            self("attacking")
            return project(*arguments)

        worker.margin, worker.to_frame = margin, to_frame  # type: ignore[assignment]


def child(folder: Path, log: Path, kill_at: Any, work: Callable, arguments: tuple) -> None:
    """What a process does: works in the folder, and writes to the log all it prints."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    ticks = Ticks(kill_at)
    ticks.watch()
    print("started", flush=True)
    with one_sentence():
        print(work(*arguments))
    print(f"ticks: {json.dumps(ticks.counts)}", flush=True)


def command(*words: str) -> str:
    """`irattack reproduce table1` with the settings of the table."""
    sys.argv = ["reproduce", "table1", *SMALL, *words]
    reproduce.main()
    return ""


class Process:
    """A process that makes the table in a folder: its exit status, and what it printed."""

    number = 0

    def __init__(
        self,
        folder: Path,
        *arguments: Any,
        work: Callable = make,
        kill_at: tuple[str, int] | None = None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        Process.number += 1
        self.log = folder.parent / f"{folder.name}-{Process.number}.log"
        context = multiprocessing.get_context("forkserver")
        self.process: BaseProcess = context.Process(
            target=child, args=(folder, self.log, kill_at, work, arguments)
        )
        self.process.start()

    def started(self) -> None:
        """Waits until its work begins."""
        while "started" not in (self.log.read_text() if self.log.exists() else ""):
            if not self.process.is_alive():
                return
            time.sleep(0.01)

    def kill(self) -> None:
        """Kills it, if it has not ended."""
        self.process.kill()

    def end(self) -> tuple[int, str]:
        """Its exit status, negative for a signal, and what it printed."""
        self.process.join(120)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"it hangs: {self.log.read_text()}")
        self.process.close()
        return code, self.log.read_text()


def serve() -> None:
    """Starts the fork server with this module in it."""
    os.environ["PYTHONPATH"] = str(ROOT)
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])


def warm() -> None:
    """Loads what every process would load."""

    torch.set_num_threads(1)
    photos.candidates("test")
    provenance()


if "pytest" not in sys.modules:
    warm()
