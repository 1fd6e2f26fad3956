"""Hydra's launchers: several processes make what one makes, and what is missing is named."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from irattack.commands import launch, reproduce
from irattack.commands.launch import as_sweep, failures, of_launcher
from irattack.conf import CONF

SMALL = [
    *("images=8", "steps=2", "samples=2", "grid=4", "cells=3", "threads=1", "source=resnet34"),
    "targets=[vgg16,resnet152]",
]
Make = Callable[..., tuple[int, str, str]]


@pytest.fixture
def make(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Runs `irattack reproduce table1 …` here: (exit status, stdout, stderr)."""

    def call(
        folder: Path, *options: str, table: str = "table1", aggregate: bool = False
    ) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["reproduce", table, f"output={folder}", *SMALL, *options])
        status = 0
        try:
            reproduce.main(aggregate)
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return status, *capfd.readouterr()

    return call


def tables(folder: Path) -> dict[str, bytes]:
    """All but the record, which names the output folder."""
    found = (folder / "photos/tables").iterdir()
    return {path.name: path.read_bytes() for path in found if path.suffix != ".json"}


def test_two_processes_make_the_same_files(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent))
    alone, together = tmp_path / "alone", tmp_path / "together"
    status, _, err = make(alone, aggregate=True)
    assert status == 2
    assert err.startswith("irattack: table1: 8 of 8 results are missing: source=resnet34 attack=")
    assert err.count("\n") == 1
    assert not alone.exists()

    status, printed, err = make(alone)
    assert status == 0, err
    status, also, said = make(together, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert status == 0, said
    for out in (printed, also):  # neither tables of single cells, nor what Hydra does
        assert out.startswith("Table 1: ")
        assert not re.search(r"^resnet34|Launching|launching|#0|Accuracy", out, re.M)
    for told in (err, said):  # of no terminal: no bar
        assert "\r" not in told
        assert told.startswith("table1: 0 of 4 cells, choosing images…\n")
        assert re.search(r"^table1: [1-4] of 4 cells", told, re.M)
    assert len(tables(alone)) == 4
    assert tables(together) == tables(alone)
    logs = sorted((together / "photos/log").glob("*/irattack.log"))
    assert [path.parent.name for path in logs] == [
        *("0-pgd-resnet34-linf", "1-ir-resnet34-linf", "2-pgd-resnet34-l2", "3-ir-resnet34-l2")
    ]
    for path in logs:  # each of its own job alone
        attack = path.parent.name.split("-")[1]
        lines = path.read_text().splitlines()
        assert f"{attack} from resnet34 starts" in lines[0]
        assert f"{attack} from resnet34 is done" in lines[-1]
        assert path.read_text().count("starts") == 1

    # The disk decides: a result that is gone is named, the rest is not run again.
    (gone,) = (together / "photos/results").glob("ir-resnet34-l2-*/vgg16-*.json")
    gone.unlink()
    shutil.rmtree(together / "photos/tables")
    status, out, err = make(together, aggregate=True)
    assert status == 2
    assert "Written" not in out
    named = "1 of 8 results are missing: source=resnet34 attack=ir norm=l2 target=vgg16; run"
    assert named in err
    status, out, err = make(together)
    assert status == 0, err
    assert "Launching" not in out + err
    assert "+cell" not in out + err
    launched = (together / "photos/log/irattack.log").read_text().split("Launching")
    assert "#0 : +cell=l2-resnet34-ir" in launched[-1]
    assert "#1 : " not in launched[-1]
    assert tables(together) == tables(alone)
    status, out, _ = make(together, aggregate=True)
    assert status == 0
    assert printed.endswith(out[-200:].replace("together", "alone"))


def test_a_failed_job_is_a_sentence(make: Make, tmp_path: Path) -> None:
    """The other job's work is kept; each has its log."""
    assert make(tmp_path / "alone", "attack=ir", "norm=linf")[0] == 0
    (shards,) = (tmp_path / "alone/photos/steps").iterdir()
    folder = tmp_path / "together"
    (folder / "photos/steps").mkdir(parents=True)
    (folder / "photos/steps" / shards.name).touch()  # a file where the shards of IR should go
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    status, _, err = make(folder, "attack=pgd,ir", "norm=linf", *options)
    assert status == 2
    assert "irattack: cannot write" in err.splitlines()[-1]
    (log,) = (folder / "photos/log").glob("1-ir-*/irattack.log")
    assert "ir from resnet34 failed" in log.read_text()
    assert len(list((folder / "photos/results").glob("pgd-resnet34-linf-*/*.json"))) == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("hydra/launcher=slrum", "did you mean slurm"),
        ("hydra.launcher.n_job=2", "no such setting"),
        ("hydra/launcher=slurm", "there is no sbatch on this machine"),
    ],
)
def test_a_mistake_is_a_sentence(
    override: str, sentence: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status, out, err = make(tmp_path, override)
    assert (status, out) == (2, "")
    assert err.startswith("irattack: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_interactions_run_in_the_workers(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table 4 and the propositions, whose jobs are no attacks of the pipeline, alike."""
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent))
    status, _, err = make(tmp_path, "attack=pgd,ir", table="table4", aggregate=True)
    assert status == 2
    assert "table4: 6 of 6 results are missing" in err
    assert "attack=pgd norm=linf interactions;" in err
    options = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    status, out, err = make(tmp_path, "attack=pgd,ir", *options, table="table4")
    assert status == 0, err
    assert "Written to" in out
    for log in (tmp_path / "photos/log").glob("[0-9]-*/irattack.log"):
        assert re.search(r"(pgd|ir) from resnet34, linf: results\.", log.read_text())
        assert re.search(r"(pgd|ir) from resnet34, linf: interactions\.", log.read_text())
    status, out, err = make(tmp_path, "attack=pgd,ir", table="table4", aggregate=True)
    assert status == 0, err


