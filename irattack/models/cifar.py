"""ResNets for 32 px, the example of benchmark=cifar10: timm's, with a stem that keeps every pixel.

A 3x3 convolution of stride 1 stands for ImageNet's 7x7 of stride 2, and nothing for its pooling.
"""

import timm
from torch import nn


def _resnet(name: str, classes: int) -> nn.Module:
    network = timm.create_model(name, num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def resnet18(classes: int) -> nn.Module:
    """Images (B, 3, 32, 32) to logits (B, classes)."""
    return _resnet("resnet18", classes)


def resnet34(classes: int) -> nn.Module:
    """Images (B, 3, 32, 32) to logits (B, classes)."""
    return _resnet("resnet34", classes)


def resnet50(classes: int) -> nn.Module:
    """Images (B, 3, 32, 32) to logits (B, classes)."""
    return _resnet("resnet50", classes)
