"""TF-Slim's Inception-V3 and the conversion of its published weights, which are not trusted."""

import contextlib
import importlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from irattack.commands import convert as command
from irattack.errors import InputError
from irattack.models import convert
from irattack.models.slim import inception_v3

# scope, then out x in x height x width of its kernel, as the published files have them
A = "0/Conv2d_0a_1x1 64x{0}x1x1 1/{1} 48x{0}x1x1 1/{2} 64x48x5x5 2/Conv2d_0a_1x1 64x{0}x1x1 "
A += "2/Conv2d_0b_3x3 96x64x3x3 2/Conv2d_0c_3x3 96x96x3x3 3/Conv2d_0b_1x1 {3}x{0}x1x1"
B = "0/Conv2d_1a_1x1 384x288x3x3 1/Conv2d_0a_1x1 64x288x1x1 1/Conv2d_0b_3x3 96x64x3x3 "
B += "1/Conv2d_1a_1x1 96x96x3x3"
C = "0/Conv2d_0a_1x1 192x768x1x1 1/Conv2d_0a_1x1 {0}x768x1x1 1/Conv2d_0b_1x7 {0}x{0}x1x7 "
C += "1/Conv2d_0c_7x1 192x{0}x7x1 2/Conv2d_0a_1x1 {0}x768x1x1 2/Conv2d_0b_7x1 {0}x{0}x7x1 "
C += "2/Conv2d_0c_1x7 {0}x{0}x1x7 2/Conv2d_0d_7x1 {0}x{0}x7x1 2/Conv2d_0e_1x7 192x{0}x1x7 "
C += "3/Conv2d_0b_1x1 192x768x1x1"
D = "0/Conv2d_0a_1x1 192x768x1x1 0/Conv2d_1a_3x3 320x192x3x3 1/Conv2d_0a_1x1 192x768x1x1 "
D += "1/Conv2d_0b_1x7 192x192x1x7 1/Conv2d_0c_7x1 192x192x7x1 1/Conv2d_1a_3x3 192x192x3x3"
E = "0/Conv2d_0a_1x1 320x{0}x1x1 1/Conv2d_0a_1x1 384x{0}x1x1 1/Conv2d_0b_1x3 384x384x1x3 "
E += "1/Conv2d_{1}_3x1 384x384x3x1 2/Conv2d_0a_1x1 448x{0}x1x1 2/Conv2d_0b_3x3 384x448x3x3 "
E += "2/Conv2d_0c_1x3 384x384x1x3 2/Conv2d_0d_3x1 384x384x3x1 3/Conv2d_0b_1x1 192x{0}x1x1"
LAYERS = {
    "": "Conv2d_1a_3x3 32x3x3x3 Conv2d_2a_3x3 32x32x3x3 Conv2d_2b_3x3 64x32x3x3 "
    "Conv2d_3b_1x1 80x64x1x1 Conv2d_4a_3x3 192x80x3x3",
    "Mixed_5b": A.format(192, "Conv2d_0a_1x1", "Conv2d_0b_5x5", 32),
    "Mixed_5c": A.format(256, "Conv2d_0b_1x1", "Conv_1_0c_5x5", 64),
    "Mixed_5d": A.format(288, "Conv2d_0a_1x1", "Conv2d_0b_5x5", 64),
    "Mixed_6a": B,
    "Mixed_6b": C.format(128),
    "Mixed_6c": C.format(160),
    "Mixed_6d": C.format(160),
    "Mixed_6e": C.format(192),
    "Mixed_7a": D,
    "Mixed_7b": E.format(1280, "0b"),
    "Mixed_7c": E.format(2048, "0c"),
}
Published = dict[str, dict[str, np.ndarray]]


