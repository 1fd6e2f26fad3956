"""Table 1 as a job array of a real Slurm: whatever happens to the jobs, the table is the same."""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from submitit.slurm.slurm import SlurmJob

from irattack.commands import queue, reproduce, status, submit
from irattack.commands.plans import plans
from irattack.conf import CONF
from tests.slurm import Slurm, absent, running, wait_for

SOURCES = ("resnet34", "densenet201")
SMALL = [
    *("attack=ir", "norm=linf", f"source={','.join(SOURCES)}", "targets=[resnet152]"),
    *("images=4", "block=1", "steps=120", "samples=8", "threads=1", "micro_batch=32"),
]  # two cells, four shards each
LAUNCHER = [
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "+hydra.callbacks.prepare.every_s=1",
]
Start = Callable[..., Future[int]]

pytestmark = pytest.mark.skipif(
    bool(absent()), reason=f"Slurm is not installed: there is no {', '.join(absent())}"
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running() as one:
        yield one


def make(
    folder: Path,
    *options: str,
    table: str = "table1",
    command: Callable[[], None] = reproduce.main,
) -> int:
    """The exit status of `irattack reproduce table1`, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reproduce", table, *SMALL, f"output={folder}", *options])
        try:
            command()
        except SystemExit as stopped:
            return int(stopped.code or 0)
        finally:
            GlobalHydra.instance().clear()
    return 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the table."""
    folder = tmp_path_factory.mktemp("alone")
    assert make(folder) == 0
    return folder


@pytest.fixture
def folder(alone: Path, tmp_path: Path) -> Path:
    """A new output folder, where the images are chosen already."""
    shutil.copytree(alone / "photos" / "images", tmp_path / "photos" / "images")
    return tmp_path


@pytest.fixture
def start(slurm: Slurm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the same on the cluster, in a thread: its exit status is to come."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent))
    monkeypatch.setattr(SlurmJob, "_results_timeout_s", 2)  # files of this disk are seen at once
    with ThreadPoolExecutor(1) as threads:
        yield lambda *options, **what: threads.submit(make, folder, *LAUNCHER, *options, **what)
        for job in slurm.jobs():  # left by a test that failed; without them the thread ends
            slurm.call("scancel", job)


def tables(folder: Path) -> dict[str, bytes]:
    """The numbers of the tables in a folder."""
    return {path.name: path.read_bytes() for path in (folder / "photos/tables").glob("*.csv")}


def the_same(folder: Path, alone: Path) -> bool:
    """Whether the tables of a folder are those of one process."""
    found, expected = tables(folder), tables(alone)
    return bool(found) and all(expected[name] == content for name, content in found.items())


def shards(folder: Path, source: str) -> dict[str, int]:
    """The finished shards of a source, and when they were written."""
    paths = (folder / "photos/steps").glob(f"ir-{source}-linf-*/0*.json")
    return {path.name: path.with_suffix(".b2").stat().st_mtime_ns for path in sorted(paths)}


def in_the_middle(
    slurm: Slurm, folder: Path, source: str, done: int = 0
) -> tuple[str, str, dict[str, int]]:
    """Waits for a shard of a source after the first `done`: its job, the node, what is finished."""
    wait_for(lambda: len(shards(folder, source)) > done, 90, f"a shard of {source}")
    (job,) = (name for name in slurm.jobs() if name.endswith(f"_{SOURCES.index(source)}"))
    return job, slurm.jobs()[job][1], shards(folder, source)


def kept(before: dict[str, int], folder: Path, source: str) -> bool:
    """Whether the work was continued: these shards were neither all, nor written again."""
    after = shards(folder, source)
    return 0 < len(before) < len(after) == 4 and before.items() <= after.items()


def test_an_array_over_both_nodes(slurm: Slurm, start: Start, folder: Path, alone: Path) -> None:
    status = start()
    nodes: set[str] = set()

    def over() -> bool:
        nodes.update(node for state, node in slurm.jobs().values() if state == "RUNNING")
        return status.done()

    wait_for(over, 120, "the array")
    assert status.result() == 0
    assert nodes == {"n1", "n2"}
    assert the_same(folder, alone)
    assert len(list((folder / "photos/log/slurm").glob("*/*_log.out"))) == len(SOURCES)
    for source in SOURCES:
        (log,) = (folder / "photos/log").glob(f"?-ir-{source}-linf/irattack.log")
        assert f"ir from {source} is done" in log.read_text()


def test_interactions_run_on_the_nodes(start: Start, folder: Path) -> None:
    assert start("steps=2", table="table4").result(120) == 0
    assert len(list((folder / "photos/tables").glob("table4-*.csv"))) == 1
    for source in SOURCES:
        (log,) = (folder / "photos/log").glob(f"?-ir-{source}-linf/irattack.log")
        assert f"ir from {source}, linf: interactions." in log.read_text()


def test_jobs_that_die_are_continued(
    slurm: Slurm, start: Start, folder: Path, alone: Path, capfd: pytest.CaptureFixture
) -> None:
    """One job is cancelled; the other's node dies, and then it is told that its time is up.

    The test sends that signal itself, SIGUSR2; Slurm sends it `signal_delay_s` before the limit.
    """
    first, second = SOURCES
    status = start("hydra.launcher.timeout_min=10")  # submitit: time is up at any signal
    before: dict[str, dict[str, int]] = {}
    while len(before) < 2:  # each at its first shard
        wait_for(lambda: any(shards(folder, s) for s in SOURCES if s not in before), 90, "a shard")
        for source in SOURCES:
            if source not in before and shards(folder, source):
                job, node, before[source] = in_the_middle(slurm, folder, source)
                if source == second:
                    slurm.call("scancel", job)
                else:
                    slurm.kill_node(node)
                    killed, lost = job, node
    try:
        wait_for(lambda: slurm.jobs()[killed] == ("PENDING", ""), 60, "the requeue")
    finally:
        slurm.start_node(lost)
    done = len(shards(folder, first))
    _, _, later = in_the_middle(slurm, folder, first, done)
    slurm.call("scancel", "--signal=USR2", killed)

    assert status.result(120) == 2  # it ends, although nobody keeps account of the cancelled job
    last = capfd.readouterr().err.splitlines()[-1]
    missing = f"source={second} attack=ir norm=linf target=resnet152; Slurm's job"
    assert last.startswith(f"irattack: table1: 1 of 2 results are missing: {missing}")
    assert "was cancelled or killed; the work of the others is kept" in last
    assert kept(before[first], folder, first)
    assert kept(later, folder, first)
    assert not tables(folder)
    log = next((folder / "photos/log/slurm").glob(f"*/{killed}_0_log.out")).read_text()
    assert "this job is timed-out" in log
    assert "Requeued job" in log

    assert start().result(120) == 0
    assert "+cell" not in "".join(capfd.readouterr())
    launched = (folder / "photos/log/irattack.log").read_text().split("sweep output dir")
    assert re.findall(r"#\d+ : \S+", launched[-1]) == [f"#0 : +cell=linf-{second}-ir-0"]
    assert kept(before[second], folder, second)
    assert the_same(folder, alone)


def test_submit_and_leave(
    slurm: Slurm, start: Start, folder: Path, capfd: pytest.CaptureFixture
) -> None:
    """Jobs are held until the test lets them go, so that it can look at them in the queue."""
    few = ["steps=2", "+hydra.launcher.additional_parameters.hold=true"]
    second = SOURCES[1]
    settings = [*SMALL, "steps=2", f"output={folder}"]

    def submitted(*sentences: str) -> dict[str, str]:
        """Submits, reads what is printed: the states of the jobs that are in the queue then."""
        assert make(folder, *LAUNCHER, *few, command=submit.main) == 0
        printed = capfd.readouterr().out
        assert all(sentence in printed for sentence in sentences), printed
        return {number: state for number, (state, _) in slurm.jobs().items()}

    def let_go(*jobs: str) -> None:
        slurm.call("scontrol", "release", ",".join(jobs))

    def waiting() -> list[str]:
        """The columns `queued` and `running` of the table."""
        lines = status.status(plans(settings)).splitlines()
        return next(line for line in lines if line.startswith("table1")).split()[-2:]

    def over(*jobs: str) -> None:
        wait_for(lambda: not {*jobs} & slurm.jobs().keys(), 240, f"the end of {jobs}")

    first = submitted("table1: 2 cells submitted as Slurm's job", "aggregate table1")
    assert sorted(first.values()) == ["PENDING"] * 3
    one, other, table = sorted(first, key=lambda number: ("_" not in number, number))
    assert waiting() == ["2", "0"]
    assert submitted(f"2 cells in job {one[:-2]} already; job {table} (log: ") == first

    slurm.call("scancel", other)
    let_go(one, table)
    over(one, table)
    assert waiting() == ["0", "0"]
    (log,) = (folder / "photos/log/slurm").glob(f"*/table/{table}_0_log.out")
    assert f"1 of 2 results are missing: source={second} attack=ir norm=linf" in log.read_text()
    assert not tables(folder)

    # Only what is missing is submitted, and whoever wants it too waits for the same job.
    again = submitted("table1: 1 cell submitted as Slurm's job")
    assert len(again) == 2
    assert not {*again} & {*first}
    waited = start(*few)
    wait_for(lambda: SlurmJob.watcher.num_calls > 0, 30, "waiting for it")
    let_go(*again)
    over(*again)
    assert waited.result(60) == 0
    assert not slurm.jobs()
    assert not queue.queue()
    written = tables(folder)
    (log,) = (folder / "photos/log/slurm").glob(f"*/table/{max(again)}_0_log.out")
    assert f"Written to {folder}/photos/tables" in log.read_text()
    assert make(folder, "steps=2", command=reproduce.aggregate) == 0
    assert tables(folder) == written
