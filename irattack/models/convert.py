"""Converts the published ens3 and ens4 weights to the safetensors of `slim.inception_v3(1000)`.

    irattack convert tf2torch_ens3_adv_inc_v3.npy inception_v3_ens3.safetensors

The checkpoints of Tramèr et al. (2018) are published for PyTorch as NumPy files that hold a pickled
dictionary of dictionaries of arrays (github.com/ylhz/tf_to_pytorch_model). A pickle can run any
code, and NumPy's own classes trust the pickle's memory layout, so that none of them is used: plain
stand-ins collect what the pickle says, and arrays are made from that once it is checked.
"""

import math
import pickle
import pickletools
import re
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from irattack.errors import InputError
from irattack.models.slim import inception_v3

Entries = list[tuple[str, np.ndarray]]
PREFIX = r"(?:Ens[34]AdvInceptionV3/){1,2}"
PARTS = {
    "Conv2D": {"weights": "Conv2D.weight", "bias": "Conv2D.bias"},
    "BatchNorm": {
        "mean": "BatchNorm.running_mean",
        "var": "BatchNorm.running_var",
        "bias": "BatchNorm.bias",
    },
}


class _Dtype:
    """What a pickle says of a dtype."""

    def __init__(self, code: Any, *_: Any):
        self.code, self.order = _text(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


class _Array:
    """What a pickle says of an array."""

    def __init__(self, *_: Any):
        self.shape: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def array(self) -> np.ndarray:
        """The array in float32; a ValueError if it is not of finite floats of its shape."""
        kind = self.dtype.code if isinstance(self.dtype, _Dtype) else "?"
        if kind not in ("f2", "f4", "f8") or self.dtype.order not in ("<", ">", "=", "|"):
            raise ValueError(f"an array of type {kind!r} in place of floats")
        dtype = np.dtype(kind).newbyteorder(self.dtype.order)
        if not isinstance(self.data, bytes) or not all(type(n) is int for n in self.shape):
            raise ValueError("an array without bytes or shape")
        if len(self.data) != math.prod(self.shape) * dtype.itemsize:
            raise ValueError("an array whose bytes do not fill its shape")
        with np.errstate(over="ignore"):
            values = np.frombuffer(self.data, dtype).astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("an array with NaN or infinity")
        return values.reshape(self.shape, order="F" if self.fortran else "C")


def _text(value: Any) -> str:
    """A string, which Python 2 pickled as bytes."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} in place of a name")
    return value


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the encoding {encoding!r}")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): None,  # the first argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Knows the names that an array of arrays needs, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise InputError(f"it asks for {f'{module}.{name}'!r}, which no array needs")
        return ADMITTED[module, name]


def _entries(file: BinaryIO) -> Entries:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("its header is not of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if shape != () or not dtype.hasobject:
        raise ValueError("no pickled dictionary")
    start = file.tell()
    if any(opcode.proto > 4 for opcode, _, _ in pickletools.genops(file)):
        raise ValueError("a pickle of protocol 5, which np.save does not write")
    file.seek(start)
    outer = _Unpickler(file, encoding="bytes").load()
    if not isinstance(outer, _Array) or outer.shape != () or outer.dtype.code[0] != "O":
        raise ValueError("no pickled dictionary")
    found: Entries = []
    (root,) = outer.data
    for scope, parameters in _items(root):
        for name, value in _items(parameters):
            if not isinstance(value, _Array):
                raise ValueError(f"a {type(value).__name__} in place of an array")
            found.append((f"{_text(scope)}/{_text(name)}", value.array()))
    return found


def _items(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} in place of a dictionary")
    return value.items()


def read(path: Path) -> Entries:
    """Every array of a published file, as (scope/name, float32 array). Runs nothing of the file.

    Raises:
        InputError: the file is missing or damaged, or holds anything but names and float arrays.
    """
    try:
        with path.open("rb") as file:
            return _entries(file)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # a forged or damaged pickle can raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path} is not a whole NumPy file of pickled weights and nothing of it was run: "
            f"{reason.rstrip('.')}."
        ) from None


def convert(entries: Entries) -> dict[str, np.ndarray]:
    """The state dict of `slim.inception_v3(1000)`, without the background class 0.

    The auxiliary head is left out, as is a batch norm's scale where it is 1.

    Raises:
        InputError: a weight is missing, comes twice, is left over, or has another shape.
    """
    with torch.device("meta"):
        network = inception_v3(1001).state_dict()
    shapes = {name: tuple(value.shape) for name, value in network.items()}
    counters = {name for name in shapes if name.endswith("num_batches_tracked")}
    named = [
        (_rename(name), array)
        for name, array in entries
        if not re.match(PREFIX + "AuxLogits/", name)
        and not (re.search(r"/BatchNorm(/\w+)?/scale$", name) and (array == 1).all())
    ]
    weights = shapes.keys() - counters
    counts = Counter(name for name, _ in named)
    problems = {
        "missing": sorted(weights - counts.keys()),
        "unknown": sorted(repr(name) for name in counts.keys() - weights),
        "more than once": sorted(name for name, count in counts.items() if count > 1),
        "of the wrong shape": [
            f"{name} {array.shape} instead of {shapes[name]}"
            for name, array in named
            if name in weights and array.shape != shapes[name]
        ],
    }
    for problem, names in problems.items():
        if names:
            rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"These are not the weights of ens3 or ens4: {problem}: "
                f"{', '.join(names[:3])}{rest}."
            )
    state = dict(named) | {name: np.zeros((), np.int64) for name in counters}
    return {name: state[name][1:] if name.startswith("Logits.") else state[name] for name in shapes}


def _rename(name: str) -> str:
    """The name of a published array in our state dict; itself if it is not of this network."""
    found = re.fullmatch(PREFIX + r"(.+)/(Conv2D|BatchNorm)(?:(?<=BatchNorm)/\w+)?/(\w+)", name)
    if found is None or found[3] not in PARTS[found[2]]:
        return name
    return f"{found[1].replace('/', '.')}.{PARTS[found[2]][found[3]]}"
