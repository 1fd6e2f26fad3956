"""No work is lost and no damaged work is used, whatever happens to processes, files and disks."""

import json
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irattack.commands import status
from irattack.conf import CONF
from irattack.data import photos
from irattack.data.images import Candidates
from irattack.errors import InputError
from irattack.hashing import key, sha256
from irattack.pipeline import worker
from irattack.pipeline.cell import Cell
from irattack.pipeline.codec import read_frames
from irattack.pipeline.files import read_json
from irattack.pipeline.images import Choice, images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.measures import Contributions
from irattack.pipeline.results import Results, arrays
from irattack.pipeline.steps import of_shard
from tests import forked
from tests.forked import Process

KILLS = 30
JOBS = ("results.Results", "measures.Contributions")
MEASURED = {"jobs": [{"_target_": f"irattack.pipeline.{name}"} for name in JOBS]}
TEMPORARY = re.compile(r"\.[0-9a-f]{32}$")
Tables = dict[str, bytes]
Card = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    forked.serve()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where an uninterrupted process has made the table."""
    folder = tmp_path_factory.mktemp("done") / "alone"
    status_, printed = Process(folder).end()
    assert status_ == 0, printed
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where every second shard has been attacked and evaluated."""
    folder = tmp_path_factory.mktemp("half") / "alone"
    status_, printed = Process(folder, {"shard": "1/2"}).end()
    assert status_ == 0, printed
    assert "shard=1/2 is done" in printed
    assert "8 of 8 results are missing" in printed
    return folder


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Copies a folder and works in the copy."""

    def copy(folder: Path) -> Path:
        here = tmp_path / "deep" / "here"
        shutil.copytree(folder, here)
        monkeypatch.chdir(here)
        return here

    return copy


def contributions(cell: Cell) -> np.ndarray:
    """The interactions of a cell, computed where they are missing."""
    job = Contributions(cell)
    ensure(job)
    return job.values()["contributions"]


def tables(folder: Path) -> Tables:
    paths = (folder / "outputs/photos/tables").iterdir()
    return {path.name: path.read_bytes() for path in paths if not TEMPORARY.search(path.name)}


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def results(cell: Cell) -> Path:
    """The folder of the results of a cell."""
    return Results(cell).folders[0]


def one(folder: Path, pattern: str) -> Path:
    return sorted((folder / "outputs/photos").glob(pattern))[0]


def table_lost(folder: Path) -> None:
    shutil.rmtree(folder / "outputs/photos/tables")


# Killed.


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Each process is killed at the n-th thing of some stage; the next one continues."""
    draw = random.Random(0)
    small = {"targets": ["vgg16"], "benchmark.sources": ["alexnet", "vgg16"]}, slice(2)
    alone = tmp_path / "alone"
    status_, printed = Process(alone, *small).end()
    assert status_ == 0
    counts = json.loads(printed.split("ticks: ")[1])
    assert set(counts) == {"choosing", "attacking", "shards", "evaluating", "merging", "table"}
    assert min(counts.values()) >= 4
    stages: Counter[str] = Counter()
    folder, number = tmp_path / "0", 0
    while stages.total() < KILLS:
        stage = draw.choice(list(counts))
        at_ = (stage, draw.randint(1, counts[stage]))
        status_, printed = Process(folder, *small, kill_at=at_).end()
        if found := re.search("killed while (.*)", printed):
            assert status_ == -9
            stages[found[1]] += 1
            continue
        assert status_ == 0, printed
        assert tables(folder) == tables(alone)
        number += 1
        folder = tmp_path / str(number)
    status_, printed = Process(folder, *small).end()
    assert status_ == 0, printed
    assert tables(folder) == tables(alone)
    assert set(stages) == set(counts)
    assert number > 0


def test_killed_by_the_clock(done: Path, tmp_path: Path) -> None:
    """The command itself, with all of Hydra, at moments that nobody chose."""
    folder, killed = tmp_path / "clock", 0
    for seconds in (1.5, 3, 4):
        process = Process(folder, work=forked.command)
        process.started()
        process.process.join(seconds)
        process.kill()
        killed += process.end()[0] == -9
    assert killed >= 2
    status_, printed = Process(folder, work=forked.command).end()
    assert status_ == 0, printed
    assert tables(folder) == tables(done)


