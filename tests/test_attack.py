"""The loop against closed forms, identities and a plain reading of Eq. 42."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.losses import cross_entropy, margin_loss, strongest_rival
from irattack.attacks.norms import L2, Free, Linf, Norm
from irattack.attacks.objective import Term, gradient, micro_batches, to_pixels
from irattack.attacks.pieces import (
    GaussianKernel,
    GaussianNoise,
    Interaction,
    LengthPenalty,
    Momentum,
    StopAtLength,
)
from irattack.attacks.randomness import Draws
from irattack.attacks.skip import SkipGradient
from irattack.errors import InputError

NORMS: list[Norm] = [Linf(16 / 255, 2 / 255), L2(16 / 255, 40.0)]


def names(n: int) -> list[str]:
    return [f"image-{i}" for i in range(n)]


def ir(lam: float, samples: int) -> Interaction:
    return Interaction(lam=lam, samples=samples, cells=4, grid=4)


def labels(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(dim=1)


def run(attack: Attack, model: nn.Module, x: Tensor, seed: int = 0, **options: object) -> Tensor:
    y = labels(model, x)
    steps = perturbations(attack, model, x, y, names(len(x)), Draws(seed), **options)  # type: ignore[arg-type]
    return torch.stack(list(steps))


class AllCells(Draws):
    """Every set is the whole board."""

    def subsets(self, ids: Sequence[str], step: int, samples: int, *rest: object) -> Tensor:
        return torch.ones(len(ids), samples, 4, 4, dtype=torch.bool)


def test_pgd_reaches_the_optimum_of_a_linear_network(linear: nn.Module) -> None:
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    y = labels(linear, x)
    weight: Tensor = linear.weight  # type: ignore[assignment]
    attack = Attack(Linf(0.1, 0.02), steps=30, loss=margin_loss)
    delta = run(attack, linear, x)[-1]
    rival = strongest_rival(linear(x + delta), y)
    best = (0.1 * (weight[rival] - weight[y]).sign().view_as(x) + x).clamp(0, 1) - x
    torch.testing.assert_close(delta, best)


@pytest.mark.parametrize("norm", NORMS)
def test_perturbations_stay_inside_ball_and_box(
    norm: Norm, smooth: nn.Module, images: Tensor
) -> None:
    attack = Attack(norm, 12, interaction=ir(1.0, 3))
    for delta in run(attack, smooth, images):
        torch.testing.assert_close(norm.project(delta), delta)
        assert (images + delta).min() >= 0
        assert (images + delta).max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_lam_zero_is_pgd_bit_for_bit(norm: Norm, smooth: nn.Module, images: Tensor) -> None:
    pgd = run(Attack(norm, 5), smooth, images)
    zero = run(Attack(norm, 5, interaction=ir(0.0, 3)), smooth, images)
    assert torch.equal(pgd, zero)
    assert not torch.equal(
        pgd,
        run(
            Attack(norm, 5, interaction=ir(1.0, 3)),
            smooth,
            images,
        ),
    )


def test_interaction_of_all_cells_is_exactly_zero(smooth: nn.Module, images: Tensor) -> None:
    interaction = Interaction(lam=1.0, samples=1, cells=16, grid=4)
    delta = 0.1 * torch.randn_like(images)
    terms = interaction.terms(delta, names(len(images)), 1, AllCells(0))
    g = gradient(smooth, images, delta, labels(smooth, images), terms, 64)
    assert g.eq(0).all()


@pytest.mark.parametrize("micro_batch", [3, 13, 64])
@pytest.mark.parametrize("rival", ["set", "step"])
@pytest.mark.parametrize("loss", [cross_entropy, margin_loss])
def test_gradient_is_that_of_equation_42(
    smooth: nn.Module, images: Tensor, loss: object, rival: str, micro_batch: int
) -> None:
    lam, samples, others = 0.7, 5, 0
    interaction = replace(ir(lam, samples), rival=rival)
    attack = Attack(NORMS[0], 1, loss=loss, interaction=interaction)  # type: ignore[arg-type]
    delta = 4 * torch.randn_like(images)  # so large that sets differ in their strongest class
    y, ids, draws = labels(smooth, images), names(len(images)), Draws(3)
    sets = draws.subsets(ids, 1, samples, 4, 4)
    terms = attack.terms(delta, ids, 1, draws)
    ours = gradient(smooth, images, delta, y, terms, micro_batch)
    for i in range(len(images)):
        d = delta[i : i + 1].clone().requires_grad_()
        x, label = images[i : i + 1], y[i : i + 1]
        at_delta = strongest_rival(smooth(x + d), label)

        def v(mask: Tensor, x=x, d=d, label=label, at_delta=at_delta) -> Tensor:  # type: ignore[no-untyped-def]
            h = smooth(x + mask * d)[0]
            own = max((c for c in range(5) if c != label), key=lambda c: h[c].item())
            nonlocal others
            others += own != at_delta.item()
            return h[own if rival == "set" else at_delta.item()] - h[label]

        whole, nothing = v(torch.ones_like(x)), v(torch.zeros_like(x))
        mean = torch.zeros_like(whole)
        for k in range(samples):
            mask = to_pixels(sets[i, k], 16, 16).double()
            mean = mean + (whole - v(1 - mask) - v(mask) + nothing) / samples
        objective = loss(smooth(x + d), label) - lam * mean  # type: ignore[operator]
        (expected,) = torch.autograd.grad(objective.sum(), d)
        torch.testing.assert_close(ours[i : i + 1], expected, rtol=1e-10, atol=1e-12)
    assert others > 0  # or the two rules would not differ here


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 12, 100])
@pytest.mark.parametrize("images", [1, 7])
@pytest.mark.parametrize("probes", [1, 4, 10])
def test_micro_batches_take_each_probe_once(
    images: int, probes: int, size: int, alone: bool
) -> None:
    taken, passes = torch.zeros(images, probes), 0
    for of_images, of_probes in micro_batches(images, probes, size, alone):
        part = taken[of_images, of_probes]
        assert 1 <= part.numel() <= size
        assert not alone or len(part) == 1
        part += 1
        passes += 1
    assert (taken == 1).all()
    if size >= probes and not alone:
        assert passes == math.ceil(images / (size // probes))
    else:
        assert passes == images * math.ceil(probes / size)


@pytest.mark.parametrize("micro_batch", [1, 4, 9, 100])
def test_each_image_has_its_own_weight(smooth: nn.Module, images: Tensor, micro_batch: int) -> None:
    """J is linear in the weights: those of step 2 are 0 for an image that is still at δ = 0."""
    delta, weight = 0.1 * torch.randn_like(images), torch.arange(len(images)).double()
    y, sets = labels(smooth, images), torch.rand(len(images), 6, 4, 4) < 0.5

    def of(weight: Tensor, micro_batch: int) -> Tensor:
        terms = [Term(margin_loss, weight), Term(cross_entropy, weight, sets=sets)]
        return gradient(smooth, images, delta, y, terms, micro_batch)

    expected = weight.view(-1, 1, 1, 1) * of(torch.ones_like(weight), 54)
    torch.testing.assert_close(of(weight, micro_batch), expected)


@pytest.mark.parametrize("micro_batch", [4, 13, 100])
def test_each_image_has_its_own_rival(smooth: nn.Module, images: Tensor, micro_batch: int) -> None:
    """That of the step: together, images get the gradients that they get alone."""
    attack = Attack(NORMS[0], 1, interaction=replace(ir(0.7, 5), rival="step"))
    delta, y = 4 * torch.randn_like(images), torch.arange(len(images)) % 5
    assert len(strongest_rival(smooth(images + delta), y).unique()) > 1

    def of(part: slice) -> Tensor:
        terms = attack.terms(delta[part], names(len(images))[part], 1, Draws(3))
        return gradient(smooth, images[part], delta[part], y[part], terms, micro_batch)

    alone = torch.cat([of(slice(i, i + 1)) for i in range(len(images))])
    torch.testing.assert_close(of(slice(None)), alone)


def test_cells_cover_images_that_are_not_square() -> None:
    sets = torch.tensor([[True, False], [False, True]])
    pixels = to_pixels(sets, 3, 4)
    assert pixels.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, True]]


def test_the_whole_perturbation_shares_a_forward_pass(smooth: nn.Module, images: Tensor) -> None:
    """Of ℓ and v(Λ), unless a backward rule asks for one graph a term; no probe is taken twice."""
    seen: list[int] = []
    smooth.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    attack, delta = Attack(NORMS[0], 1, interaction=ir(1.0, 3)), 0.1 * torch.randn_like(images)
    y, terms = torch.zeros(9, dtype=torch.long), attack.terms(delta, names(9), 1, Draws(0))
    together = gradient(smooth, images, delta, y, terms, micro_batch=64)
    assert seen == [9, 54]
    seen.clear()
    apart = gradient(smooth, images, delta, y, terms, micro_batch=64, one_graph=True)
    assert seen == [1] * 2 * 9 + [3] * 2 * 9
    torch.testing.assert_close(apart, together)


def test_interaction_gradient_is_skipped_where_delta_is_zero(
    smooth: nn.Module, images: Tensor
) -> None:
    delta = 0.1 * torch.randn_like(images)
    delta[2] = 0
    terms = ir(1.0, 3).terms(delta, names(len(images)), 1, Draws(0))
    g = gradient(smooth, images, delta, labels(smooth, images), terms, 64)
    assert g[2].eq(0).all()
    assert not g[1].eq(0).any()
    assert ir(1.0, 3).terms(delta * 0, names(len(images)), 1, Draws(0)) == []


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("norm", NORMS)
def test_batch_size_does_not_matter(batch: int, norm: Norm, smooth: nn.Module) -> None:
    x = torch.randint(0, 256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(2)) / 255.0
    x, ids = x.double(), names(64)
    y = labels(smooth, x)
    attack = Attack(
        norm,
        4,
        interaction=ir(0.5, 3),
        accumulate=Momentum(1.0),
    )
    start = 0.01 * torch.randn_like(x)

    def attacked(size: int, micro_batch: int) -> Tensor:
        parts = [
            torch.stack(
                list(
                    perturbations(
                        attack, smooth, x[p], y[p], [ids[i] for i in p], Draws(0), micro_batch,
                        start=start[p],
                    )
                )
            )
            for p in torch.arange(64).split(size)
        ]  # fmt: skip
        return torch.cat(parts, dim=1)

    torch.testing.assert_close(attacked(batch, 256), attacked(64, 50), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_gives_no_nan(norm: Norm, images: Tensor) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :4] + torch.arange(4.0).double()

    attack = Attack(
        norm,
        4,
        interaction=ir(1.0, 2),
        accumulate=Momentum(1.0),
    )
    out = run(attack, Constant(), images)
    assert out.eq(0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_projects_onto_the_ball_before_it_clips(norm: Norm, linear: nn.Module) -> None:
    """Π_ε first: after it, clipping shortens δ; the other way round it would be lengthened to ε."""
    x = torch.tensor([0.0, 0.5, 1.0]).double().repeat(2, 64).view(2, 3, 8, 8)
    start = 0.3 * torch.randn(2, 3, 8, 8, dtype=torch.float64)
    start = (x + start).clamp(0, 1) - x
    y, weight = labels(linear, x), linear.weight
    (delta,) = perturbations(
        Attack(norm, 1, loss=margin_loss), linear, x, y, names(2), Draws(0), start=start
    )
    for i in range(2):
        rival = strongest_rival(linear(x + start), y)[i]
        g = (weight[rival] - weight[y[i]]).view(1, 3, 8, 8)  # type: ignore[index]
        moved = norm.project(start[i : i + 1] + norm.step(g))
        torch.testing.assert_close(delta[i], ((x[i] + moved).clamp(0, 1) - x[i])[0])


class Rooted(nn.Module):
    """Adds to a network the root of the first pixel, whose slope at 0 is infinite, or 0 · ∞."""

    def __init__(self, net: nn.Module, slope: str):
        super().__init__()
        self.net, self.slope = net, slope

    def forward(self, x: Tensor) -> Tensor:
        pixel = x[:, 0, 0, :1]
        root = pixel.sqrt() * (pixel if self.slope == "nan" else 1)
        return self.net(x) + F.pad(root, (1, 3))


@pytest.mark.parametrize("slope", ["inf", "nan"])
@pytest.mark.parametrize("norm", [NORMS[0], L2(16 / 255, 1.0), Free(0.1)])
@pytest.mark.parametrize(
    "pieces",
    [
        {},
        {"accumulate": Momentum(1.0)},
        {"accumulate": Momentum(rule="revised")},
        {"smooth": GaussianKernel(3)},
        {"interaction": ir(1.0, 2)},
        {"penalty": LengthPenalty(0.1, 2), "stop": StopAtLength(0.5)},
    ],
)
def test_a_gradient_that_is_not_finite_makes_its_image_not_a_number(
    pieces: dict, norm: Norm, slope: str, smooth: nn.Module, images: Tensor
) -> None:
    images[:, 0, 0, 0], images[1, 0, 0, 0] = 0.5, 0.0
    attack, model = Attack(norm, 3, start="zero", **pieces), Rooted(smooth, slope)
    found, others = run(attack, model, images), [0, *range(2, 9)]
    assert found[:, 1].isnan().all()
    assert norm.round(255 * found[-1])[1].isnan().all()
    x, ids = images[others], [names(9)[i] for i in others]
    expected = perturbations(attack, model, x, labels(model, x), ids, Draws(0))
    torch.testing.assert_close(found[:, others], torch.stack(list(expected)))


@pytest.mark.parametrize(("record", "first"), [("after", 1), ("before", 0), ("last", 4)])
def test_which_steps_are_recorded(
    record: str, first: int, smooth: nn.Module, images: Tensor
) -> None:
    """δ_1 … δ_T, δ_0 … δ_{T−1}, or δ_T, of the same δ_0 … δ_T."""
    every = [*run(Attack(NORMS[0], 1, record="before"), smooth, images)]
    every += run(Attack(NORMS[0], 4), smooth, images)
    found = run(Attack(NORMS[0], 4, record=record), smooth, images)
    assert torch.equal(found, torch.stack(every[first : first + len(found)]))
    assert len(found) == (1 if record == "last" else 4)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Attack(NORMS[0], 1, record="befor"), "record"),
        (lambda: Attack(NORMS[0], 1, start="rand"), "start"),
        (lambda: Momentum(rule="revisd"), "rule"),
        (lambda: GaussianNoise(1, 0.1, "means"), "reduction"),
        (lambda: SkipGradient(rule="author"), "rule"),
        (lambda: Interaction(lam=1, samples=1, cells=1, grid=4, border="share"), "border"),
        (lambda: Interaction(lam=1, samples=1, cells=1, grid=4, rival="steps"), "rival"),
    ],
)
def test_a_name_that_is_not_known_is_refused(make: Callable[[], object], name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=.*did you mean"):
        make()


def test_every_step_is_yielded(smooth: nn.Module, images: Tensor) -> None:
    steps = run(Attack(NORMS[0], 6), smooth, images)
    assert len(steps) == 6
    assert all(not torch.equal(a, b) for a, b in pairwise(steps))
