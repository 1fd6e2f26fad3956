"""`make gpu`, rehearsed on a CPU with small settings; what fails is reported, the others go on."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from irattack.commands import bench, estimate, gpu, gpu_checks, settings
from irattack.commands.composing import hydra
from irattack.commands.plans import plan

SMALL = {
    "checks": {"images": 2, "steps": 2},
    "trial": [
        *("benchmark=photos", "attack=hybridir", "source=resnet34", "targets=[alexnet]"),
        *("images=4", "steps=2", "samples=2", "benchmark.copies=2", "block=4", "threads=1"),
        *("compile=auto", "micro_batch=16"),
    ],
    "bench": [
        *("networks.imagenet=[]", "networks.photos=[alexnet]", "images.cpu.photos=2"),
        *("batches.cpu.photos=[8]", "rounds=1", "seconds=0.01", "threads=1"),
    ],
    "estimate": {
        "settings": ["benchmark=photos", "source=resnet34", "norm=linf", "attack=pgd", "threads=1"],
        "seconds": 0.01,
    },
}


@pytest.fixture(autouse=True)
def config() -> Iterator[None]:
    settings.register_resolvers()
    threads = torch.get_num_threads()
    with hydra():
        yield
    torch.set_num_threads(threads)


def small(tmp_path: Path, *overrides: str) -> DictConfig:
    """The settings of the rehearsal."""
    cfg = compose("gpu", overrides=[f"output={tmp_path}", "device=cpu", *overrides])
    for name, value in SMALL.items():
        OmegaConf.update(cfg, name, value)
    return cfg


def test_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part but those of precisions that this machine would only emulate."""
    cache = {"ratio": 0.25, "write_mb_per_s": 1.0, "read_mb_per_s": 1.0}
    for module in (bench, estimate):
        monkeypatch.setattr(module, "cache_speed", lambda *_: cache)
    monkeypatch.setattr(gpu_checks, "PIECES", ("mi", "di", "sgm"))
    monkeypatch.setattr(estimate, "BATCHES", {"cpu": [8]})
    monkeypatch.setattr(gpu, "plans", lambda given: {"table1": plan("table1", given)})
    cfg = small(tmp_path, "parts=[repeat,agree,noise,memory,tuning,trial,fp32,tf32,estimate]")
    page, held = gpu.gpu(cfg)
    report = json.loads((tmp_path / "gpu.json").read_text())
    parts: dict[str, Any] = report["parts"]
    other = parts.pop("tf32")
    assert other["outcome"] == "not for it"
    assert other["why"].startswith("precision=tf32 is of CUDA devices")
    assert {found["outcome"] for found in parts.values()} == {"ok"}, page
    assert held
    assert parts["agree"]["pieces"].keys() == {"mi", "di", "sgm"}
    for distance, signs, rounding in parts["agree"]["pieces"].values():
        assert 0 < distance == rounding < 1e-5
        assert signs > 0.999
    assert parts["memory"]["fits"] == 64
    assert parts["trial"]["micro-batch"] == 16
    # HybridIR: 2 noisy copies, v(Λ) and two probes for each of 2 sets
    ratio = parts["trial"]["probes per s"] / parts["trial"]["image-steps per s"]
    assert ratio == pytest.approx(2 + 1 + 2 * 2)
    assert parts["fp32"]["bench"]["networks"]["photos/alexnet"]["micro_batch"] == 8
    assert "together" in page
    assert "photos/alexnet" in page


def test_a_gradient_that_is_longer_on_the_device_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a fiftieth, with the same signs, on the device alone: every third direction asked for."""
    real, asked = gpu_checks.Lab.direction, list[bool]()

    def direction(*given: Any) -> torch.Tensor:
        asked.append(len(asked) % 3 == 2)
        return real(*given) * (1.02 if asked[-1] else 1)

    monkeypatch.setattr(gpu_checks.Lab, "direction", direction)
    monkeypatch.setattr(gpu_checks, "PIECES", ("pgd",))
    with pytest.raises(gpu_checks.DisprovedError, match=r"pgd: 2\.0e-02 from .*100\.00 % of"):
        gpu_checks.agree(small(tmp_path))


def test_what_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def sleeps(cfg: DictConfig) -> dict:
        try:
            time.sleep(30)
        except Exception as error:  # as libraries do
            raise AssertionError from error
        return {}

    def fails(cfg: DictConfig) -> dict:
        raise ZeroDivisionError("of a kind that nobody foresaw")

    parts = {"repeat": fails, "noise": lambda cfg: {"found": 1.25}, "trial": sleeps}
    monkeypatch.setattr(gpu, "PARTS", {**parts, "bf16": fails})
    monkeypatch.setattr(gpu, "release", lambda: None)  # which may take longer than all this
    given = ["device=cpu", f"output={tmp_path}", f"parts=[{','.join(gpu.PARTS)}]"]
    monkeypatch.setattr(sys, "argv", ["gpu", *given, "minutes=0.05"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    outcomes = {name: part["outcome"] for name, part in found.items()}
    expected = {"repeat": "failed", "noise": "ok", "trial": "out of time", "bf16": "left out"}
    assert outcomes == expected
    assert 0 < found["trial"]["seconds"] < 25
    assert "ZeroDivisionError" in found["repeat"]["traceback"]
    out = capsys.readouterr().out
    assert "ZeroDivisionError: of a kind that nobody foresaw" in out
    assert "found 1.25" in out


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("parts=[repaet]", "repaet: did you mean repeat"),
        ("minutes=0", "minutes=0: expected a number above 0"),
        ("minutes=nan", "minutes=nan: expected a number above 0"),
    ],
)
def test_mistakes(
    override: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "device=cpu", f"output={tmp_path}", override])
    with pytest.raises(SystemExit):
        gpu.main()
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "device=cuda: PyTorch finds" in capsys.readouterr().err


def test_what_a_device_gets_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that scales the logits by up to 1.3, differently at every call."""
    cfg, real = small(tmp_path), gpu_checks.build

    def build(*given: Any) -> torch.nn.Module:
        model = real(*given)
        model.register_forward_hook(lambda m, x, h: h * (1 + 0.3 * torch.rand_like(h)))
        return model

    monkeypatch.setattr(gpu_checks, "build", build)
    monkeypatch.setattr(gpu_checks, "PIECES", ("pgd",))
    with pytest.raises(gpu_checks.DisprovedError, match=r"fp32: \d+ of \d+ elements differ"):
        gpu_checks.repeat(cfg)
    with pytest.raises(gpu_checks.DisprovedError, match=r"pgd: \S+ from float64, .* signs agree"):
        gpu_checks.agree(cfg)
    with pytest.raises(gpu_checks.DisprovedError, match=r"after the memory ended"):
        gpu_checks.memory(cfg)


def test_photographs_of_the_trial(tmp_path: Path) -> None:
    folder = gpu_checks.photographs(tmp_path / "of", 40, 20)
    paths = sorted(folder.iterdir())
    assert len({path.read_bytes() for path in paths}) == len(paths) == 20
    for path in paths:
        with Image.open(path) as image:
            assert image.size == (40, 40)
