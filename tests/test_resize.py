"""What a network gets of an image, and what is said of values that are not finite."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from irattack.errors import InputError
from irattack.models.network import Resize, by_tables, check_finite, resized


def test_images_of_the_right_size_are_not_resized() -> None:
    x = torch.rand(2, 3, 32, 32)
    assert resized(x, 32) is x
    assert Resize(32)(x) is x
    assert resized(x, 48).shape == (2, 3, 48, 48)
    assert resized(torch.rand(2, 3, 64, 32), 32).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [16, 21, 48])
def test_tables_resize_as_interpolate_does(how: str, size: int) -> None:
    """What CUDA does, whose gradient of F.interpolate is not the same twice."""
    x = torch.rand(2, 3, 29, 32, dtype=torch.float64, requires_grad=True)
    g = torch.rand(2, 3, size, size, dtype=torch.float64)
    found, expected = (
        resize(x, size=(size, size), mode=how, antialias=True)
        for resize in (by_tables, F.interpolate)
    )
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(y, x, g)[0] for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_value_that_is_not_finite_names_network_and_image() -> None:
    values = np.zeros((3, 4))
    check_finite("vgg16", values, list("abcd"))
    values[1, 2], values[2, 3] = math.nan, -math.inf
    for given in (values, torch.from_numpy(values)):
        with pytest.raises(InputError, match=r"vgg16: .* on 2 of 4 images \(c, d…\)"):
            check_finite("vgg16", given, list("abcd"))


@pytest.mark.parametrize(("size", "whole"), [(224, 256), (299, 341)])
def test_resizing_as_timm_does(size: int, whole: int) -> None:
    """On a slope of brightness the centre crop is known: bilinear and bicubic keep a line."""
    x = (torch.arange(512) + 0.5).mul(1 / 512).expand(1, 3, 512, 512)
    for how in ("bilinear", "bicubic"):
        found = Resize(size, how, 0.875)(x)[0, 0, 100]
        first = round((whole - size) / 2)
        expected = (torch.arange(first, first + size) + 0.5) / whole
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_bicubic_resizing_stays_an_image_and_has_a_gradient() -> None:
    x = torch.randint(2, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).double()
    x.requires_grad_()
    found = Resize(48, "bicubic")(x)
    raw = F.interpolate(x, size=(48, 48), mode="bicubic", antialias=True)
    assert raw.min() < 0 < 1 < raw.max()
    assert torch.equal(found, raw.clamp(0, 1))
    assert torch.autograd.grad(found.sum(), x)[0].abs().sum() > 0
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Resize(6, "bilinear", 0.6)(x), x)
