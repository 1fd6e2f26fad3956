"""Attacks at IR's price, masks alone, settings chosen on validation images, single switches."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

from irattack.attacks.diversity import ResizeAndPad
from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.norms import Linf
from irattack.attacks.objective import gradient, to_pixels
from irattack.attacks.pieces import Copies, MaskedLoss
from irattack.attacks.randomness import Draws
from irattack.commands import composing, plans, settings
from irattack.errors import InputError
from irattack.pipeline import choosing, speed
from irattack.pipeline.cell import Cell, attack_of
from irattack.pipeline.choosing import Best, along, with_settings
from irattack.pipeline.images import listing
from irattack.pipeline.job import job_of
from irattack.pipeline.price import Price, price_of
from irattack.pipeline.results import Results, arrays
from irattack.results.compared import interactions, reference, timed
from irattack.results.tuned import told

SMALL = ["images=8", "steps=2", "samples=2", "grid=4", "cells=3", "threads=1"]
IDS = list("abcdefghi")
NORM = Linf(16 / 255, 2 / 255)


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    settings.register_resolvers()
    threads = torch.get_num_threads()
    with composing.hydra():
        yield
    torch.set_num_threads(threads)
    GlobalHydra.instance().clear()


def run(attack: Attack, model: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    y = model(x).argmax(dim=1)
    return torch.stack(list(perturbations(attack, model, x, y, IDS, Draws(seed), 7)))


class Counting(nn.Module):
    """A network that counts the images whose gradient is taken."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body, self.count = body, 0

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            self.count += len(images)
        return self.body(images)


def cells(table: str, *overrides: str) -> list[Cell]:
    return plans.plan(table, [*SMALL, *overrides]).cells


@pytest.mark.parametrize("table", ["budget", "masks"])
def test_gradients_are_those_that_the_network_is_asked_for(
    table: str, smooth: nn.Module, images: Tensor
) -> None:
    y, found = smooth(images).argmax(dim=1), {}
    for cell in cells(table, "steps=3", "source=resnet34"):
        attack, model = attack_of(cell), Counting(smooth)
        list(perturbations(attack, model, images, y, IDS, Draws(0)))
        assert model.count == len(images) * speed.gradients(attack), cell.method
        saved = 0 if attack.interaction is None else 4  # 2K, of the step at δ = 0
        assert speed.most_gradients(attack) == speed.gradients(attack) + saved, cell.method
        found[cell.method] = speed.gradients(attack)
    plain = found.pop("pgd start=zero")
    assert plain == 3
    cheap = {method for method, count in found.items() if count == plain}
    assert cheap == ({"pgd", "mi start=zero"} if table == "budget" else set())
    others = {method: count for method, count in found.items() if method not in cheap}
    assert all(4 * plain - 4 <= count <= 5 * plain for count in others.values())  # 2K + 1 = 5


def test_one_of_each_is_the_plain_attack(smooth: nn.Module, images: Tensor) -> None:
    plain = run(Attack(NORM, 4), smooth, images)
    assert torch.equal(run(Attack(NORM, 4, restarts=1, every=1), smooth, images), plain)
    di = run(Attack(NORM, 4, transform=ResizeAndPad()), smooth, images)
    once = run(Attack(NORM, 4, transform=ResizeAndPad(), samples=Copies(1)), smooth, images)
    assert torch.equal(once, di)
    assert not torch.equal(di, plain)


@pytest.mark.parametrize("record", ["after", "before", "last"])
@pytest.mark.parametrize(("steps", "every"), [(6, 3), (7, 3), (2, 5), (5, 1)])
def test_recorded_steps_are_evenly_spaced_and_end_with_the_last(
    steps: int, every: int, record: str, smooth: nn.Module, images: Tensor
) -> None:
    all_steps = run(Attack(NORM, steps, record=record), smooth, images)
    found = run(Attack(NORM, steps, record=record, every=every), smooth, images)
    places = list(range(len(all_steps) - 1, -1, -every))[::-1]
    assert torch.equal(found, all_steps[places])
    cfg = compose("config", overrides=[f"steps={steps}", f"+attack.every={every}"])
    cfg.attack.record = record
    assert Cell(cfg).recorded == len(found)


