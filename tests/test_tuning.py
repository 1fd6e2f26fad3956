"""`micro_batch=auto` and `compile=auto`: the choice, where it is kept, and what a card says."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from irattack.commands import settings
from irattack.conf import CONF
from irattack.errors import InputError
from irattack.models.network import Network, compiled
from irattack.pipeline import files, memory, tuning
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.results import Results, arrays
from irattack.pipeline.settings import settings_of


@pytest.fixture(autouse=True)
def config() -> Iterator[None]:
    settings.register_resolvers()
    threads = torch.get_num_threads()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    torch.set_num_threads(threads)


def cell(output: Path, *overrides: str) -> Cell:
    given = ["source=alexnet", "targets=[vgg16]", "images=6", "block=3", "steps=1", "threads=1"]
    given += ["benchmark.sources=[alexnet]"]
    cfg = compose("config", overrides=[*given, "attack=ir", f"output={output}", *overrides])
    return Cell(cfg)


def saturating(batch: float, half: float, slow: tuple[int, ...] = ()) -> float:
    """Images per second that come near 100; half of it at a batch of `half`."""
    return 100 * batch / (batch + half) * (0.5 if batch in slow else 1)


@pytest.mark.parametrize(
    ("half", "slow", "room", "chosen", "tried"),
    [
        (1, (), math.inf, 16, [8, 16, 32, 64]),  # 88.9, 94.1, 97.0, 98.5
        (8, (), math.inf, 128, [8, 16, 32, 64, 128, 256]),  # 50, 66.7, 80, 88.9, 94.1, 97.0
        (8, (64,), math.inf, 128, [8, 16, 32, 64, 128, 256]),  # one slow size is passed over
        (8, (64, 128), math.inf, 32, [8, 16, 32, 64, 128]),
        (8, (), 20, 16, [8, 16]),  # the memory ends
        (8, (), 1, 8, []),
    ],
)
def test_the_largest_micro_batch_that_pays(
    half: int, slow: tuple[int, ...], room: float, chosen: int, tried: list[int]
) -> None:
    def rate(batch: int) -> float:
        if batch > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return saturating(batch, half, slow)

    found, rates = tuning.largest_that_pays(rate, tuning.sizes(300))
    assert (found, [*rates]) == (chosen, tried)


def test_what_does_not_fit_now_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def crowded(model: nn.Module, batch: int, size: int, where: torch.device) -> float:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")

    monkeypatch.setattr(tuning, "timed", crowded)
    one = cell(tmp_path, "micro_batch=auto")
    assert tuning.pace(one).micro_batch == 8
    assert "not even micro_batch=8 fits now; the next run tries again" in caplog.text
    fake_rates(monkeypatch, 1)
    assert tuning.pace(one).micro_batch == 16


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_errors_that_mean_too_little_memory(error: RuntimeError, lacks: bool) -> None:
    assert memory.lacks_memory(error) == lacks


def test_sizes_are_powers_of_two() -> None:
    assert tuning.sizes(41) == [8, 16, 32]
    assert tuning.sizes(1) == [8]


def test_what_will_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that needs 10 bytes an image, of 1000 that are free and of which 70 % may be used."""
    at_work: list[int] = []

    def timed(model: nn.Module, batch: int, size: int, where: torch.device) -> float:
        at_work.append(batch)
        return saturating(batch, 1000)

    monkeypatch.setattr(memory, "free", lambda where: 1000)
    peaks = iter([at for batch in (8, 16, 32, 64) for at in (50, 50, 50 + 10 * batch)])
    monkeypatch.setattr(memory, "peak", lambda where: next(peaks))
    monkeypatch.setattr(tuning, "timed", timed)
    rate = tuning.Rates(nn.Identity(), 8, torch.device("cpu"))
    found, _ = tuning.largest_that_pays(rate, [8, 16, 32, 64, 128])
    assert at_work == [8, 16, 32, 64]
    assert found == 64


def fake_rates(monkeypatch: pytest.MonkeyPatch, half: float) -> list[int]:
    """Lets the trials find rates of their own; returns the batches that they asked for."""
    asked: list[int] = []

    def timed(model: nn.Module, batch: int, size: int, where: torch.device) -> float:
        asked.append(batch)
        return saturating(batch, half)

    monkeypatch.setattr(tuning, "timed", timed)
    return asked


