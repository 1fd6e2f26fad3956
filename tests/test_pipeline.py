"""The stages on known data: what is chosen, cached, measured and reported is what is claimed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from irattack import exact
from irattack.attacks.losses import margin
from irattack.attacks.moves import PatchWise
from irattack.attacks.norms import Linf
from irattack.attacks.pieces import GaussianKernel
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF
from irattack.data import photos
from irattack.data.images import Candidates, Images
from irattack.errors import InputError
from irattack.exact import set_tf32
from irattack.models import network, zoo
from irattack.pipeline import compute, files, sharded, worker
from irattack.pipeline import statistics as evaluation
from irattack.pipeline.artifact import Artifact, to_bytes
from irattack.pipeline.cell import Cell, Shard
from irattack.pipeline.codec import read_frames
from irattack.pipeline.images import Choice, images_of, manifest
from irattack.pipeline.job import ensure
from irattack.pipeline.measures import Contributions, NeighbourMaps
from irattack.pipeline.memory import MicroBatch
from irattack.pipeline.results import Results, arrays, rows
from irattack.pipeline.steps import of_shard
from irattack.results import paper, publish, tables

QUICK = ["images=12", "steps=3", "samples=2", "targets=[vgg16]", "threads=1", "block=8"]


@pytest.fixture(scope="module", autouse=True)
def config() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def cell(folder: Path, *overrides: str) -> Cell:
    return Cell(compose("config", overrides=[f"output={folder}", *QUICK, *overrides]))


def chosen(one: Cell) -> Images:
    """The images of a cell, chosen where they are not."""
    ensure(Choice(one))
    return images_of(one)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_margins_are_those_of_the_cached_frames(tmp_path: Path, norm: str) -> None:
    one = cell(tmp_path, "attack=ir", "source=alexnet", f"norm={norm}")
    ensure(Results(one))
    images = images_of(one)
    found = arrays(one, "vgg16")
    model, first = zoo.build("photos", "vgg16"), 0
    for shard in one.shards(images):
        part = shard.images
        y = torch.from_numpy(part.labels)
        for step, frame in enumerate(read_frames(of_shard(one, shard).path, part.pixels, 3)):
            where = slice(first, first + len(part))
            expected = margin(model(photos_tensor(frame)), y).numpy()
            np.testing.assert_allclose(found["margins"][step, where], expected, atol=1e-4)
            change = frame.astype(float) - part.pixels
            lengths = np.sqrt((change**2).sum(axis=(1, 2, 3))) / 255
            np.testing.assert_allclose(found["lengths"][step, where], lengths, rtol=1e-4)
            assert (lengths > 0).all()
            assert (lengths <= 24 / 255 * 3072**0.5 * (1 + 1e-6)).all()
            assert norm == "l2" or np.abs(change).max() <= 24
        first += len(part)
    assert first == len(images) == 12
    assert found["margins"].shape == (3, 12)


def photos_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).float() / 255


def test_every_source_classifies_the_chosen_images(tmp_path: Path) -> None:
    one = cell(tmp_path)
    images = chosen(one)
    y = torch.from_numpy(images.labels)
    for name in one.cfg.benchmark.sources:
        assert (margin(zoo.build("photos", name)(photos_tensor(images.pixels)), y) < 0).all()
    again = chosen(one)
    assert again.ids == images.ids
    other = chosen(cell(tmp_path, "seed=1"))
    assert set(other.ids) != set(images.ids)


def test_another_label_is_another_shard(tmp_path: Path) -> None:
    one = cell(tmp_path)
    images = chosen(one)
    other = replace(images, labels=images.labels + 1)
    artifacts: list[Callable[[Shard], Artifact]] = [
        lambda shard: of_shard(one, shard),
        lambda shard: Results(one).part("vgg16", shard),
    ]
    for artifact in artifacts:
        first, same, foreign = (
            artifact(Shard(0, i)).facts for i in (images, images.take(range(12)), other)
        )
        assert first == same
        assert [name for name in first if first[name] != foreign[name]] in (["images"], ["shard"])


def test_a_changed_clean_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cell(tmp_path)
    images = chosen(one)
    real = photos.candidates

    def changed(split: str):  # type: ignore[no-untyped-def]
        found = real(split)
        marked = found.ids.index(images.ids[3])

        def read(rows):  # type: ignore[no-untyped-def]
            pixels = found.read(rows)
            pixels[[row == marked for row in rows]] ^= 1
            return pixels

        return Candidates(found.ids, found.labels, read)

    monkeypatch.setattr(photos, "candidates", changed)
    with pytest.raises(InputError, match=f"1 of 12 images .*{images.ids[3]}"):
        images_of(one)


def test_damaged_results_are_measured_again(tmp_path: Path) -> None:
    one = cell(tmp_path, "source=alexnet")
    ensure(Results(one))
    first = rows(one)
    artifact = Results(one).artifact("vgg16")
    found = artifact.arrays()
    artifact.path.write_bytes(to_bytes(found | {"margins": found["margins"] * 0 + 1}))
    assert Results(one).missing() == ["vgg16"]
    ensure(Results(one))
    pd.testing.assert_frame_equal(rows(one), first)


def test_sgm_facts_are_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: cell(tmp_path, f"attack={name}").key for name in ("sgm", "pgd")}
    real = zoo.card

    def other(*names: str) -> dict:
        facts = real(*names)
        return facts | {"skip": facts["skip"] | {"gamma": 0.01}} if "skip" in facts else facts

    monkeypatch.setattr(zoo, "card", other)
    assert cell(tmp_path, "attack=sgm").key != before["sgm"]
    assert cell(tmp_path, "attack=pgd").key == before["pgd"]


def test_tf32_is_refused_where_it_would_be_float32(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"precision=tf32 is of CUDA .* and device=cpu has"):
        compute.prepare(cell(tmp_path, "attack=pgd", "precision=tf32", "device=cpu").cfg)


def test_convolutions_do_not_run_in_tf32() -> None:
    set_tf32(False)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("piece", [GaussianKernel(3), PatchWise().around])
def test_gradients_are_smoothed_in_float32(
    piece: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], exact.F.conv2d

    def conv2d(*given: Any, **more: Any) -> torch.Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return real(*given, **more)

    monkeypatch.setattr(exact.F, "conv2d", conv2d)
    set_tf32(True)
    try:
        piece(torch.rand(1, 3, 8, 8))
        assert torch.backends.cudnn.allow_tf32
    finally:
        set_tf32(False)
    assert seen == [False]


def test_a_mean_is_of_the_numbers_not_of_their_digits() -> None:
    targets = ["a", "b", "c"]
    results = pd.DataFrame({"target": targets, "success_rate_percent": [0.04, 0.04, 0.14]})
    facts = {"source": "s", "attack": "pgd", "norm": "linf", "paper_percent": np.nan}
    results = results.assign(clean_error_percent=0.0, **facts)
    gains = {"attack": "ir", "over": "pgd", "source": "s", "norm": "linf", "paper_gain": np.nan}
    gain = pd.DataFrame({"target": targets, "gain": [0.04, 0.04, 0.14]})
    lines = tables.layout(results, gain.assign(ci_low=-1.0, ci_high=1.0, **gains), "linf")
    assert lines[1][2:] == ["0.0", "0.0", "0.1", "0.1"]  # of the digits it would be 0.0
    assert lines[2][2:] == [f"{g} [-1.0, +1.0]" for g in ("+0.0", "+0.0", "+0.1")] + ["+0.1"]


def test_gains_are_second_minus_first(tmp_path: Path) -> None:
    cells = []
    success = {"pgd": [1, 1, 0, 0], "ir": [1, 1, 1, 0]}
    for attack, hits in success.items():
        one = cell(tmp_path, f"attack={attack}", "source=resnet34")
        margins = np.tile(np.array(hits) - 0.5, (3, 1))
        files.write_bytes(Results(one).artifact("vgg16").path, to_bytes({"margins": margins}))
        cells.append(one)
    gain = tables.gains(cells, [["pgd", "ir"]], table=1)
    (row,) = gain.itertuples()
    assert (row.attack, row.over, row.n, row.gain) == ("ir", "pgd", 4, 25.0)
    assert row.paper_gain == pytest.approx(85.4 - 66.6)
    ours, base = (np.array(success[name], bool) for name in ("ir", "pgd"))
    assert (row.ci_low, row.ci_high) == evaluation.gain(ours[None], base[None])[1:]
    assert "higher on 1 of 1 pairs" in tables.summaries(gain)[0]


def test_paper_numbers_are_read_from_the_right_cells() -> None:
    rates = paper.rates(1).set_index(paper.CELL)["paper_percent"]
    assert rates["densenet201", "ir", "linf", "inception_v4"] == 63.0
    assert rates["alexnet", "pgd", "l2", "inception_v3"] == 53.5
    third = paper.rates(3).set_index(paper.CELL)["paper_percent"]
    assert third["densenet121", "hybridir", "linf", "densenet201"] == 99.1


def test_out_of_memory_halves_the_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The shard starts again, says so, and records the micro-batch that it was made with."""
    real, tried = worker.perturbations, []

    def limited(*arguments):  # type: ignore[no-untyped-def]
        tried.append(arguments[-1])
        steps_ = real(*arguments)
        yield next(steps_)
        if arguments[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from steps_

    monkeypatch.setattr(worker, "perturbations", limited)
    one = cell(tmp_path, "attack=ir", "source=alexnet")
    assert ensure(Results(one)) == []
    assert tried == [256, 128, 64, 64]  # two shards
    assert any("starts again with micro_batch=64" in text for text in caplog.messages)
    card = files.read_json(one.steps_folder / "0000.json")
    assert card is not None
    assert card["made_with"]["micro_batch"] == 64
    monkeypatch.setattr(worker, "perturbations", real)
    other = cell(tmp_path / "other", "attack=ir", "source=alexnet", "micro_batch=64")
    ensure(Results(other))
    found, expected = (arrays(c, "vgg16")["margins"] for c in (one, other))
    np.testing.assert_array_equal(found, expected)


def test_small_targets_are_built_once_for_all_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing differs that decides their outputs, and never what an attack may change."""
    monkeypatch.setattr(compute, "_targets", {})

    def built(*overrides: str, name: str = "vgg16", role: str = "target") -> nn.Module:
        return worker.Worker(cell(tmp_path, *overrides)).model(name, role)

    first = built("source=alexnet")
    assert built("source=resnet34", "attack=ir") is first
    others = [
        built("source=alexnet", "precision=bf16"),
        built("source=alexnet", "pretrained=false", "benchmark.sources=[]"),
        built("source=vgg16", role="measured"),
        built("source=vgg16", role="source"),
        built("source=alexnet", name="vgg16+jpeg75"),
    ]
    assert len({id(network) for network in (first, *others)}) == 6
    assert built("source=alexnet") is first
    monkeypatch.setattr(compute, "KEPT", 1)
    built("source=alexnet", name="resnet34")
    assert built("source=alexnet") is not first
    monkeypatch.setattr(compute, "SMALL", 1)
    monkeypatch.setattr(compute, "_targets", {})
    assert built("source=alexnet") is not built("source=alexnet")


def test_a_cpu_without_memory_is_a_device_without_memory() -> None:
    """What cannot be allocated is done again in smaller parts; other errors end the work."""
    tried = []

    def work(size: int) -> int:
        tried.append(size)
        return len(torch.empty(2**58 if size > 2 else 1))  # 1 EiB

    assert MicroBatch(8, "cpu").fit(work, "a test") == 1
    assert tried == [8, 4, 2]
    with pytest.raises(RuntimeError, match="shape"):
        MicroBatch(8, "cpu").fit(lambda size: torch.ones(2).view(3), "a test")


def test_images_of_a_manifest_are_attacked(tmp_path: Path) -> None:
    first = cell(tmp_path, "attack=pgd", "source=alexnet", "seed=3")
    images = chosen(first)
    again = cell(tmp_path / "other", f"manifest={manifest(first).path}", "source=alexnet")
    assert images_of(again).ids == images.ids
    assert again.key != cell(tmp_path, "source=alexnet").key
    ensure(Results(again))
    assert not (tmp_path / "other/photos/images").exists()


def test_a_class_that_a_model_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "classes", lambda _, name: 3 if name == "vgg16" else 16)
    match = r"vgg16: does not know the classes of \d+ of \d+ images \(test-"
    with pytest.raises(InputError, match=match):
        chosen(cell(tmp_path))
    with pytest.raises(InputError, match=match):
        chosen(cell(tmp_path, "benchmark.sources=[alexnet]"))


def test_images_are_resized_once_for_all_targets_of_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Margins do not depend on which targets are measured together."""
    calls = []
    real = network.resized

    def counted(x: torch.Tensor, *how: Any) -> torch.Tensor:
        if len(x) == 8 and not torch.is_grad_enabled():  # all images, outside the attack
            calls.append(how)
        return real(x, *how)

    monkeypatch.setattr(network, "resized", counted)
    both = cell(tmp_path, "attack=mi", "source=alexnet", "targets=[resnet34,vgg16]", "images=8")
    ensure(Results(both))
    once_each = 1 + 4  # for p_y of the source; for the clean images and three steps
    assert calls == [(32, "bilinear")] * once_each
    alone = cell(tmp_path / "alone", "attack=mi", "source=alexnet", "images=8")
    ensure(Results(alone))
    found, expected = (arrays(c, "vgg16")["margins"] for c in (both, alone))
    np.testing.assert_array_equal(found, expected)


class Answers(torch.nn.Module):
    """A network that gives every image the same logits, (16,)."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1) + 0 * images.flatten(1).sum(dim=1, keepdim=True)


def answering(monkeypatch: pytest.MonkeyPatch, name: str, logits: torch.Tensor) -> None:
    """One model gives these logits, whatever the image."""
    for function in ("build", "target"):
        real = getattr(worker, function)

        def given(
            cell: Cell, of: str, *role: Any, real: Callable[..., nn.Module] = real
        ) -> nn.Module:
            return Answers(logits) if of == name else real(cell, of, *role)

        monkeypatch.setattr(worker, function, given)


def stored(folder: Path) -> list[Path]:
    return [path for kind in ("b2", "safetensors") for path in folder.rglob(f"*.{kind}")]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_source_without_a_gradient_is_named_and_nothing_stored(
    norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(tmp_path, "source=alexnet", f"norm={norm}")
    chosen(one)
    real = worker.build

    def build(c: Cell, name: str, *role: Any) -> torch.nn.Module:
        model = real(c, name, *role)
        if "source" not in role:
            return model
        # √0 has no derivative: finite logits, and a gradient that is not
        return torch.nn.Sequential(model, Lambda(lambda h: h + ((h - h) ** 2).sqrt()))

    monkeypatch.setattr(worker, "build", build)
    with pytest.raises(InputError, match=r"8 of 8 images \(test-.*gradient .* not finite"):
        ensure(Results(one))
    assert not stored(tmp_path)


class Lambda(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def test_a_target_without_numbers_is_named_and_nothing_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(tmp_path, "source=alexnet")
    chosen(one)
    logits = torch.zeros(16)
    logits[3] = torch.nan
    answering(monkeypatch, "vgg16", logits)
    with pytest.raises(InputError, match=r"vgg16: gives NaN or infinity on 8 of 8 images"):
        ensure(Results(one))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_perturbations_outside_the_box_are_not_stored(tmp_path: Path) -> None:
    one = cell(tmp_path, "source=alexnet", "+attack.clip=false", "eps=128/255", "steps=9")
    with pytest.raises(InputError, match=r"x \+ δ leaves \[0, 1\] there"):
        ensure(Results(one))
    assert not stored(tmp_path)


def test_a_target_that_is_wrong_on_clean_images_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = cell(tmp_path, "source=alexnet")
    labels = chosen(one).labels
    often = int(np.bincount(labels).argmax())
    logits = torch.zeros(16)
    logits[often] = 1.0
    answering(monkeypatch, "vgg16", logits)
    wrong = 100 * (labels != often).mean()
    caplog.set_level("INFO")
    with monkeypatch.context() as context:
        context.setattr(worker, "perturbations", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ensure(Results(one))
    # it is said before the first step
    assert f"Accuracy on the {len(labels)} clean images, %: vgg16 {100 - wrong:.1f}" in caplog.text
    assert f"vgg16 is wrong on {wrong:.0f} % of the clean images" in caplog.text
    ensure(Results(one))
    assert rows(one).clean_error_percent[0] == pytest.approx(wrong)
    assert f"vgg16 is wrong on {wrong:.0f} % of the clean images" in caplog.text
    told = f"Wrong on the clean images already, which counts as success: VGG-16 {wrong:.1f} %."
    assert publish.caption([one]).endswith(told)


def test_a_tie_is_neither_known_nor_fooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A margin of exactly 0: a source does not know the image, a target is not fooled."""
    one = cell(tmp_path, "source=alexnet")
    chosen(one)
    answering(monkeypatch, "vgg16", torch.zeros(16))
    ensure(Results(one))
    found = rows(one)
    for column in ("success_rate_percent", "last_step_percent", "clean_error_percent"):
        assert found[column][0] == 0
    with pytest.raises(InputError, match="only 0 of"):
        chosen(cell(tmp_path / "judged", "benchmark.sources=[vgg16]"))


def test_perturbations_outside_the_ball_are_not_stored() -> None:
    class Loose(Linf):
        def round(self, levels: torch.Tensor) -> torch.Tensor:
            return levels.round()

    images = Images(["a", "b"], np.zeros(2, dtype=int), np.full((2, 3, 4, 4), 100, np.uint8))
    delta = torch.zeros(2, 3, 4, 4)
    delta[1, 0, 0, 0] = 10 / 255
    frame = worker.to_frame(images, delta, Loose(10 / 255, 1 / 255))
    assert frame[1, 0, 0, 0] == 110
    with pytest.raises(InputError, match=r"1 of 2 images \(b\): δ leaves the ball"):
        worker.to_frame(images, delta, Loose(8 / 255, 1 / 255))


def test_what_is_measured_of_an_attack_needs_no_earlier_run(tmp_path: Path) -> None:
    one = cell(tmp_path, "source=alexnet", "images=2", "grid=2", "cells=2")
    job = NeighbourMaps(one, contexts=2, drawn=1)
    assert ensure(job) == [] == job.missing()


def test_code_is_a_fact_of_the_whole_and_of_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(tmp_path, "source=alexnet", "images=2", "grid=2", "cells=2")
    job, (shard,) = NeighbourMaps(one), one.shards(chosen(one))

    def facts() -> list[dict]:
        return [job.artifact(job.kind).facts, job.part(job.kind, shard).facts]

    monkeypatch.setattr(sharded, "code_of", lambda _: {"mine": "old"})
    before = facts()
    monkeypatch.setattr(sharded, "code_of", lambda _: {"mine": "edited"})
    assert all(old != new for old, new in zip(before, facts(), strict=True))


def test_interrupted_interactions_continue_after_the_last_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(tmp_path, "source=alexnet", "attack=mi", "grid=4")  # 12 images in shards of 8
    job, real, seen = Contributions(one), Contributions.measure, list[int]()

    def measure(self: Contributions, worker: Any, shard: Shard, *rest: Any) -> Any:
        seen.append(shard.index)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(self, worker, shard, *rest)

    monkeypatch.setattr(Contributions, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        ensure(job)
    assert {path.name.split("-")[0] for path in job.parts(job.kind)} == {"0000"}
    ensure(job)
    assert seen == [0, 1, 1]
    assert job.values()["contributions"].shape == (12, 4, 4)
    assert not job.parts(job.kind)


def test_results_of_other_weights_of_a_target_lie_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Results(cell(tmp_path, "attack=pgd"))
    before = one.artifact("vgg16").path
    real = Cell.identity
    monkeypatch.setattr(Cell, "identity", lambda self, name: {**real(self, name), "weights": "b"})
    assert one.artifact("vgg16").path != before
    assert one.artifact("vgg16").path.name.startswith("vgg16-")
