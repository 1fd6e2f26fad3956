"""Projections, steps and 8-bit rounding against closed forms and plain loops (Eqs. 9, 10)."""

import pytest
import torch

from irattack.attacks.norms import L2, Free, Linf, Norm, l2_length


def plain_projection(delta: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Eq. 10 one number at a time."""
    out = delta.clone()
    for image in range(len(delta)):
        if isinstance(norm, Linf):
            for i, value in enumerate(delta[image].flatten().tolist()):
                sign = 1 if value > 0 else -1
                out[image].view(-1)[i] = norm.eps * sign if abs(value) > norm.eps else value
        else:
            assert isinstance(norm, L2)
            flat = delta[image].flatten().tolist()
            length = sum(v * v for v in flat) ** 0.5
            radius = norm.eps * len(flat) ** 0.5
            if length > radius:
                out[image] = radius * delta[image] / length
    return out


@pytest.mark.parametrize("norm", [Linf(0.05, 0.01), L2(0.05, 1.0)])
@pytest.mark.parametrize("scale", [0.0, 0.02, 0.2])
def test_projection_is_equation_10(norm: Norm, scale: float) -> None:
    delta = scale * torch.randn(3, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(norm.project(delta), plain_projection(delta, norm))


def test_steps() -> None:
    g = torch.tensor([3.0, -4.0, 0.0]).view(1, 3, 1, 1)
    assert Linf(1, 0.5).step(g).flatten().tolist() == [0.5, -0.5, 0.0]
    scale = (3 / 150528) ** 0.5
    expected = torch.tensor([0.6, -0.8, 0.0]) * 2 * scale
    torch.testing.assert_close(L2(1, 2.0).step(g).flatten(), expected)


@pytest.mark.parametrize("norm", [Linf(0.05, 0.01), L2(0.05, 1.0)])
def test_zero_gradient_is_no_step(norm: Norm) -> None:
    assert norm.step(torch.zeros(2, 3, 4, 4)).eq(0).all()
    assert norm.project(torch.zeros(2, 3, 4, 4)).eq(0).all()


@pytest.mark.parametrize("eps", [8 / 255, 0.03, 16 / 255, 1.0])
@pytest.mark.parametrize("kind", [Linf, L2])
def test_rounding_stays_inside_ball_and_box(eps: float, kind: type[Linf] | type[L2]) -> None:
    norm = kind(eps, 0.1)
    x = torch.randint(0, 256, (8, 3, 16, 16)).float() / 255
    delta = norm.project(torch.randn(8, 3, 16, 16) * 2)
    delta = (x + delta).clamp(0, 1) - x
    levels = norm.round(255 * delta)
    pixels = 255 * x + levels
    assert levels.eq(levels.round()).all()
    assert pixels.min() > -1e-3
    assert pixels.max() < 255 + 1e-3
    if kind is Linf:
        assert levels.abs().max() <= 255 * eps + 1e-3
    else:
        lengths = levels.double().flatten(1).norm(dim=1)
        assert lengths.max() <= 255 * eps * (3 * 16 * 16) ** 0.5 * (1 + 1e-6)
        assert lengths.min() > 0.9 * 255 * delta.flatten(1).norm(dim=1).min()


@pytest.mark.parametrize("norm", [Linf(0.05, 0.01), L2(0.05, 1.0), Free(0.1)])
@pytest.mark.parametrize("method", ["project", "round"])
def test_what_is_not_a_number_stays_so(norm: Norm, method: str) -> None:
    """In its own image, at least where it is; the other images do not notice."""
    image = {"project": 0.2, "round": 20.0}[method] * torch.randn(3, 3, 8, 8)
    expected = getattr(norm, method)(image)
    image[1, 2, 3, 4] = torch.nan
    found = getattr(norm, method)(image)
    assert found[1, 2, 3, 4].isnan()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_linf_starts_uniformly_in_the_whole_ball() -> None:
    u = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    start = Linf(0.08, 0.01).start(torch.full_like(u, 0.5), u)
    torch.testing.assert_close(start.flatten(), torch.tensor([-0.08, -0.04, 0.0, 0.08]))


def test_l2_starts_at_a_uniform_image_put_into_the_ball() -> None:
    x, u = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(L2(1.0, 1.0).start(x, u), u - x)
    start = L2(0.01, 1.0).start(x, u)
    torch.testing.assert_close(x + start / l2_length(start) * l2_length(u - x), u)
    torch.testing.assert_close(l2_length(start).flatten(), torch.full((2,), 0.01 * 192**0.5))


@pytest.mark.parametrize("eps", [0.4 / 255, 2 / 255, 16 / 255])
def test_rounding_on_the_surface_shortens_what_it_would_lengthen(eps: float) -> None:
    norm, x = L2(eps, 1.0), torch.zeros(20, 3, 16, 16)
    levels = 255 * norm.project(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    limit = 255 * norm.radius(x)
    assert (l2_length(levels.round()) > limit).sum() > 5  # plain rounding leaves the ball
    found = norm.round(levels)
    assert found.eq(found.round()).all()
    assert l2_length(found).max() <= limit
    if eps > 1 / 255:
        assert l2_length(found).min() > 0.95 * limit