def test_auto_is_in_the_name_and_the_value_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_rates(monkeypatch, 1)
    one = cell(tmp_path / "one", "micro_batch=auto")
    assert ensure(Results(one)) == []
    assert asked == [8, 16, 32, 64]
    steps = files.read_json(one.steps_folder / "0000.json")
    assert steps is not None
    assert steps["made_with"]["micro_batch"] == 16
    whole = files.read_json(Results(one).artifact("vgg16").card_path)
    assert whole is not None
    assert whole["made_with"]["micro_batch"] == [16]
    assert [run["micro_batch"] for run in whole["attacked_with"]] == [16]
    asked = fake_rates(monkeypatch, 64)
    again = cell(tmp_path / "one", "micro_batch=auto", "norm=l2")
    ensure(Results(again))
    assert asked == []  # it is remembered for the device, whatever the attack
    other = cell(tmp_path / "two", "micro_batch=auto")
    assert other.key == one.key  # whatever a machine finds
    assert tuning.pace(other).micro_batch == 1024
    fixed = cell(tmp_path / "three", "micro_batch=16")
    assert fixed.key != one.key
    ensure(Results(fixed))
    found, expected = (arrays(c, "vgg16")["margins"] for c in (one, fixed))
    np.testing.assert_array_equal(found, expected)


def test_another_process_that_was_faster_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, real = cell(tmp_path, "micro_batch=auto"), tuning.trial

    def overtaken(c: Cell) -> dict:
        found = real(c)
        tuning.remembered(c).keep(made_with=tuning.made_with(c.cfg), **(found | {"micro_batch": 4}))
        return found

    fake_rates(monkeypatch, 1)
    monkeypatch.setattr(tuning, "trial", overtaken)
    assert tuning.pace(one).micro_batch == 4
    tuning.remembered(one).path.write_text("{}")  # damaged
    monkeypatch.setattr(tuning, "trial", real)
    assert tuning.pace(one).micro_batch == 16


def scaled(factor: float) -> Callable[[nn.Module], nn.Module]:
    """What stands for torch.compile: the same network, but for one weight times a factor."""

    def change(model: nn.Module) -> nn.Module:
        next(model.parameters()).data[0] *= factor
        return model

    return change


@pytest.mark.parametrize(
    ("gain", "factor", "chosen", "says"),
    [
        (1.2, 1.0, True, None),
        (1.05, 1.0, False, None),
        (9.0, -30.0, False, "has a cosine of"),
        (0.0, 1.0, False, "no compiler"),
    ],
)
def test_compiling_is_chosen_where_it_gains_and_computes_the_same(
    gain: float,
    factor: float,
    chosen: bool,
    says: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real, fast = tuning.build, []

    def build(c: Cell, name: str, role: str, compiling: bool = False) -> nn.Module:
        model = real(c, name, role)
        fast.extend([scaled(factor)(model)] if compiling else [])
        return model

    def timed(model: nn.Module, batch: int, size: int, where: torch.device) -> float:
        if model in fast and not gain:
            raise RuntimeError("no compiler")
        return 100 * (gain if model in fast else 1)

    monkeypatch.setattr(tuning, "tries_compiling", lambda c: True)
    monkeypatch.setattr(tuning, "build", build)
    monkeypatch.setattr(tuning, "timed", timed)
    one = cell(tmp_path, "compile=auto", "micro_batch=8")
    assert tuning.pace(one) == tuning.Pace(8, chosen)
    assert says is None or says in caplog.text
    card = tuning.remembered(one).card()
    assert card is not None
    assert card.rates == {"8": 100}


def test_compiling_in_the_name() -> None:
    names = {s: cell(Path("x"), f"compile={s}").key for s in ("true", "false", "auto")}
    assert len({*names.values()}) == 3
    sgm = {cell(Path("x"), f"compile={s}", "source=resnet34", "+piece=[sgm]").key for s in names}
    assert len(sgm) == 1
    assert tuning.pace(cell(Path("x"), "compile=auto")) == tuning.Pace(256, False)  # on a CPU


@pytest.mark.parametrize("given", ["micro_batch=0", "micro_batch=fast", "compile=1", "compile=on"])
def test_what_is_neither_a_value_nor_auto(given: str) -> None:
    with pytest.raises(InputError, match=rf"{given}: expected .* or auto\."):
        settings_of(compose("config", overrides=[given]))


def test_logits_of_a_compiled_network_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of kernels write each answer to the memory of the last."""

    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = torch.zeros(2, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.memory.copy_(images.mean(dim=(2, 3)))

    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: None)
    model = compiled(Network(Reusing(), [0.0] * 3, [1.0] * 3, 4))
    x = torch.rand(4, 3, 4, 4)
    found = torch.cat([model(part) for part in x.split(2)])
    torch.testing.assert_close(found, x.mean(dim=(2, 3)))


def test_images_are_chosen_with_less_memory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The choice of images goes on with fewer at once, and is the same."""
    from irattack.pipeline import worker
    from irattack.pipeline.images import Choice

    real = worker.margin

    def limited(logits: Tensor, y: Tensor) -> Tensor:
        if len(y) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(logits, y)

    plain, short = (cell(tmp_path / name, "images=70") for name in ("plain", "short"))
    ensure(Choice(plain))
    monkeypatch.setattr(worker, "margin", limited)
    ensure(Choice(short))
    assert "the choice starts again with micro_batch=16" in caplog.text
    assert images_of(short).ids == images_of(plain).ids
