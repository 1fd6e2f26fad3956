"""Small networks and images that every test shares."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

from irattack.commands.settings import register_resolvers
from irattack.conf import CONF, OWN
from irattack.models import zoo


class Linear(nn.Module):
    """h(x) = W x + b, whose attacks are known in closed form."""

    def __init__(self, classes: int, shape: tuple[int, int, int], seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        n = shape[0] * shape[1] * shape[2]
        self.weight = nn.Parameter(
            torch.randn(classes, n, generator=generator, dtype=torch.float64), requires_grad=False
        )

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


class Smooth(nn.Module):
    """A small convolutional network with curvature everywhere, in float64."""

    def __init__(self, classes: int = 5, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.Softplus(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Softplus(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )
        for parameter in self.net.parameters():
            parameter.data *= 3
        self.double().eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


@pytest.fixture
def composing() -> Iterator[None]:
    """Inside it, `hydra.compose` finds our yamls; afterwards threads and Hydra are as before."""
    register_resolvers()
    threads = torch.get_num_threads()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    torch.set_num_threads(threads)
    GlobalHydra.instance().clear()


@pytest.fixture
def linear() -> Linear:
    return Linear(4, (3, 8, 8))


@pytest.fixture
def smooth() -> Smooth:
    return Smooth()


@pytest.fixture
def images() -> Tensor:
    """Nine 8-bit images (9, 3, 16, 16) in float64."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (9, 3, 16, 16), generator=generator).double() / 255


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes the yaml of a model of a benchmark, in a folder of its own; returns its name."""
    monkeypatch.setenv(OWN, str(tmp_path / "conf"))
    monkeypatch.setattr(zoo, "_card", zoo._card.__wrapped__)  # it would remember the real ones

    def write(benchmark: str, **facts: Any) -> str:
        path = tmp_path / "conf/model" / benchmark / "mine.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(f"{fact}: {value}" for fact, value in facts.items()))
        return "mine"

    return write
