"""The networks of the photos benchmark: families of networks at 32 px, from timm's own blocks.

Each keeps what makes its family: plain, residual, dense, squeeze-and-excitation or inception
blocks, batch normalisation where the family has it, and the order of depths (ResNet-152 deeper
than -34, DenseNet-201 than -121, Inception-V4 than -V3).
"""

from importlib import import_module
from typing import Any

from timm.layers import ConvNormAct
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.vgg import make_layers

# timm.models names a function of the same name in front of each of these modules
iv3, iv4, irv2 = (
    import_module(f"timm.models.{name}")
    for name in ("inception_v3", "inception_v4", "inception_resnet_v2")
)


def _kaiming(network: nn.Module) -> nn.Module:
    """He initialisation, which deep networks without batch norm need to start learning."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def alexnet(classes: int) -> nn.Module:
    """Five convolutions, large kernels first, no batch norm (AlexNet)."""
    layers: list[nn.Module] = []
    channels = 3
    for width, kernel, pool in [(32, 5, 1), (64, 3, 1), (96, 3, 0), (96, 3, 0), (64, 3, 1)]:
        stride = 2 if channels == 3 else 1
        layers += [nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = width
    mlp = [nn.Flatten(), nn.Linear(64 * 4, 128), nn.ReLU(inplace=True), nn.Linear(128, classes)]
    return _kaiming(nn.Sequential(*layers, *mlp))


def vgg16(classes: int) -> nn.Module:
    """Thirteen 3x3 convolutions in five groups and three linear layers, no batch norm (VGG-16)."""
    widths: list[str | int] = []
    for width, depth in [(16, 2), (32, 2), (48, 3), (64, 3), (64, 3)]:
        widths += [width] * depth + ["M"]
    mlp = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU(True), nn.Linear(64, 64), nn.ReLU(True)]
    layers = make_layers(widths)
    return _kaiming(nn.Sequential(layers, *mlp, nn.Linear(64, classes)))


def resnet34(classes: int) -> nn.Module:
    """Basic residual blocks (ResNet-34)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, channels=(16, 24, 40, 64))


def resnet152(classes: int) -> nn.Module:
    """Bottleneck residual blocks, the deepest of the residual networks (ResNet-152)."""
    return ResNet(Bottleneck, (2, 3, 6, 2), classes, channels=(12, 16, 24, 40))


def densenet121(classes: int) -> nn.Module:
    """Dense blocks (DenseNet-121)."""
    return DenseNet(growth_rate=8, block_config=(3, 4, 6, 4), num_classes=classes)


def densenet201(classes: int) -> nn.Module:
    """Dense blocks, deeper (DenseNet-201)."""
    return DenseNet(growth_rate=8, block_config=(3, 6, 10, 8), num_classes=classes)


def senet154(classes: int) -> nn.Module:
    """Grouped bottlenecks with squeeze-and-excitation and a deep 3x3 stem (SENet-154)."""
    return ResNet(
        Bottleneck,
        (2, 3, 5, 2),
        classes,
        cardinality=4,
        base_width=16,
        stem_type="deep",
        stem_width=8,
        down_kernel_size=3,
        channels=(12, 16, 24, 40),
        block_args={"attn_layer": "se"},
    )


SLIM = 8  # the inception networks have an eighth of the published widths


def _slim(in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    """timm's convolution, batch norm and ReLU with an eighth of the channels it is asked for."""
    narrow = in_channels if in_channels == 3 else in_channels // SLIM
    defaults: dict[str, Any] = {"padding": 0, "norm_kwargs": {"eps": 1e-3}}
    return ConvNormAct(narrow, out_channels // SLIM, **(defaults | options))


def _stem(channels: int) -> list[nn.Module]:
    """32 px to 8 px: the published stems would leave nothing of an image this small."""
    wide = channels // 2
    return [
        _slim(3, wide, kernel_size=3, stride=2, padding=1),
        _slim(wide, channels, kernel_size=3, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]


def inception_v3(classes: int) -> nn.Module:
    """Inception blocks A to E of Inception-V3."""
    return nn.Sequential(
        *_stem(192),
        iv3.InceptionA(192, pool_features=32, conv_block=_slim),
        iv3.InceptionA(256, pool_features=64, conv_block=_slim),
        iv3.InceptionB(288, conv_block=_slim),
        iv3.InceptionC(768, channels_7x7=128, conv_block=_slim),
        iv3.InceptionC(768, channels_7x7=192, conv_block=_slim),
        iv3.InceptionD(768, conv_block=_slim),
        iv3.InceptionE(1280, conv_block=_slim),
        *_head(2048 // SLIM, classes),
    )


def inception_v4(classes: int) -> nn.Module:
    """Inception blocks A to C of Inception-V4, more of them than in Inception-V3."""
    return nn.Sequential(
        *_stem(384),
        *(iv4.InceptionA(_slim) for _ in range(3)),
        iv4.ReductionA(_slim),
        *(iv4.InceptionB(_slim) for _ in range(3)),
        iv4.ReductionB(_slim),
        iv4.InceptionC(_slim),
        *_head(1536 // SLIM, classes),
    )


def _narrow(block: nn.Module) -> nn.Module:
    """Inception-ResNet-V2's residual block with its plain 1x1 convolution slimmed as well."""
    wide = block.conv2d
    assert isinstance(wide, nn.Conv2d)
    block.conv2d = nn.Conv2d(wide.in_channels // SLIM, wide.out_channels // SLIM, 1)
    return block


def inception_resnet_v2(classes: int) -> nn.Module:
    """Residual inception blocks of three kinds (Inception-ResNet-V2)."""
    return nn.Sequential(
        *_stem(192),
        irv2.Mixed_5b(conv_block=_slim),
        *(_narrow(irv2.Block35(scale=0.17, conv_block=_slim)) for _ in range(3)),
        irv2.Mixed_6a(conv_block=_slim),
        *(_narrow(irv2.Block17(scale=0.10, conv_block=_slim)) for _ in range(4)),
        irv2.Mixed_7a(conv_block=_slim),
        *(_narrow(irv2.Block8(scale=0.20, conv_block=_slim)) for _ in range(2)),
        *_head(2080 // SLIM, classes),
    )


def vit(classes: int) -> nn.Module:
    """Attention over 8 x 8 patches of 4 px (ViT); their mean is classified."""
    return VisionTransformer(
        img_size=32,
        patch_size=4,
        num_classes=classes,
        global_pool="avg",
        class_token=False,
        embed_dim=80,
        depth=4,
        num_heads=5,
    )


def convnext(classes: int) -> nn.Module:
    """Depthwise 7x7 convolutions with layer norm, patches of 2 px (ConvNeXt)."""
    return ConvNeXt(
        num_classes=classes,
        patch_size=2,
        depths=(2, 2, 2, 2),
        dims=(16, 32, 48, 64),
        ls_init_value=None,
    )
