"""Networks as timm and torchvision publish them: their facts, their bodies, their files."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub import hf_hub_download
from timm.models import get_pretrained_cfg, is_model
from torch import Tensor, nn

from irattack.errors import InputError

NEAR = 1e-3  # a mean that is written with fewer digits is no other mean


def known_to_timm(name: str) -> bool:
    """Whether timm has this model, with this tag if one is given, for ImageNet's 1000 classes."""
    found = _timm(name)
    return found is not None and found.num_classes == 1000


def _timm(name: str) -> Any:
    """What timm says of a model's weights; None if it knows no such model, or no such tag."""
    try:
        return get_pretrained_cfg(name) if is_model(name) else None
    except RuntimeError:  # a tag that this architecture has not
        return None


def facts(card: dict[str, Any]) -> dict[str, Any]:
    """Mean, std and input size of the published weights that a card names, and timm's full name.

    Nothing where it names only an architecture of torchvision.

    Raises:
        InputError: no such network.
    """
    if "torchvision" in card:
        name = card["torchvision"]
        if "_Weights" not in name and name in torchvision.models.list_models():
            return {}
        try:
            seen = torchvision.models.get_weight(name).transforms()
        except (ValueError, KeyError, AttributeError) as error:
            raise _unknown("torchvision", name, "ResNet50_Weights.IMAGENET1K_V2") from error
        return {"mean": list(seen.mean), "std": list(seen.std), "size": seen.crop_size[0]}
    found = _timm(card["timm"])
    if found is None:
        raise _unknown("timm", card["timm"], "resnet50.tv_in1k")
    name = f"{found.architecture}.{found.tag}" if found.tag else found.architecture
    size = found.input_size[-1]
    return {"mean": list(found.mean), "std": list(found.std), "size": size, "timm": name}


def _unknown(library: str, name: str, example: str) -> InputError:
    return InputError(
        f"{library}={name}: the installed {library} has no such network; name one that it has, "
        f"such as {example}."
    )


def completed(where: str, card: dict[str, Any]) -> dict[str, Any]:
    """The facts of a card, and what it leaves unsaid as it was published.

    A card that names weights of its own is right about them in everything. Published weights were
    trained with their mean and std; they may be run at another size.

    Args:
        where: the yaml or the name of the network, for the sentence.

    Raises:
        InputError: no such network, or another mean or std than published, without own weights.
    """
    found = facts(card)
    if "weights" in card:
        return found | card
    for fact in ("mean", "std"):
        said = card.get(fact, found[fact])
        if any(abs(ours - theirs) > NEAR for ours, theirs in zip(said, found[fact], strict=True)):
            raise InputError(
                f"{where}: {fact}={said}, but the published weights that it names need "
                f"{found[fact]}; leave {fact} out, or name your own `weights:`."
            )
    return found | card | {"timm": found["timm"]} if "timm" in card else found | card


def body(card: dict[str, Any], state: dict[str, Tensor] | None) -> nn.Module:
    """The network of a card, with a state dict as it was published, or untrained.

    As many logits as the card says if its weights are its own, else as many as were published.
    """
    wide = {"num_classes": card["classes"] + card.get("offset", 0)} if "weights" in card else {}
    if "torchvision" in card:
        return _torchvision(card, state, wide)
    published, options = _timm(card["timm"]), dict(wide)
    if published.fixed_input_size and card["size"] != published.input_size[-1]:
        options["img_size"] = card["size"]
    if state is None:
        return timm.create_model(card["timm"], pretrained=False, **options)
    overlay = {"state_dict": state, "custom_load": False}  # timm renames the keys of old files
    if wide:
        overlay |= wide | {"label_offset": 0}  # these are no longer the published classes
    return timm.create_model(
        card["timm"], pretrained=True, pretrained_cfg_overlay=overlay, **options
    )


def _torchvision(
    card: dict[str, Any], state: dict[str, Tensor] | None, options: dict[str, Any]
) -> nn.Module:
    """The network as torchvision's own builder makes it where it loads these weights."""
    architecture, tag, _ = card["torchvision"].partition("_Weights")
    architecture = architecture.lower()
    if architecture in ("inception_v3", "googlenet"):  # published ones normalise once more
        auxiliary = any(name.startswith(("aux", "AuxLogits")) for name in state or ())
        options |= {"transform_input": bool(tag), "aux_logits": auxiliary}
        options |= {"init_weights": state is None}
    if architecture.startswith("vit_"):
        options |= {"image_size": card["size"]}
    if architecture.startswith("maxvit_"):
        options |= {"input_size": (card["size"], card["size"])}
    network = torchvision.models.get_model(architecture, **options)
    if state is not None:
        network.load_state_dict(state)
    return network


def address(card: dict[str, Any]) -> str:
    """The URL of the published file; empty where there is none outside the Hugging Face hub."""
    facts(card)  # raises the error for an unknown name
    if "torchvision" in card:
        return torchvision.models.get_weight(card["torchvision"]).url
    return get_pretrained_cfg(card["timm"]).url or ""


@cache
def _hub_file(repository: str) -> Path:
    return Path(hf_hub_download(repository, "model.safetensors"))


def download(card: dict[str, Any]) -> Path:
    """The file in the cache of Hugging Face or of torch.hub; downloads it where it is missing."""
    hub = get_pretrained_cfg(card["timm"]).hf_hub_id if "timm" in card else None
    if hub:
        return _hub_file(hub)
    url = address(card)
    if not url:
        raise ValueError("nobody publishes them")
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        begin = re.search(r"-([a-f0-9]{8,})\.", name)  # the file's name holds its hash
        torch.hub.download_url_to_file(url, str(path), begin and begin[1], progress=False)
    return path
