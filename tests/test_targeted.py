"""Targeted attacks: steps, margins and v(S) against plain computations; a cell that succeeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose
from PIL import Image
from torch import Tensor, nn

from irattack import attack as attack_on
from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.losses import LOSSES
from irattack.attacks.norms import Free, Linf
from irattack.attacks.objective import to_pixels
from irattack.attacks.pieces import Interaction, Momentum
from irattack.attacks.randomness import Draws
from irattack.commands.plans import plan
from irattack.conf import OWN
from irattack.data import photos
from irattack.errors import InputError
from irattack.models import zoo
from irattack.pipeline import statistics
from irattack.pipeline.cell import Cell
from irattack.pipeline.exchange import evaluate, export
from irattack.pipeline.images import Choice, images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.measures import Contributions
from irattack.pipeline.predictors import Predictors
from irattack.pipeline.results import Results, arrays, cards, rows
from irattack.pipeline.steps import last_frame
from irattack.pipeline.transfer import Answers
from irattack.results.publish import caption
from irattack.results.tables import render

QUICK = ["images=12", "steps=3", "samples=2", "targets=[vgg16]", "threads=1", "block=8"]
WANTED = torch.tensor([1, 2, 3, 4, 0, 1, 2, 3, 4])
IDS = [f"image-{i}" for i in range(9)]


pytestmark = pytest.mark.usefixtures("composing")


def cell(folder: Path, *overrides: str) -> Cell:
    given = [f"output={folder}", "source=alexnet", *QUICK, "goal=targeted", *overrides]
    return Cell(compose("config", overrides=given))


def reached(logits: Tensor, t: Tensor) -> Tensor:
    """h_t − max over the others, class by class."""
    rows = [
        h[c] - max(h[k] for k in range(len(h)) if k != c) for h, c in zip(logits, t, strict=True)
    ]
    return torch.stack(rows)


PLAIN = {
    "ce": lambda h, t: F.log_softmax(h, dim=1)[range(len(t)), t],
    "logit": lambda h, t: h[range(len(t)), t],
    "margin": reached,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_raises_what_is_wanted(loss: str, smooth: nn.Module, images: Tensor) -> None:
    made = Attack(Linf(8 / 255, 2 / 255), 1, loss=LOSSES[loss], start="zero", goal="targeted")
    (delta,) = perturbations(made, smooth, images, WANTED, IDS, Draws(0))
    x = images.clone().requires_grad_()
    (g,) = torch.autograd.grad(PLAIN[loss](smooth(x), WANTED).sum(), x)
    expected = (images + 2 / 255 * g.sign()).clamp(0, 1) - images
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-12)
    assert (PLAIN[loss](smooth(images + delta), WANTED) > PLAIN[loss](smooth(images), WANTED)).all()


@pytest.mark.parametrize("rival", ["set", "step"])
def test_interaction_of_what_is_wanted(rival: str, smooth: nn.Module, images: Tensor) -> None:
    """One step of J = log p_t − λ mean_k [v(Λ) − v(Λ∖S_k) − v(S_k)], v = h_t − max h_y'."""
    term = Interaction(lam=1.5, samples=3, cells=2, grid=4, rival=rival)
    made = Attack(
        *(Free(1.0), 1),
        interaction=term,
        accumulate=Momentum(rule="none"),
        clip=False,
        goal="targeted",
    )
    draws, start = Draws(3), 0.01 * torch.randn_like(images)
    found, _ = made.update(
        smooth, images, WANTED, start, torch.zeros_like(images), IDS, 1, draws, micro_batch=7
    )
    sets, _ = term.drawn(IDS, 1, draws, images.shape)
    present = to_pixels(sets, *images.shape[-2:])  # (B, K, H, W)
    delta = start.clone().requires_grad_()
    at_delta = smooth(images + delta).detach()
    others = at_delta.scatter(1, WANTED[:, None], -torch.inf).argmax(dim=1)

    def v(z: Tensor) -> Tensor:
        h = smooth(z)
        if rival == "set":
            return reached(h, WANTED)
        return h[range(9), WANTED] - h[range(9), others]

    total = F.log_softmax(smooth(images + delta), dim=1)[range(9), WANTED].sum()
    for k in range(3):
        mask = present[:, k, None].double()
        crossed = v(images + delta) - v(images + delta * (1 - mask)) - v(images + delta * mask)
        total = total - 1.5 / 3 * crossed.sum()
    (g,) = torch.autograd.grad(total, delta)
    torch.testing.assert_close(found, start + g, rtol=1e-9, atol=1e-12)


