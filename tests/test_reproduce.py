"""Every table and figure, made small: its files are there, whole, and say what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

from irattack.attacks.norms import of_length
from irattack.attacks.pieces import GaussianNoise
from irattack.attacks.randomness import Draws
from irattack.commands import composing, plans, reproduce, settings, submit
from irattack.conf import CONF
from irattack.errors import InputError
from irattack.interactions import cells as interactions
from irattack.interactions import proofs
from irattack.models import zoo
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure, job_of, jobs_of
from irattack.pipeline.measures import Contributions
from irattack.pipeline.results import Results, arrays, transfer_utility
from irattack.pipeline.settings import settings_of
from irattack.pipeline.sources import Proofs
from irattack.pipeline.steps import last_frame
from irattack.results import figures_success, plotting
from irattack.results import record as records
from irattack.results.claims import interaction_record

SMALL = [
    *("images=8", "steps=2", "samples=2", "grid=4", "cells=3", "threads=1", "source=resnet34"),
    *("benchmark.copies=2", "benchmark.relaxed.steps=3"),
]
JOB = "irattack.pipeline.measures.Contributions"
TABLES = sorted(path.stem for path in (CONF / "table").glob("*.yaml"))
FIGURES = sorted(path.stem for path in (CONF / "figure").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


def source_of(table: str) -> str:
    """The one source of the small table."""
    return "vit" if table == "modern" else "resnet34"


def make(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    more = {"fig1": ["tau=0.2", "benchmark.relaxed.steps=40"], "tuned": ["norm=linf"]}
    small = [text.replace("resnet34", source_of(name)) for text in SMALL]
    if name == "modern":  # which compares grids
        small = [text for text in small if not text.startswith(("grid", "cells"))]
    settings_ = [*small, *more.get(name, [])]
    monkeypatch.setattr("sys.argv", ["reproduce", name, *settings_, f"output={folder}"])
    try:
        reproduce.main()
    finally:
        GlobalHydra.instance().clear()
    return capsys.readouterr().out


def on_a_gpu(name: str) -> object:
    """A table that a GPU alone can make, skipped where there is none."""
    mark = pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 is of CUDA devices")
    return pytest.param(name, marks=mark) if name == "tf32" else name


@pytest.mark.parametrize("name", [on_a_gpu(name) for name in TABLES + FIGURES])
def test_it_is_made(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    printed = make(name, folder, monkeypatch, capsys)
    kind, suffixes = ("tables", "md tex json") if name in TABLES else ("figures", "png pdf json")
    assert f"Written to {folder}/photos/{kind}" in printed
    paths = list((folder / "photos" / kind).glob(f"{name}-*"))
    assert {path.suffix[1:] for path in paths} == {"csv", *suffixes.split()}
    for path in paths:
        if path.suffix == ".csv":
            data = pd.read_csv(path)
            assert len(data) >= 1  # a line a source, of one source, in `strength`
            if "n" in data and name != "fig4":
                fewer = name in ("fig1", "success")  # pairs that count; images known when clean
                assert (data.n <= 8).all() if fewer else (data.n == 8).all()
            if "source" in data:
                assert set(data.source) == {source_of(name)}
        elif path.suffix == ".png":
            assert matplotlib.image.imread(path)[..., :3].std() > 0.03

    gain = plans.load_definition(name).get("gain")
    if gain:
        (path,) = (folder / "photos" / kind).glob(f"{name}-*_gain.csv")
        found = pd.read_csv(path)
        assert set(zip(found.over, found.attack, strict=True)) == {tuple(pair) for pair in gain}

    if name == "interactions":  # what its claims say is the difference of two of its rows
        (path,) = (folder / "photos" / kind).glob(f"{name}-*.json")
        (data,) = (pd.read_csv(each) for each in path.parent.glob(f"{name}-*.csv"))
        average = data.set_index("attack").average_interaction
        specs = plans.load_definition(name)["claims"]
        for claim, spec in zip(json.loads(path.read_text())["claims"], specs, strict=True):
            expected = average[spec["more"]] - average[spec["less"]]
            assert claim["mean"] == pytest.approx(expected, abs=2e-4)
            assert f"{claim['says']}: " in printed

    def never(*_: object) -> None:
        raise AssertionError("the second call must answer from the disk")

    monkeypatch.setattr(zoo, "build", never)
    steps, aside = folder / "photos" / "steps", folder / "aside"
    if steps.exists():  # nor is the step cache needed
        steps.rename(aside)
    assert make(name, folder, monkeypatch, capsys).endswith(printed[-200:])
    if aside.exists():
        aside.rename(steps)


def cell(folder: Path, *overrides: str) -> Cell:
    settings.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Cell(compose("config", overrides=[*SMALL, f"output={folder}", *overrides]))


def contributions(one: Cell, length: float | None = None) -> np.ndarray:
    """The interactions of a cell, computed where they are missing."""
    job = Contributions(one, length)
    ensure(job)
    return job.values()["contributions"]


def test_interactions_are_of_the_last_cached_step(folder: Path) -> None:
    one = cell(folder, "attack=mi", "start=zero", f"jobs=[{{_target_:{JOB}}}]", "block=5")
    values = contributions(one)  # of two shards
    images = images_of(one)
    frames = np.concatenate([last_frame(one, shard) for shard in one.shards(images)])
    x, y = torch.from_numpy(images.pixels).float() / 255, torch.from_numpy(images.labels)
    delta = torch.from_numpy(frames).float() / 255 - x
    assert 255 * delta.abs().max() == pytest.approx(4, abs=1e-3)  # two steps of 2/255
    model = zoo.build("photos", "resnet34")
    found = interactions.contributions(model, x, delta, y, 4)
    np.testing.assert_allclose(values, found, atol=1e-4)
    scaled = of_length(delta, 2.0)
    torch.testing.assert_close(scaled.flatten(1).norm(dim=1), torch.full((8,), 2.0))
    found = interactions.contributions(model, x, scaled, y, 4)
    np.testing.assert_allclose(contributions(one, 2.0), found, atol=1e-4)
    record = interaction_record(one)
    assert record["average_interaction"] == pytest.approx(values.mean())
    assert record["per_pair"] == pytest.approx(record["average_interaction"] / 15)


def test_a_record_names_all_that_measured_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever merges them: two commits here, as after an update between a kill and a resume."""
    for number, commit in (("1/2", "aaa"), ("2/2", "bbb")):
        said = {"device": "cpu", "threads": 1, "torch": "2", "commit": commit}
        for module in ("worker", "compute"):
            monkeypatch.setattr(f"irattack.pipeline.{module}.made_with", lambda cfg, s=said: s)
        jobs = f"jobs=[{{_target_:{JOB}}},{{_target_:irattack.pipeline.results.Results}}]"
        given = ["attack=pgd", "targets=[vgg16]", "block=4", jobs, f"shard={number}"]
        one = cell(tmp_path, *given)
        for job in jobs_of(one):
            ensure(job)
    for job in jobs_of(one):
        card = job.artifact(job.names[0]).card()
        assert card is not None
        assert [run.commit for run in card.measured_with] == ["aaa", "bbb"]
    assert {run["commit"] for run in records.runs([one])} == {"aaa", "bbb"}


