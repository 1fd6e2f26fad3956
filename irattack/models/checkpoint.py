"""State dicts in the forms in which they are saved: nested, averaged, with a wrapper's prefix.

Files are read as safetensors, or by PyTorch's unpickler that admits tensors only.
"""

import argparse
import logging
import pickle
import re
import warnings
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


def misfit(error: Exception) -> str:
    """Why a state dict does not fit, from PyTorch's error: three names of each kind."""
    text = re.sub(r"Error\(s\) in loading state_dict for \w+: ", "", " ".join(str(error).split()))
    text = re.sub(r'("[^"]+"(?:, "[^"]+"){2})(?:, "[^"]+")+', r"\1, …", text)
    return text[:300].strip().rstrip(".")
