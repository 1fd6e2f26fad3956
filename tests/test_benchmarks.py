"""Benchmarks that are data alone: their yamls, and the command on images of their form."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from irattack.commands import composing, plans, reproduce, status
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF, OWN
from irattack.errors import InputError
from irattack.models import zoo
from irattack.models.network import networks
from irattack.pipeline.settings import settings_of

ROOT = Path(__file__).parents[1]
CIFAR = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"


@pytest.fixture
def configs() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.mark.usefixtures("configs")
def test_nips2017_attacks_all_images_with_the_networks_of_imagenet() -> None:
    cfg = compose("config", overrides=["benchmark=nips2017"])
    settings_of(cfg)
    assert cfg.benchmark.size == 299
    assert cfg.images == 1000
    assert not cfg.benchmark.sources
    assert zoo.names("nips2017") == zoo.names("imagenet")
    for name in ("vgg16", "ensemble", "inception_v3_ens3", "resnet18.a1_in1k"):
        assert zoo.card("nips2017", name) == zoo.card("imagenet", name)


def test_models_of_an_unknown_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN, str(tmp_path))
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "pets.yaml").write_text("models: imagnet\n")
    with pytest.raises(InputError, match=r"models=imagnet: did you mean imagenet\? expected"):
        zoo.owner("pets")


@pytest.mark.usefixtures("configs")
@pytest.mark.parametrize("name", zoo.names("cifar10"))
def test_networks_of_cifar10_see_every_pixel(name: str) -> None:
    settings_of(compose("config", overrides=["benchmark=cifar10", f"source={name}", "attack=sgm"]))
    network = zoo.build("cifar10", name, pretrained=False)
    x = torch.rand(2, 3, 32, 32)
    assert network(x).shape == (2, 10)
    body: Any = networks(network)[0].body
    assert body.forward_features(x).shape[-2:] == (4, 4)  # only the stages halve it, thrice


def run(folder: Path, *overrides: str, **environment: str) -> str:
    given = ["pretrained=false", "benchmark.sources=[]", "attack=ir", "samples=1", "steps=2"]
    command = [sys.executable, "-m", "irattack", *given, *overrides, "threads=1"]
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8"))


def test_cifar10_from_batches_to_rates(tmp_path: Path) -> None:
    tmp_path.joinpath("test_batch.bin").write_bytes(bytes(4 * 3073))
    given = [f"benchmark.data.folder={tmp_path}", "source=resnet18", "targets=[resnet34]"]
    found = run(ROOT, "benchmark=cifar10", *given, "images=3", f"output={tmp_path / 'outputs'}")
    assert "ResNet-34" in found or "resnet34" in found


def test_a_benchmark_of_ones_own_needs_no_python(tmp_path: Path) -> None:
    """One yaml of a benchmark, two of networks, one array file; on a terminal of ASCII."""
    example = (CONF / "benchmark" / "cifar10.yaml").read_text()
    own = example.replace("name: cifar10", "name: pets").replace("size: 32 ", "size: 8 ")
    own = own.replace(f"[{CIFAR}]", "3").replace("classes: 10", "classes: 3")
    own = own.replace("grid: 16", "grid: 4").replace("cells: 32", "cells: 4")
    for folder in ("benchmark", "model/pets", "table"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    (tmp_path / "own" / "benchmark" / "pets.yaml").write_text(own)
    for name in ("one", "two"):
        card = "factory: irattack.models.small.resnet34\nweights: pets.safetensors\n"
        (tmp_path / "own" / "model" / "pets" / f"{name}.yaml").write_text(card)
    table = "title: λ\ncells: [{norm: linf, source: one, attack: [pgd, ir]}]\ngain: [[pgd, ir]]\n"
    (tmp_path / "own" / "table" / "pets.yaml").write_text(table + "targets: [two]\n")
    data = tmp_path / "pets.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(data, images=pixels, labels=np.arange(6) % 3)
    given = ["--config-dir", "own", "benchmark=pets", f"benchmark.data.folder={data}", "images=6"]
    ascii_ = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    assert "two" in run(tmp_path, *given, "source=one", "targets=[two]", **ascii_)
    assert len(list((tmp_path / "outputs" / "pets" / "images").glob("*.json"))) == 1
    for _ in range(2):
        command = ["reproduce", "pets", *given, "pretrained=false", "benchmark.sources=[]"]
        known = {**os.environ, "PYTHONPATH": str(ROOT), **ascii_}
        words = [sys.executable, "-m", "irattack", *command, "threads=1", "steps=2", "samples=1"]
        done = subprocess.run(words, cwd=tmp_path, env=known, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"IR against PGD, L?: higher on" in done.stdout
    (written,) = (tmp_path / "outputs/pets/tables").glob("*.md")
    assert "# λ" in written.read_text("utf-8")


def test_a_yaml_is_called_as_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy with the old name would be that one to results, to models and to tables."""
    copy = tmp_path / "benchmark/forgot.yaml"
    copy.parent.mkdir()
    copy.write_text((CONF / "benchmark/cifar10.yaml").read_text())
    monkeypatch.setenv(OWN, str(tmp_path))
    sentence = "benchmark=forgot: its yaml has `name: cifar10`; write `name: forgot` there"
    with composing.hydra(), pytest.raises(InputError, match=sentence):
        composing.composed(["benchmark=forgot"])