def test_transfer_utility_is_the_change_of_the_margin(folder: Path) -> None:
    one = cell(folder, "attack=mi", "targets=[vgg16]")
    ensure(Results(one))
    utility = transfer_utility(one, "vgg16")
    margins = arrays(one, "vgg16")["margins"]
    model, images = zoo.build("photos", "vgg16"), images_of(one)
    x, y = torch.from_numpy(images.pixels).float() / 255, torch.from_numpy(images.labels)
    logits = model(x).numpy().astype(float)
    true = logits[np.arange(8), y].copy()
    logits[np.arange(8), y] = -np.inf
    np.testing.assert_allclose(margins - utility, [logits.max(axis=1) - true] * 2, atol=1e-4)


def test_the_attacks_of_the_proofs(smooth: nn.Module, images: Tensor) -> None:
    alpha, steps = 0.05, 4
    cfg = {"step_size": alpha, "steps": steps, "loss": "ce", "copies": 3, "sigma": 0.1}
    y, ids = smooth(images).argmax(dim=1), [f"image-{i}" for i in range(9)]
    found = proofs.perturb(cfg, smooth, images, y, ids, seed=0)

    def g(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(smooth(z), y, reduction="sum"), z)[0]

    multi, vr, mi, momentum = (torch.zeros_like(images) for _ in range(4))
    for t in range(1, steps + 1):
        multi = multi + alpha * g(images + multi)
        noise = GaussianNoise(3, 0.1).noise(images, ids, t, Draws(0))
        vr = vr + alpha * sum(g(images + vr + noise[:, k]) for k in range(3)) / 3
        mu = (t - 1) / t
        momentum = mu * momentum + (1 - mu) * g(images + mi)
        mi = mi + alpha * momentum
    single = alpha * steps * g(images)
    for name, expected in (("multi", multi), ("single", single), ("vr", vr), ("mi", mi)):
        torch.testing.assert_close(found[name], expected)
    lengths = [found[name].flatten(1).norm(dim=1) for name in ("noise", "multi")]
    torch.testing.assert_close(*lengths)


