"""TF-Slim's Inception-V3, the network of the published ensemble-adversarially trained weights.

`ens3_adv_inception_v3` and `ens4_adv_inception_v3` (Tramèr et al., 2018, arXiv 1705.07204) are
checkpoints of `research/slim/nets/inception_v3.py` in tensorflow/models. The table below states
that network by its scope names, and every module bears the name of its scope, so that
`Mixed_6b/Branch_1/Conv2d_0c_7x1` is `Mixed_6b.Branch_1.Conv2d_0c_7x1`. The training-time parts,
dropout and the auxiliary head, are left out.
"""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

# A layer is its scope and its width; the kernel stands in the name. A comma: the output feeds the
# next layer; a bar: the last two layers have the same input, and their outputs are concatenated.
STEM = (
    "Conv2d_1a_3x3 32, Conv2d_2a_3x3 32, Conv2d_2b_3x3 64, MaxPool_3a_3x3, "
    "Conv2d_3b_1x1 80, Conv2d_4a_3x3 192, MaxPool_5a_3x3"
)
UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")  # and all layers of stride 2


def _35(pooled: int, first: str = "Conv2d_0a_1x1", second: str = "Conv2d_0b_5x5") -> list[str]:
    return [
        "Conv2d_0a_1x1 64",
        f"{first} 48, {second} 64",
        "Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_0c_3x3 96",
        f"AvgPool_0a_3x3, Conv2d_0b_1x1 {pooled}",
    ]


def _17(n: int) -> list[str]:
    return [
        "Conv2d_0a_1x1 192",
        f"Conv2d_0a_1x1 {n}, Conv2d_0b_1x7 {n}, Conv2d_0c_7x1 192",
        f"Conv2d_0a_1x1 {n}, Conv2d_0b_7x1 {n}, Conv2d_0c_1x7 {n}, Conv2d_0d_7x1 {n}, "
        "Conv2d_0e_1x7 192",
        "AvgPool_0a_3x3, Conv2d_0b_1x1 192",
    ]


def _8(arm: str) -> list[str]:
    return [
        "Conv2d_0a_1x1 320",
        f"Conv2d_0a_1x1 384, Conv2d_0b_1x3 384 | {arm} 384",
        "Conv2d_0a_1x1 448, Conv2d_0b_3x3 384, Conv2d_0c_1x3 384 | Conv2d_0d_3x1 384",
        "AvgPool_0a_3x3, Conv2d_0b_1x1 192",
    ]


MIXED = {  # the branches of each block, at 35, 17 and 8 px
    "Mixed_5b": _35(32),
    "Mixed_5c": _35(64, "Conv2d_0b_1x1", "Conv_1_0c_5x5"),
    "Mixed_5d": _35(64),
    "Mixed_6a": [
        "Conv2d_1a_1x1 384",
        "Conv2d_0a_1x1 64, Conv2d_0b_3x3 96, Conv2d_1a_1x1 96",
        "MaxPool_1a_3x3",
    ],
    "Mixed_6b": _17(128),
    "Mixed_6c": _17(160),
    "Mixed_6d": _17(160),
    "Mixed_6e": _17(192),
    "Mixed_7a": [
        "Conv2d_0a_1x1 192, Conv2d_1a_3x3 320",
        "Conv2d_0a_1x1 192, Conv2d_0b_1x7 192, Conv2d_0c_7x1 192, Conv2d_1a_3x3 192",
        "MaxPool_1a_3x3",
    ],
    "Mixed_7b": _8("Conv2d_0b_3x1"),
    "Mixed_7c": _8("Conv2d_0c_3x1"),
}


def _layer(name: str, inputs: int, width: int) -> nn.Module:
    """A pooling, or a convolution without bias, batch norm without scale, and ReLU."""
    if name.startswith("MaxPool"):
        return nn.MaxPool2d(3, stride=2)
    if name.startswith("AvgPool"):
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    stride = 2 if "_1a_" in name else 1  # these kernels are 3x3, also where the name says 1x1
    height, across = (3, 3) if stride == 2 else (int(name[-3]), int(name[-1]))
    padding = (0, 0) if stride == 2 or name in UNPADDED else (height // 2, across // 2)
    convolution = nn.Conv2d(inputs, width, (height, across), stride, padding, bias=False)
    norm = nn.BatchNorm2d(width, eps=1e-3)
    del norm.weight  # a constant: neither trained nor saved
    norm.register_buffer("weight", torch.ones(width), persistent=False)
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(Conv2D=convolution, BatchNorm=norm, Relu=relu))


class Chain(nn.Sequential):
    """The layers of one line of the table: (B, inputs, H, W) to (B, width, H', W')."""

    def __init__(self, line: str, inputs: int):
        super().__init__()
        self.forks, self.width = "|" in line, inputs
        for name, width in re.findall(r"(\w+)(?: (\d+))?", line):
            self.add_module(name, _layer(name, self.width, int(width or 0)))
            self.width = int(width or self.width)
        self.width *= 2 if self.forks else 1  # both arms are as wide as their input

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, width, H', W')."""
        if not self.forks:
            return super().forward(x)
        *layers, left, right = self
        for layer in layers:
            x = layer(x)
        return torch.cat([left(x), right(x)], dim=1)


class Mixed(nn.ModuleDict):
    """The branches of a block, concatenated: (B, inputs, H, W) to (B, width, H', W')."""

    def __init__(self, lines: list[str], inputs: int):
        branches = [Chain(line, inputs) for line in lines]
        super().__init__({f"Branch_{i}": branch for i, branch in enumerate(branches)})
        self.width = sum(branch.width for branch in branches)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, width, H', W')."""
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def inception_v3(classes: int) -> nn.Module:
    """Maps images (B, 3, 299, 299) in [-1, 1] to logits (B, classes).

    As in TensorFlow, average pooling leaves the padding out of its means.
    """
    network = Chain(STEM, 3)
    for name, lines in MIXED.items():
        block = Mixed(lines, network.width)
        network.add_module(name, block)
        network.width = block.width
    pool = nn.AdaptiveAvgPool2d(1)  # over 8 x 8 pixels
    logits = nn.Sequential(OrderedDict(Conv2D=nn.Conv2d(network.width, classes, 1)))
    head = nn.Sequential(OrderedDict(AvgPool_1a_8x8=pool, Conv2d_1c_1x1=logits))
    network.add_module("Logits", head)
    network.add_module("SpatialSqueeze", nn.Flatten())
    return network
