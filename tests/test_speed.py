"""Bench and estimate: the straightforward way is the same attack, and passes are counted right."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from irattack.attacks.loop import Attack
from irattack.attacks.norms import Linf
from irattack.attacks.objective import gradient, to_pixels
from irattack.attacks.pieces import Interaction
from irattack.attacks.randomness import Draws
from irattack.commands import bench, composing, estimate, overhead, plans, settings
from irattack.conf import CONF
from irattack.errors import UnfitError
from irattack.pipeline import speed
from irattack.pipeline.cell import Cell


@pytest.fixture(autouse=True)
def resolvers() -> Iterator[None]:
    settings.register_resolvers()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    GlobalHydra.instance().clear()


def test_the_straightforward_way_has_the_same_gradient(smooth: nn.Module, images: Tensor) -> None:
    """Bench compares two ways to the same number."""
    term = Interaction(lam=1.5, samples=4, cells=3, grid=4, rival="step")
    y, ids = smooth(images).argmax(dim=1), [f"image-{i}" for i in range(9)]
    delta = 0.1 * torch.randn(images.shape, dtype=torch.float64)
    attack = Attack(Linf(0.1, 0.01), 1, interaction=term)
    terms = attack.terms(delta, ids, 1, Draws(0))
    ours = gradient(smooth, images, delta, y, terms, micro_batch=7)
    sets = Draws(0).subsets(ids, 1, 4, 3, 4)
    masks = to_pixels(sets, 16, 16)[:, :, None].double()
    theirs = bench.per_image(smooth, images, delta, y, masks, 1.5)
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("pgd", 1), ("mi", 1), ("sgm", 1), ("vr", 8), ("ir", 17), ("ironly", 17)),
        *(("vrir", 8 + 17), ("hybridir", 8 + 17), ("maskaug", 16), ("di", 1)),
    ],
)
def test_probes_of_a_step(name: str, count: int) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cell = Cell(compose("config", overrides=[f"attack={name}"]))
    assert speed.probes(instantiate(cell.steps_facts["attack"])) == count


@pytest.mark.parametrize(
    ("name", "batches", "most"),
    [
        *(("pgd", 1, 60), ("pgd norm=l2", 1, 65), ("mi", 1, 60), ("ti", 1, 60), ("sgm", 1, 60)),
        *(("di", 1, 150), ("vr", 9, 35), ("ir", 26, 50), ("maskaug", 25, 50)),
        ("hybridir", 35, 50),
    ],
)
def test_a_step_takes_few_operators_and_never_waits(name: str, batches: int, most: int) -> None:
    """At the sizes of benchmark=imagenet, 50 images; the operators do not depend on their size."""
    given = [
        "benchmark=imagenet",
        "source=resnet34",
        "grid=4",
        "cells=4",
        *f"attack={name}".split(),
    ]
    given += ["pretrained=false", "benchmark.sources=[]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        attack = instantiate(Cell(compose("config", overrides=given)).steps_facts["attack"])
    found = overhead.counts(attack, images=50, size=8, micro_batch=128)
    assert found["micro_batches"] == batches
    assert 20 < found["operators_per_micro_batch"] <= most
    assert found["synchronisations"] == 0


def test_what_waits_for_the_device_is_counted() -> None:
    steps: dict[str, Callable[[Tensor], object]] = {
        "item": lambda g: g.sum().item(),
        "if": lambda g: bool(g.any()),
        "list": lambda g: g[0, 0, 0].tolist(),
        "copy": lambda g: g.cpu(),
        "upload": lambda g: torch.ones(3).to(g),
        "none": lambda g: torch.ones(3).to(g.device, non_blocking=True),
    }
    for name, wait in steps.items():

        def smooth(g: Tensor, wait: Callable[[Tensor], object] = wait) -> Tensor:
            wait(g)
            return g

        attack = Attack(Linf(0.1, 0.01), 2, smooth=smooth)  # type: ignore[arg-type]
        found = overhead.counts(attack, images=2, size=8, micro_batch=4)
        assert found["synchronisations"] == (name != "none"), name


def test_bench_knows_every_benchmark() -> None:
    """What conf/bench.yaml lacks is that of the images nearest in size."""
    listed = OmegaConf.create({"imagenet": 2, "photos": 64})
    sizes = {"photos": 32, "cifar10": 32, "nips2017": 299, "imagenet": 224}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = [composing.nearest(listed, name, size) for name, size in sizes.items()]
        assert found == [64, 64, 2, 2]
        cfg = compose("bench", overrides=["benchmark=cifar10"])
    assert cfg.benchmark.source_sets.paper == ["resnet18", "resnet34", "resnet50"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("controls", "protocol=authors needs skip connections"),
        ("table2", "target=secured is neither"),
        ("fig1", "target=resnet152 is neither"),
    ],
)
def test_a_table_that_a_benchmark_cannot_make_is_left_out(name: str, why: str) -> None:
    """Estimate and status skip it: plans.plans suppresses this error alone."""
    given = ["benchmark=cifar10", "pretrained=false", "threads=1"]
    given += ["attack=hybridir"] if name == "controls" else []
    with composing.hydra(), pytest.raises(UnfitError, match=why):
        plans.plan(name, given)


def test_bench_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "bench.json"
    options = ["networks.imagenet=[]", "networks.photos=[alexnet]", "rounds=1", "seconds=0.05"]
    options += [
        f"output={path}",
        "images.cpu.photos=4",
        "batches.cpu.photos=[16]",
        "overhead={attacks:[vr],images:2,size:32,micro_batch:16}",
        "threads=1",
        "device=cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    bench.main()
    found = json.loads(path.read_text())
    network = found["networks"]["photos/alexnet"]
    assert network["probes_per_step"] == 17
    for fact in ("fraction_of_limit", "speedup_vs_per_image"):
        low, high = network[f"{fact}_range"]
        assert 0 < low <= network[fact] <= high
    ratio = network["image_steps_per_s"] / network["limit_image_steps_per_s"]
    assert network["fraction_of_limit"] == pytest.approx(ratio, rel=1e-2)
    assert found["outside_networks"]["vr"]["micro_batches"] == 4  # 2 x 20 probes, 10 at once
    assert found["outside_networks"]["vr"]["milliseconds"] > 0
    assert found["precision"] == "fp32"
    assert 0 < found["cache"]["ratio"] < 1
    out = capsys.readouterr().out
    assert "photos/alexnet" in out
    assert found["device"] in out


def test_estimate_counts_passes_and_bytes() -> None:
    """Hours are passes over rates; a cell that two tables share counts once together."""
    given = ["images=10", "source=resnet34", "norm=linf", "attack=ir", "threads=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        tables = {name: plans.plan(name, given) for name in ("table1", "table2")}
    (cell,) = tables["table1"].cells
    rates = estimate.Speeds({"resnet34": 100.0}, dict.fromkeys(cell.targets, 50.0))
    assert estimate.attack_seconds(cell, rates) == pytest.approx(10 * 20 * 17 / 100)
    assert estimate.evaluation_seconds(cell, rates) == pytest.approx(10 * 20 * 7 / 50)
    assert estimate.cache_bytes(cell, 0.5) == 10 * 20 * 3 * 32 * 32 / 2
    printed = estimate.estimate({"table1": tables["table1"], "again": tables["table1"]}, 0.01)
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    assert lines["table1"][1:] == lines["again"][1:] == lines["together"][1:]
