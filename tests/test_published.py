"""The published networks: right files, right facts, and nothing but tensors is ever loaded."""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from torch import nn

from irattack.commands import settings
from irattack.conf import CONF, OWN
from irattack.errors import InputError
from irattack.models import published, zoo
from irattack.models.network import Network, networks
from irattack.pipeline.cell import Cell

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
FACTS: dict[str, tuple[str, int, tuple]] = {  # as each network was published
    "alexnet": ("AlexNet_Weights.IMAGENET1K_V1", 224, IMAGENET),
    "vgg16": ("vgg16.tv_in1k", 224, IMAGENET),
    "resnet34": ("resnet34.tv_in1k", 224, IMAGENET),
    "resnet152": ("resnet152.tv_in1k", 224, IMAGENET),
    "densenet121": ("densenet121.tv_in1k", 224, IMAGENET),
    "densenet201": ("densenet201.tv_in1k", 224, IMAGENET),
    "senet154": ("legacy_senet154.in1k", 224, IMAGENET),
    "inception_v3": ("inception_v3.tv_in1k", 299, HALF),
    "inception_v4": ("inception_v4.tf_in1k", 299, HALF),
    "inception_resnet_v2": ("inception_resnet_v2.tf_in1k", 299, HALF),
    "inception_resnet_v2_ens3": ("inception_resnet_v2.tf_ens_adv_in1k", 299, HALF),
    "inception_v3_ens3": ("irattack.models.slim.inception_v3", 299, HALF),
    "inception_v3_ens4": ("irattack.models.slim.inception_v3", 299, HALF),
    "vit": ("vit_base_patch16_224.augreg_in1k", 224, HALF),
    "deit": ("deit_base_patch16_224.fb_in1k", 224, IMAGENET),
    "swin": ("swin_base_patch4_window7_224.ms_in1k", 224, IMAGENET),
    "convnext": ("convnext_base.fb_in1k", 224, IMAGENET),
    "resnet_adv": ("resnet50", 224, IMAGENET),
}


@pytest.fixture(scope="module", autouse=True)
def config() -> Iterator[None]:
    settings.register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def test_every_network_has_a_card() -> None:
    assert set(zoo.names("imagenet")) == {*FACTS, "ensemble"}
    assert set(zoo.names("photos")) == {*FACTS, "ensemble"} - {"deit", "swin"}
    for name, (tag, size, (mean, std)) in FACTS.items():
        card = zoo.card("imagenet", name)
        found = card.get("timm") or card.get("torchvision") or card["factory"]
        assert (found, card["size"]) == (tag, size)
        assert (tuple(card["mean"]), tuple(card["std"])) == (mean, std)
        assert card["lam"] == (1 if name in ("resnet34", "resnet152") else 2)


@pytest.mark.parametrize(("name", "suffix"), [("resnet34", ".safetensors"), ("alexnet", ".pth")])
def test_weights_of_a_folder_are_loaded(name: str, suffix: str, tmp_path: Path) -> None:
    """Every tensor arrives; another file is another model."""
    torch.manual_seed(0)
    made = timm.create_model("resnet34") if name == "resnet34" else torchvision.models.alexnet()
    stem = {"resnet34": "resnet34.tv_in1k", "alexnet": "alexnet-owt-7be5be79"}[name]
    path = tmp_path / f"{stem}{suffix}"
    if suffix == ".pth":
        torch.save(made.state_dict(), path)
    else:
        save_file(made.state_dict(), path)
    model = zoo.build("imagenet", name, weights_dir=str(tmp_path))
    assert isinstance(model, Network)
    x = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    with torch.no_grad():
        torch.testing.assert_close(model(x), made.eval()((x - mean) / std), rtol=1e-3, atol=1e-4)
    assert not any(p.requires_grad for p in model.parameters())
    before = zoo.identity("imagenet", name, weights_dir=str(tmp_path))
    state = made.state_dict()
    next(iter(state.values())).mul_(2)
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    assert zoo.identity("imagenet", name, weights_dir=str(tmp_path)) != before


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("code of a weights file was run",))


def spoil(path: Path, how: str) -> None:
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weight": Evil()}))
    elif how == "torch pickle":
        torch.save({"weight": Evil()}, path)
    elif how == "no tensors":
        torch.save({"epoch": 3}, path)
    elif how == "cut":
        torch.save(torchvision.models.alexnet().state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000])
    else:
        torch.save(torchvision.models.alexnet(num_classes=10).state_dict(), path)