def test_propositions_are_differences_of_the_right_attacks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make("propositions", folder, monkeypatch, capsys)
    data = pd.read_csv(next((folder / "photos" / "tables").glob("propositions-*.csv")))
    with composing.hydra():
        (one,) = plans.plan("propositions", [*SMALL, f"output={folder}"]).cells
    for job in jobs_of(one):
        assert isinstance(job, Proofs)
        found, loss = job.values(), job.loss
        where = (data.loss == loss) & data.claim.str.startswith("Proposition 1")
        for scale in ("own", "equal"):
            row = data[where & (data.lengths == scale)].iloc[0]
            means = [found[f"{scale} {attack}"].mean() for attack in ("multi", "single")]
            assert row.difference == pytest.approx(means[0] - means[1], abs=2e-4)
        lengths = np.median(found["length multi"]), np.median(found["length single"])
        assert (row.length_larger, row.length_smaller) == pytest.approx(lengths, abs=2e-4)


def test_damaged_arrays_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = cell(tmp_path, "attack=pgd", "steps=1", "images=2")
    values, real, calls = contributions(one), interactions.contributions, []

    def counted(*arguments):  # type: ignore[no-untyped-def]
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(interactions, "contributions", counted)
    np.testing.assert_array_equal(contributions(one), values)
    assert not calls
    path = Contributions(one).artifact("interactions").path
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    np.testing.assert_array_equal(contributions(one), values)
    assert len(calls) == 1
    contributions(one, 1.0)
    assert len(calls) == 2


def test_overrides_select_among_the_cells_of_a_table() -> None:
    legs = [
        {"norm": ["linf"], "source": ["alexnet", "vgg16"], "attack": ["pgd"]},
        {"norm": ["l2"], "source": ["alexnet"], "attack": ["pgd"]},
    ]
    found = plans.select("table1", legs, ["source=vgg16", "seed=1"])
    assert found == ([{"norm": ["linf"], "source": ["vgg16"], "attack": ["pgd"]}], ["seed=1"])
    assert plans.select("table1", legs, ["norm=l2"]) == (legs[1:], [])
    with pytest.raises(InputError, match="expected one of linf, l2"):
        plans.select("table1", legs, ["norm=l1"])


def test_parameters_of_jobs() -> None:
    jobs = [{"_target_": "a.B", "alpha": 0.02, "loss": loss} for loss in ("ce", "margin")]
    overrides = ["alpha=2/255", "loss=ce", "seed=1"]
    assert plans.with_parameters(jobs, overrides) == (
        [{"_target_": "a.B", "alpha": 2 / 255, "loss": "ce"}],
        ["seed=1"],
    )
    with pytest.raises(InputError, match="what its yaml lists, not jobs"):
        plans.plan("table1", ["jobs=[]"])


