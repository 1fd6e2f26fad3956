"""What the yaml of a model says, holds; what published weights imply is built in."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models._api import WeightsEnum

from irattack.errors import InputError
from irattack.models import cards, published, zoo
from irattack.models.network import Network

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OWN = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "size": 64, "classes": 10}
HIDE = "import sys; sys.modules |= dict.fromkeys(('torch', 'timm', 'torchvision', 'hydra'))"


def test_naming_a_network_imports_no_pytorch() -> None:
    """Every network of both benchmarks has a name, and the shipped ones their hash, without it."""
    code = f"""{HIDE}
from irattack.models import zoo
for benchmark in ("photos", "imagenet"):
    for name in zoo.names(benchmark):
        zoo.card(benchmark, name), zoo.classes(benchmark, name), zoo.skips(benchmark, name)
        zoo.identity(benchmark, name, pretrained=benchmark == "photos")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", zoo.names("imagenet"))
def test_the_facts_of_the_papers_networks_are_the_published(name: str) -> None:
    card = zoo.card("imagenet", name)
    if "timm" in card or "torchvision" in card:
        facts = published.facts(card)
        assert facts == {fact: card[fact] for fact in facts}
        assert published.completed(name, card) == card


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"offest": 1}, r"mine\.yaml: fact=offest: did you mean offset"),
        ({"mean": "[123.7, 116.3, 103.5]"}, r"mean=.*divide those for \[0, 255\] by 255"),
        ({"std": "[0, 1, 1]"}, "std=.*above 0"),
        ({"size": "large"}, "size=large: expected the side"),
        ({"interpolation": "cubic"}, "interpolation=cubic: expected bilinear or bicubic"),
        ({"crop_pct": 87.5}, r"crop_pct=87\.5: expected the part of the side"),
        ({"match": "shape"}, "match=shape: expected name or order"),
        ({"offset": -1}, "offset=-1"),
        ({"timm": "resnet18"}, r"names factory and timm; a model needs exactly one of"),
        ({"weights": 3}, "weights=3: expected a file"),
    ],
)
def test_a_fact_that_cannot_be_is_a_sentence(
    facts: dict[str, Any], sentence: str, card: Callable[..., str]
) -> None:
    with pytest.raises(InputError, match=sentence):
        zoo.card("photos", card("photos", **({"factory": "some.function"} | facts)))


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"timm": "resnet18", "mean": OWN["mean"]}, r"mine\.yaml: mean=\[0\.4.* need \[0\.485"),
        ({"torchvision": "AlexNet_Weights.IMAGENET1K_V1", "std": OWN["std"]}, "std=.*own `weights"),
        ({"timm": "resnet18.tv_in1k", **OWN}, "mine: mean="),
        ({"timm": "resnet19"}, "timm=resnet19: the installed timm has no such network"),
        ({"timm": "resnet18.no", **OWN}, r"timm=resnet18\.no: the installed timm has no"),
        ({"torchvision": "AlexNet_Weights.V9"}, r"torchvision=AlexNet_Weights\.V9: .* no such"),
        ({"torchvision": "alexnet"}, "is a network without weights; name published ones"),
        ({"torchvision": "alexnet", "weights": "x"}, "lacks mean, std, size"),
        ({"timm": "convnext_atto.d2_in1k", "classes": 999}, "gives 1000 logits .*`offset: 1`"),
        ({"members": "[resnet34]", "size": 64}, "an ensemble says size"),
        ({"members": "[mine]"}, "an ensemble has itself"),
        ({"members": "resnet34"}, "expected a list of models"),
        ({"lam": 1}, "names no network"),
    ],
)
def test_a_contradiction_is_a_sentence(
    facts: dict[str, Any], sentence: str, card: Callable[..., str]
) -> None:
    with pytest.raises(InputError, match=sentence):
        zoo.build("imagenet", card("imagenet", **facts), pretrained=False)


def test_rounded_means_and_another_size_are_no_contradiction(card: Callable[..., str]) -> None:
    mean = [123.675 / 255, 116.28 / 255, 103.53 / 255]
    found = zoo.card(
        "imagenet", card("imagenet", timm="resnet18", mean=mean, std=IMAGENET["std"], size=160)
    )
    assert (found["mean"], found["std"], found["size"]) == (mean, IMAGENET["std"], 160)
    assert found["timm"] == "resnet18.a1_in1k"
    assert zoo.identity("imagenet", "mine", pretrained=False)["size"] == 160


@pytest.mark.parametrize(
    ("library", "name"),
    [
        *[("timm", name) for name in ("resnet18", "resnet18.tv_in1k", "deit_tiny_patch16_224")],
        *[("torchvision", name) for name in ("squeezenet1_1", "GoogLeNet_Weights.IMAGENET1K_V1")],
    ],
)
def test_a_yaml_with_its_own_weights_holds(
    library: str, name: str, card: Callable[..., str], tmp_path: Path
) -> None:
    """Mean, std, size and classes of the yaml, not those that were published under the name."""
    torch.manual_seed(0)
    options = {"img_size": 64} if "deit" in name else {}
    options |= {"transform_input": True, "init_weights": True} if "GoogLeNet" in name else {}
    if library == "timm":
        theirs = timm.create_model(name, num_classes=11, **options).eval()
    else:
        architecture = name.split("_Weights")[0].lower()
        theirs = torchvision.models.get_model(architecture, num_classes=11, **options).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    facts = OWN | {"weights": tmp_path / "w.safetensors", "offset": 1}
    model = zoo.build("imagenet", card("imagenet", **{library: name}, **facts))
    assert zoo.identity("imagenet", "mine").items() >= (OWN | {library: name, "offset": 1}).items()
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(OWN[fact]).view(3, 1, 1) for fact in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs((x - mean) / std)[:, 1:])


@pytest.mark.parametrize(
    "tag",
    [
        *("Inception_V3_Weights.IMAGENET1K_V1", "GoogLeNet_Weights.IMAGENET1K_V1"),
        pytest.param("ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", marks=pytest.mark.slow),
    ],
)
def test_torchvision_networks_are_what_torchvision_builds(
    tag: str, tmp_path: Path, card: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own builder, given random weights for a download, is the same function of an image."""
    weights, facts = torchvision.models.get_weight(tag), published.facts({"torchvision": tag})
    name = tag.split("_Weights")[0].lower()
    torch.manual_seed(0)
    options = {"image_size": facts["size"]} if name == "vit_b_16" else {"init_weights": True}
    made = torchvision.models.get_model(name, **options)
    with torch.no_grad():
        for parameter in made.parameters():  # some layers begin at zero
            parameter += torch.rand_like(parameter) / 100
    torch.save(made.state_dict(), tmp_path / "mine.pth")
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: made.state_dict())
    theirs = torchvision.models.get_model(name, weights=weights).eval()
    model = zoo.build("imagenet", card("imagenet", torchvision=tag), weights_dir=str(tmp_path))
    assert isinstance(model, Network)
    assert model.size == facts["size"]
    x = torch.rand(1, 3, model.size, model.size)
    mean, std = (torch.tensor(facts[fact]).view(3, 1, 1) for fact in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs((x - mean) / std))


def test_every_fact_is_checked_or_decides_nothing() -> None:
    """A new fact that decides outputs belongs into the key."""
    assert cards.FACTS.keys() - zoo.DECISIVE == {"members", "weights", "how", "lam", "skip"}