def test_of_restarts_the_nearest_to_the_wanted_class(smooth: nn.Module, images: Tensor) -> None:
    made = Attack(Linf(8 / 255, 2 / 255), 2, start="random", restarts=4, goal="targeted")
    one = Attack(Linf(8 / 255, 2 / 255), 2, start="random", goal="targeted")
    *_, best = perturbations(made, smooth, images, WANTED, IDS, Draws(0))
    runs = [
        [*perturbations(one, smooth, images, WANTED, IDS, Draws(0).restart(i))][-1]
        for i in range(4)
    ]
    losses = torch.stack([-PLAIN["ce"](smooth(images + delta), WANTED) for delta in runs])
    expected = torch.stack(runs)[losses.argmin(dim=0), range(9)]
    assert len({*losses.argmin(dim=0).tolist()}) > 1
    torch.testing.assert_close(best, expected)


def test_in_python(smooth: nn.Module, images: Tensor) -> None:
    given: dict[str, Any] = {"eps": 0.1, "steps": 5, "start": "zero"}
    delta = attack_on("pgd", smooth, images, WANTED, goal="targeted", **given)
    before, after = (reached(smooth(z), WANTED) for z in (images, images + delta))
    assert (after > before).all()
    away = attack_on("pgd", smooth, images, WANTED, **given)  # from the same classes
    assert (reached(smooth(images + away), WANTED) < before).all()


def test_pgd_reaches_the_wanted_class_on_the_source(tmp_path: Path) -> None:
    one = cell(tmp_path, "attack=pgd", "targets=[alexnet,vgg16]", "steps=20")
    ensure(Results(one))
    images = images_of(one)
    frames = np.concatenate([last_frame(one, shard) for shard in one.shards(images)])
    t = torch.from_numpy(images.aims)
    for name in one.targets:
        with torch.no_grad():
            logits = zoo.build("photos", name)(torch.from_numpy(frames).float() / 255)
        found = arrays(one, name)
        np.testing.assert_allclose(found["margins"][-1], reached(logits, t).numpy(), atol=1e-4)
        assert ((found["margins"][-1] > 0) == (logits.argmax(dim=1) == t).numpy()).all()
        assert (found["clean"] < 0).all()  # every clean image is given its label
    success = statistics.successes(arrays(one, "alexnet")["margins"])[-1]
    assert success.mean() > 0.9
    card = next(card for card in cards(one) if card.target_name == "alexnet")
    assert card.last_step_percent == pytest.approx(100 * success.mean())
    assert card.clean_error_percent == 0
    assert card.source_confidence > 0.5  # of the label
    whole = statistics.transferred(arrays(one, "vgg16")["margins"])
    assert cards(one)[1].success_rate_percent == pytest.approx(100 * whole.mean())
    said = caption([one])
    assert "goal=targeted, wanted=seed" in said
    assert "success is that the target gives the wanted class" in said
    assert "Given the wanted class on the clean images already" in said
    assert "pgd-targeted-alexnet" in one.label
    assert set(rows(one).attack) == {"pgd targeted"}
    assert "pgd targeted" in render(rows(one))
    assert "given the class when clean %" in render(rows(one))
    manifest = export(one, tmp_path / "images")
    assert '"wanted": ' in manifest.read_text()
    again = evaluate(one, tmp_path / "images")
    np.testing.assert_array_equal(again.margins["vgg16"], arrays(one, "vgg16")["margins"][-1])
    for more, match in (
        ("goal=untargeted", r"goal=untargeted: the images of .* are of goal=targeted, as its mani"),
        ("seed=1", r"wanted=seed, seed=1: \d+ images of .* aim at other classes, as its manifest"),
    ):
        chosen = f"manifest={next((tmp_path / 'photos/images').glob('*.json'))}"
        with pytest.raises(InputError, match=match):
            evaluate(cell(tmp_path, chosen, more), tmp_path / "images")
    manifest.unlink()
    away = evaluate(cell(tmp_path, "goal=untargeted"), tmp_path / "images")
    assert not np.array_equal(away.margins["vgg16"], again.margins["vgg16"])
    clean = export(one, tmp_path / "clean", "clean")  # what attacks them is not said
    assert json.loads(clean.read_text())["goal"] is None
    assert len(evaluate(cell(tmp_path, "goal=untargeted"), tmp_path / "clean").images) == 12


