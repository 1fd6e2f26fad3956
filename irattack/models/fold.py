"""Batch normalisation folded into the convolution before it: the same function, less work."""

import logging
import re
from collections import Counter, OrderedDict
from copy import deepcopy

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from irattack.models.network import TOLERANCE, Network, networks, sample

log = logging.getLogger(__name__)


def fold(model: nn.Module, keep_branches: bool = False) -> nn.Module:
    """Folds every network of a frozen model in eval mode, in place; returns the model.

    A network stays as it is where that fails, or changes its logits by more than rounding.

    Args:
        keep_branches: leave alone what ends a residual branch, where SGM scales gradients.
    """
    for network in networks(model):
        image = sample(network)
        with torch.no_grad():
            before = network(image)
            try:
                folded = _folded(network, keep_branches)
                after = folded(image)
            except Exception as error:  # in a network of one's own anything may depend on its parts
                log.warning("Batch norm is not folded in this network: %s", error)
                continue
        if (before - after).abs().max() <= TOLERANCE * before.abs().max():
            network.body = folded.body
        else:
            log.warning("Batch norm is not folded in this network: its logits would change.")
    return model


def _folded(network: Network, keep_branches: bool) -> Network:
    copy = deepcopy(network)
    kept = (network.skip or {}).get("branches") if keep_branches else None
    names = {module: name for name, module in copy.body.named_modules()}
    for convolution, norm in _pairs(copy):
        if kept and any(re.match(kept, names[module]) for module in (convolution, norm)):
            continue
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        rest: nn.Module = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            rest = nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act))
        parent, _, child = names[norm].rpartition(".")
        setattr(copy.body.get_submodule(parent), child, rest)
    return copy


def _pairs(network: Network) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each convolution whose output goes to a batch normalisation, and that; both used once."""
    made: dict[int, nn.Conv2d] = {}
    pairs, calls, alive = [], Counter[nn.Module](), []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        alive.append(output)  # so that no other tensor gets its id
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module
        elif id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], module))

    kinds = (nn.Conv2d, nn.BatchNorm2d, BatchNormAct2d)
    handles = [m.register_forward_hook(watch) for m in network.modules() if type(m) in kinds]
    with torch.no_grad():
        network(torch.zeros(1, 3, network.size, network.size).to(network.mean))
    for handle in handles:
        handle.remove()
    return [(c, b) for c, b in pairs if calls[c] == calls[b] == 1]  # type: ignore[misc]