def test_a_broken_table_hinders_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
) -> None:
    mine = tmp_path / "table/mine.yaml"
    mine.parent.mkdir()
    mine.write_text("title: mine\ncells: [{norm: linf, source: few, attack: dim}]\n")
    monkeypatch.setenv(OWN, str(tmp_path))
    register_resolvers()
    names = ("fig3a", "mine", "table4")
    few = {name: path for name, path in plans.definitions().items() if name in names}
    monkeypatch.setattr(plans, "definitions", lambda: few)
    assert list(plans.plans([])) == ["fig3a", "table4"]
    assert f"{mine} is left out: attack=dim: did you mean" in caplog.text
    with pytest.raises(
        InputError, match=f"^nothing is done while {mine} cannot be read: attack=dim: did"
    ):
        plans.plans([], strict=True)
    monkeypatch.setattr("sys.argv", ["clean", f"output={tmp_path}"])
    with pytest.raises(SystemExit, match="2"):
        status.clean()  # what it needs would be removed
    assert f"nothing is done while {mine} cannot be read" in capsys.readouterr().err
    with pytest.raises(InputError, match="eps=2: expected a radius"):
        plans.plans(["eps=2"])


@pytest.mark.parametrize("wrong", ["lamm: [1, 2]", "attack.accumulate.mu: [0.9]"])
def test_a_table_with_a_setting_that_there_is_not(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "table/mine.yaml"
    mine.parent.mkdir()
    mine.write_text(f"title: mine\ncells: [{{norm: linf, source: few, attack: pgd, {wrong}}}]\n")
    monkeypatch.setenv(OWN, str(tmp_path))
    register_resolvers()
    name = wrong.split(":")[0]
    sentence = f"^{name}=…: no such setting with norm=linf attack=pgd"
    with composing.hydra(), pytest.raises(InputError, match=sentence):
        plans.plan("mine", [])


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], plans.Plan]:
    """The plan of a table of one's own, from what its yaml says besides the title."""
    register_resolvers()
    monkeypatch.setenv(OWN, str(tmp_path))
    path = tmp_path / "table/mine.yaml"
    path.parent.mkdir()

    def planned(text: str) -> plans.Plan:
        path.write_text(f"title: mine\n{text}\n")
        with composing.hydra():
            return plans.plan("mine", [f"output={tmp_path / 'out'}"])

    return planned


def test_a_row_decides_before_the_settings_of_its_table(
    mine: Callable[[str], plans.Plan],
) -> None:
    row = "{norm: linf, source: alexnet, attack: pgd, steps: [2, 9]}"
    table = mine(f"settings: {{steps: 5, lam: 2}}\ncells: [{row}]")
    assert [(cell.method, cell.cfg.attack.steps) for cell in table.cells] == [
        ("pgd steps=2", 2),
        ("pgd steps=9", 9),
    ]
    assert {cell.cfg.lam for cell in table.cells} == {2}


def test_rows_that_differ_in_what_is_measured_alone_are_all_kept(
    mine: Callable[[str], plans.Plan],
) -> None:
    """Not in the perturbations, of which the grid is no part."""
    jobs = "jobs: [{_target_: irattack.pipeline.measures.Contributions}]"
    row = "{norm: linf, source: alexnet, attack: pgd, grid: [4, 8], lam: [1, 2]}"
    table = mine(f"{jobs}\ncells: [{row}]")
    assert [cell.cfg.grid for cell in table.cells] == [4, 8]
    assert len({cell.key for cell in table.cells}) == 1
    assert len(plans.once(table.chosen)) == 2


@pytest.mark.parametrize(
    "what",
    [
        "gain: [[pgd seed=0, pgd seed=1]]",
        "claims: [{says: x, more: mi seed=1, less: pgd seed=0, norm: linf}]",
        "claims: [{says: x, more: mi seed=1, norm: linf}]",
    ],
)
def test_what_is_compared_must_be_of_the_same_images(
    what: str, mine: Callable[[str], plans.Plan]
) -> None:
    row = "{norm: linf, source: alexnet, attack: [pgd, mi], seed: [0, 1]}"
    fine = "claims: [{says: x, more: mi seed=1, less: pgd seed=1, norm: linf}]"
    reproduce.writer(mine(f"gain: [[pgd seed=1, mi seed=1]]\n{fine}\ncells: [{row}]"))
    with pytest.raises(InputError, match=r"^mine: compares .* image by image, and they are of dif"):
        reproduce.writer(mine(f"{what}\ncells: [{row}]"))


def test_a_cell_of_two_legs_is_attacked_once() -> None:
    register_resolvers()
    with composing.hydra():
        chosen = plans.plan("evidence", ["source=alexnet"]).chosen
    names = [cell.method for cell, _ in chosen]
    once = [cell.method for cell, _ in plans.once(chosen)]
    assert [name for name in names if name not in once] == ["ir lam=2"]


def test_a_launcher_gets_a_cell_of_two_legs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["source=alexnet", "norm=linf", "attack=ir", f"output={tmp_path}"]
    register_resolvers()
    with composing.hydra():
        table = plans.plan("evidence", given)
    assert [cell.method for cell in table.cells] == ["ir", "ir lam=0.5", "ir lam=1", "ir lam=2"]
    ran = list[list[str]]()
    monkeypatch.setattr("irattack.commands.run.job", lambda: ran.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["irattack"])
    reproduce.run("evidence", table.chosen, table.overrides)
    ((multirun, sweep, *others),) = ran
    assert multirun == "-m"
    assert len(sweep.split(",")) == 3
    assert others == table.overrides
