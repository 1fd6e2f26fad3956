"""SGM: the gradient of the network with γ written into its residual branches."""

import re
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from timm import create_model
from timm.models import senet
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet as TimmDenseNet
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock as TorchBasicBlock
from torchvision.models.resnet import Bottleneck as TorchBottleneck
from torchvision.models.resnet import ResNet

from irattack.attacks.skip import SkipGradient, named
from irattack.conf import CONF
from irattack.errors import InputError
from irattack.models import zoo


class ScaleGradient(torch.autograd.Function):
    """Identity forward, γ backward: the explicit rewriting of a branch."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.gamma = gamma
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def]
        return ctx.gamma * g, None


def input_gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, 0].sum(), x)[0]


# The published networks: their forward passes, rewritten with the scale in them


def scaled(branch: Tensor) -> Tensor:
    out: Tensor = ScaleGradient.apply(branch, 0.3)
    return out


def basic(b: Any, x: Tensor) -> Tensor:
    branch = b.bn2(b.conv2(torch.relu(b.bn1(b.conv1(x)))))
    return torch.relu(scaled(branch) + (b.downsample(x) if b.downsample else x))


def bottleneck(b: Any, x: Tensor) -> Tensor:
    branch = torch.relu(b.bn2(b.conv2(torch.relu(b.bn1(b.conv1(x))))))
    branch = b.bn3(b.conv3(branch))
    if hasattr(b, "se_module"):
        branch = b.se_module(branch)
    return torch.relu(scaled(branch) + (b.downsample(x) if b.downsample else x))


def dense(b: Any, inputs: Tensor | list[Tensor]) -> Tensor:
    x = inputs if isinstance(inputs, Tensor) else torch.cat(inputs, 1)
    branch = b.conv1(torch.relu(F.batch_norm(x, *statistics(b.norm1), eps=b.norm1.eps)))
    branch = b.conv2(torch.relu(F.batch_norm(branch, *statistics(b.norm2), eps=b.norm2.eps)))
    return scaled(branch)


def statistics(norm: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return norm.running_mean, norm.running_var, norm.weight, norm.bias


def inception_residual(b: Any, x: Tensor) -> Tensor:
    parts = [child for name, child in b.named_children() if name.startswith("branch")]
    branch = b.conv2d(torch.cat([part(x) for part in parts], dim=1))
    out = scaled(branch) * b.scale + x
    return torch.relu(out) if getattr(b, "act", None) or getattr(b, "relu", None) else out


def transformer(b: Any, x: Tensor) -> Tensor:
    x = x + scaled(b.attn(b.norm1(x)))
    return x + scaled(b.mlp(b.norm2(x)))


def windows(b: Any, x: Tensor) -> Tensor:
    x = x + scaled(b._attn(b.norm1(x)))
    tokens = x.flatten(1, 2)
    return (tokens + scaled(b.mlp(b.norm2(tokens)))).view_as(x)


def depthwise(b: Any, x: Tensor) -> Tensor:
    branch = b.mlp(b.norm(b.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    return b.shortcut(x) + scaled(b.gamma.view(1, -1, 1, 1) * branch)


def fact(name: str) -> dict:
    path = CONF / "model" / "imagenet" / f"{name}.yaml"
    facts: Any = OmegaConf.to_container(OmegaConf.load(path))
    return facts | {"gamma": 0.3}


PUBLISHED: dict[str, tuple[Callable[[], nn.Module], str, Callable]] = {
    "torchvision ResNet": (lambda: ResNet(TorchBasicBlock, [1, 2, 1, 1]), "resnet34", basic),
    "timm ResNet": (
        lambda: TimmResNet(BasicBlock, (1, 2, 1, 1), zero_init_last=False),
        "resnet34",
        basic,
    ),
    "torchvision deep ResNet": (
        lambda: ResNet(TorchBottleneck, [1, 2, 1, 1]),
        *("resnet152", bottleneck),
    ),
    "timm deep ResNet": (
        lambda: TimmResNet(Bottleneck, (1, 2, 1, 1), zero_init_last=False),
        "resnet152",
        bottleneck,
    ),
    "timm SENet": (
        lambda: senet.SENet(senet.SEBottleneck, (1, 2, 1, 1), groups=8, reduction=16),
        *("senet154", bottleneck),
    ),
    "torchvision DenseNet": (lambda: DenseNet(8, (2, 2, 2, 2), 8), "densenet121", dense),
    "timm DenseNet": (
        lambda: TimmDenseNet(growth_rate=8, block_config=(2, 2, 2, 2)),
        *("densenet201", dense),
    ),
    "timm Inception-ResNet-V2": (
        lambda: create_model("inception_resnet_v2", pretrained=False),
        *("inception_resnet_v2", inception_residual),
    ),
    "timm ViT": (
        lambda: VisionTransformer(img_size=64, embed_dim=48, depth=3, num_heads=3),
        *("vit", transformer),
    ),
    "timm DeiT": (
        lambda: VisionTransformer(img_size=64, embed_dim=48, depth=3, num_heads=3),
        *("deit", transformer),
    ),
    "timm Swin": (
        lambda: SwinTransformer(
            img_size=64, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4)
        ),
        *("swin", windows),
    ),
    "timm ConvNeXt": (
        lambda: ConvNeXt(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40), ls_init_value=1),
        *("convnext", depthwise),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sgm_is_the_gradient_of_the_rewritten_network(name: str) -> None:
    torch.manual_seed(0)
    construct, model, rewritten = PUBLISHED[name]
    net = construct().double().eval().requires_grad_(False)
    x = torch.rand(1, 3, 96 if "Inception" in name else 64, 96 if "Inception" in name else 64)
    x = x.double()
    plain_gradient = input_gradient(net, x)
    facts = fact(model)["skip"] | {"gamma": 0.3}
    with SkipGradient(facts=facts)(net):
        ours = input_gradient(net, x)
    torch.testing.assert_close(input_gradient(net, x), plain_gradient, rtol=0, atol=0)
    blocks = {module.rpartition(".")[0] for module, _ in matching(net, facts["branches"])}
    for block in blocks:
        module = net.get_submodule(block)
        module.forward = MethodType(rewritten, module)
    theirs = input_gradient(net, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12 * ours.abs().max().item())
    assert (ours - plain_gradient).norm() > 0.05 * plain_gradient.norm()


def matching(net: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    return [pair for pair in net.named_modules() if re.match(pattern, pair[0])]


def test_every_branch_of_the_published_networks_is_named() -> None:
    counts = {"resnet34": 16, "resnet152": 50, "senet154": 50, "densenet121": 58}
    counts |= {"densenet201": 98, "inception_resnet_v2": 40}
    counts |= {"vit": 24, "deit": 24, "swin": 48, "convnext": 36}
    for name, count in counts.items():
        facts = fact(name)
        with torch.device("meta"):
            net = create_model(facts["timm"], pretrained=False)
        assert len(matching(net, facts["skip"]["branches"])) == count


@pytest.mark.parametrize(
    "name", [n for n in zoo.names("photos") if zoo.card("photos", n).get("skip")] + ["ensemble"]
)
def test_sgm_on_every_small_network(name: str) -> None:
    model = zoo.build("photos", name)
    x = torch.rand(2, 3, 32, 32)
    before = input_gradient(model, x)
    with SkipGradient(gamma=1.0)(model):
        assert torch.equal(input_gradient(model, x), before)
    with SkipGradient()(model):
        during = input_gradient(model, x)
    assert not torch.allclose(during, before, rtol=1e-2)
    assert torch.equal(input_gradient(model, x), before)
    with pytest.raises(ZeroDivisionError), SkipGradient()(model):
        _ = 1 / 0
    assert torch.equal(input_gradient(model, x), before)


def test_sgm_reaches_every_branch_once() -> None:
    counts = {"resnet34": 8, "resnet152": 13, "densenet121": 17, "senet154": 12}
    counts |= {"vit": 8, "convnext": 8, "resnet_adv": 8}
    for name, blocks in counts.items():
        model = zoo.build("photos", name)
        pattern = zoo.card("photos", name)["skip"]["branches"]
        assert len(named(model.body, pattern)) == blocks  # type: ignore[arg-type]
    assert BasicBlock.expansion == 1


def test_sgm_refuses_what_it_does_not_know(smooth: nn.Module) -> None:
    with pytest.raises(InputError, match="skip connections"), SkipGradient()(smooth):
        pass
    facts = {"branches": "nothing", "gamma": 0.5}
    with (
        pytest.raises(InputError, match=r"no module .* matches"),
        SkipGradient(facts=facts)(smooth),
    ):
        pass
