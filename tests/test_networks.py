"""Networks of one's own: any form of output and of checkpoint is understood, or a sentence."""

import argparse
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from irattack.errors import InputError
from irattack.models import zoo
from irattack.models.checkpoint import read_weights
from irattack.models.fold import fold
from irattack.models.network import Network, logits_of

CLASSES = 16
Pair = namedtuple("Pair", ["aux", "logits"])


def tiny(logits: int) -> nn.Module:
    """A convolution, batch norm with statistics that matter, and a classifier."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    net.append(nn.Linear(16, logits))
    assert isinstance(net[1], nn.BatchNorm2d)
    net[1].running_mean = torch.linspace(-0.3, 0.3, 4)
    return net


def background(classes: int) -> nn.Module:
    """Counts its background class by itself."""
    return tiny(classes + 1)


class Wrapped(nn.Module):
    """A network whose own names begin with a prefix that wrappers have, too."""

    form: Callable[[Tensor], Any] = staticmethod(lambda logits: logits)

    def __init__(self, classes: int):
        super().__init__()
        self.model = tiny(classes)

    def forward(self, x: Tensor) -> Any:
        return self.form(self.model(x))


def batch_dependent(classes: int) -> nn.Module:
    net = tiny(classes)
    assert isinstance(net, nn.Sequential)
    net[1] = nn.BatchNorm2d(4, track_running_stats=False)
    return net


class Dropped(Wrapped):
    form = staticmethod(lambda logits: F.dropout(logits))


class Exploding(Wrapped):
    form = staticmethod(lambda logits: logits / 0)


class Dense(Wrapped):
    form = staticmethod(lambda logits: logits[:, :, None])


class Fixed(Wrapped):
    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] != 48:
            raise ValueError("expected 48 px")
        return self.model(x)


def no_network(classes: int) -> str:
    return "logits"


def failing(classes: int) -> nn.Module:
    raise RuntimeError("no such block")


@pytest.fixture
def mine(card: Callable[..., str]) -> Callable[..., str]:
    """Writes the yaml of a network of the photos benchmark by its factory; returns its name."""

    def write(factory: Any, path: Path | None = None, **facts: Any) -> str:
        own = {"weights": path} if path else {}
        return card("photos", factory=f"{__name__}.{factory.__name__}", **own, **facts)

    return write


def built(name: str, pretrained: bool = False) -> Network:
    network = zoo.build("photos", name, pretrained)
    assert isinstance(network, Network)
    return network


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "dictionary": lambda h: {"features": h * 0, "logits": h},
    "only entry": lambda h: {"out": h},
    "ordered": lambda h: OrderedDict(loss=h * 0, logits=h),
    "object": lambda h: SimpleNamespace(logits=h),
    "tuple": lambda h: (h, h * 0),
    "list": lambda h: [h, h * 0],
    "named tuple": lambda h: Pair(h * 0, h),
    "nested": lambda h: ({"logits": (h, h * 0)},),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_what_a_network_returns(
    form: str, mine: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, x = mine(Wrapped), torch.rand(2, 3, 32, 32)
    expected = built(name)(x)
    monkeypatch.setattr(Wrapped, "form", staticmethod(FORMS[form]))
    assert torch.equal(built(name)(x), expected)
    folded = fold(built(name))
    torch.testing.assert_close(folded(x), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize("output", [{"a": 1, "b": 2}, (), "logits", None, ([],)])
def test_what_holds_no_logits_is_a_sentence(output: Any) -> None:
    with pytest.raises(InputError, match=r"its network returns a \w+.* in place of logits"):
        logits_of(output)


@pytest.mark.parametrize("factory", [tiny, background])
def test_logits_before_the_classes_are_dropped(
    factory: Callable[[int], nn.Module], mine: Callable[..., str], tmp_path: Path
) -> None:
    """With a factory that counts its background class, and one that is told how many logits."""
    torch.manual_seed(0)
    whole, path, x = tiny(CLASSES + 1).eval(), tmp_path / "mine.pth", torch.rand(5, 3, 32, 32)
    torch.save(whole.state_dict(), path)
    name = mine(factory, path=path, offset=1)
    network = built(name, pretrained=True)
    normalised = (x - network.mean) / network.std
    torch.testing.assert_close(network(x), whole(normalised)[:, 1:])
    assert zoo.identity("photos", name)["offset"] == 1
    assert built(mine(factory, offset=1))(x).shape == (5, CLASSES)  # untrained, too


@pytest.mark.parametrize(
    ("factory", "facts", "sentence"),
    [
        (background, {}, r"mine: its network gives 17 logits where `classes: 16` .*`offset: 1`"),
        (background, {"classes": 12, "offset": 3}, r"10 logits after `offset: 3` .*`classes: 10`"),
        (tiny, {"offset": 17}, None),
        (Dense, {}, r"returns a tensor \(2, 16, 1\)"),
        (Exploding, {}, "NaN or infinity"),
        (batch_dependent, {}, "change with the other images of the batch.*running statistics"),
        (Dropped, {}, "from call to call"),
        (Fixed, {}, r"fails on an image of 32 x 32 px \(ValueError: expected 48 px\)"),
        (Fixed, {"size": 48}, None),
        (no_network, {}, "returns a str; expected a network"),
        (failing, {}, r"fails \(RuntimeError: no such block\)"),
    ],
)
def test_a_network_that_cannot_be_used_is_a_sentence(
    factory: Any, facts: dict[str, Any], sentence: str | None, mine: Callable[..., str]
) -> None:
    if sentence is None:
        assert built(mine(factory, **facts))(torch.rand(3, 3, 32, 32)).shape == (3, CLASSES)
    else:
        with pytest.raises(InputError, match=sentence):
            built(mine(factory, **facts))


def test_the_filter_of_a_yaml_is_used(mine: Callable[..., str]) -> None:
    x, name = torch.rand(2, 3, 40, 40), mine(tiny, interpolation="bicubic", crop_pct=0.8)
    network, facts = built(name), zoo.identity("photos", name, pretrained=False)
    assert (facts["interpolation"], facts["crop_pct"]) == ("bicubic", 0.8)
    plain = built(mine(tiny))
    torch.testing.assert_close(network(x), plain(x[..., 4:36, 4:36]))
    assert torch.equal(network.classify(network.resize(x)), network(x))
    small = torch.rand(2, 3, 20, 20)
    assert not torch.allclose(network(small), plain(small))


def test_a_network_that_cannot_be_folded_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    network = Network(batch_dependent(4), [0.5] * 3, [0.5] * 3, 8).eval().requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    before = network(x)
    assert torch.equal(fold(network)(x), before)
    assert "not folded" in caplog.text


def other() -> dict[str, Tensor]:
    return tiny(CLASSES).state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


CHECKPOINTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "args": argparse.Namespace(lr=1)},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: 1}, "param_groups": []}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "averaged": lambda s: {"state_dict": other(), "state_dict_ema": s},
    "averaged by torch": lambda s: {
        "model": other(),
        "model_ema": {"n_averaged": torch.tensor(3)} | prefixed(s, "module."),
    },
    "no averages": lambda s: {"state_dict_ema": None, "state_dict": s},
    "nested twice": lambda s: {"model": {"state_dict": s}},
    "parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: prefixed(s, "_orig_mod.module."),
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), "pytorch-lightning_version": "2"},
}


@pytest.mark.parametrize("form", CHECKPOINTS)
@pytest.mark.parametrize("factory", [tiny, Wrapped])
def test_checkpoints_as_they_are_saved(
    form: str, factory: Callable[[int], nn.Module], tmp_path: Path, mine: Callable[..., str]
) -> None:
    """Also where the network's own names begin like a wrapper's prefix."""
    torch.manual_seed(1)
    made, path = factory(CLASSES), tmp_path / "mine.pth"
    torch.save(CHECKPOINTS[form](made.state_dict()), path)
    found = built(mine(factory, path=path), pretrained=True).body.state_dict()
    assert found.keys() == made.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: {"x": s}, r"mine\.pth: holds something else than named tensors \(x\)"),
        (lambda s: {}, "holds something else"),
        (lambda s: [s], "holds something else"),
        (lambda s: {**s, "loss.weight": s["0.bias"]}, r"Unexpected key\(s\).*\"loss\.weight\""),
        (lambda s: {k: v for k, v in s.items() if k[0] != "1"}, r"\"1\.bias\", .*, …"),
        (lambda s: {**s, "4.bias": torch.zeros(17)}, r"size mismatch for 4\.bias.*`offset: 1`"),
        (lambda s: tiny(2), r"asks for torch\.nn\.modules\.container\.Sequential"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_a_sentence(
    change: Callable[[dict[str, Tensor]], Any],
    sentence: str,
    tmp_path: Path,
    mine: Callable[..., str],
) -> None:
    path = tmp_path / "mine.pth"
    torch.save(change(tiny(CLASSES).state_dict()), path)
    with pytest.raises(InputError, match=sentence) as raised:
        built(mine(tiny, path=path), pretrained=True)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


RENAMED = {"0": "stem", "1": "norm", "4": "head"}


def renamed(state: dict[str, Tensor], kept: str = "") -> dict[str, Tensor]:
    """The tensors under another library's names, without the counter that old files lack."""
    named = {RENAMED[name[0]] + name[1:]: value for name, value in state.items()}
    return {n: v for n, v in named.items() if kept in n and not n.endswith("tracked")}