def test_restarts_choose_the_highest_loss_of_each_image(smooth: nn.Module, images: Tensor) -> None:
    y = smooth(images).argmax(dim=1)
    draws = [Draws(3).restart(number) for number in range(4)]
    runs = [
        torch.stack(list(perturbations(Attack(NORM, 3), smooth, images, y, IDS, each, 7)))
        for each in draws
    ]
    assert all(not torch.equal(a, b) for a, b in pairwise(runs))
    losses = [F.cross_entropy(smooth(images + each[-1]), y, reduction="none") for each in runs]
    best = torch.stack(losses).argmax(dim=0)
    assert len({*best.tolist()}) > 1
    expected = torch.stack([runs[k][:, i] for i, k in enumerate(best.tolist())], dim=1)
    assert torch.equal(run(Attack(NORM, 3, restarts=4), smooth, images, seed=3), expected)


def test_restarts_of_an_image_do_not_depend_on_its_batch(smooth: nn.Module, images: Tensor) -> None:
    whole = run(Attack(NORM, 3, restarts=3), smooth, images)
    y = smooth(images).argmax(dim=1)
    one = perturbations(
        Attack(NORM, 3, restarts=3), smooth, images[4:5], y[4:5], IDS[4:5], Draws(0)
    )
    torch.testing.assert_close(torch.stack(list(one))[:, 0], whole[:, 4], rtol=0, atol=1e-12)


def test_draws_of_the_transform_are_averaged(smooth: nn.Module, images: Tensor) -> None:
    transform = ResizeAndPad()
    attack = Attack(NORM, 1, transform=transform, samples=Copies(5))
    y = smooth(images).argmax(dim=1)
    delta = 0.05 * torch.randn_like(images)
    ours = gradient(smooth, images, delta, y, attack.terms(delta, IDS, 2, Draws(5)), 7)
    drawn = Draws(5).uniform(IDS, 2, "transform", (5, 4))
    d = delta.clone().requires_grad_()
    loss = torch.zeros(())
    for k in range(5):
        seen = transform(images + d, drawn[:, k])
        loss = loss + F.cross_entropy(smooth(seen), y, reduction="sum") / 5
    torch.testing.assert_close(ours, torch.autograd.grad(loss, d)[0])


def test_irbaseline_is_the_gradient_at_the_masked_inputs(smooth: nn.Module, images: Tensor) -> None:
    attack = attack_of(Cell(compose("config", overrides=["attack=irbaseline", "grid=4"])))
    assert isinstance(attack.masked, MaskedLoss)
    count = attack.masked.samples
    assert (count, attack.masked.cells, attack.classify) == (17, 8, False)  # half of 16 cells
    y = smooth(images).argmax(dim=1)
    delta = 0.05 * torch.randn_like(images)
    ours = gradient(smooth, images, delta, y, attack.terms(delta, IDS, 2, Draws(5)), 7)
    masks = to_pixels(Draws(5).subsets(IDS, 2, count, 8, 4), 16, 16)[:, :, None].double()
    expected = torch.zeros_like(images)
    for k in range(count):
        z = (images + masks[:, k] * delta).requires_grad_()
        loss = F.cross_entropy(smooth(z), y, reduction="sum")
        expected += torch.autograd.grad(loss, z)[0] / count
    torch.testing.assert_close(ours, expected)


