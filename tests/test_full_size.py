"""benchmark=imagenet from images to table at full size, with random weights."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from irattack.commands import settings
from irattack.conf import CONF
from irattack.data import photos
from irattack.models import zoo
from irattack.pipeline.cell import Cell
from irattack.pipeline.codec import read_frames
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.results import Results, arrays, rows
from irattack.pipeline.steps import of_shard
from irattack.results import publish

NAMES = zoo.names("imagenet")
SYNSETS = ("n01440764", "n02123045", "n15075141")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def config() -> Iterator[None]:
    settings.register_resolvers()
    threads = torch.get_num_threads()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs of their own sizes, named as the paper's authors name theirs."""
    images = tmp_path_factory.mktemp("images")
    for synset, name in zip(SYNSETS, ("coffee", "chelsea", "rocket"), strict=True):
        Image.fromarray(photos.photograph(name)).save(images / f"{synset}_0.png")
    return images


def cell(folder: Path, output: Path, *overrides: str) -> Cell:
    given = [
        *("benchmark=imagenet", "pretrained=false", "benchmark.sources=[]", f"output={output}"),
        *(f"benchmark.data.folder={folder}", "images=2", "samples=1", "micro_batch=8"),
    ]
    cfg = compose("config", overrides=[*given, *overrides])
    return Cell(cfg)


def test_one_attack_on_targets_of_every_size(folder: Path, tmp_path: Path) -> None:
    targets = ["alexnet", "densenet121", "inception_v3", "vit"]
    assert {zoo.card("imagenet", name)["size"] for name in targets} == {224, 299}
    one = cell(folder, tmp_path, "attack=ir", f"targets=[{','.join(targets)}]", "steps=2")
    assert ensure(Results(one)) == []
    images = images_of(one)
    assert images.pixels.shape == (2, 3, 224, 224)
    assert {1000 > label >= 0 for label in images.labels} == {True}
    (shard,) = one.shards(images)
    first, second = read_frames(of_shard(one, shard).path, images.pixels, 2)
    assert np.abs(first.astype(int) - images.pixels).max() == 2
    assert np.abs(second.astype(int) - images.pixels).max() in (3, 4)
    found = rows(one)
    assert list(found.target) == targets
    for target in targets:
        measured = arrays(one, target)
        assert measured["margins"].shape == (2, 2)
        assert all(np.isfinite(values).all() for values in measured.values())
    assert "UNTRAINED NETWORKS" in publish.caption([one])


@pytest.mark.parametrize("source", NAMES)
def test_every_source_is_attacked(source: str, folder: Path, tmp_path: Path) -> None:
    skips = zoo.skips("imagenet", source)
    known = all(skips) if isinstance(skips, list) else skips
    attack = "sgmir" if known else "ir"
    given = [f"attack={attack}", f"source={source}", "targets=[alexnet]", "steps=2", "images=1"]
    one = cell(folder, tmp_path, *given)
    assert ensure(Results(one)) == []
    (lengths,) = arrays(one, "alexnet")["lengths"].T
    assert 0 < lengths[0] <= 2 / 255 * 150528**0.5 * 1.001
    assert lengths[1] > lengths[0]