def scopes() -> dict[str, tuple[int, ...]]:
    """Every convolution of the trunk by its scope, with the shape of its kernel."""
    found = {}
    for block, text in LAYERS.items():
        for name, shape in re.findall(r"(\S+) (\d+x\S+)", text):
            scope = f"{block}/Branch_{name}" if block else name
            found[scope] = tuple(int(n) for n in shape.split("x"))
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def published() -> Published:
    """Random weights under the names, and of the shapes, of the published ens3 file."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def layer(shape: tuple[int, ...]) -> np.ndarray:
        return normal(*shape) * np.float32(np.sqrt(2 / np.prod(shape[1:])))

    weights: Published = {}
    for scope, shape in scopes().items():
        key = f"Ens3AdvInceptionV3/Ens3AdvInceptionV3/{scope}"
        n = shape[0]
        weights[f"{key}/Conv2D"] = {"weights": layer(shape)}
        statistics = {"mean": normal(n) / 8, "var": normal(n) ** 2 + 0.5, "bias": normal(n) / 8}
        weights[f"{key}/BatchNorm/FusedBatchNorm"] = statistics
    top = {"weights": layer((1001, 2048, 1, 1)), "bias": normal(1001)}
    weights["Ens3AdvInceptionV3/Logits/Conv2d_1c_1x1/Conv2D"] = top
    aux = {"mean": normal(128), "var": normal(128) ** 2, "bias": normal(128)}
    weights["Ens3AdvInceptionV3/AuxLogits/Conv2d_1b_1x1/BatchNorm/FusedBatchNorm"] = aux
    weights["Ens3AdvInceptionV3/AuxLogits/Conv2d_2b_1x1/Conv2D"] = {"bias": normal(1001)}
    return weights


def entries(weights: Published) -> convert.Entries:
    return [(f"{k}/{name}", array) for k, each in weights.items() for name, array in each.items()]


def save(path: Path, content: Any, protocol: int = 4, kind: str = "|O") -> Path:
    """An .npy file whose pickle is of any protocol and content."""
    with path.open("wb") as file:
        header = {"descr": kind, "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(content, file, protocol=protocol)
    return path


def boxed(value: Any) -> np.ndarray:
    box = np.empty((), dtype=object)
    box[()] = value
    return box


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`irattack convert …` in this process: the exit status."""
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    try:
        command.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture(scope="module")