def test_long_attacks_go_as_far_or_farther() -> None:
    given = ["steps=3", "samples=4", "norm=l2"]
    made = {
        name: attack_of(Cell(compose("config", overrides=[f"attack={name}", *given])))
        for name in ("pgd", "pgdlong", "mifine")
    }
    sizes = {name: attack.norm.step_size for name, attack in made.items()}  # type: ignore[attr-defined]
    assert made["pgdlong"].steps == made["mifine"].steps == 27
    assert len(made["mifine"].recorded) == made["pgd"].steps
    assert sizes["pgdlong"] == sizes["pgd"] == pytest.approx(9 * sizes["mifine"])
    assert made["mifine"].accumulate.mu == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Attack(NORM, 2, restarts=0), "=0: expected a whole number from 1 on"),
        (lambda: Attack(NORM, 2, every=0), "=0: expected a whole number from 1 on"),
        (lambda: Attack(NORM, 2, samples=Copies(3)), "alike without an input transform"),
        (lambda: MaskedLoss(samples=1, cells=1, grid=2, part="rest"), "expected both or sets|part"),
    ],
)
def test_mistakes(wrong: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        wrong()


def test_a_price_is_on_its_card(tmp_path: Path) -> None:
    cell = cells("masks", "source=resnet34", f"output={tmp_path}", "attack=ir")[0]
    job = job_of(cell, Price)
    for need in job.needs:
        need.make(need.missing())
    job.make(job.missing())
    assert not job.missing()
    assert price_of(cell).gradients == 1 + 5
    assert price_of(cell).seconds > 0


def test_rows_of_versions_differ_from_their_reference_by_one_switch() -> None:
    table = plans.plan("versions", [])
    against, seen = table.definition["against"], set()

    def flat(cell: Cell) -> dict[str, str]:
        found = pd.json_normalize(cell.cfg.plain()).iloc[0]
        return {name: str(value) for name, value in found.items()}

    for cell in table.cells:
        if (other := reference(cell, table.cells, against)) is None:
            assert cell.cfg.protocol.name == "authors"
            continue
        assert other.cfg.attack.name == cell.cfg.attack.name
        (switch,) = {cell.method.removeprefix(other.method).strip().split("=")[0]}
        ours, theirs = flat(cell), flat(other)
        changed = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
        last = switch.split(".")[-1]
        inside = {"sgm": "rule"}.get(last, last)  # of the attack, in which the switch is used
        assert switch in changed
        assert {name.split(".")[-1] for name in changed} <= {last, inside}
        seen.add(switch)
    assert len(seen) == 6


# --- settings chosen on validation images --------------------------------------------------------


def test_the_search_finds_a_planted_best_setting() -> None:
    """Success falls with the distance to the planted setting; each is asked for once."""
    planted, asked = {"a": 4, "b": "zero", "c": 0.5}, []

    def rate(setting: dict) -> float:
        asked.append(setting)
        return 50 - abs(setting["a"] - 4) + (setting["b"] == "zero") - setting["c"]

    best, tried = along({"a": [1, 2, 4, 8], "b": ["random", "zero"], "c": [1, 0.5]}, rate)
    assert best == planted
    assert [one.setting for one in tried] == asked
    assert len(asked) == 4 + 1 + 1
    assert max(tried, key=lambda one: one.percent).setting == best


def test_the_first_of_equals_is_taken_and_an_unknown_rate_ends_the_search() -> None:
    best, _ = along({"a": [3, 1, 2]}, lambda _: 1.0)
    assert best == {"a": 3}
    best, tried = along({"a": [1, 2, 3]}, lambda setting: None if setting["a"] == 2 else 1.0)
    assert best is None
    assert len(tried) == 1


def test_tuned_is_measured_with_what_validation_images_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["norm=linf", "attack=ir", "targets=[vgg16]", f"output={tmp_path}"]
    planted = {"attack.norm.step_size": 4 / 255, "attack.interaction.lam": 1.0}

    def rate(job: Best, trial: Results) -> float:
        """The nearer to what is planted, the higher; results must be there all the same."""
        assert trial.cell.cfg.benchmark.data["split"] == "val"
        assert arrays(trial.cell, "vgg16")["margins"].shape == (2, 8)
        attack = trial.cell.steps_facts["attack"]
        step, lam = attack["norm"]["step_size"], attack["interaction"]["lam"]
        zero = attack["start"] == "zero"
        return 90 - 255 * abs(step - 4 / 255) - abs(lam - 1.0) - 5 * zero

    monkeypatch.setattr(choosing.Best, "rate", rate)
    table = plans.plan("tuned", [*SMALL, *given])
    (cell,) = table.cells
    job = job_of(cell, Best)
    assert job.trials == 5 + 2 + 1
    for need in job.needs:
        need.make(need.missing())
    assert job.make(job.missing()) == []
    assert job.missing() == []
    card = job.artifact().card()
    assert card is not None
    assert len(card.tried) == job.trials
    for path, value in planted.items():
        assert card.settings[path] == pytest.approx(value, rel=1e-6)
    assert card.settings["attack.start"] == "random"
    assert set(card.settings) == {*planted, "attack.start"}  # no momentum in this attack
    assert "start=random" in told(card.settings)
    chosen = job.best(card.settings)
    assert chosen.cfg.benchmark.data["split"] == "test"
    assert attack_of(chosen).norm.step_size == pytest.approx(4 / 255)  # type: ignore[attr-defined]
    assert attack_of(chosen).start == "random"
    assert len(job.counted(job.trial(card.settings).cell)) == 8  # none is a test image


def test_a_choice_depends_on_its_validation_images() -> None:
    """Also where a manifest fixes the attacked ones, and so leaves `cell.key` as it is."""
    (cell,) = cells("tuned", "norm=linf", "attack=pgd", "source=resnet34")
    job = job_of(cell, Best)
    before = job.facts
    cell.cfg.benchmark.sources.pop()  # the networks that have to classify them correctly
    assert job.facts["key"] == before["key"]
    assert job.facts != before


def test_test_images_have_no_part_in_the_choice(tmp_path: Path) -> None:
    """Where a benchmark has no validation images, those of another seed that are not attacked."""
    given = ["norm=linf", "attack=pgd", "targets=[vgg16]", "images=200", f"output={tmp_path}"]
    (cell,) = cells("tuned", *given)
    cell = Cell(with_settings(cell.cfg, {"benchmark.validation": {}}))
    job = Best(cell, values={"attack.start": ["zero"]}, validation_images=60)
    trial = job.trial({"attack.start": "zero"}).cell
    assert trial.cfg.seed == cell.cfg.seed + 1
    for one in (cell, trial):
        need = Results(one).needs[0]
        need.make(need.missing())
    own, other = listing(cell), listing(trial)
    assert own is not None
    assert other is not None
    names = {entry.id for entry in own.images}
    rows = job.counted(trial)
    assert 0 < len(rows) < 60
    kept = [entry.id in names for entry in other.images]
    np.testing.assert_array_equal(rows, np.flatnonzero(~np.array(kept)))


def test_correlations_name_what_they_are_over() -> None:
    rows = [
        {"source": "alexnet", "norm": norm, "attack": attack, "average_interaction": value}
        | {"last_step_percent": 10 * value * sign}
        for norm, sign in (("linf", 1), ("l2", -1))
        for value, attack in enumerate(("pgd", "mi", "ir"))
    ]
    _, first, second = interactions(pd.DataFrame(rows), 1.0)
    assert first.startswith("AlexNet, L∞: Spearman correlation")
    assert first.endswith("3 attacks: +1.00.")
    assert second.startswith("AlexNet, L2: ")
    assert second.endswith("3 attacks: -1.00.")


def test_seconds_say_where_they_were_measured() -> None:
    here, there = "cpu, 2 threads", "NVIDIA H200, 16 threads"
    assert timed(pd.DataFrame({"timed_on": [here, here]})) == f"The seconds are those of {here}."
    both = timed(pd.DataFrame({"timed_on": [here, there]}))
    assert f"{here}; {there}" in both
    assert "only those of the same place compare" in both
