"""The command line as its users meet it: results, and one sentence for each mistake."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from irattack.commands import plans, reproduce
from irattack.commands import run as command
from irattack.commands.cli import one_sentence
from irattack.conf import CONF, OWN
from irattack.models import zoo
from irattack.pipeline.files import write_text

QUICK = ["images=8", "steps=2", "samples=2", "targets=[alexnet]", "threads=1"]
Result = tuple[int, str, str]
Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `irattack …` in this process: (exit status, stdout, stderr).

    Of stdout without the line which says that images are chosen: they may be before a mistake.
    """
    choosing = re.compile(r"^\[.*\] Choosing \d+ images that .*\n", re.M)

    def call(*arguments: str, entry: Callable[[], None] = command.main) -> Result:
        monkeypatch.setattr(sys, "argv", ["irattack", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        status = 0
        try:
            entry()
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        finally:
            GlobalHydra.instance().clear()
        captured = capsys.readouterr()
        return status, choosing.sub("", captured.out), captured.err

    monkeypatch.chdir(tmp_path)
    return call


MISTAKES = {
    "source=resnet35": "did you mean resnet34",
    "targets=vgg15": "did you mean vgg16",
    "targets=[vgg16,resnet15]": "targets=resnet15: did you mean resnet152",
    "targets=[]": "at least one name",
    "targets=5": "expected a list",
    "targets=[vgg16,vgg16]": "listed twice",
    "gamma=2": "factor in (0, 1]",
    "attack=irr": "attack=irr: did you mean ir",
    "norm=l3": "norm=l3: did you mean l2",
    "benchmark=photo": "did you mean photos",
    "lam=-1": "must be 0 or more",
    "lam=abc": "expected a finite number",
    "lam=1e999": "expected a finite number",
    "lam=true": "expected a finite number",
    "eps=true": "radius in (0, 1]",
    "eps=0": "radius in (0, 1]",
    "eps=1.01": "radius in (0, 1]",
    "eps=256/255": "radius in (0, 1]",
    "steps=0": "whole number of 1 or more",
    "samples=0": "whole number of 1 or more",
    "cells=0": "whole number of 1 or more",
    "steps=1.5": "whole number of 1 or more",
    "cells=65": "has only 64 cells",
    "grid=33": "finer than the image",
    "images=100000": "classified correctly by every source model",
    "benchmark.step_size.linf=abc": "expected a number in (0, 1]",
    "benchmark.step_size.linf=-1": "expected a number in (0, 1]",
    "benchmark.step_size.linf=2": "expected a number in (0, 1] for images in [0, 1], such as 2/255",
    "benchmark.step_size.l2=0": "expected a finite number above 0",
    "norm.step_size=2": "norm.step_size=2: expected a step in (0, 1]",
    "benchmark.sigma=15": "expected a number from 0 to 1 for images in [0, 1], or 15/255",
    "benchmark.kernel=4": "odd whole number",
    "norm=free": "belong together",
    "norm.eps=16": "norm.eps=16: expected a radius in (0, 1]",
    "norm.step_size=0": "norm.step_size=0: expected a finite number above 0",
    "benchmark.model.lam=5": "cannot be set here",
    "source=[alexnet,vgg16]": "expected one model; with -m",
    "+foo=1": "foo=…: no such setting",
    "cache.steps=[0]": "cache.steps=[0]: expected all, none, or a list of steps",
    "cache.steps=[500]": "this attack has only 20 steps",
    "shard=9/8": "expected i/n with i from 1 to n",
    "pretrained=1": "pretrained=1: expected true or false",
    "seed=1.5": "seed=1.5: expected a whole number",
    "seed=-1": "seed=-1: expected a whole number of 0 or more",
    "weights_dir=nowhere": "weights_dir=nowhere: no such folder",
    "precision=fp16": "did you mean bf16",
    "output=''": "expected the path of a folder",
    "protocol.rival=foo": "protocol.rival=foo: expected one of set, step",
    "protocol.skip_at_zero=1": "protocol.skip_at_zero=1: expected true or false",
    "+protocol.foo=1": "protocol.foo=…: no such setting",
    "device=gpu": "device=gpu: expected auto, cpu, cuda, or one GPU such as cuda:3",
    "manifest=nowhere.json": "manifest=nowhere.json: no such file",
    "jobs=[{_target_:irattack.pipeline.measures.NeighbourMaps,drawn:0}]": "one image",
    "output=[1]": "output=[1]: expected the path of a folder",
    "jobs=[{_target_:nowhere.Work}]": "cannot be made",
    "jobs=[{_target_:irattack.pipeline.measures.Contributions,len:1}]": "cannot be made",
    "jobs=[{_target_:irattack.pipeline.measures.Contributions,length:-1}]": "a number above 0",
    "jobs=[{_target_:builtins.id}]": "is no job",
    "benchmark.target_sets.paper=[resnet34]": "this set holds no network but the source",
    "loss=foo": "expected one of ce, logit, margin",
    "start=foo": "expected one of auto, random, zero",
    "lam=0,1": "-m to run once for each",
    "epsilon=1": "did you mean precision or eps",
    "attack.norm.epsilon=1": "no such setting",
    "lam": "lam: is no setting; settings are given as name=value",
    "benchmark.data.split=foo": "expected one of train, val, test",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, run: Run, tmp_path: Path) -> None:
    status, out, err = run("attack=ir", mistake)
    assert status == 2
    assert err.startswith("irattack: ")
    assert err.count("\n") == 1
    assert MISTAKES[mistake] in err
    assert out == ""
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"]
    assert left == []


@pytest.mark.parametrize("folder", ["null", "/nowhere"])
def test_images_are_looked_for_before_weights(folder: str, run: Run) -> None:
    given = ["benchmark=imagenet", f"benchmark.data.folder={folder}", "source=resnet34"]
    status, out, err = run(*given)
    assert (status, out) == (2, "")
    assert re.match(r"irattack: benchmark\.data\.folder", err)
    assert err.count("\n") == 1


def test_labels_are_read_before_weights(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    def never(*_: object) -> None:
        raise AssertionError("labels come first")

    monkeypatch.setattr(zoo.files, "find_weights", never)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "1.png").touch()
    (tmp_path / "labels.csv").write_text("filename,label\n1.png,5\n")
    given = ["benchmark=imagenet", f"benchmark.data.folder={tmp_path / 'val'}", "source=resnet34"]
    for file, said in (("labels.csv", "counts classes from 0 or from 1"), ("no", "cannot be read")):
        status, out, err = run(*given, f"benchmark.data.ground_truth={tmp_path / file}")
        assert (status, out) == (2, "")
        assert err.startswith(f"irattack: benchmark.data.ground_truth={tmp_path / file}")
        assert said in err


def test_a_slot_that_there_is_not(run: Run) -> None:
    status, out, err = run("attack=ir", "+attack.foo=3", *QUICK)
    assert (status, out) == (2, "")
    assert err.startswith("irattack: attack=ir: slot=foo: did you mean look? expected one of norm")
    assert err.count("\n") == 1
    _, _, err = run("attack=ir", "+attack.accumulator={mu:1}", *QUICK)
    assert "slot=accumulator: did you mean accumulate?" in err


def test_unknown_table(run: Run) -> None:
    status, _, err = run("table9", entry=reproduce.main)
    assert status == 2
    assert "did you mean table" in err


def test_one_cell_and_its_second_call(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["attack=ir", "source=alexnet", "norm=l2", *QUICK]
    status, first, err = run(*arguments)
    assert status == 0, err
    assert re.search(r"alexnet\s+ir\s+l2\s+alexnet\s+8\s+[\d.]+", first)

    def never(*_: object) -> None:
        raise AssertionError("the second call must answer from the disk")

    monkeypatch.setattr(zoo, "build", never)
    status, second, err = run(*arguments)
    assert status == 0
    assert "Accuracy on the 8 clean images, %: alexnet 100.0." in first
    assert first.endswith(second)
    status, _, _ = run(*arguments[:-1], "threads=1", "--cfg", "job")
    assert status == 0
    saved = next(tmp_path.rglob("alexnet-*.json")).read_text()
    for fact in ("config", "commit", "torch", "device", "precision", "ci_low"):
        assert f'"{fact}"' in saved


def test_multirun_and_whole_config(run: Run) -> None:
    status, out, err = run("-m", "attack=ir", "lam=0,1/2", "source=alexnet", *QUICK)
    assert status == 0, err
    assert len(re.findall(r"^alexnet", out, re.M)) == 2
    assert re.findall(r"^attack=ir lam=\S+ source=alexnet", out, re.M) == [
        "attack=ir lam=0 source=alexnet",
        "attack=ir lam=1/2 source=alexnet",
    ]
    assert "Launching" not in out + err
    status, out, _ = run("attack=ir", "source=alexnet", "--cfg", "job")
    assert status == 0
    assert "${" not in out
    assert "lam: 2" in out  # its own, from conf/model/photos


def test_changed_weights_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = zoo.weights
    monkeypatch.setattr(zoo, "weights", lambda *names: (real(*names)[0], "0" * 64))
    status, _, err = run("source=alexnet", *QUICK)
    assert status == 2
    assert "not the file whose SHA-256 is 000000000000" in err
    assert err.count("\n") == 1


def spawn(folder: Path, *arguments: str, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "irattack", f"output={folder}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    return subprocess.Popen(  # type: ignore[call-overload]
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_full_disk_is_a_sentence_and_continues(tmp_path: Path) -> None:
    arguments = ["source=alexnet", "images=64", "steps=4", "targets=[alexnet]", "threads=1"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    limited = spawn(tmp_path, *arguments, preexec_fn=limit)
    _, err = limited.communicate(timeout=120)
    assert limited.returncode == 2
    assert "file-size limit" in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.b2"))
    again = spawn(tmp_path, *arguments)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "alexnet" in out


def test_an_unwritable_folder_is_a_sentence(run: Run) -> None:
    status, _, err = run("source=alexnet", "output=/dev/null/x", *QUICK)
    assert status == 2
    assert "irattack: cannot write /dev/null/x" in err
    assert err.count("\n") == 1


def test_reading_is_not_called_writing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, missing = tmp_path / "file", tmp_path / "missing"
    file.write_text("")
    cases: dict[str, Callable[[], object]] = {
        f"cannot read {missing}: it is not there": missing.read_bytes,
        f"cannot read {tmp_path}: it is a folder": tmp_path.read_bytes,
        f"cannot read {file}/x: a part of the path is a file": (file / "x").read_bytes,
        f"cannot write {file}: a file is in the way": lambda: write_text(file / "x", ""),
        f"cannot write {file}/x/y: a part of": lambda: write_text(file / "x" / "y" / "z", ""),
        f"cannot write {missing}: the disk is full": lambda: no_space(missing),
    }
    for sentence, work in cases.items():
        with pytest.raises(SystemExit), one_sentence():
            work()
        assert capsys.readouterr().err.startswith(f"irattack: {sentence}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def no_space(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_ctrl_c_says_how_to_continue(tmp_path: Path) -> None:
    def listen() -> None:  # a test run in the background ignores SIGINT, and so would its child
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = spawn(tmp_path, "attack=ir", "steps=500", "threads=1", preexec_fn=listen)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("config.yaml")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to continue" in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.b2"))


def test_every_combination_is_checked_before_the_first_runs(run: Run, tmp_path: Path) -> None:
    status, out, err = run("attack=ir", "lam=0,abc", "-m", *QUICK)  # flags may stand anywhere
    assert status == 2
    assert "lam=abc: expected a finite number" in err
    assert out == ""
    assert not list(tmp_path.rglob("*.b2"))


def test_an_attack_goes_by_the_name_of_its_yaml(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    monkeypatch.setenv(OWN, str(own))
    (own / "attack").mkdir(parents=True)
    (own / "attack" / "mine.yaml").write_text("defaults: [base]\nname: pgd\n")
    status, out, err = run("attack=mine", f"--config-dir={own}", *QUICK)
    assert (status, out) == (2, "")
    assert "attack=mine: its yaml has `name: pgd`; write `name: mine` there." in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("given", ["device=cuda", "precision=tf32"])
def test_a_device_that_is_not_there_is_refused_before_images_are_chosen(
    given: str, run: Run, tmp_path: Path
) -> None:
    status, out, err = run("attack=ir", given, *QUICK)
    assert (status, out) == (2, "")
    assert err.startswith(f"irattack: {given}")
    assert not list(tmp_path.rglob("images"))


@pytest.mark.parametrize("flag", ["--norm", "--norm=l2", "-device"])
def test_a_flag_that_there_is_not(run: Run, flag: str) -> None:
    status, out, err = run("attack=pgd", flag, *QUICK)
    assert (status, out) == (2, "")
    assert err.startswith(f"irattack: {flag}: no such flag; settings are given as name=value")


def test_a_setting_without_effect_is_named(run: Run) -> None:
    status, out, _ = run("attack=pgd", "lam=2", "source=alexnet", *QUICK)
    assert status == 0
    assert "lam=… has no effect: attack=pgd does not use it." in out
    inside = "jobs=[{_target_:irattack.pipeline.measures.Contributions}]"
    small = ["grid=2", "cells=2", "images=2", "steps=1", "threads=1"]
    status, out, _ = run("attack=pgd", "source=alexnet", inside, *small)
    assert status == 0
    assert "cells=… has no effect" in out
    assert "grid=… has no effect" not in out
    status, out, _ = run("attack=noise", "loss=margin", "source=alexnet", *QUICK)
    assert "loss=… has no effect: attack=noise does not use it." in out
    status, out, _ = run("attack=ir", "lam=2", "source=alexnet", *QUICK)
    assert status == 0
    assert "no effect" not in out
    status, out, _ = run("attack=pgd", "eps=0.9/255", "source=alexnet", *QUICK)
    assert status == 0
    assert "eps=0.9/255 is below 1/255: in 8 bits every image stays as it is." in out


def test_relaxed_counts_the_images_that_never_reach_tau(run: Run, tmp_path: Path) -> None:
    options = ["attack=relaxed", "source=alexnet", "benchmark.relaxed.steps=20", *QUICK]
    counts = {}
    for name, tau in (("tau", "0.05"), ("attack.stop.tau", "50")):
        status, out, err = run(*options, f"{name}={tau}", f"output={tmp_path / tau}")
        assert status == 0, err
        record = next((tmp_path / tau).rglob("alexnet-*.json")).read_text()
        counts[tau] = re.search(r'"below_tau": (\d+)', record)
        assert re.search(r"alexnet\s+relaxed\s+free", out)
        assert f"of 8 images never reached ‖δ‖₂ = τ = {tau}" in out
    assert [found and int(found[1]) for found in counts.values()] == [0, 8]


def test_tables_of_two_folders_have_two_names() -> None:
    def name(folder: str) -> str:
        return plans.file_stem("table1", [f"benchmark.data.folder={folder}", "output=x"])

    assert name("/data/a") == "table1-benchmark.data.folder=_data_a" != name("/data/b")
    assert len({name(path) for path in ("/a/b", "/a_b", "/a b", "a/b", "a_b", "/a/b/")}) == 6
    assert plans.file_stem("fig1", ["eps=2/255", "attack=pgd,ir"]) == "fig1-eps=2_255-attack=pgd_ir"
    assert name(f"/{'x' * 250}/a") != name(f"/{'x' * 250}_a")
    long = [name(f"/{'data/' * 50}{last}") for last in "ab"]
    assert len({*long}) == 2
    assert all(len(one) < 255 - len("_gain.csv") for one in long)
