"""State dicts in the forms in which they are saved: nested, averaged, with a wrapper's prefix.

Files are read as safetensors, or by PyTorch's unpickler that admits tensors only.
"""

import argparse
import logging
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from irattack.errors import InputError

# Where training programs put a state dict; of several the first is taken, so that averaged weights,
# whose accuracy is the one that is published, go before those of the last step.
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning

log = logging.getLogger(__name__)


def read_weights(path: Path, own: Iterable[str] = ()) -> dict[str, Tensor]:
    """A state dict from a file, by its network's names; never runs code that the file holds.

    Args:
        path: a .safetensors, or what torch.save wrote: a state dict, or a checkpoint with one.
        own: the names of the network's tensors, where they are known; may begin like a wrapper's.

    Raises:
        InputError: the file is damaged, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            saved: Any = load_file(path)
        else:
            # of pickles that it then refuses; checkpoints have the arguments of their training
            with (
                warnings.catch_warnings(action="ignore"),
                torch.serialization.safe_globals([argparse.Namespace]),
            ):
                saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        asks = f"it asks for {wanted[1]}" if wanted else "it is none, or damaged"
        raise InputError(
            f"{path}: holds something else than named tensors ({asks}), and nothing of it was run; "
            "save the state dict alone, or fetch the file again."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path}: not a whole file of weights ({' '.join(str(error).split())[:120]}); "
            "fetch it again."
        ) from error
    state = _innermost(path, saved)
    if not _is_state(state):
        keys = f" ({', '.join(map(str, state))[:80]})" if isinstance(state, Mapping) else ""
        raise InputError(
            f"{path}: holds something else than named tensors{keys}; expected a state dict, by "
            f"itself or as one of {', '.join(NESTED)}."
        )
    return _unwrapped(dict(state), set(own))


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value.keys() - {"n_averaged"}:
        return False
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _innermost(path: Path, saved: Any) -> Any:
    while isinstance(saved, Mapping):
        found = [key for key in NESTED if isinstance(saved.get(key), Mapping)]
        if not found:
            break
        if len(found) > 1:
            log.info("%s: has %s; the first is taken.", path, " and ".join(found))
        saved = saved[found[0]]
    return saved


def _unwrapped(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Without the prefixes that all names have and the network's own have not."""
    named = {name: value for name, value in state.items() if name != "n_averaged"}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in named) and not own & named.keys():
            return _unwrapped({n.removeprefix(prefix): v for n, v in named.items()}, own)
    return state


def in_order(
    path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A state dict under the names of its network, tensor by tensor in the order of both.

    For weights of the same architecture from a library that names its modules otherwise. The
    counters of batch norm, on which no output depends, are left out.

    Args:
        path: of the file, for the sentence and its suffix.
        state: what it holds, in the order of the network that was saved.
        own: the state dict of the network that is to have it.

    Raises:
        InputError: the tensors do not agree, see `disorder`.
    """
    if not set(_lasting(own)) ^ set(_lasting(state)):
        return dict(state)  # of the same names, which say more than an order
    if why := disorder(path, state, own):
        raise InputError(
            f"{path}: match=order, but {why}; give the weights of this architecture as torch.save "
            "wrote them, or a `factory:` whose network has the names in the file."
        )
    return {name: state[saved] for saved, name in zip(_lasting(state), _lasting(own), strict=True)}


def disorder(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Why a state dict's tensors are not in order those of a network; empty if they can be.

    They agree in number, each in shape and in kind (the last word of its name, such as
    running_mean), and those of one module are those of one module of the other.
    """
    if path.suffix == ".safetensors":
        return "a .safetensors keeps no order of its tensors"
    saved, names = _lasting(state), _lasting(own)
    if len(saved) != len(names):
        return f"it has {len(saved)} tensors for a network of {len(names)}"
    pairs = [(s.rpartition("."), n.rpartition(".")) for s, n in zip(saved, names, strict=True)]
    modules = {(s[0], n[0]) for s, n in pairs}
    theirs, ours = Counter(s for s, _ in modules), Counter(n for _, n in modules)
    for i, (s, n) in enumerate(pairs):
        alike = state[saved[i]].shape == own[names[i]].shape and s[2] == n[2]
        whole = theirs[s[0]] == ours[n[0]] == 1
        if not (alike and whole):
            found, wanted = (
                f"{name} {tuple(tensors[name].shape)}"
                for name, tensors in ((saved[i], state), (names[i], own))
            )
            return f"it has {found} where the network has {wanted}"
    return ""


def _lasting(state: Mapping[str, Tensor]) -> list[str]:
    """The names of a state dict without the counters of batch norm, which old files lack."""
    return [name for name in state if not name.endswith("num_batches_tracked")]


def misfit(error: Exception) -> str:
    """Why a state dict does not fit, from PyTorch's error: three names of each kind."""
    text = re.sub(r"Error\(s\) in loading state_dict for \w+: ", "", " ".join(str(error).split()))
    text = re.sub(r'("[^"]+"(?:, "[^"]+"){2})(?:, "[^"]+")+', r"\1, …", text)
    return text[:300].strip().rstrip(".")