# Damaged.


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def lose(path: Path) -> None:
    path.unlink()


def of_another_cell(path: Path) -> None:
    """The file of another configuration, and its card, in the place of this one."""
    other = next(p for p in sorted(path.parents[1].glob("*/" + path.name)) if p != path)
    shutil.copy(other, path)


def unreadable(path: Path) -> None:
    path.write_bytes(b"\xff{")


def other_number(path: Path) -> None:
    """A success rate that is not the one of the margins."""
    text = path.read_text()
    changed = re.sub(r'("success_rate_percent": )[\d.]+', r"\g<1>99.0", text)
    assert changed != text
    path.write_text(changed)


DAMAGES = {
    "shard flipped": ("steps/*/0001.b2", flip),
    "shard truncated": ("steps/*/0001.b2", truncate),
    "shard deleted": ("steps/*/0001.b2", lose),
    "shard foreign": ("steps/*/0000.json", of_another_cell),
    "shard's card unreadable": ("steps/*/0000.json", unreadable),
    "shard's card flipped": ("steps/*/0000.json", flip),
    "part flipped": ("results/*/parts/0000-vgg16-*.safetensors", flip),
    "part truncated": ("results/*/parts/0000-vgg16-*.safetensors", truncate),
    "part's card deleted": ("results/*/parts/0000-vgg16-*.json", lose),
    "margins flipped": ("results/*/vgg16-*.safetensors", flip),
    "margins truncated": ("results/*/alexnet-*.safetensors", truncate),
    "result of another configuration": ("results/*/vgg16-*.json", of_another_cell),
    "result unreadable": ("results/*/vgg16-*.json", unreadable),
    "result changed": ("results/*/vgg16-*.json", other_number),
    "manifest unreadable": ("images/*.json", unreadable),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_noticed_named_and_redone(
    name: str, done: Path, half: Path, at: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    pattern, damage = DAMAGES[name]
    folder = at(half if "parts" in pattern else done)
    if pattern.startswith(("steps", "images")):
        shutil.rmtree(folder / "outputs/photos/results")  # else the shards are not needed
    path = one(folder, pattern)
    before = path.read_bytes()
    damage(path)
    forked.make()
    assert tables(folder) == tables(done)
    redone = str(path.with_suffix("").relative_to(folder))
    assert redone in caplog.text
    assert path.exists() == ("parts" not in pattern)
    if path.suffix == ".safetensors" and path.exists():
        assert path.read_bytes() == before
    caplog.clear()
    for cell in forked.PLAN.cells:
        assert not Results(cell).missing()
        found = status.look(cell.steps_folder)
        assert (found.whole, found.broken) == (2, 0)
    assert not caplog.messages


def changed_photo(monkeypatch: pytest.MonkeyPatch, marked: str, label: bool = False) -> None:
    """One clean image, or its label, is another from now on."""
    real = photos.candidates

    def changed(split: str) -> Candidates:
        found = real(split)
        row, labels = found.ids.index(marked), found.labels.copy()
        labels[row] += label

        def read(rows: Any) -> np.ndarray:
            pixels = found.read(rows)
            pixels[[r == row and not label for r in rows]] ^= 1
            return pixels

        return Candidates(found.ids, labels, read)

    monkeypatch.setattr(photos, "candidates", changed)


@pytest.mark.parametrize("what", ["pixels", "label"])
def test_a_changed_image_is_refused_and_its_work_not_used(
    what: str,
    done: Path,
    at: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = at(done)
    cell = forked.plan({}, only=0).cells[0]
    before = contributions(cell)
    marked = images_of(cell).ids[3]
    changed_photo(monkeypatch, marked, label=what == "label")
    shutil.rmtree(folder / "outputs/photos/results")
    with pytest.raises(InputError, match=f"1 of 8 images .*{marked}.*delete the manifest"):
        forked.make(only=0)
    one(folder, "images/*.json").unlink()
    caplog.clear()
    forked.make(only=0)
    kept = images_of(cell).ids
    clean = arrays(cell, "alexnet")["margins"]
    again = folder / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    forked.make(only=0)
    assert images_of(cell).ids == kept
    np.testing.assert_array_equal(arrays(cell, "alexnet")["margins"], clean)
    fresh = contributions(cell)
    monkeypatch.chdir(folder)
    caplog.clear()
    np.testing.assert_array_equal(contributions(cell), fresh)
    assert caplog.text.count("interactions-") == 1
    assert (fresh != before).any()


# No room.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[..., None]]]:
    """A small file system of its own, and how to mount it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")

    try:
        mount("size=4k")
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    try:
        yield folder, lambda *options: mount("remount", *options)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def sentence(printed: str) -> str:
    assert "Traceback" not in printed
    assert "Logging error" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("irattack: ")]
    assert len(lines) == 1, printed
    return lines[0]


def test_a_full_disk_at_every_stage(done: Path, disk: tuple, tmp_path: Path) -> None:
    folder, again = disk
    full = 0
    for kilobytes in (4, 16, 40, 64, 96, 140, 180, 220, 260, 300, 330, 360):
        again(f"size={kilobytes}k")
        status_, printed = Process(folder).end()
        if status_ == 0:
            break
        full += 1
        assert status_ == 2, printed
        assert "the disk is full" in sentence(printed)
        assert not any(TEMPORARY.search(name) for name in files(folder))
    assert full >= 3
    again("size=64m")
    status_, printed = Process(folder).end()
    assert status_ == 0, printed
    assert tables(folder) == tables(done)


def test_a_full_disk_and_a_read_only_one_for_the_command(
    done: Path, half: Path, disk: tuple
) -> None:
    folder, again = disk
    again("size=64m")
    shutil.copytree(half / "outputs", folder / "outputs")
    flip(one(folder, "steps/*/0000.b2"))  # a warning, which would go to a log file
    again("size=64m", "ro")
    for work in (forked.make, forked.command):
        status_, printed = Process(folder, work=work).end()
        assert status_ == 2, printed
        assert "the file system is read-only" in sentence(printed)
    again("size=64m", "rw")
    (folder / "filled").write_bytes(bytes(100_000))
    with (folder / "filled").open("ab", buffering=0) as file:
        again(f"size={sum(p.stat().st_blocks for p in folder.rglob('*')) // 2 + 4}k")
        for _ in range(100):
            try:
                file.write(bytes(1024))
            except OSError:
                break
    status_, printed = Process(folder, work=forked.command).end()
    assert status_ == 2, printed
    assert "the disk is full" in sentence(printed)
    again("size=64m")
    (folder / "filled").unlink()
    status_, printed = Process(folder).end()
    assert status_ == 0, printed
    assert tables(folder) == tables(done)


# At the same time, in any order.


@pytest.mark.parametrize(("count", "only"), [(2, 1), (3, None)])
def test_several_at_once(count: int, only: int | None, done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "together"
    together = [Process(folder, {}, only) for _ in range(count)]
    for process in together:
        status_, printed = process.end()
        assert status_ == 0, printed
    alone = done
    if only is not None:
        alone = tmp_path / "alone"
        assert Process(alone, {}, only).end()[0] == 0
    assert files(folder) == files(alone)
    assert tables(folder) == tables(alone)


def test_shares_in_any_order(done: Path, tmp_path: Path) -> None:
    folder, count = tmp_path / "shares", 8
    order = random.Random(1).sample(range(1, count + 1), count)
    settings = {"block": 1, "steps": 2}
    assert Process(tmp_path / "alone", settings).end()[0] == 0
    for place, number in enumerate(order):
        status_, printed = Process(folder, settings | {"shard": f"{number}/{count}"}).end()
        assert status_ == 0, printed
        last = place == count - 1
        assert (f"shard={number}/{count} is done" in printed) != last
        assert ("other shards have them to do" in printed) != last
        assert (folder / "outputs/photos/tables").exists() == last
    table_lost(folder)
    status_, printed = Process(folder, settings, None, True).end()
    assert status_ == 0, printed
    assert tables(folder) == tables(tmp_path / "alone")
    assert files(folder) == files(tmp_path / "alone")


def test_a_share_that_is_none() -> None:
    with pytest.raises(InputError, match="shard=9/8: expected i/n with i from 1 to n"):
        forked.plan({"shard": "9/8"})


# What stays on disk.


@pytest.mark.parametrize(("kept", "frames"), [("none", 0), ([2], 1)])
def test_the_table_does_not_need_the_cache(
    kept: Any, frames: int, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"cache.steps": kept}
    forked.make(changes)
    assert tables(tmp_path) == tables(done)
    shards = list(tmp_path.rglob("*.b2"))
    assert len(shards) == (8 if frames else 0)
    for path in shards:
        assert read_json(path.with_suffix(".json"))["kept"] == [1]  # type: ignore[index]
    cell = forked.plan(changes, only=1).cells[0]
    found = contributions(cell)
    shards = sorted(cell.steps_folder.glob("*.b2"))
    for shard in cell.shards(images_of(cell)):
        path = of_shard(cell, shard).path
        assert len(list(read_frames(path, shard.images.pixels, frames + 1))) == frames + 1
    monkeypatch.chdir(done)
    np.testing.assert_array_equal(contributions(cell), found)


# Status and cleaning.


def counts(folder: Path) -> list[int]:
    line = status.status({"table1": forked.PLAN}).splitlines()[-1].split()
    assert line[0] == "table1"
    return [int(word) for word in line[1:6]]


def test_status_counts(done: Path, half: Path, at: Callable) -> None:
    folder = at(done)
    assert counts(folder) == [4, 4, 0, 0, 0]
    first, second, third, _ = forked.PLAN.cells
    flip(second.steps_folder / "0000.b2")
    (second.steps_folder / "0001.b2").unlink()
    assert counts(folder) == [4, 4, 0, 0, 2]
    shutil.rmtree(second.steps_folder)
    shutil.rmtree(results(second))
    assert counts(folder) == [4, 3, 0, 1, 0]
    shutil.rmtree(third.steps_folder)
    Results(third).artifact("vgg16").path.unlink()  # one of two targets is left
    assert counts(folder) == [4, 2, 1, 1, 0]
    shutil.copytree(half / results(first), results(third) / "x")
    Results(first).artifact("vgg16").path.unlink()
    Results(first).artifact("alexnet").path.unlink()
    assert counts(folder) == [4, 1, 2, 1, 0]
    for cell in forked.PLAN.cells:  # without a step cache, parts are what is begun
        shutil.rmtree(cell.steps_folder, ignore_errors=True)
        shutil.rmtree(results(cell), ignore_errors=True)
    shutil.copytree(half / results(first), results(first))
    assert counts(folder) == [4, 0, 1, 3, 0]


def test_cleaning_removes_what_no_table_needs(
    done: Path, half: Path, at: Callable, tmp_path: Path
) -> None:
    folder = at(done)
    outputs, cell = folder / "outputs/photos", forked.plan(MEASURED).cells[0]
    contributions(cell)
    planned = {"table1": forked.PLAN, "table4": forked.plan(MEASURED)}
    (outputs / ".gitignore").touch()
    needed = files(folder)
    foreign = forked.plan({"seed": 1}, only=0).cells[0]
    shutil.copytree(outputs / "steps" / cell.label, outputs / "steps" / foreign.label)
    for name in ("steps", "results", "images", "tables"):
        (outputs / name / f".x.json.{'0' * 32}").touch()
    (foreign.steps_folder / f".x.b2.{'0' * 32}").touch()
    part = next((half / results(cell)).glob("parts/*vgg16-*.json"))
    (results(cell) / "parts" / part.name).write_text("")  # of a merged target
    outside = tmp_path / "outside"
    shutil.copytree(half, outside)
    (outside / f".x.{'0' * 32}").touch()
    elsewhere = files(outside)
    (outputs / "steps/to-a-folder").symlink_to(outside)
    (outputs / f"steps/.x.{'1' * 32}").symlink_to(outside / f".x.{'0' * 32}")
    (outputs / "results" / cell.label / "inside").symlink_to(outside)
    young = outputs / "steps" / f".y.{'2' * 32}"  # of a process that may be running
    for path in outputs.rglob(".*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    young.touch()
    printed = status.cleaned(planned)
    young.unlink()
    assert "Removed 8 of " in printed, printed
    assert files(folder) == needed
    assert files(outside) == elsewhere
    assert not (outputs / "steps/to-a-folder").is_symlink()
    assert "Removed 0 of " in status.cleaned(planned)
    for where in ("steps", "."):  # a cache that lives elsewhere is not cleaned
        shutil.move(outputs / where, tmp_path / "moved")
        (outputs / where).symlink_to(tmp_path / "moved")
        (tmp_path / "moved/steps" if where == "." else tmp_path / "moved").joinpath("odd").touch()
        assert "Removed 0 of " in status.cleaned(planned)
        (outputs / where).unlink()
        shutil.move(tmp_path / "moved", outputs / where)
        (outputs / "steps/odd").unlink()


# Forged.


FORBIDDEN = r"\b(pickle|marshal|shelve|eval|exec|__import__|np\.load|yaml\.load)\b"


def test_nothing_that_is_read_is_run() -> None:
    for path in (CONF.parent / "irattack").rglob("*.py"):
        lines = path.read_text().splitlines()
        for line in lines:
            if "torch.load(" in line:
                assert "weights_only=True" in line, (path, line)
            code = re.sub(r"\.eval\(\)|pickle\.UnpicklingError|#.*", "", line)
            assert "allow_pickle=True" not in code, (path, line)
            if "allow_pickle=False" in code:
                code = code.replace("np.load", "")
            found = re.search(FORBIDDEN + r"\s*[.(=]", code)
            assert not found or path.name == "convert.py", (path, line)
            imported = re.match(r"\s*(import|from) (pickle|marshal|shelve|yaml)\b", line)
            assert not imported or path.name in ("convert.py", "checkpoint.py"), (path, line)


def change(path: Path, **changes: Any) -> None:
    """Forges a card: its checksum is right."""
    card = read_json(path)
    assert card is not None
    card = {name: value for name, value in (card | changes).items() if value != "LEFT OUT"}
    card.pop("checksum", None)
    path.write_text(json.dumps(card | {"checksum": key(card)}))


MADE = {"device": "cpu", "torch": "2", "commit": "x"}


def each(name: str, *values: Any) -> list[Card]:
    return [{name: value} for value in values]


CARDS: dict[str, list[Card]] = {
    "steps/*/0000.json": [
        *each("kept", "abc", None, 3, [], ["0"], [0, 1, 10**30], [2, 1, 0], [0, 1, 2, 2], [[0]]),
        *each("kept", [0.0, 1.0, 2.0], "LEFT OUT"),
        *each("made_with", 3, {"device": 3}, "LEFT OUT"),
        *each("below_tau", "x", 1.5),
        *each("facts", 3, [], {}, "LEFT OUT"),
        {"sha256": 3},
        {"another": 1},
    ],
    "results/*/vgg16-*.json": [
        *({name: "x"} for name in ("n", "success_rate_percent", "below_tau", "mean_l2")),
        *each("attacked_with", 3, "x", [3], ["../../x"], [{}], "LEFT OUT"),
        *each("made_with", None, {"torch": 3}),
        *each("target_name", ["../../x"], 3, "LEFT OUT"),
        *each("facts", [], "../../x"),
        {"another": 1},
    ],
}
WHOLE = [b"[]", b"[1]", b'"x"', b"null", b"1", b"[" * 100_000, b"9" * 10_000, b"\x00"]


@pytest.mark.parametrize("pattern", CARDS)
def test_forged_cards(
    pattern: str, done: Path, at: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """The facts of one cell are asked for again and again; what was forged is named."""
    folder = at(done)
    cell = forked.plan({}, only=0).cells[0]
    path = one(folder, pattern.replace("*", cell.label, 1))
    shard = cell.shards(images_of(cell))[0]
    hands = worker.Worker(cell)
    hands.attacked = lambda *_: (1 // 0 for _ in "x")  # type: ignore
    before, outside = path.read_text(), files(folder.parents[1])

    def is_used() -> bool:
        caplog.clear()
        if path.name.startswith("vgg16-"):
            return "vgg16" not in Results(cell).missing()
        try:
            return bool(next(hands.frames(shard, range(3), all_steps=True)[0]).size)
        except ZeroDivisionError:
            return False

    assert is_used()
    for changes in CARDS[pattern]:
        path.write_text(before)
        change(path, **changes)
        assert not is_used(), changes
        assert str(path.with_suffix("").relative_to(folder)) in caplog.text
    for content in WHOLE:
        path.write_bytes(content)
        assert not is_used(), content[:20]
        assert str(path.with_suffix("").relative_to(folder)) in caplog.text
    path.unlink()
    path.mkdir()
    assert not is_used()
    path.rmdir()
    assert files(folder.parents[1]) == outside - {str(path.relative_to(folder.parents[1]))}
    shutil.rmtree(folder / "outputs/photos/tables")
    forked.make()
    assert tables(folder) == tables(done)


@pytest.mark.parametrize("pattern", ["steps/*/0000.b2", "results/*/vgg16-*.safetensors"])
@pytest.mark.parametrize("content", [b"", b"x" * 99, b"\xff" * 5000])
def test_forged_files_with_a_right_checksum(
    pattern: str,
    content: bytes,
    done: Path,
    at: Callable,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = at(done)
    cell = forked.plan({}, only=0).cells[0]
    path = one(folder, pattern.replace("*", cell.label, 1))
    path.write_bytes(content)
    change(path.with_suffix(".json"), sha256=sha256(path))
    if path.suffix == ".safetensors":
        forked.make(only=0)
        assert str(path.relative_to(folder)) in caplog.text
    else:
        shutil.rmtree(results(cell))
        with pytest.raises(InputError, match=re.escape(str(path.relative_to(folder)))):
            forked.make(only=0)
        path.unlink()
        forked.make(only=0)
    found = arrays(cell, "vgg16")
    monkeypatch.chdir(done)
    np.testing.assert_array_equal(found["margins"], arrays(cell, "vgg16")["margins"])


IMAGE = {"id": "a", "label": 1, "sha256": "0"}
LISTS: list[Any] = [
    *("x", 3, [], [1, 2], [[]], {}, [{}], [IMAGE | {"id": ["x"]}], [IMAGE | {"label": "1"}]),
    *([IMAGE, IMAGE], [IMAGE | {"sha256": None}]),
    *([IMAGE | {"id": "../../x"}], [IMAGE | {"id": "/etc/passwd"}], [IMAGE | {"label": 10**30}]),
]


def test_forged_manifests(
    done: Path,
    at: Callable,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = at(done)
    own, given = one(folder, "images/*.json"), tmp_path / "given.json"
    whole, cell = own.read_text(), forked.PLAN.cells[0]
    images = images_of(cell)
    monkeypatch.setattr(worker, "choose", lambda *_: images)  # takes long
    outside = files(tmp_path) | {"given.json"}
    for listed in LISTS:
        forged = json.dumps(json.loads(whole) | {"images": listed})
        given.write_text(forged)
        other = forked.plan({"manifest": str(given)}, only=0).cells[0]
        with pytest.raises(InputError, match=r"given\.json: ") as raised:
            ensure(Results(other))
        assert "\n" not in str(raised.value)
        assert given.read_text() == forged

    def is_chosen_anew() -> None:
        caplog.clear()
        ensure(Choice(cell))
        assert own.name in caplog.text
        assert json.loads(own.read_text())["images"] == json.loads(whole)["images"]
        assert images_of(cell).ids == images.ids

    for content in [json.dumps({"images": listed}).encode() for listed in LISTS] + WHOLE:
        own.write_bytes(content)
        is_chosen_anew()
    listed = json.loads(whole)["images"]
    wrong: list[Card] = [{"facts": {}}, *each("images", [], [*listed, listed[0]], listed[1:])]
    for changes in wrong:
        own.write_text(whole)
        change(own, **changes)
        is_chosen_anew()
    own.write_text(whole)
    change(own, images=[listed[0] | {"id": "../../x"}, *listed[1:]])
    with pytest.raises(InputError, match=rf"{own.name}: 1 of 8 images .*\.\./\.\./x"):
        images_of(cell)
    own.write_text(whole)
    assert files(tmp_path) == outside


@pytest.mark.parametrize("name", ["../x", "../../x", "/etc/passwd", "photos/../../x", "", "."])
@pytest.mark.parametrize("setting", ["source", "targets", "benchmark.name", "attack.name"])
def test_names_that_lead_elsewhere(
    setting: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        forked.plan({setting: [name] if setting == "targets" else name}, only=0)
    assert "expected one of" in str(raised.value) or "did you mean" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
