"""The project's frame: dependencies in one place, every yaml usable, weights as promised."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from irattack.attacks.loop import Attack
from irattack.commands.settings import register_resolvers
from irattack.hashing import sha256
from irattack.models import zoo
from irattack.pipeline.cell import Cell
from irattack.pipeline.values import number

ROOT = Path(__file__).parents[1]
PHOTOS = zoo.names("photos")
ATTACKS = [path.stem for path in (ROOT / "conf" / "attack").glob("*.yaml") if path.stem != "base"]


@pytest.fixture(scope="module", autouse=True)
def hydra_config():  # type: ignore[no-untyped-def]
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def test_environment_yml_is_in_step_with_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1]["pip"] == project["dependencies"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_is_a_short_yaml_that_fills_slots(attack: str, norm: str) -> None:
    ball = [] if attack == "relaxed" else [f"norm={norm}"]  # Eq. 8 has none
    cfg = compose("config", overrides=[f"attack={attack}", *ball])
    cell = Cell(cfg)
    assert cell.name == cfg.attack.name == attack
    assert isinstance(instantiate(cell.steps_facts["attack"]), Attack)
    lines = (ROOT / "conf" / "attack" / f"{attack}.yaml").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 8


@pytest.mark.parametrize("name", PHOTOS)
def test_every_model_loads_and_is_frozen(name: str) -> None:
    model = zoo.build("photos", name)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    Cell(compose("config", overrides=[f"source={name}"]))


def test_weights_are_small_and_accurate() -> None:
    total = 0
    for name in set(PHOTOS) - {"ensemble"}:
        path, _ = zoo.weights("photos", name)
        card = json.loads(path.with_suffix(".json").read_text())
        total += path.stat().st_size
        assert path.stat().st_size <= 2_000_000
        robust = name == "resnet_adv"  # adversarial training costs accuracy and confidence
        assert card["test_accuracy"] >= (0.7 if robust else 0.8 if "_ens" in name else 0.85)
        assert (0.4 if robust else 0.7) <= card["test_confidence"] <= 0.95
    assert total <= 15_000_000


def test_reported_accuracy_is_that_of_the_weights() -> None:
    from scripts.train_photos import accuracy

    card = json.loads(zoo.weights("photos", "alexnet")[0].with_suffix(".json").read_text())
    found = accuracy(zoo.build("photos", "alexnet"), "test")
    assert found == pytest.approx((card["test_accuracy"], card["test_confidence"]), abs=5e-3)


def test_depths_keep_their_order() -> None:
    def depth(name: str) -> int:
        modules = zoo.build("photos", name, pretrained=False).modules()
        return sum(isinstance(module, torch.nn.Conv2d) for module in modules)

    assert depth("resnet34") < depth("resnet152")
    assert depth("densenet121") < depth("densenet201")
    assert depth("inception_v3") < depth("inception_v4")


def test_ensemble_is_the_mean_logit() -> None:
    x = torch.rand(3, 3, 32, 32)
    members = [zoo.build("photos", name)(x) for name in ("resnet34", "resnet152", "densenet121")]
    torch.testing.assert_close(zoo.build("photos", "ensemble")(x), sum(members) / 3)


def test_lam_comes_from_the_source() -> None:
    for source in ("resnet34", "densenet121"):
        cfg = compose("config", overrides=[f"source={source}", "attack=ir"])
        assert cfg.attack.interaction.lam == zoo.card("photos", source)["lam"]
    cfg = compose("config", overrides=["attack=ir", "lam=2"])
    assert cfg.attack.interaction.lam == 2


def test_key_changes_with_everything_that_changes_the_numbers() -> None:
    def key(*overrides: str) -> str:
        return Cell(compose("config", overrides=["attack=ir", *overrides])).key

    changes = "source=alexnet norm=l2 lam=3 eps=1/255 steps=3 samples=3 cells=3 grid=4 seed=1"
    changes += " images=9 loss=margin start=zero block=8 micro_batch=8 benchmark.data.split=val"
    keys = [key(), key("attack=pgd"), *(key(change) for change in changes.split())]
    assert len(set(keys)) == len(keys)
    assert key("output=elsewhere", "targets=secured", "device=cpu") == key()
    noise = ["attack=vr", "benchmark.generator=philox"]
    assert key(*noise) == key(*noise, "device=cpu") != key("attack=vr")


def test_targets_leave_the_source_out_of_sets_alone() -> None:
    def targets(given: str) -> list[str]:
        return Cell(compose("config", overrides=["source=vgg16", f"targets={given}"])).targets

    assert "vgg16" not in targets("paper")
    assert len(targets("paper")) == 6
    assert targets("vgg16") == targets("[vgg16]") == ["vgg16"]


def test_added_pieces_are_named() -> None:
    names = {
        "pgd": [],
        "ir+mi": ["+piece=[mi,ir]"],
        "ti": ["attack=ti"],
        "noise+ir": ["attack=noise", "+piece=[ir]"],
    }
    for name, overrides in names.items():
        assert Cell(compose("config", overrides=overrides)).name == name


def test_fractions() -> None:
    assert number("8/255") == 8 / 255
    assert number(" 2 / 255") == 2 / 255
    assert number("1e-3") == 1e-3
    assert number("0.9/255") == pytest.approx(0.9 / 255)
    assert all(np.isnan(number(text)) for text in ("8/", "/255", "1/2/3", "1/0", "a/b", ""))


def test_training_writes_weights_and_their_card(tmp_path: Path) -> None:
    """A few steps of a plain, a secured and a robust network, as `make train-photos` runs them."""
    from scripts.train_photos import train

    threads = torch.get_num_threads()
    for name in ("alexnet", "inception_v3_ens3", "resnet_adv"):
        options = ["steps=2", "batch=8", f"output={tmp_path}"]
        train(name, compose("train", overrides=options))
        card = json.loads((tmp_path / f"{name}.json").read_text())
        path = tmp_path / f"{name}.safetensors"
        assert card["sha256"] == sha256(path)
        assert 0 <= card["test_accuracy"] <= 1
        shipped = zoo.weights("photos", name)[0]
        assert abs(path.stat().st_size - shipped.stat().st_size) < 100
    torch.set_num_threads(threads)


def test_factors_of_a_network_change_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scripts.train_photos import train

    threads, seen = torch.get_num_threads(), []
    real = torch.optim.lr_scheduler.OneCycleLR

    def schedule(optimiser: torch.optim.Optimizer, lr: float, **options: float) -> object:
        seen.append((lr, options["total_steps"]))
        return real(optimiser, lr, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.lr_scheduler, "OneCycleLR", schedule)
    for name in ("vit", "resnet34"):
        train(name, compose("train", overrides=["steps=4", "batch=8", f"output={tmp_path}"]))
    assert seen == [(pytest.approx(1e-3), 10), (3e-3, 4)]
    torch.set_num_threads(threads)


def test_examples_of_adversarial_training_are_those_of_pgd(smooth: torch.nn.Module) -> None:
    from scripts.train_photos import pgd

    torch.manual_seed(0)
    x, y = torch.rand(4, 3, 32, 32).double(), torch.tensor([0, 1, 2, 3])
    found = pgd(smooth, x, y, OmegaConf.create({"eps": "8/255", "step_size": "2/255", "steps": 7}))
    assert not found.requires_grad
    assert 0 <= found.min() <= found.max() <= 1
    assert 7.9 / 255 < (found - x).abs().max() <= 8.01 / 255
    loss = torch.nn.functional.cross_entropy
    start = (x + (2 * torch.rand_like(x) - 1) * 8 / 255).clamp(0, 1)
    assert loss(smooth(found), y) > loss(smooth(start), y) > 0
    torch.manual_seed(0)
    torch.rand(4, 3, 32, 32)
    low, high = (x - 8 / 255).clamp_min(0), (x + 8 / 255).clamp_max(1)
    plain = low + torch.rand_like(x) * (high - low)
    for _ in range(7):
        plain.requires_grad_()
        step = torch.autograd.grad(loss(smooth(plain), y), plain)[0].sign() * 2 / 255
        plain = torch.minimum(torch.maximum(plain.detach() + step, low), high)
    torch.testing.assert_close(found, plain)
