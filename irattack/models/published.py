"""Networks as timm and torchvision publish them: their facts, their weights' files, their bodies.

Weights are read as safetensors, or by PyTorch's unpickler that admits tensors only.
"""

import pickle
import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
import torchvision
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg, is_model
from torch import Tensor, nn

from irattack.errors import InputError
from irattack.hashing import sha256

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def known_to_timm(name: str) -> bool:
    """Whether timm has this model, with this tag if one is given, for ImageNet's 1000 classes."""
    try:
        facts = get_pretrained_cfg(name) if is_model(name) else None
    except RuntimeError:  # a tag that this architecture has not
        return False
    return facts is not None and facts.num_classes == 1000


def facts(card: dict[str, Any]) -> dict[str, Any]:
    """Mean, standard deviation, input size and tag of the published weights that a card names."""
    if "torchvision" in card:
        seen = torchvision.models.get_weight(card["torchvision"]).transforms()
        size = seen.crop_size[0]
        return {"mean": list(seen.mean), "std": list(seen.std), "size": size}
    found = get_pretrained_cfg(card["timm"])
    name = f"{found.architecture}.{found.tag}" if found.tag else found.architecture
    size = found.input_size[-1]
    return {"mean": list(found.mean), "std": list(found.std), "size": size, "timm": name}


def body(card: dict[str, Any], state: dict[str, Tensor] | None) -> nn.Module:
    """The network of a card, with a state dict as it was published, or untrained."""
    if "torchvision" in card:
        network = torchvision.models.get_model(card["torchvision"].split("_Weights")[0].lower())
        if state is not None:
            network.load_state_dict(state)
        return network
    if state is None:
        return timm.create_model(card["timm"], pretrained=False)
    overlay = {"state_dict": state, "custom_load": False}  # timm renames the keys of old files
    return timm.create_model(card["timm"], pretrained=True, pretrained_cfg_overlay=overlay)


def find_weights(name: str, card: dict[str, Any], folder: str | None) -> Path:
    """The file of a network's weights: from the folder if it is there, else downloaded once."""
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"weights_dir={folder}: no such folder; name one that holds weights.")
    own = [Path(card["weights"]).stem] if "weights" in card else _stems(name, card)
    stems = list(dict.fromkeys(own))
    for stem in stems if folder is not None else []:
        for suffix in SUFFIXES:
            path = Path(str(folder)) / f"{stem}{suffix}"
            if path.is_file():
                return path
    if "weights" in card and Path(card["weights"]).is_file():
        return Path(card["weights"])
    wanted = f"weights_dir=FOLDER with {' or '.join(f'{stem}.safetensors' for stem in stems)}"
    if "weights" in card:
        how = f": {card['how']}" if "how" in card else ""
        raise InputError(f"{name}: there is no file {card['weights']}{how}; give {wanted}.")
    try:
        return _download(card)
    except (OSError, URLError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: its weights cannot be downloaded ({why}); where there is no internet give "
            f"{wanted} (or the published .pth)."
        ) from error


def _stems(name: str, card: dict[str, Any]) -> Iterator[str]:
    yield name
    url = _url(card)
    if "timm" in card:
        yield card["timm"]
    if url:
        yield url.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _url(card: dict[str, Any]) -> str:
    if "torchvision" in card:
        return torchvision.models.get_weight(card["torchvision"]).url
    return get_pretrained_cfg(card["timm"]).url or ""


@cache
def _hub_file(repository: str) -> Path:
    return Path(hf_hub_download(repository, "model.safetensors"))


def _download(card: dict[str, Any]) -> Path:
    """The file in the cache of Hugging Face or of torch.hub; downloads it where it is missing."""
    hub = get_pretrained_cfg(card["timm"]).hf_hub_id if "timm" in card else None
    if hub:
        return _hub_file(hub)
    url = _url(card)
    if not url:
        raise ValueError("nobody publishes them")
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        begin = re.search(r"-([a-f0-9]{8,})\.", name)  # the file's name holds its hash
        torch.hub.download_url_to_file(url, str(path), begin and begin[1], progress=False)
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a file; never runs code that the file holds."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # of pickles that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise InputError(
            f"{path}: not a whole file of weights ({' '.join(str(error).split())[:120]}); "
            "fetch it again."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path}: holds something else than named tensors; expected a state dict.")
    return state


def digest(path: Path) -> str:
    """SHA-256 of a file of weights, remembered while the file stays as it is."""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@cache
def _digest(path: Path, mtime: int, size: int) -> str:
    return sha256(path)