def test_tensors_are_matched_in_order(tmp_path: Path, mine: Callable[..., str]) -> None:
    """Where the yaml says so; without it, the sentence does, unless the order does not fit."""
    torch.manual_seed(2)
    own, path = tiny(CLASSES).state_dict(), tmp_path / "mine.pth"
    torch.save({"state_dict": renamed(own)}, path)
    found = built(mine(tiny, path, match="order"), pretrained=True).body.state_dict()
    assert all(torch.equal(found[name], value) for name, value in own.items())
    assert zoo.identity("photos", "mine")["match"] == "order"
    with pytest.raises(InputError, match=r"under other names, say `match: order` in its yaml"):
        built(mine(tiny, path), pretrained=True)
    torch.save(renamed(own, "head"), path)
    with pytest.raises(InputError) as raised:
        built(mine(tiny, path), pretrained=True)
    assert "`match: order`" not in str(raised.value)
    torch.save(dict(sorted(own.items(), reverse=True)), path)  # its own names: no order is needed
    found = built(mine(tiny, path, match="order"), pretrained=True).body.state_dict()
    assert all(torch.equal(found[name], value) for name, value in own.items())


def swapped(state: dict[str, Tensor], first: str, second: str) -> dict[str, Tensor]:
    """The tensors in order, two of them under the name of the other."""
    names = {first: second, second: first}
    return {names.get(name, name): value for name, value in renamed(state).items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: renamed(s, "head"), "it has 2 tensors for a network of 8"),
        (
            lambda s: renamed(tiny(2).state_dict()),
            r"head\.weight \(2, 16\) where the network has 4\.weight \(16, 16\)",
        ),
        (
            lambda s: dict(sorted(renamed(s).items())),
            r"head\.bias \(16,\) where the network has 0\.weight \(4, 3, 3, 3\)",
        ),
        (
            lambda s: swapped(s, "norm.running_mean", "norm.running_var"),
            r"norm\.running_var \(4,\) where the network has 1\.running_mean \(4,\)",
        ),
        (
            lambda s: swapped(s, "stem.bias", "norm.bias"),
            r"stem\.weight \(4, 3, 3, 3\) where the network has 0\.weight \(4, 3, 3, 3\)",
        ),
    ],
)
def test_tensors_in_another_order_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    sentence: str,
    tmp_path: Path,
    mine: Callable[..., str],
) -> None:
    torch.save(change(tiny(CLASSES).state_dict()), tmp_path / "mine.pth")
    with pytest.raises(InputError, match=f"mine\\.pth: match=order, but .*{sentence}; give"):
        built(mine(tiny, tmp_path / "mine.pth", match="order"), pretrained=True)


def test_a_file_that_keeps_no_order_is_not_matched_in_order(
    tmp_path: Path, mine: Callable[..., str]
) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(renamed(tiny(CLASSES).state_dict()), path)
    with pytest.raises(InputError, match=r"match=order, but a \.safetensors keeps no order"):
        built(mine(tiny, path, match="order"), pretrained=True)


def test_averaged_weights_are_taken_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": {"w": torch.zeros(1)}, "model_ema": {"w": torch.ones(1)}}, tmp_path / "w")
    with caplog.at_level("INFO"):
        assert read_weights(tmp_path / "w")["w"] == 1
    assert "model_ema and model; the first is taken" in caplog.text


def test_weights_that_the_yaml_does_not_name(mine: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine: its yaml names no `weights:`"):
        built(mine(tiny), pretrained=True)
    save_file(tiny(CLASSES).state_dict(), tmp_path / "mine.safetensors")
    assert zoo.build("photos", mine(tiny), weights_dir=str(tmp_path))
