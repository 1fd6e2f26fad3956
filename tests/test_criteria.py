"""Which success: equal lengths, clean-correct denominators, steps, image files, by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose
from torch import Tensor

from irattack.attacks.norms import l2_length
from irattack.commands import composing, plans, reproduce, settings
from irattack.errors import InputError
from irattack.interactions.rivals import equalised
from irattack.models import zoo
from irattack.pipeline import statistics
from irattack.pipeline.cell import Cell, with_attack
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.results import Results
from irattack.pipeline.steps import last_frame
from irattack.pipeline.transfer import Answers, EqualLength, saved
from irattack.results.criteria import succeeded

SMALL = ["images=8", "steps=2", "samples=2", "grid=4", "cells=3", "threads=1", "block=5"]


def cell(folder: Path, *overrides: str) -> Cell:
    settings.register_resolvers()
    with composing.hydra():
        return Cell(compose("config", overrides=[*SMALL, f"output={folder}", *overrides]))


def perturbed(one: Cell) -> tuple[Tensor, Tensor, Tensor]:
    """x, δ of the last step from the disk, and y."""
    images = images_of(one)
    frames = np.concatenate([last_frame(one, shard) for shard in one.shards(images)])
    x = torch.from_numpy(images.pixels).float() / 255
    return x, torch.from_numpy(frames).float() / 255 - x, torch.from_numpy(images.labels)


def test_the_longer_of_two_is_scaled_to_the_shorter() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(6, 3, 8, 8, generator=generator)
    second = torch.randn(6, 3, 8, 8, generator=generator)
    first[:3] *= 7  # longer here, shorter there
    second[3:] *= 3
    first[5] = 0
    a, b = equalised(first, second)
    shorter = torch.minimum(l2_length(first), l2_length(second))
    for found in (a, b):
        torch.testing.assert_close(l2_length(found), shorter, rtol=1e-6, atol=0)
    assert torch.equal(b[:3], second[:3])  # the shorter, bit for bit
    assert torch.equal(a[3:], first[3:])
    assert not a[5].any()
    assert not b[5].any()
    torch.testing.assert_close(a[0] / a[0].norm(), first[0] / first[0].norm())


@pytest.mark.parametrize("name", ["pgd", "mi", "vr", "sgm", "ir", "irmax", "hybridir"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_another_attack_of_the_same_cell_is_what_hydra_composes(
    name: str, norm: str, tmp_path: Path
) -> None:
    given = [f"norm={norm}", "source=resnet34", "lam=0.7", "loss=margin", "protocol=authors"]
    other = with_attack(cell(tmp_path, "attack=sgmir", *given), name)
    assert other.key == cell(tmp_path, f"attack={name}", *given).key
    assert other.label.startswith(f"{name}-")


def test_what_is_no_attack_of_pieces_is_refused(tmp_path: Path) -> None:
    one = cell(tmp_path)
    with pytest.raises(InputError, match="against"):
        with_attack(one, "pdg")


def test_margins_at_equal_length(tmp_path: Path) -> None:
    one = cell(tmp_path, "attack=ir", "targets=[vgg16,alexnet]")
    job = EqualLength(one)
    ensure(job)
    x, delta, y = perturbed(one)
    _, other, _ = perturbed(job.other)
    lengths = [d.flatten(1).norm(dim=1) for d in (delta, other)]
    assert (lengths[0] < lengths[1]).all()  # from a start at 0, and of two steps
    scaled = other * (lengths[0] / lengths[1]).view(-1, 1, 1, 1)
    for name in one.targets:
        found, model = job.values(name), zoo.build("photos", name)
        np.testing.assert_allclose(found["lengths"][0], lengths[0], rtol=1e-6)
        np.testing.assert_allclose(found["lengths"][1], found["lengths"][0], rtol=1e-6)
        for row, moved in enumerate((delta, scaled)):
            logits = model(x + moved)
            true = logits.gather(1, y[:, None])[:, 0]
            rest = logits.scatter(1, y[:, None], -np.inf).amax(dim=1)
            np.testing.assert_allclose(found["margins"][row], rest - true, atol=1e-4)


def test_image_files_keep_what_they_keep() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 17, 16)).astype(np.uint8)
    before = pixels.copy()
    np.testing.assert_array_equal(saved(pixels, "png"), pixels)
    errors = [np.abs(saved(pixels, f"jpeg{q}").astype(int) - pixels).mean() for q in (95, 75)]
    assert 1 < errors[0] < errors[1]
    grey = np.full((1, 3, 16, 16), 77, np.uint8)
    np.testing.assert_array_equal(saved(grey, "jpeg95"), grey)
    np.testing.assert_array_equal(pixels, before)
    with pytest.raises(InputError, match="formats: gif"):
        saved(pixels, "gif")


def test_answers_of_png_files_are_the_results(tmp_path: Path) -> None:
    one = cell(tmp_path, "attack=pgd", "source=alexnet", "targets=[vgg16,alexnet]")
    job = Answers(one)
    assert job.names == ["vgg16", "alexnet"]
    for each in (Results(one), job):
        ensure(each)
    y = images_of(one).labels
    for name in job.names:
        found, result = job.values(name), Results(one).artifact(name).arrays()
        np.testing.assert_array_equal(found["margins png"][1:], result["margins"])
        np.testing.assert_array_equal(found["margins png"][0], result["clean"])
        for form in job.formats:
            margins, classes = found[f"margins {form}"], found[f"classes {form}"]
            np.testing.assert_array_equal(margins > 0, classes != y)
    logits = zoo.build("photos", "vgg16")(
        torch.from_numpy(saved(images_of(one).pixels, "jpeg75")).float() / 255
    )
    classes = job.values("vgg16")["classes jpeg75"][0]
    np.testing.assert_array_equal(classes, logits.argmax(dim=1))


def test_criteria_by_hand() -> None:
    """Four images of class 0, two steps; the target is wrong on the last when clean."""
    target = {
        "margins png": np.array([[-1, -1, -1, 1], [1, 1, -1, 1], [1, -1, -1, 1]], float),
        "classes png": np.array([[0, 0, 0, 2], [1, 2, 0, 2], [1, 0, 0, 3]], float),
    }
    source = {"classes png": np.array([[0, 0, 0, 0], [1, 1, 0, 2], [2, 0, 0, 3]], float)}
    wrong, counted = succeeded(target, source, "png", "misclassified")
    np.testing.assert_array_equal(wrong, [[1, 1, 0, 1], [1, 0, 0, 1]])
    assert counted.all()
    assert statistics.rate(wrong, statistics.best_step)[0] == 75
    assert statistics.rate(wrong, statistics.last_step)[0] == 50
    known, counted = succeeded(target, source, "png", "known")
    np.testing.assert_array_equal(counted, [1, 1, 1, 0])
    none = np.zeros_like(known)
    pairs, rule = [(known, none)], statistics.best_step
    mean, (each,) = statistics.mean_gain(pairs, rule, counted=[counted])
    assert mean[0] == pytest.approx(200 / 3)  # two of the three that it knows
    assert each[0] == pytest.approx(200 / 3)
    same, counted = succeeded(target, source, "png", "same class")
    np.testing.assert_array_equal(same, [[1, 0, 0, 1], [0, 0, 0, 1]])
    assert counted.all()


def test_a_mean_over_targets_that_know_different_images() -> None:
    """The mean of 1/2 and 1/3; counting all images is as if nothing were said."""
    ours, none = np.array([[True, False, True, True]]), np.zeros((1, 4), bool)
    counted = [np.array([1, 1, 0, 0], bool), np.array([1, 1, 1, 0], bool)]
    pairs = [(ours, none)] * 2
    mean, each = statistics.mean_gain(pairs, statistics.last_step, counted=counted)
    assert mean[0] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert [one[0] for one in each] == pytest.approx([50, 200 / 3])
    alone = statistics.gain(ours[:, :2], none[:, :2], statistics.last_step)
    assert each[0][0] == alone[0]
    everyone = [np.ones(4, bool)] * 2
    assert statistics.mean_gain(pairs, counted=everyone) == statistics.mean_gain(pairs)
    with pytest.raises(InputError, match="right on none"):
        statistics.mean_gain(pairs, counted=[np.zeros(4, bool)] * 2)


@pytest.mark.parametrize("rule", [statistics.last_step, statistics.leave_one_out])
@pytest.mark.parametrize("count", [120, 64, 20])
def test_images_that_do_not_count_widen_no_interval(rule: statistics.Rule, count: int) -> None:
    """It is as wide as among those that count alone, though resamples differ in size."""
    random = np.random.default_rng(0)
    ours, none = random.random((3, 128)) < 0.9, np.zeros((1, 128), bool)
    counted = np.arange(128) < count
    _, low, high = statistics.gain(ours[:, :count], none[:, :count], rule)
    mean, each = statistics.mean_gain([(ours, none)] * 2, rule, counted=[counted] * 2)
    for one in (mean, *each):
        assert one[2] - one[1] == pytest.approx(high - low, rel=0.1)


def test_the_best_step_is_optimistic_where_nothing_differs() -> None:
    """20 steps of chance at 40 %: the best step is above the truth, the last one is not."""
    random = np.random.default_rng(0)
    found = np.array(
        [
            [
                statistics.rate(success, rule)[0]
                for rule in (statistics.last_step, statistics.cross_fit, statistics.best_step)
            ]
            for success in random.random((60, 20, 64)) < 0.4
        ]
    ).mean(axis=0)
    assert found[:2] == pytest.approx([40, 40], abs=2.5)
    assert found[2] > 48


def test_the_table_of_lengths_is_of_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    given = [*SMALL, "source=resnet34", f"output={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["reproduce", "length", *given, "attack=pgd,ir"])
    reproduce.main()
    data = pd.read_csv(next((tmp_path / "photos/tables").glob("length-*.csv")))
    with composing.hydra():
        cells = {one.name: one for one in plans.plan("length", given).cells}
    assert (data.mean_l2_equal <= data[["mean_l2", "mean_l2_over"]].min(axis=1) + 1e-4).all()
    for row in data[data.target != "mean"].itertuples():
        last = {
            name: Results(cells[name]).artifact(row.target).arrays()["margins"][-1] > 0
            for name in ("ir", "pgd")
        }
        expected = 100 * (last["ir"].mean() - last["pgd"].mean())
        assert row.as_it_is_gain == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr("sys.argv", ["reproduce", "length", *given, "attack=ir"])
    with pytest.raises(SystemExit):
        reproduce.main()
    assert "needs pgd beside the others" in capsys.readouterr().err