def test_failures_keep_a_bug_of_a_single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["irattack", "-m"])
    with pytest.raises(ZeroDivisionError), failures():
        raise ZeroDivisionError
    monkeypatch.setattr(sys, "argv", ["irattack", "-m", "hydra/launcher=joblib"])
    with pytest.raises(ValueError, match=r"a job failed \(RuntimeError: killed\)"), failures():
        raise RuntimeError("Some\nlong story\nkilled.\n")
    said = "sbatch: error: invalid partition: gpu\nsbatch: error: Batch job submission failed.\n"
    sentence = r"refuses the jobs \(invalid partition: gpu; Batch job submission failed\); the work"
    with pytest.raises(ValueError, match=sentence), failures():
        raise RuntimeError(f"CalledProcessError: ['sbatch', 'x.sh']\n{said}")


def test_overrides_of_the_launcher() -> None:
    given = ["hydra/launcher=slurm", "hydra.launcher.mem_gb=4", "+hydra.launcher.a=1", "lam=1"]
    assert [of_launcher(text) for text in given] == [True, True, True, False]


def test_choices_of_equal_values_are_told_apart() -> None:
    first, second = as_sweep([{"source": "a", "c": 1}, {"source": "a", "p": 1}])[6:].split(",")
    assert first != second


@pytest.mark.parametrize(
    ("launcher", "n_jobs", "threads", "cure"),
    [
        ("joblib.JoblibLauncher", -1, 2, " use threads=1."),
        ("joblib.JoblibLauncher", -2, 3, " use threads=1."),
        ("joblib.JoblibLauncher", 4, 3, " use threads=2."),
        ("joblib.JoblibLauncher", 4, 2, ""),
        ("joblib.JoblibLauncher", 16, 1, " use hydra.launcher.n_jobs=8 threads=1."),
        ("BasicLauncher", 4, 8, ""),
    ],
)
def test_more_threads_than_cores_are_told(
    monkeypatch: pytest.MonkeyPatch, launcher: str, n_jobs: int, threads: int, cure: str
) -> None:
    monkeypatch.setattr(launch, "cpu_count", lambda: 8)
    own = {"_target_": launcher, "n_jobs": n_jobs}
    told = launch.crowded(OmegaConf.create({"threads": threads, "hydra": {"launcher": own}}))
    assert bool(told) == bool(cure)
    assert told.endswith(cure)