def test_interactions_inside_are_of_the_wanted_class(tmp_path: Path) -> None:
    one = cell(tmp_path, "attack=pgd", "images=4", "grid=2", "cells=1")
    ensure(Contributions(one))
    images = images_of(one)
    (shard,) = one.shards(images)
    x = torch.from_numpy(images.pixels).float() / 255
    delta = torch.from_numpy(last_frame(one, shard)).float() / 255 - x
    model, t = zoo.build("photos", "alexnet"), torch.from_numpy(images.aims)

    def v(present: Tensor) -> Tensor:
        with torch.no_grad():
            return reached(model(x + delta * present), t)

    whole, empty = torch.ones(32, 32), torch.zeros(32, 32)
    found = Contributions(one).values()["contributions"]
    for row in range(2):
        for column in range(2):
            cell_of = empty.clone()
            cell_of[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 1
            expected = v(whole) - v(whole - cell_of) - v(cell_of) + v(empty)
            np.testing.assert_allclose(found[:, row, column], expected.numpy(), atol=1e-3)


def wanted(one: Cell) -> dict[str, int]:
    ensure(Choice(one))
    images = images_of(one)
    assert (images.aims != images.labels).all()
    return dict(zip(images.ids, images.aims.tolist(), strict=True))


def test_wanted_classes_are_of_seed_and_image(tmp_path: Path) -> None:
    many = wanted(cell(tmp_path, "images=100"))
    few = wanted(cell(tmp_path / "few", "images=12", "attack=ir", "source=vgg16"))
    assert {name: many[name] for name in few} == few
    assert len({*many.values()}) == 16
    other = wanted(cell(tmp_path / "other", "images=100", "seed=1"))
    both = [name for name in many if name in other]
    assert len(both) > 10
    assert np.mean([many[name] == other[name] for name in both]) < 0.5


def test_untargeted_keys_say_nothing_of_goals(tmp_path: Path) -> None:
    plain = cell(tmp_path, "goal=untargeted")
    assert not {"goal", "wanted"} & {*plain.steps_facts, *plain.steps_facts["attack"]}
    keys = [cell(tmp_path, *more).key for more in ([], ["wanted=data"])]
    assert len({plain.key, *keys}) == 3
    assert cell(tmp_path, "goal=untargeted", "wanted=data").key == plain.key


def own_data(folder: Path, aims: list[int]) -> list[str]:
    """Settings for crops in a folder whose file of labels names wanted classes."""
    crops = photos.candidates("test")
    images = crops.take(range(0, 8 * len(aims), 8))
    (folder / "crops").mkdir(parents=True, exist_ok=True)
    lines = ["filename,label,targeted_label"]
    for name, pixels, label, aim in zip(
        images.ids, images.pixels, images.labels, aims, strict=True
    ):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / "crops" / f"{name}.png")
        lines.append(f"{name}.png,{label},{(label + aim) % 16}")
    (folder / "labels.csv").write_text("\n".join(lines))
    data = {"_target_": "irattack.data.files.candidates", "classes": 16, "size": 32}
    data |= {"folder": folder / "crops", "ground_truth": folder / "labels.csv", "counting": 0}
    given = [f"++benchmark.data.{name}={value}" for name, value in data.items()]
    return ["~benchmark.data.split", *given, "benchmark.sources=[]", f"images={len(aims)}"]


