"""Accuracy before any attack: plain computations, shifted labels, networks of known accuracy."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from irattack.commands import accuracy, composing
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF, OWN
from irattack.data import photos
from irattack.data.images import Candidates
from irattack.errors import InputError
from irattack.hashing import key
from irattack.models import zoo
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import Choice, images_of, listing, manifest
from irattack.pipeline.job import ensure, jobs_of
from irattack.pipeline.statistics import wilson
from irattack.results import record as records
from irattack.results.accuracy import doubt, facts, record

SHARED = Path(__file__).parents[2] / "shared" / "imagenet"


@pytest.fixture(autouse=True)
def resolvers() -> Iterator[None]:
    register_resolvers()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    GlobalHydra.instance().clear()


def cells(folder: Path, *overrides: str) -> list[Cell]:
    with composing.hydra():
        return accuracy.planned([*overrides, "threads=1", f"output={folder}"]).cells


def measured(folder: Path, *overrides: str) -> list[tuple[Cell, dict]]:
    found = cells(folder, *overrides)
    for cell in found:
        for job in jobs_of(cell):
            ensure(job)
    return [(cell, record(cell)) for cell in found]


def one_more() -> Candidates:
    """The test crops, every label one too high."""
    found = photos.candidates("test")
    return Candidates(found.ids, (found.labels + 1) % 16, found.read)


def test_rates_are_those_of_a_plain_computation(tmp_path: Path) -> None:
    count = 90
    ((_, row),) = measured(tmp_path, "source=alexnet", f"images={count}", "block=40", "seed=3")
    crops = photos.candidates("test")
    order = sorted(range(len(crops)), key=lambda i: key([3, crops.ids[i]]))[:count]
    images = crops.take(order)
    logits = zoo.build("photos", "alexnet")(torch.from_numpy(images.pixels).float() / 255)
    p = torch.softmax(logits, dim=1).numpy()
    named = p.argsort(axis=1)[:, ::-1]
    first = named[:, 0] == images.labels
    assert 0 < first.sum() < count  # images are not those that it classifies
    assert row["n"] == count
    assert row["top1_percent"] == pytest.approx(100 * first.mean())
    among = [label in five for label, five in zip(images.labels, named[:, :5], strict=True)]
    assert row["top5_percent"] == pytest.approx(100 * np.mean(among))
    limits = [row["top1_ci_low"] / 100, row["top1_ci_high"] / 100]
    assert limits == pytest.approx(wilson(first.sum(), count))
    true = p[np.arange(count), images.labels]
    assert row["median_probability"] == pytest.approx(np.median(true), abs=1e-5)
    assert row["labels_plus_1_percent"] == pytest.approx(
        100 * np.mean(named[:, 0] == images.labels + 1)
    )
    assert (row["size"], row["interpolation"]) == (32, "bilinear")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    given = ["source=alexnet", "images=60"]
    ((cell, row),) = measured(tmp_path, *given)
    assert doubt(row, facts(cell)) == ""
    shifted = ["benchmark.data._target_=test_accuracy.one_more", "~benchmark.data.split"]
    ((cell, row),) = measured(tmp_path, *given, *shifted)
    assert row["labels_minus_1_percent"] > 60 > 30 > row["top1_percent"]
    said = doubt(row, facts(cell))
    assert "if every label is one less" in said
    assert "benchmark.data.counting" in said
    ((cell, row),) = measured(tmp_path, *given, "pretrained=false")
    said = doubt(row, facts(cell))
    assert "not sure of its answers" in said
    assert "size 32 are probably not those of its training" in said
    sure = doubt(row | {"median_largest_probability": 0.9}, facts(cell))
    assert "the labels are probably in another order" in sure


def test_networks_and_images_of_a_benchmark(tmp_path: Path) -> None:
    found = cells(tmp_path)
    assert [cell.cfg.source for cell in found] == [
        *("alexnet", "vgg16", "resnet34", "resnet152", "densenet121", "densenet201", "ensemble"),
        *("senet154", "inception_v3", "inception_v4", "inception_resnet_v2"),
        *("inception_v3_ens3", "inception_v3_ens4", "inception_resnet_v2_ens3", "vit", "convnext"),
    ]
    assert {cell.cfg.images for cell in found} == {699}
    chosen = cells(tmp_path, "source=few", "targets=[vgg16,resnet34]", "images=5")
    assert [cell.cfg.source for cell in chosen] == ["resnet34", "densenet121", "vgg16"]
    assert {cell.cfg.images for cell in chosen} == {5}
    with pytest.raises(OmegaConfBaseException, match="source=vgg15: did you mean vgg16"):
        cells(tmp_path, "source=vgg15", "images=5")


def test_the_command_and_its_second_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def call() -> str:
        words = ["source=alexnet", "targets=vgg16", "images=8", "threads=1", f"output={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["accuracy", *words])
        accuracy.main()
        return capsys.readouterr().out

    first = call()
    assert re.search(r"VGG-16\s+8\s+[\d.]+ \[[\d.]+, [\d.]+\]", first)
    (path,) = (tmp_path / "photos" / "tables").glob("accuracy-*.csv")
    assert list(pd.read_csv(path).network) == ["alexnet", "vgg16"]

    (made,) = records.read(tmp_path / "photos")
    assert made.command.startswith('make accuracy EXTRA="source=alexnet targets=vgg16 images=8')
    assert made.kept == ["source=alexnet", "targets=vgg16", "images=8"]

    def never(*_: object) -> None:
        raise AssertionError("the second call must answer from the disk")

    monkeypatch.setattr(zoo, "build", never)
    assert first.endswith(call())


@pytest.fixture
def flat(tmp_path: Path) -> Callable[..., list[str]]:
    """Sixty crops in one folder; writes a file of their labels, gives the settings to use it."""
    crops = photos.candidates("test")
    inside = np.flatnonzero((crops.labels > 0) & (crops.labels < 15)).tolist()[::8][:60]
    images = crops.take(inside)
    (tmp_path / "images").mkdir()
    for name, pixels in zip(images.ids, images.pixels, strict=True):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "images" / f"{name}.png")

    def write(labels: np.ndarray, counting: str) -> list[str]:
        rows = zip(images.ids, labels, (labels + 1) % 14 + 1, strict=True)
        text = "".join(f"{name}.png,{a},{b}\n" for name, a, b in rows)
        (tmp_path / "labels.csv").write_text(f"filename,class,targeted_label\n{text}")
        data = {"_target_": "irattack.data.files.candidates", "classes": 16, "size": 32}
        data |= {"folder": tmp_path / "images", "ground_truth": tmp_path / "labels.csv"}
        data |= {"counting": counting}
        given = [f"++benchmark.data.{name}={value}" for name, value in data.items()]
        return ["~benchmark.data.split", "source=vgg16", *given]

    write.labels = images.labels  # type: ignore[attr-defined]
    return write


@pytest.mark.parametrize("first", [0, 1])
def test_a_network_decides_from_where_labels_count(
    first: int, flat: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = flat.labels  # type: ignore[attr-defined]
    (cell,) = cells(tmp_path, *flat(labels + first, "alexnet"))
    assert cell.cfg.images == 60
    ensure(Choice(cell))
    found = images_of(cell)
    truth = {entry: int(label) for entry, label in zip(found.ids, found.labels, strict=True)}
    names = {name: photos.CLASSES.index(name.split("-")[1]) for name in found.ids}
    assert truth == names
    (said,) = tmp_path.glob("photos/images/counting-*.json")
    card = json.loads(said.read_text())
    assert card["first"] == first
    assert card["accuracy_percent"][first] > 60 > 30 > card["accuracy_percent"][1 - first]
    # what a targeted attack aims at is in the manifest, and no part of what the images are
    assert found.wanted is not None
    assert (found.wanted == (found.labels + first + 1) % 14 + 1 - first).all()
    entries = json.loads(manifest(cell).path.read_text())["images"]
    assert [entry["wanted"] for entry in entries] == found.wanted.tolist()
    chosen = listing(cell)
    assert chosen is not None
    assert chosen.digest == key(found.entries())

    def never(*_: object) -> None:
        raise AssertionError("it was decided already")

    monkeypatch.setattr(zoo, "build", never)
    assert images_of(cell).labels.tolist() == found.labels.tolist()


def test_a_network_that_cannot_decide_is_refused(
    flat: Callable[..., list[str]], tmp_path: Path
) -> None:
    labels = flat.labels  # type: ignore[attr-defined]
    (cell,) = cells(tmp_path, *flat(np.roll(labels, 30), "alexnet"))
    with pytest.raises(InputError) as error:
        images_of(cell)
    assert re.fullmatch(
        r"benchmark.data.counting=alexnet: of 60 images, it is right on \d+ % if classes count "
        r"from 0 and on \d+ % if from 1, which does not decide; name a better network, or give 0 "
        r"or 1\.",
        str(error.value),
    )
    (cell,) = cells(tmp_path, *flat(labels, "alexnot"))
    with pytest.raises(InputError, match=r"counting=alexnot: did you mean alexnet\? expected 0, 1"):
        images_of(cell)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/imagenet beside the checkout")
def test_networks_of_imagenet_are_as_accurate_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["squeezenet", "mobilenet_v1", "mobilenet_edgetpu", "efficientnet_lite0"]
    monkeypatch.setenv(OWN, str(CONF.parent / "scripts" / "evidence"))
    monkeypatch.delitem(sys.modules, "networks", raising=False)  # another test's
    monkeypatch.syspath_prepend(str(SHARED))
    given = {
        "benchmark": "compact",
        "weights_dir": SHARED / "weights",
        "benchmark.data.folder": SHARED / "images",
        "benchmark.data.ground_truth": SHARED / "images.csv",
        "source": f"[{','.join(names)}]",
        "images": 60,
    }
    table = (SHARED / "README.md").read_text()
    for cell, row in measured(tmp_path, *(f"{name}={value}" for name, value in given.items())):
        weights = Path(facts(cell)["weights"]).stem
        line = next(line for line in table.splitlines() if line.startswith(f"| {weights} |"))
        published = float(line.split("|")[5].split()[0])
        assert row["top1_ci_low"] <= published <= row["top1_ci_high"]
        assert max(row["labels_plus_1_percent"], row["labels_minus_1_percent"]) <= 10
        assert doubt(row, facts(cell)) == ""
