"""GPUs of a machine are shared evenly by its processes, whichever of them end or die."""

import contextlib
import multiprocessing
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from irattack.commands import run
from irattack.errors import InputError
from irattack.pipeline import devices
from irattack.pipeline.compute import device


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of claims of its own; no GPU is held before or after."""
    monkeypatch.setattr(devices, "MEMORY", tmp_path)
    monkeypatch.setattr(devices, "_last", None)
    yield tmp_path
    devices.release()


def gpus(count: int, shown: str = "0123") -> dict[str, Callable[..., Any]]:
    """Functions of torch.cuda on a machine where so many GPUs are visible."""
    return {
        "device_count": lambda: count,
        "is_available": lambda: count > 0,
        "get_device_properties": lambda index: SimpleNamespace(uuid=f"GPU-{shown[index]}"),
        "empty_cache": lambda: None,
    }


def of(name: str) -> Any:
    return SimpleNamespace(device=name)


def work(folder: str, name: str, pipe: Connection) -> None:
    """A worker: takes a device of four, says which, and works on until it is told to end."""
    devices.MEMORY = Path(folder)
    for function, value in gpus(4).items():
        setattr(torch.cuda, function, value)
    pipe.send([device(of(name)).index for _ in range(3)])  # it is asked for again and again
    pipe.recv()


class Workers:
    """Processes with the devices they work on, by a number that each gets."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.context = multiprocessing.get_context("fork")  # nothing is imported anew
        self.living: list[tuple[BaseProcess, Connection, int]] = []

    def start(self, count: int, name: str = "auto") -> None:
        """Starts some at once."""
        started = []
        for _ in range(count):
            here, there = self.context.Pipe()
            process = self.context.Process(target=work, args=(str(self.folder), name, there))
            with warnings.catch_warnings():  # the parent has threads, which the child does not need
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            started.append((process, here))
        for process, here in started:
            assert here.poll(60)
            (index,) = {*here.recv()}
            self.living.append((process, here, index))

    def kill(self, index: int, count: int) -> None:
        """Kills so many of those on a device."""
        for one in [one for one in self.living if one[2] == index][:count]:
            one[0].kill()
            one[0].join()
            self.living.remove(one)

    def on(self) -> Counter[int]:
        """How many work on each device."""
        return Counter(index for *_, index in self.living)


@pytest.fixture
def workers(place: Path) -> Iterator[Workers]:
    found = Workers(place)
    yield found
    for process, _, _ in found.living:
        process.kill()
        process.join()


def test_eight_workers_use_four_devices_two_each(workers: Workers) -> None:
    workers.start(8)
    assert workers.on() == {0: 2, 1: 2, 2: 2, 3: 2}
    workers.kill(2, 2)  # without a word
    workers.kill(1, 1)
    workers.start(1)
    assert workers.on() == {0: 2, 1: 1, 2: 1, 3: 2}
    workers.start(2)
    assert workers.on() == {0: 2, 1: 2, 2: 2, 3: 2}
    workers.start(1, "cuda:3")
    workers.kill(0, 2)
    workers.start(2)
    assert workers.on() == {0: 2, 1: 2, 2: 2, 3: 3}


def test_the_device_with_fewest_holders_is_claimed() -> None:
    """Whatever index a process gives to it, and whichever of its holders came first."""
    with contextlib.ExitStack() as stack:

        def claimed(names: dict[int, str], first: int | None = None) -> devices.Claim:
            one = devices.claim(names, first)
            stack.callback(one.release)
            return one

        names = {0: "a", 1: "b"}
        found = [claimed(names) for _ in range(3)]
        assert [one.index for one in found] == [0, 1, 0]
        found[0].release()  # of the two on a, the earlier
        found[1].release()
        assert claimed(names).index == 1
        assert claimed({0: "b", 1: "a", 2: "c"}).index == 2
        assert claimed({0: "b", 1: "a", 2: "c"}, first=1).index == 1
        assert claimed({0: "a"}).index == 0


def test_a_process_keeps_its_device_until_it_releases_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for function, value in gpus(4).items():
        monkeypatch.setattr(torch.cuda, function, value)
    other = devices.claim({0: "GPU-0"})
    assert [str(device(of(name))) for name in ("auto", "cuda", "auto")] == ["cuda:1"] * 3
    assert str(device(of("cuda:3"))) == "cuda:3"
    assert str(device(of("auto"))) == "cuda:3"
    assert str(device(of("cpu"))) == "cpu"
    devices.release()
    other.release()
    assert str(device(of("auto"))) == "cuda:3"  # all are free: that which it knows

    def fail(_: Any) -> None:
        assert devices.held() == 3
        raise ZeroDivisionError

    monkeypatch.setattr(run, "work", fail)
    with pytest.raises(ZeroDivisionError):
        run.measure(of("auto"))
    assert devices.held() is None


@pytest.mark.parametrize(
    ("name", "count", "sentence"),
    [
        ("cuda", 0, "device=cuda: PyTorch finds no CUDA device here; use device=auto or cpu."),
        ("cuda:0", 0, "device=cuda:0: PyTorch finds no CUDA device here; use device=auto or cpu."),
        ("cuda:1", 1, "device=cuda:1: PyTorch finds one CUDA device here, cuda:0; name one"),
        ("cuda:9", 4, "device=cuda:9: PyTorch finds 4 CUDA devices here, cuda:0 to cuda:3; name"),
    ],
)
def test_a_device_that_is_not_there(
    name: str, count: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function, value in gpus(count).items():
        monkeypatch.setattr(torch.cuda, function, value)
    with pytest.raises(InputError, match=sentence):
        device(of(name))
    assert devices.held() is None
    assert count or str(device(of("auto"))) == "cpu"


def test_claims_lie_where_all_processes_of_the_machine_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may have a folder of temporary files of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "of-this-job"))
    assert devices.folder().parent == tmp_path
    monkeypatch.setattr(devices, "MEMORY", tmp_path / "there-is-none")
    assert devices.folder().parent == tmp_path / "of-this-job"