@pytest.mark.parametrize("how", ["pickle", "torch pickle", "no tensors", "cut", "other classes"])
def test_a_bad_weights_file_is_a_sentence(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "alexnet.pth"
    spoil(path, how)
    with pytest.raises(InputError, match=r"alexnet\.pth: (not a whole|holds some|does not fit)"):
        zoo.build("imagenet", "alexnet", weights_dir=str(tmp_path))
    assert "was run" not in capsys.readouterr().out


def test_weights_that_cannot_be_had_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(published, "hf_hub_download", offline)
    published._hub_file.cache_clear()
    with pytest.raises(InputError, match=r"resnet34: .*no route.*resnet34\.safetensors"):
        zoo.identity("imagenet", "resnet34")
    with pytest.raises(InputError, match="no such folder"):
        zoo.identity("imagenet", "resnet34", weights_dir=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"inception_v3_ens3: .*irattack convert"):
        zoo.identity("imagenet", "inception_v3_ens3", weights_dir=str(tmp_path))


def test_any_model_of_timm_has_a_name() -> None:
    card = zoo.card("imagenet", "mobilenetv3_small_050.lamb_in1k")
    assert card["size"] == 224
    assert zoo.card("imagenet", "resnet50")["timm"] == "resnet50.a1_in1k"  # its tag is in the key
    model = zoo.build("imagenet", "mobilenetv3_small_050.lamb_in1k", pretrained=False)
    assert model(torch.rand(1, 3, 224, 224)).shape == (1, 1000)
    for name in ("resnet35", "convnext_tiny.in12k", "resnet34.nonsense"):
        with pytest.raises(InputError, match="any ImageNet-1k model of timm"):
            zoo.card("imagenet", name)
    with pytest.raises(InputError, match="source=resnet50"):
        zoo.card("photos", "resnet50")


def test_untrained_networks_are_the_same_each_time() -> None:
    x = torch.rand(1, 3, 224, 224)
    state = torch.get_rng_state()
    first, second = (zoo.build("imagenet", "resnet34", pretrained=False)(x) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    trained = {"sha256": "…"}
    assert zoo.identity("imagenet", "resnet34", pretrained=False).keys() ^ trained


def tiny(classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, classes))


def test_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A yaml names a factory and a file of weights; SGM then says that it needs the branches."""
    weights = tmp_path / "mine.safetensors"
    save_file(tiny(16).state_dict(), weights)
    (tmp_path / "conf/model/photos").mkdir(parents=True)
    card = f"factory: {__name__}.tiny\nweights: {weights}\n"
    (tmp_path / "conf/model/photos/mine.yaml").write_text(card)
    (tmp_path / "conf/model/photos/wrong.yaml").write_text("factory: no.such.function\n")
    monkeypatch.setenv(OWN, str(tmp_path / "conf"))
    model = zoo.build("photos", "mine")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 16)
    assert zoo.identity("photos", "mine")["factory"] == f"{__name__}.tiny"
    with pytest.raises(InputError, match=r"no\.such\.function cannot be imported"):
        zoo.build("photos", "wrong", pretrained=False)
    weights.write_bytes(b"")
    with pytest.raises(InputError, match=r"mine\.safetensors: not a whole file"):
        zoo.build("photos", "mine")


def test_precision_and_weights_are_in_the_key(tmp_path: Path) -> None:
    def key(*overrides: str) -> str:
        given = ["benchmark=imagenet", "pretrained=false", "attack=ir", *overrides]
        return Cell(compose("config", overrides=given)).key

    changes = ["precision=bf16", "precision=tf32", "compile=true", "source=resnet152", "images=9"]
    keys = [key(), *(key(change) for change in changes)]
    assert len(set(keys)) == len(keys)
    assert key("weights_dir=null", "cache.steps=none", "shard=1/3") == keys[0]


@pytest.mark.parametrize("name", ["resnet34", "resnet152", "densenet121", "densenet201"])
def test_the_authors_rule_knows_the_modules_of_full_size(name: str) -> None:
    """The ReLUs that the authors' hooks reach in torchvision's network of the same name."""
    facts = zoo.skips("imagenet", name)
    (network,) = networks(zoo.build("imagenet", name, pretrained=False))
    body = network.body
    found = {n for n, _ in body.named_modules() if re.match(facts["relus"], n)}
    layers = {"resnet34": (3, 4, 6, 3), "resnet152": (3, 8, 36, 3)}.get(name)
    if layers:  # two or three ReLUs a block and the stem's; blocks 0, 10, 20, 30 are left out, as
        each = 2 if name == "resnet34" else 3  # the authors' "0.relu" is in "layer3.10.relu" too
        assert len(found) == 1 + each * sum(count - -(-count // 10) for count in layers)
        blocks = {n for n, _ in body.named_modules() if re.match(facts["blocks"], n)}
        assert len(blocks) == sum(layers)
    else:  # the stem's and two in each dense layer, none in a transition
        dense = {"densenet121": (6, 12, 24, 16), "densenet201": (6, 12, 48, 32)}[name]
        assert len(found) == 1 + 2 * sum(dense)
        assert not any("transition" in n for n in found)
