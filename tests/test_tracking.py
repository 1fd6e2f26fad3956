"""`track=`: what MLflow and Weights & Biases are told of a cell; modules here write it down."""

import json
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
from hydra.core.global_hydra import GlobalHydra

from irattack.commands import plans, reproduce
from irattack.commands.composing import composed, hydra
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import ensure
from irattack.pipeline.results import Results, cards
from irattack.pipeline.settings import settings_of
from irattack.results import tracking
from irattack.results.record import Record

SMALL = [
    *("source=resnet34", "targets=[vgg16,alexnet]", "images=2", "steps=2", "threads=1"),
    *("attack=pgd", "norm=linf", "benchmark.sources=[]"),
]


def cell(folder: Path, *options: str) -> Cell:
    """PGD on two images."""
    register_resolvers()
    with hydra():
        return Cell(settings_of(composed([*SMALL, f"output={folder}", *options])))


def table(folder: Path) -> Path:
    """Makes Table 1 of that cell alone, in this process, and returns its record."""
    register_resolvers()
    with hydra():
        plan = plans.plan("table1", [*SMALL, f"output={folder}", "track=mlflow"])
    try:
        reproduce.reproduce(plan, [], aggregate=False)
    finally:
        GlobalHydra.instance().clear()
    return next((folder / "photos/tables").glob("*.json"))


@pytest.fixture
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A tracker that is installed and remembers its calls."""
    fake = MagicMock(spec=ModuleType, __spec__=ModuleSpec(request.param, None, origin="here"))
    for name in ("start_run", "log_params", "log_metrics", "init", "Settings"):
        setattr(fake, name, MagicMock())
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


def expected(one: Cell) -> tuple[dict[str, float], dict[str, str]]:
    """Success rates and what made them, from the cards."""
    found = cards(one)
    assert [card.target_name for card in found] == ["vgg16", "alexnet"]
    metrics = {
        f"{card.target_name}/{metric}": getattr(card, metric)
        for card in found
        for metric in tracking.METRICS
    }
    made = found[0].made_with
    tags = {"key": one.key, "commit": made.commit, "device": made.device, "torch": made.torch}
    (run,) = {
        f"{run.device}, torch {run.torch}, commit {run.commit}"
        for card in found
        for run in card.attacked_with
    }
    tags["attacked_with"] = run
    return metrics, tags


@pytest.mark.parametrize("tracker", ["mlflow"], indirect=True)
def test_a_run_of_mlflow(tracker: MagicMock, tmp_path: Path) -> None:
    one = cell(tmp_path, "track=mlflow")
    ensure(Results(one))
    tracking.log(one)
    metrics, tags = expected(one)
    tracker.start_run.assert_called_once_with(run_name=one.label, tags=tags)
    tracker.log_metrics.assert_called_once_with(metrics)
    (settings,) = tracker.log_params.call_args.args
    assert settings["images"] == 2
    assert settings["benchmark.step_size.linf"] == "2/255"
    assert not any(isinstance(value, dict) and value for value in settings.values())


@pytest.mark.parametrize("tracker", ["wandb"], indirect=True)
def test_a_run_of_wandb(tracker: MagicMock, tmp_path: Path) -> None:
    one = cell(tmp_path, "track=wandb")
    ensure(Results(one))
    tracking.log(one)
    metrics, tags = expected(one)
    told = tracker.init.call_args.kwargs
    assert told["name"] == one.label
    assert told["config"]["made_with"] == tags
    assert told["config"]["settings"].items() >= {"images": 2, "attack.steps": 2}.items()
    tracker.init.return_value.__enter__.return_value.log.assert_called_once_with(metrics)


@pytest.mark.parametrize("tracker", ["mlflow"], indirect=True)
def test_a_table_logs_each_cell_once(tracker: MagicMock, tmp_path: Path) -> None:
    record = Record.model_validate(json.loads(table(tmp_path).read_text()))
    assert [call.kwargs["run_name"] for call in tracker.start_run.call_args_list] == record.cells
    table(tmp_path)  # from the disk
    assert tracker.start_run.call_count == len(record.cells) == 1
    assert "track" not in record.called
    assert "track" not in record.command


@pytest.mark.parametrize("tracker", ["mlflow"], indirect=True)
def test_a_tracker_that_fails_costs_no_result(
    tracker: MagicMock, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    tracker.log_metrics.side_effect = ConnectionError("no\nserver")
    tracker.start_run.return_value.__exit__.return_value = False
    assert table(tmp_path).exists()
    said = "".join(capfd.readouterr())
    assert said.count("was not logged (no server); its results are on the disk.") == 1


def test_a_tracker_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    sentence = r"^track=wandb: the package wandb is not installed; `pip install wandb` where .*\.$"
    with pytest.raises(InputError, match=sentence):
        tracking.check("wandb")
    (tmp_path / "wandb").mkdir()  # as W&B leaves it in the folder where it ran
    with pytest.raises(InputError, match=sentence):
        tracking.check("wandb")
    (tmp_path / "wandb/__init__.py").touch()
    sys.path_importer_cache.clear()
    tracking.check("wandb")
    tracking.check(None)


def test_a_tracker_decides_nothing(tmp_path: Path) -> None:
    plain, tracked = cell(tmp_path), cell(tmp_path, "track=mlflow")
    assert plain.key == tracked.key
    paths = [[Results(one).artifact(name).path for name in one.targets] for one in (plain, tracked)]
    assert paths[0] == paths[1]
    with pytest.raises(InputError, match=r"track=mlfow: did you mean mlflow\?"):
        cell(tmp_path, "track=mlfow")
    tracking.log(plain)  # to nobody: what is not measured is not even looked for


@pytest.mark.filterwarnings("ignore")  # of MLflow's own code
def test_mlflow_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    one = cell(tmp_path, "track=mlflow")
    ensure(Results(one))
    with caplog.at_level(logging.WARNING, tracking.__name__):
        tracking.log(one)
    assert not [record for record in caplog.records if record.name == tracking.__name__]
    (run,) = mlflow.search_runs(output_format="list")
    metrics, tags = expected(one)
    assert run.info.run_name == one.label
    assert run.data.metrics == pytest.approx(metrics, nan_ok=True)
    assert run.data.tags.items() >= tags.items()
    assert run.data.params["eps"] == str(one.cfg.eps)