def test_the_data_may_name_the_wanted_classes(tmp_path: Path) -> None:
    given = own_data(tmp_path, [1, 2, 3, 4, 5, 6])
    one = cell(tmp_path, "wanted=data", *given)
    ensure(Results(one))
    images = images_of(one)
    assert sorted(((images.aims - images.labels) % 16).tolist()) == [1, 2, 3, 4, 5, 6]
    first = arrays(one, "vgg16")["margins"]
    # other wanted classes of the same images are another result
    own_data(tmp_path, [6, 5, 4, 3, 2, 1])
    for path in (tmp_path / "photos/images").glob("*.json"):
        path.unlink()
    again = cell(tmp_path, "wanted=data", *given)
    assert again.key == one.key
    ensure(Choice(again))
    assert Results(again).missing() == ["vgg16"]
    ensure(Results(again))
    assert not np.array_equal(first, arrays(again, "vgg16")["margins"])


def test_wanted_classes_that_a_manifest_does_not_list(tmp_path: Path) -> None:
    given = own_data(tmp_path, [1, 2, 3])
    one = cell(tmp_path, "wanted=data", *given)
    ensure(Choice(one))
    (path,) = (tmp_path / "photos/images").glob("*.json")
    own_data(tmp_path, [1, 9, 3])  # the file of labels has changed since
    with pytest.raises(InputError, match=r"lists other wanted classes than .* for 1 of 3 images"):
        ensure(Results(one))
    own_data(tmp_path, [1, 2, 3])
    plain = tmp_path / "plain.json"
    images = json.loads(path.read_text())["images"]
    kept = [{name: entry[name] for name in ("id", "label", "sha256")} for entry in images]
    plain.write_text(json.dumps({"images": kept}))
    other = cell(tmp_path, "wanted=data", *given, f"manifest={plain}")
    with pytest.raises(InputError, match=r"plain\.json: lists other .* or none, for 3 of 3 images"):
        ensure(Results(other))
    ensure(Results(one))
    assert images_of(cell(tmp_path, *given, f"manifest={plain}", "goal=untargeted")).ids
    plain.write_text(json.dumps({"images": images}))
    aims = images_of(cell(tmp_path, "wanted=data", *given, f"manifest={plain}")).aims
    assert aims.tolist() == images_of(one).aims.tolist()


def test_goals_that_cannot_be(tmp_path: Path) -> None:
    one = cell(tmp_path, "wanted=data")
    ensure(Choice(one))
    with pytest.raises(InputError, match="wanted=data: the images of benchmark=photos name no cla"):
        images_of(one)
    own = cell(tmp_path / "own", "wanted=data", *own_data(tmp_path, [1, 16, 2]))
    ensure(Choice(own))
    with pytest.raises(InputError, match=r"wanted=data: 1 of 3 images aim at their own class \(te"):
        images_of(own)
    for override, match in (("goal=target", "did you mean targeted"), ("wanted=me", "wanted=me: ")):
        with pytest.raises(InputError, match=match):
            cell(tmp_path, override)
    with pytest.raises(InputError, match="goal=tarted: did you mean targeted"):
        Attack(Linf(8 / 255, 2 / 255), 1, goal="tarted")
    for job in (Answers(cell(tmp_path)), Predictors(cell(tmp_path))):
        with pytest.raises(InputError, match=r"goal=targeted: .* alone; leave goal out\."):
            ensure(job)
    assert not (tmp_path / "photos/steps").exists()


def test_a_table_of_two_goals_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "table/goals.yaml"
    own.parent.mkdir()
    own.write_text(
        "title: Two goals\ntargets: [vgg16]\ncells:\n"
        "  - { norm: linf, source: alexnet, attack: pgd, goal: [untargeted, targeted] }\n"
    )
    monkeypatch.setenv(OWN, str(tmp_path))
    with pytest.raises(InputError, match="goals: has cells of goal=untargeted and goal=targeted, "):
        plan("goals", [f"output={tmp_path}"])
    (one,) = plan("goals", [f"output={tmp_path}", "goal=targeted"]).cells
    assert one.targeted