def network(published: Published) -> nn.Module:
    network = inception_v3(1000)
    state = {name: torch.from_numpy(a) for name, a in convert.convert(entries(published)).items()}
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_every_weight_lands_where_it_belongs(
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    source, out = Path("ens3.npy"), Path("new/ens3.safetensors")
    np.save(source, boxed(published), allow_pickle=True)
    assert run(monkeypatch, str(source), str(out)) == 0
    assert capsys.readouterr().out.startswith("new/ens3.safetensors: 472 arrays, SHA-256 ")
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    state = load_file(out)
    inception_v3(1000).load_state_dict(state)
    assert len(scopes()) == 94
    for scope in scopes():
        key, ours = f"Ens3AdvInceptionV3/Ens3AdvInceptionV3/{scope}", scope.replace("/", ".")
        norm = published[f"{key}/BatchNorm/FusedBatchNorm"]
        expected = {
            "Conv2D.weight": published[f"{key}/Conv2D"]["weights"],
            "BatchNorm.running_mean": norm["mean"],
            "BatchNorm.running_var": norm["var"],
            "BatchNorm.bias": norm["bias"],
        }
        for name, array in expected.items():
            assert np.array_equal(state.pop(f"{ours}.{name}").numpy(), array)
        assert state.pop(f"{ours}.BatchNorm.num_batches_tracked") == 0
    assert set(state) == {f"Logits.Conv2d_1c_1x1.Conv2D.{name}" for name in ("weight", "bias")}


def test_the_background_class_is_dropped(
    published: Published, network: nn.Module, image: Tensor
) -> None:
    features = image
    for name, module in network.named_children():
        if name == "Logits":
            break
        features = module(features)
    assert features.shape == (1, 2048, 8, 8)
    top = published["Ens3AdvInceptionV3/Logits/Conv2d_1c_1x1/Conv2D"]
    weights = top["weights"][:, :, 0, 0]
    all_1001 = features.mean(dim=(2, 3)).numpy() @ weights.T + top["bias"]
    logits = network(image)
    assert logits.shape == (1, 1000)
    np.testing.assert_allclose(logits.numpy(), all_1001[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("block", "side"), [("Mixed_5c", 9), ("Mixed_6a", 9), ("Mixed_7c", 5)])
def test_blocks_are_those_of_the_definition(
    block: str, side: int, published: Published, network: nn.Module
) -> None:
    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        key = f"Ens3AdvInceptionV3/Ens3AdvInceptionV3/{block}/Branch_{name}"
        kernel = torch.from_numpy(published[f"{key}/Conv2D"]["weights"])
        same = [0, 0] if stride == 2 else [n // 2 for n in kernel.shape[2:]]
        x = F.conv2d(x, kernel, stride=stride, padding=same)
        numbers = published[f"{key}/BatchNorm/FusedBatchNorm"]
        mean, var, bias = (
            torch.from_numpy(numbers[n]).view(1, -1, 1, 1) for n in ("mean", "var", "bias")
        )
        return ((x - mean) / (var + 1e-3).sqrt() + bias).clamp(min=0)

    def average(x: Tensor) -> Tensor:  # each mean over the pixels that exist, 4, 6 or 9 of them
        existing = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1) / existing

    layer = network.get_submodule(block)
    first = layer.get_submodule("Branch_1")[0].Conv2D  # type: ignore[index]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, first.in_channels, side, side, generator=generator)
    if block == "Mixed_5c":
        branches = [
            unit(x, "0/Conv2d_0a_1x1"),
            unit(unit(x, "1/Conv2d_0b_1x1"), "1/Conv_1_0c_5x5"),
            unit(unit(unit(x, "2/Conv2d_0a_1x1"), "2/Conv2d_0b_3x3"), "2/Conv2d_0c_3x3"),
            unit(average(x), "3/Conv2d_0b_1x1"),
        ]
    elif block == "Mixed_6a":
        inner = unit(unit(x, "1/Conv2d_0a_1x1"), "1/Conv2d_0b_3x3")
        pooled = F.max_pool2d(x, 3, 2)
        branches = [unit(x, "0/Conv2d_1a_1x1", 2), unit(inner, "1/Conv2d_1a_1x1", 2), pooled]
    else:
        left = unit(x, "1/Conv2d_0a_1x1")
        right = unit(unit(x, "2/Conv2d_0a_1x1"), "2/Conv2d_0b_3x3")
        branches = [
            unit(x, "0/Conv2d_0a_1x1"),
            *(unit(left, name) for name in ("1/Conv2d_0b_1x3", "1/Conv2d_0c_3x1")),
            *(unit(right, name) for name in ("2/Conv2d_0c_1x3", "2/Conv2d_0d_3x1")),
            unit(average(x), "3/Conv2d_0b_1x1"),
        ]
    torch.testing.assert_close(layer(x), torch.cat(branches, dim=1), rtol=1e-4, atol=1e-4)


def test_timm_has_the_same_network_but_for_its_pooling(
    network: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's Inception-V3 has its layers in the same order, and counts padding in its means."""

    def own(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
        return [module for module in model.modules() if isinstance(module, kind)]

    other = timm.create_model("inception_v3", num_classes=1000, aux_logits=False).eval()
    *ours, top = own(network, nn.Conv2d)
    assert len(ours) == 94
    for mine, theirs in zip(ours, own(other, nn.Conv2d), strict=True):
        theirs.load_state_dict(mine.state_dict())
    norms = own(network, nn.BatchNorm2d)
    for mine, theirs in zip(norms, own(other, nn.BatchNorm2d), strict=True):
        theirs.load_state_dict(mine.state_dict() | {"weight": torch.ones_like(mine.bias)})
        assert mine.eps == theirs.eps == 1e-3
    other.fc.load_state_dict({"weight": top.weight[:, :, 0, 0], "bias": top.bias})
    with torch.no_grad():
        mine, counted = network(image), other(image)
        functional = importlib.import_module("timm.models.inception_v3").F
        pool = partial(functional.avg_pool2d, count_include_pad=False)
        monkeypatch.setattr(functional, "avg_pool2d", pool)
        theirs = other(image)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    assert (mine - counted).abs().max() > 0.05


def test_scale_is_fixed_and_not_saved(network: nn.Module) -> None:
    names = [name for name, _ in network.named_parameters() if "BatchNorm" in name]
    assert len(names) == 94
    assert all(name.endswith("bias") for name in names)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()


SMALL = {"Scope/Conv2D": {"weights": np.arange(24.0).reshape(2, 3, 2, 2)}}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, protocol: int, dtype: str) -> None:
    values = np.asfortranarray(SMALL["Scope/Conv2D"]["weights"].astype(dtype))
    content = boxed({"Scope/Conv2D": {"weights": values}})
    ((name, array),) = convert.read(save(tmp_path / "a.npy", content, protocol))
    assert name == "Scope/Conv2D/weights"
    assert array.dtype == np.float32
    assert np.array_equal(array, values)


def test_python_2_wrote_names_and_data_as_bytes(tmp_path: Path) -> None:
    def text(value: bytes) -> bytes:  # the opcode of Python 2's str
        return b"U" + bytes([len(value)]) + value

    def array(shape: bytes, code: bytes, order: bytes, data: bytes) -> bytes:
        made = (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + text(b"b") + b"tR"
        )
        dtype = b"cnumpy\ndtype\n(" + text(code) + b"I0\nI1\ntR"
        dtype += b"(I3\n" + text(order) + b"NNNI-1\nI-1\nI0\ntb"
        return made + b"(I1\n" + shape + dtype + b"I00\n" + data + b"tb"

    values = np.array([1.5, -2], np.float32)
    inner = array(b"(I2\nt", b"f4", b"<", text(values.tobytes()))
    root = b"}" + text(b"Scope/Conv2D") + b"}" + text(b"weights") + inner + b"ss"
    path = save(tmp_path / "a.npy", None)
    head = path.read_bytes()[: -len(pickle.dumps(None, protocol=4))]
    path.write_bytes(head + b"\x80\x02" + array(b"(t", b"O8", b"|", b"(l" + root + b"a") + b".")
    ((name, found),) = convert.read(path)
    assert name == "Scope/Conv2D/weights"
    assert np.array_equal(found, values)


class Asks:
    """Unpickling this calls a function."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Forged:
    """An array of objects whose flags say that its bytes, made up here, are plain data."""

    def __reduce__(self) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]
        dtype = Asks(np.dtype, "O8", False, True)
        dtype.call += ((3, "|", None, None, None, -1, -1, 0),)  # type: ignore[assignment]
        return reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, b"8 bytes.")


REFUSED = {
    "os.system": Asks(os.system, "touch ran"),
    "eval": Asks(eval, "open('ran', 'w')"),
    "partial": Asks(partial, print, "ran"),
    "numpy.testing": Asks(np.testing.measure, "open('ran', 'w')"),
    "numpy.fromfile": Asks(np.fromfile, "ran"),
    "a class": Path("ran"),
    "codec": Asks(__import__("_codecs").encode, "cena", "rot13"),
    "object array": np.array([{}], dtype=object),
    "forged object array": Forged(),
    "integers": np.arange(3),
    "text": np.array(["a"]),
    "structured": np.zeros(2, [("a", "f4")]),
    "NaN": np.array([np.nan]),
    "more than float32 holds": np.array([1e300]),
    "list": [1.0, 2.0],
    "number": 1.0,
    "none": None,
    "bare array type": np.ndarray,
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", REFUSED)
def test_what_no_array_needs_is_refused_and_not_run(
    what: str,
    protocol: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    value = REFUSED[what]
    contents = [value, boxed({"a": value}), boxed({"a": {"weights": value}})]
    for content in [*contents, boxed({"a": {"weights": np.ones(2), "b": value}})]:
        save(tmp_path / "a.npy", content, protocol)
        assert run(monkeypatch, "a.npy", "b.safetensors") == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("irattack: a.npy is not a whole NumPy file of pickled")
        assert captured.err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", boxed(SMALL))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in range(0, len(whole) - 1, 7)]
    damaged += [
        save(path, boxed(SMALL), protocol=5).read_bytes(),
        b"",
        b"not an array",
        pickle.dumps(SMALL),
        whole[:6] + b"\x03" + whole[7:],
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^.+ is not a whole NumPy file .*[^.]\.$"):
            convert.read(path)
    for _ in range(300):  # a changed byte is read as another number or refused, nothing else
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(InputError):
            convert.read(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "usage: irattack convert FILE.npy OUT.safetensors"),
        (["a.npy"], "usage"),
        (["a.npy", "b", "c"], "usage"),
        (["a.npy", "b.npy"], "usage"),
        (["none.npy", "b.safetensors"], "none.npy cannot be read: No such file or directory."),
        ([".", "b.safetensors"], ". cannot be read: Is a directory."),
        (["a.npy", "b.safetensors"], "missing: Conv2d_1a_3x3.BatchNorm.bias, "),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.npy", boxed(SMALL))
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_sentence(
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(command, "read", lambda _: entries(published))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").touch()
    for out in ("folder.safetensors", "file/b.safetensors"):
        assert run(monkeypatch, "a.npy", out) == 2
        error = capsys.readouterr().err
        assert f"{out} cannot be written: " in error
        assert error.count("\n") == 1


KEY = "Ens3AdvInceptionV3/Ens3AdvInceptionV3/Mixed_5c/Branch_1/Conv_1_0c_5x5"
ZERO = np.zeros(64, np.float32)


@pytest.mark.parametrize(
    ("replaced", "added", "sentence"),
    [
        ("Conv2D/weights", {}, "missing: Mixed_5c.Branch_1.Conv_1_0c_5x5.Conv2D.weight."),
        ("BatchNorm/FusedBatchNorm/var", {}, "Conv_1_0c_5x5.BatchNorm.running_var."),
        ("", {f"{KEY}/Conv2D/bias": ZERO}, "unknown: 'Mixed_5c.Branch_1.Conv_1_0c_5x5.Conv2D"),
        ("", {"Ens3AdvInceptionV3/Other/Conv2D/x": ZERO}, "unknown: 'Ens3AdvInceptionV3/Other"),
        ("", {f"{KEY}/BatchNorm/FusedBatchNorm/scale": ZERO + 2}, "unknown: "),
        ("", {f"{KEY}/BatchNorm/Other/mean": ZERO}, "more than once: Mixed_5c.Branch_1.Conv_1_0c"),
        (
            "Conv2D/weights",
            {f"{KEY}/Conv2D/weights": np.zeros((5, 5, 48, 64), np.float32)},
            "wrong shape: Mixed_5c.Branch_1.Conv_1_0c_5x5.Conv2D.weight (5, 5, 48, 64) "
            "instead of (64, 48, 5, 5).",
        ),
    ],
)
def test_every_weight_must_land_exactly_once(
    published: Published, replaced: str, added: dict[str, np.ndarray], sentence: str
) -> None:
    kept = [(name, array) for name, array in entries(published) if name != f"{KEY}/{replaced}"]
    with pytest.raises(InputError, match=re.escape(sentence)):
        convert.convert(kept + list(added.items()))


def test_ens4_and_scales_of_one_are_read_as_well(published: Published) -> None:
    """Some exporters write the constant 1 that TensorFlow has in place of a scale."""
    one = [(f"{KEY}/BatchNorm/FusedBatchNorm/scale", ZERO + 1)]
    ens4 = [(name.replace("Ens3", "Ens4"), array) for name, array in entries(published) + one]
    expected = convert.convert(entries(published))
    found = convert.convert(ens4)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