@pytest.mark.parametrize("name", ["controls", "tuning", "fig1", "table4"])
def test_cells_are_what_hydra_composes(name: str) -> None:
    """A plan composes once what groups decide; Hydra composes each cell anew."""
    settings.register_resolvers()
    with composing.hydra():
        table = plans.plan(name, ["seed=3"])
        for cell_, choice in table.chosen[::7]:
            given = [f"{k}={v}".replace(" ", "").replace("'", "") for k, v in choice.items()]
            alone = Cell(compose("config", overrides=[*given, "seed=3"]))
            assert alone.cfg == cell_.cfg
            assert alone.key == cell_.key


def test_a_legend_keeps_within_a_narrow_figure() -> None:
    figure, axes = plotting.panels(1, 2, width=3.4, height=2.4)
    for number in range(7):
        axes[0].plot([0, 1], label=f"a network {number}")
    plotting.legend_below(figure, axes, 7)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 7
    extent = legend.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width
    assert extent.y1 <= axes[0].get_tightbbox().y0 + 1  # nor does it cover the axis
    plotting.plt.close(figure)


def test_curves_are_of_the_recorded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    margins = np.full((4, 2), -1.0)
    margins[1] = 1
    monkeypatch.setattr(figures_success, "arrays", lambda cell, target: {"margins": margins})
    settings.register_resolvers()
    with composing.hydra():
        cfg = composing.composed(["attack=pgdlong", "steps=4", "targets=[vgg16]"])
    data = figures_success.curves([Cell(settings_of(cfg))])
    assert data.step.tolist() == [17, 34, 51, 68]
    assert set(data.chosen_step) == {34}


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("tuned", ["attack=pgd", "norm=linf"], "tuned: compares with attack=ir, and has none from"),
        ("length", ["attack=mi"], "length: needs pgd beside the others"),
        ("fig3b", ["attack=ironly"], "fig3b: needs both attacks"),
        ("fig1", ["p=2", "c=0,0.01"], "fig1: a correlation needs at least three values of c"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_before_its_cells_run(
    name: str,
    given: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reproduce, "run", lambda *_: pytest.fail("runs before it is refused"))
    for command in (reproduce.main, submit.main):
        monkeypatch.setattr(
            "sys.argv", ["reproduce", name, *given, "source=resnet34", f"output={tmp_path}"]
        )
        with pytest.raises(SystemExit):
            command()
        assert capsys.readouterr().err.startswith(f"irattack: {sentence}")


def test_a_cell_without_one_attack_is_refused_where_all_are_compared() -> None:
    settings.register_resolvers()
    with composing.hydra():
        table = plans.plan("rivals", [])
        few = plans.plan("rivals", ["attack=pgd,mi,vr,sgm,ti,di,ir"])
    reproduce.writer(table)
    with pytest.raises(InputError, match="over 7 attacks; select 8 or more"):
        reproduce.writer(few)
    fewer = replace(table, chosen=table.chosen[:-1])
    with pytest.raises(InputError, match=r"^rivals: needs the same attacks of every source"):
        reproduce.writer(fewer)


def test_a_table_whose_writer_does_not_exist_is_refused() -> None:
    settings.register_resolvers()
    with composing.hydra():
        table = plans.plan("fig3b", ["source=resnet34"])
    strange = replace(table, definition=table.definition | {"write": "irattack.results.fig3c"})
    with pytest.raises(InputError, match=r"^fig3b: write: irattack.results.fig3c cannot be im"):
        reproduce.writer(strange)


def test_a_job_that_is_not_listed_is_said_to_be() -> None:
    settings.register_resolvers()
    with composing.hydra():
        one = plans.plan("tuned", ["attack=pgd", "source=resnet34", "norm=linf"])
    with pytest.raises(InputError, match="Contributions is not among them, which what is made of"):
        job_of(one.cells[0], Contributions)
