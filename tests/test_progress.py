"""How far a table is: counted on the disk, on a terminal as a bar, elsewhere in a line at times."""

import io
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from irattack.commands import progress, settings
from irattack.commands.progress import Console, Progress, passes, span
from irattack.conf import CONF
from irattack.pipeline.cell import Cell
from irattack.pipeline.results import Results

MADE = '{"facts": {}}'


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    settings.register_resolvers()
    small = ["images=8", "steps=2", "targets=[vgg16,resnet152]", f"output={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = [[f"attack={attack}"] for attack in ("pgd", "mi", "ir")]
        return [Cell(compose("config", overrides=[*small, *more])) for more in found]


def write(cell: Cell, *targets: str) -> None:
    """A card for each target, as a process that makes it would leave."""
    for target in targets:
        path = Results(cell).artifact(target).card_path
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(MADE)
        new.replace(path)


def wait_for(there: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_cells_are_counted_as_their_artifacts_appear(cells: list[Cell]) -> None:
    write(cells[1], "vgg16")  # is damaged: its card is of nothing
    found = Progress("table1", cells)
    found.look()
    assert str(found) == "table1: 0 of 3 cells, choosing images…"
    write(cells[0], "vgg16")
    write(cells[1], "resnet152")
    found.look()
    assert found.done == 0  # one target of two; one that is still the damaged file
    write(cells[0], "resnet152")
    found.look()
    assert found.done == 1
    write(cells[1], "vgg16")
    found.look()
    assert found.waiting == [2]
    write(cells[2], "vgg16", "resnet152")
    found.look()
    assert str(found) == "table1: 3 of 3 cells"


def test_the_time_left_is_by_passes(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass forward and back counts as three; 2 steps on 2 targets, 8 images."""
    assert [passes(cell) for cell in cells[:2]] == [8 * (3 * 2 + 2 * 2)] * 2
    probes = (passes(cells[2]) / 8 - 2 * 2) / 3 / 2
    assert probes == 2 * cells[2].cfg.samples + 1
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    found = Progress("table1", cells[:2])
    now = 500.0
    found.look()  # the images were being chosen until now
    (manifest,) = found.images.before
    manifest.parent.mkdir(parents=True)
    manifest.write_text(MADE)
    now = 1100.0
    write(cells[0], *cells[0].targets)
    found.look()
    assert str(found) == "table1: 1 of 2 cells, 10 min left"
    now = 1400.0
    assert found.rest == "5 min left"
    now = 9000.0
    assert found.rest == "less than 1 min left"


def test_times_in_words() -> None:
    words = [span(seconds) for seconds in (20, 40, 3540, 3599, 7500)]
    assert words == ["less than 1 min", "1 min", "59 min", "1 h 0 min", "2 h 5 min"]


def test_lines_where_there_is_no_terminal(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOOK_S", 0.01)
    found = Progress("table1", cells)
    with found.shown():
        write(cells[0], *cells[0].targets)
        wait_for(lambda: found.done == 1)
        write(cells[1], *cells[1].targets)
        wait_for(lambda: found.done == 2)
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()  # the second end is within 30 s of the first
    assert lines[0] == "table1: 0 of 3 cells, choosing images…"
    assert lines[1:] == ["table1: 1 of 3 cells, less than 1 min left"]


def test_a_warning_stands_above_the_bar(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(progress, "LOOK_S", 0.01)
    monkeypatch.setattr(progress, "of_table", lambda: True)
    log = logging.Logger("a cell")
    log.addHandler(Console(terminal))
    found = Progress("table1", cells)
    with found.shown():
        wait_for(lambda: "0 of 3 cells, choosing images…" in terminal.getvalue())
        log.warning("vgg16 is wrong on %d %% of the clean images", 60)
        log.info("Accuracy on the 8 clean images")
        write(cells[0], *cells[0].targets)
        wait_for(lambda: "1 of 3 cells, " in terminal.getvalue())
    seen = terminal.getvalue()
    (line,) = [line for line in seen.split("\n") if "wrong" in line]
    assert line.split("\r")[-1] == "vgg16 is wrong on 60 % of the clean images"
    assert re.search(r"table1:  33%\|.*\| 1 of 3 cells, less than 1 min left", seen)
    assert "Accuracy" not in seen
    assert not seen.split("\r")[-1].strip()  # the bar is gone before the table is printed
