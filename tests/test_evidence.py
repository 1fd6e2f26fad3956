"""The networks of scripts/evidence, and tables on benchmarks other than photos."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from irattack.attacks.skip import SkipGradient
from irattack.commands.composing import hydra
from irattack.commands.plans import NotListedError, plan
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF, OWN, yamls
from irattack.models import zoo
from irattack.models.building import build
from irattack.models.network import networks

EVIDENCE = Path(__file__).parents[1] / "scripts" / "evidence"
SHARED = Path(__file__).parents[2] / "shared" / "imagenet"
there = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/imagenet beside the checkout")
UNTRAINED = ["pretrained=false", "benchmark.sources=[]"]


@pytest.fixture(autouse=True)
def compact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    register_resolvers()
    monkeypatch.setenv(OWN, str(EVIDENCE))
    monkeypatch.delitem(sys.modules, "networks", raising=False)  # another test's
    monkeypatch.syspath_prepend(str(SHARED))
    for kept in (zoo.owner, zoo.shared, zoo._card):
        kept.cache_clear()
    with hydra():
        yield
    for kept in (zoo.owner, zoo.shared, zoo._card):
        kept.cache_clear()


def sources(table: str, benchmark: str) -> dict[str, set[str]]:
    """The sources of a table's cells on a benchmark, by norm."""
    found: dict[str, set[str]] = {}
    for cell in plan(table, [f"benchmark={benchmark}", *UNTRAINED]).cells:
        found.setdefault(cell.norm, set()).add(cell.cfg.source)
    return found


@pytest.mark.parametrize("benchmark", ["cifar10", "imagenet", "photos"])
def test_a_table_takes_the_sets_of_sources_of_its_benchmark(benchmark: str) -> None:
    sets = yaml.safe_load((CONF / "benchmark" / f"{benchmark}.yaml").read_text())["source_sets"]
    found = sources("table1", benchmark)
    assert found == {"linf": set(sets["paper"]), "l2": set(sets["l2"])}
    assert sources("table3", benchmark) == {"linf": set(sets["skip"])}


def test_a_table_of_sources_that_a_benchmark_lacks() -> None:
    with pytest.raises(NotListedError, match="vgg16 is neither a model of benchmark=cifar10"):
        plan("fig4", ["benchmark=cifar10", *UNTRAINED])


def test_the_paper_s_sources_are_those_of_its_tables() -> None:
    six = {"alexnet", "vgg16", "resnet34", "resnet152", "densenet121", "densenet201"}
    assert sources("table1", "imagenet")["linf"] == six | {"ensemble"}
    assert sources("table1", "imagenet")["l2"] == {"alexnet", "vgg16", "resnet34", "densenet121"}


@there
def test_every_network_of_the_evidence_has_its_weights() -> None:
    files = {path.name for path in (SHARED / "weights").glob("*.safetensors")}
    assert {zoo.card("compact", name)["weights"] for name in zoo.names("compact")} <= files
    assert set(yamls("model/compact")) == set(zoo.names("compact"))


@there
@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 8), ("resnet50", 16)])
def test_skip_gradient_finds_every_residual_branch(name: str, blocks: int) -> None:
    model = build("compact", name, True, str(SHARED / "weights"))
    network = networks(model)[0]
    x = torch.rand(1, 3, 224, 224)

    def gradient(gamma: float | None) -> torch.Tensor:
        z = x.clone().requires_grad_()
        if gamma is None:
            return torch.autograd.grad(model(z).logsumexp(1).sum(), z)[0]
        with SkipGradient(gamma=gamma, rule="exact")(model):
            return torch.autograd.grad(model(z).logsumexp(1).sum(), z)[0]

    pattern = zoo.card("compact", name)["skip"]["branches"]
    assert sum(bool(re.match(pattern, m)) for m, _ in network.body.named_modules()) == blocks
    torch.testing.assert_close(gradient(1.0), gradient(None))
    assert not torch.allclose(gradient(0.2), gradient(None), rtol=0.1)
