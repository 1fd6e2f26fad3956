"""The pieces: their neutral values give the plain attack, and each is what its paper defines."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy.stats import norm as normal
from torch import Tensor, nn

from irattack.attacks.diversity import ResizeAndPad
from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.moves import PatchWise, SignDecay
from irattack.attacks.norms import L2, Linf, Norm
from irattack.attacks.objective import gradient, to_pixels
from irattack.attacks.pieces import (
    Copies,
    GaussianKernel,
    GaussianNoise,
    Interaction,
    LengthPenalty,
    MaskedLoss,
    Momentum,
    RandomCells,
    StopAtLength,
)
from irattack.attacks.randomness import Draws
from irattack.attacks.skip import SkipGradient
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF
from irattack.errors import InputError
from irattack.models import zoo
from irattack.pipeline.cell import Cell, attack_of

NORMS: list[Norm] = [Linf(16 / 255, 2 / 255), L2(16 / 255, 40.0)]


def run(attack: Attack, model: nn.Module, x: Tensor) -> Tensor:
    y = model(x).argmax(dim=1)
    ids = [f"image-{i}" for i in range(len(x))]
    start = torch.zeros_like(x) + 1e-3
    return torch.stack(list(perturbations(attack, model, x, y, ids, Draws(0), start=start)))


@pytest.mark.parametrize("norm", NORMS)
def test_neutral_values_give_pgd(norm: Norm, smooth: nn.Module, images: Tensor) -> None:
    pgd = run(Attack(norm, 5), smooth, images)
    exact = [
        Attack(norm, 5, smooth=GaussianKernel(1)),
        Attack(norm, 5, transform=ResizeAndPad(probability=0)),
        Attack(norm, 5, accumulate=Momentum(0.0)),
        Attack(norm, 5, interaction=Interaction(lam=0, samples=2, cells=2, grid=4)),
    ]
    for attack in exact:
        assert torch.equal(run(attack, smooth, images), pgd)
    still = Attack(norm, 5, samples=GaussianNoise(3, 0.0))
    torch.testing.assert_close(run(still, smooth, images), pgd, rtol=0, atol=1e-10)


def test_irmax_raises_what_ir_lowers(smooth: nn.Module, images: Tensor) -> None:
    """From one δ their gradients lie on either side of PGD's, as far away."""
    register_resolvers()
    rule = f"{Momentum.__module__}.Momentum"  # m is the gradient itself
    given = ["grid=4", "cells=4", "lam=0.7", "start=zero"]
    given += [f"+attack.accumulate._target_={rule}", "+attack.accumulate.rule=none"]
    y, ids = smooth(images).argmax(dim=1), [str(i) for i in range(len(images))]
    delta, zero, g = 0.01 * images, torch.zeros_like(images), {}
    for name in ("pgd", "ir", "irmax"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            made = attack_of(Cell(compose("config", overrides=[f"attack={name}", *given])))
        _, g[name] = made.update(smooth, images, y, delta, zero, ids, 1, Draws(0))
    assert not torch.allclose(g["ir"], g["pgd"])
    torch.testing.assert_close(g["ir"] - g["pgd"], g["pgd"] - g["irmax"])


def test_irmax_starts_where_ir_does() -> None:
    register_resolvers()
    x = torch.rand(2, 3, 8, 8)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for name, still in {"ir": True, "irmax": True, "pgd": False}.items():
            made = attack_of(Cell(compose("config", overrides=[f"attack={name}"])))
            assert (made.first(x, ["a", "b"], Draws(0)) == 0).all() == still


@pytest.mark.parametrize("norm", NORMS)
def test_every_piece_changes_the_attack(norm: Norm, smooth: nn.Module, images: Tensor) -> None:
    pieces = [
        {},
        {"smooth": GaussianKernel(5)},
        {"transform": ResizeAndPad()},
        {"accumulate": Momentum(1.0)},
        {"samples": GaussianNoise(3, 0.1)},
        {"interaction": Interaction(lam=1, samples=2, cells=2, grid=4)},
        {"masked": MaskedLoss(samples=2, cells=4, grid=4), "classify": False},
    ]
    found = [run(Attack(norm, 4, **piece), smooth, images) for piece in pieces]  # type: ignore[arg-type]
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_kernel_is_the_published_one() -> None:
    density = normal.pdf(torch.linspace(-3, 3, 15).numpy())
    kernel = torch.from_numpy(density[:, None] * density[None])
    kernel /= kernel.sum()
    impulse = torch.zeros(1, 3, 31, 31, dtype=torch.float64)
    impulse[..., 15, 15] = 1
    found = GaussianKernel(15)(impulse)[0, 1, 8:23, 8:23]
    torch.testing.assert_close(found, kernel, rtol=1e-6, atol=1e-9)


def test_momentum_is_the_published_rule(images: Tensor) -> None:
    m, g = torch.randn_like(images), torch.randn_like(images)
    expected = 0.9 * m[4] + g[4] / g[4].abs().sum()
    torch.testing.assert_close(Momentum(0.9)(m, g, 3)[4], expected)
    assert Momentum(0.9)(m * 0, g * 0, 1).eq(0).all()


def test_revised_momentum_is_the_running_mean(images: Tensor) -> None:
    gradients = [torch.randn_like(images) for _ in range(4)]
    m = torch.zeros_like(images)
    for step, g in enumerate(gradients, start=1):
        m = Momentum(rule="revised")(m, g, step)
    torch.testing.assert_close(m, torch.stack(gradients).mean(dim=0))


def test_variance_reduction_is_the_mean_over_its_noise(smooth: nn.Module, images: Tensor) -> None:
    attack, ids = Attack(NORMS[0], 1, samples=GaussianNoise(4, 0.1)), list("abcdefghi")
    y = smooth(images).argmax(dim=1)
    delta = 0.05 * torch.randn_like(images)
    ours = gradient(smooth, images, delta, y, attack.terms(delta, ids, 2, Draws(5)), 7)
    noise = 0.1 * Draws(5).normal(ids, 2, "noise", (4, 3, 16, 16)).double()
    d = delta.requires_grad_()
    loss = torch.zeros(())
    for k in range(4):
        noisy = smooth(images + d + noise[:, k])
        loss = loss + F.cross_entropy(noisy, y, reduction="sum") / 4
    torch.testing.assert_close(ours, torch.autograd.grad(loss, d)[0])


def test_masked_loss_is_its_definition(smooth: nn.Module, images: Tensor) -> None:
    piece, ids = MaskedLoss(samples=3, cells=4, grid=4), list("abcdefghi")
    attack = Attack(NORMS[0], 1, classify=False, masked=piece)
    y = smooth(images).argmax(dim=1)
    delta = 0.05 * torch.randn_like(images)
    ours = gradient(smooth, images, delta, y, attack.terms(delta, ids, 2, Draws(5)), 7)
    masks = to_pixels(Draws(5).subsets(ids, 2, 3, 4, 4), 16, 16)[:, :, None].double()
    d = delta.requires_grad_()
    loss = torch.zeros(())
    for k, keep in product(range(3), (True, False)):
        mask = masks[:, k] if keep else 1 - masks[:, k]
        loss = loss + F.cross_entropy(smooth(images + mask * d), y, reduction="sum") / 6
    torch.testing.assert_close(ours, torch.autograd.grad(loss, d)[0])


def resized_and_padded(image: Tensor, draws: Tensor, probability: float) -> Tensor:
    """DI of one image (1, C, H, W) by PyTorch's own resizes."""
    coin, size, top, left = draws.tolist()
    side = image.shape[-1]
    wide = max(side + 1, round(side * 330 / 299))
    if coin >= probability:
        return image
    new = side + int(size * (wide - side))
    above, before = int(top * (wide - new + 1)), int(left * (wide - new + 1))
    moved = F.interpolate(image, size=(new, new), mode="nearest")
    moved = F.pad(moved, (before, wide - new - before, above, wide - new - above))
    return F.interpolate(moved, size=(side, side), mode="bilinear")


@pytest.mark.parametrize(
    ("side", "dtype", "exact"),
    [(32, torch.float32, 1e-6), (61, torch.float64, 1e-14), (4, torch.float32, 1e-6)],
)
def test_resize_and_pad_of_a_batch_is_that_of_each_image(
    side: int, dtype: torch.dtype, exact: float
) -> None:
    images, draws = torch.rand(40, 3, side, side, dtype=dtype), torch.rand(40, 4)
    gradients = []
    for each in (True, False):
        z = images.clone().requires_grad_()
        if each:
            parts = zip(z.split(1), draws, strict=True)
            out = expected = torch.cat([resized_and_padded(*part, 0.5) for part in parts])
        else:
            out = ResizeAndPad()(z, draws)
        gradients.append(torch.autograd.grad((out**2).sum(), z)[0])
    torch.testing.assert_close(out, expected, rtol=0, atol=exact)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=10 * exact)
    still = draws[:, 0] >= 0.5
    assert torch.equal(out[still], images[still])
    assert (out != images).flatten(1).any(dim=1).sum() > 10


@pytest.mark.parametrize(("side", "wide"), [(299, 330), (32, 35), (4, 5)])  # 330 / 299, or 1 px
def test_resize_and_pad_is_that_of_xie_et_al(side: int, wide: int) -> None:
    image = torch.rand(1, 3, side, side)
    for size, top, left in product((0.0, 0.5, 0.999), repeat=3):
        new = {0.0: side, 0.5: (side + wide) // 2, 0.999: wide - 1}[size]
        free = wide - new
        above, before = (int(u * (free + 1)) for u in (top, left))
        assert 0 <= above <= free
        canvas = torch.zeros(1, 3, wide, wide)
        small = F.interpolate(image, size=(new, new), mode="nearest")
        canvas[..., above : above + new, before : before + new] = small
        expected = F.interpolate(canvas, size=(side, side), mode="bilinear")
        found = ResizeAndPad(1.0)(image, torch.tensor([[0.0, size, top, left]]))
        torch.testing.assert_close(found, expected)
        if top == 0.999:
            assert above == free


# --- named attacks -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> Attack:
    return made(Cell(compose("config", overrides=["steps=3", *overrides])))


def made(cell: Cell) -> Attack:
    return instantiate(cell.steps_facts["attack"])


def test_hybridir_with_neutral_values_is_pgd(config: None) -> None:
    model = zoo.build("photos", "resnet34").double()
    x = torch.rand(4, 3, 32, 32).double()
    hybrid = composed(
        "attack=hybridir", "lam=0", "gamma=1", "attack.accumulate.mu=0", "attack.samples.sigma=0"
    )
    torch.testing.assert_close(
        run(hybrid, model, x), run(composed("attack=pgd"), model, x), rtol=0, atol=1e-10
    )


def test_noise_lies_on_the_surface_of_the_ball(config: None) -> None:
    x = torch.full((5, 3, 32, 32), 0.5)
    model = zoo.build("photos", "alexnet")
    y, ids = torch.zeros(5, dtype=torch.long), list("abcde")
    for norm in ("linf", "l2"):
        attack = composed("attack=noise", f"norm={norm}", "eps=16/255")
        (delta,) = perturbations(attack, model, x, y, ids, Draws(0))
        if norm == "linf":
            torch.testing.assert_close(delta.abs(), torch.full_like(x, 16 / 255))
        else:
            lengths = delta.flatten(1).norm(dim=1)
            torch.testing.assert_close(lengths, torch.full((5,), 16 / 255 * 3072**0.5))


def test_singlestep_is_one_long_step(config: None) -> None:
    attack = composed("attack=singlestep", "steps=3", "eps=1")
    assert attack.steps == 1
    assert attack.norm.step_size == pytest.approx(6 / 255)  # type: ignore[attr-defined]


def test_protocol_authors_sets_every_value(config: None) -> None:
    attack = composed("attack=hybridir", "protocol=authors")
    assert attack.record == "before"
    assert attack.samples is not None
    assert attack.samples.reduction == "sum"
    assert isinstance(attack.backward, SkipGradient)
    assert attack.backward.rule == "authors"
    assert attack.interaction is not None
    assert attack.interaction.replacement
    assert attack.interaction.border == "uncovered"
    assert attack.interaction.rival == "step"
    assert not attack.interaction.skip_at_zero


@pytest.mark.parametrize("wrong", [{"cells": 0}, {"cells": 17}, {"samples": 0}, {"grid": 0}])
def test_sets_that_cannot_be_drawn_are_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    sets = {"samples": 2, "cells": 16, "grid": 4} | wrong
    with pytest.raises(InputError, match=f"^{name}={wrong[name]}: expected a whole number from 1 "):
        RandomCells(**sets)  # type: ignore[arg-type]


WRONG = [  # a piece, what it is made of, and what of that cannot be
    (GaussianNoise, {"samples": 2, "sigma": 0.1}, {"samples": 0, "sigma": -1}),
    (Copies, {"samples": 2}, {"samples": 0}),
    (GaussianKernel, {"size": 3}, {"size": 4}),
    (GaussianKernel, {"size": 3}, {"size": 0}),
    (Momentum, {}, {"mu": -1}),
    (Momentum, {}, {"mu": "abc"}),
    (LengthPenalty, {"c": 1, "p": 2}, {"c": -1, "p": 0.5}),
    (StopAtLength, {"tau": 1}, {"tau": 0}),
    (SkipGradient, {}, {"gamma": 0}),
    (SkipGradient, {}, {"gamma": 1.5}),
    (PatchWise, {}, {"factor": -1, "project": -1, "size": 2}),
    (SignDecay, {}, {"eta": 0}),
]


@pytest.mark.parametrize(("piece", "right", "wrong"), WRONG)
def test_a_piece_refuses_what_it_cannot_be(piece: Any, right: dict, wrong: dict) -> None:
    piece(**right)
    for name, value in wrong.items():
        with pytest.raises(
            InputError, match=f"^{name}={value}: expected an? .*number (from|above)"
        ):
            piece(**right | {name: value})


def test_every_number_of_a_piece_is_checked(config: None) -> None:
    """No piece takes a word, nor NaN, in the place of a number."""
    names = {path.stem for path in (CONF / "piece").glob("*.yaml")} - {"penalty"}  # see WRONG
    with_others = {"copies": "di,copies", "ni": "mi,ni"}
    made = [composed(f"+piece=[{with_others.get(name, name)}]") for name in names]
    pieces: dict[type, Any] = {type(p): p for a in made for p in vars(a).values()}
    checked = 0
    for piece in pieces.values():
        if not is_dataclass(piece):
            continue
        for field in fields(piece):
            value = getattr(piece, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                for wrong in ("abc", float("nan")):
                    with pytest.raises(InputError, match=f"^{field.name}={wrong}: expected "):
                        replace(piece, **{field.name: wrong})  # type: ignore[type-var]
                    checked += 1
    assert checked > 40


OWN = {
    "loss: gave () for (9,); expected a tensor of 1 dimensions, with an entry for each of the 9": {
        "loss": lambda logits, y, rival: F.cross_entropy(logits, y)
    },
    "loss: gave (9, 1) for (9,)": {"loss": lambda logits, y, rival: logits.gather(1, y[:, None])},
    "transform: gave a list for (9, 3, 16, 16)": {"transform": lambda z, random: [z]},
    "transform: gave (1, 3, 16, 16) for (9, 3, 16, 16)": {"transform": lambda z, random: z[:1]},
}


@pytest.mark.parametrize("sentence", OWN)
def test_what_a_piece_of_ones_own_gives_is_checked(
    sentence: str, smooth: nn.Module, images: Tensor
) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}"):
        run(Attack(NORMS[0], 1, **OWN[sentence]), smooth, images)  # type: ignore[arg-type]


def test_cells_without_a_pixel_are_refused(smooth: nn.Module, images: Tensor) -> None:
    fine = Attack(NORMS[0], 2, interaction=Interaction(lam=1, samples=2, cells=8, grid=17))
    with pytest.raises(InputError, match=r"^grid=17: expected a whole number from 1 to 16"):
        run(fine, smooth, images)


@pytest.mark.parametrize("name", ["interaction", "masked"])
def test_an_uncovered_border_is_in_no_set(name: str) -> None:
    sets: dict = {"samples": 2, "cells": 9, "grid": 3, "border": "uncovered"}
    piece = {"interaction": Interaction(lam=1, **sets), "masked": MaskedLoss(**sets)}[name]
    attack = Attack(NORMS[0], 1, classify=False, **{name: piece})  # type: ignore[arg-type]
    delta = torch.ones(1, 3, 16, 16)
    term = attack.terms(delta, ["a"], 1, Draws(0))[-1]
    pixels = to_pixels(term.sets, 16, 16, term.side)[0, [0, 2]]  # type: ignore[arg-type]
    assert pixels[0][:15, :15].all()
    assert not pixels[0][15:].any()
    assert not pixels[1][:15, :15].any()
    assert pixels[1][15:].all()
    assert pixels[1][:, 15:].all()


# --- every attack, norm and source ---------------------------------------------------------------

ATTACKS = sorted({path.stem for path in (CONF / "attack").glob("*.yaml")} - {"base"})


def flat(model: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
    """A forward hook that makes the gradient exactly zero."""
    return 0 * logits + torch.arange(logits.shape[1])


@pytest.mark.parametrize("source", zoo.names("photos"))
def test_every_attack_runs_or_is_refused(source: str, config: None) -> None:
    model = zoo.build("photos", source)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y, ids = torch.tensor([1, 2]), list("ab")
    no_skips = source in ("alexnet", "vgg16") or source.startswith("inception_v")
    refuses = {"sgm", "sgmir", "hybridir"} if no_skips else set()
    no_relus = source in ("vit", "convnext")
    for name, norm in [*product(ATTACKS, ("linf", "l2")), ("relaxed", "free")]:
        small = ["steps=2", "samples=2", "benchmark.copies=2", "benchmark.relaxed.steps=2"]
        choice = [f"attack={name}", f"norm={norm}", f"source={source}", *small]
        cfg = compose("config", overrides=choice)
        if name in refuses or (name == "relaxed" and norm != "free"):
            with pytest.raises(InputError, match=r"needs skip connections|belong together"):
                Cell(cfg)
            continue
        attack = made(Cell(cfg))
        if name == "linbp" and no_relus:
            with pytest.raises(InputError, match="needs a source with ReLUs"):
                next(iter(perturbations(attack, model, x, y, ids, Draws(0))))
            continue
        for hook in (None, flat) if source in ("alexnet", "resnet34") else (None,):
            handle = model.register_forward_hook(hook) if hook else None
            steps = list(perturbations(attack, model, x, y, ids, Draws(0)))
            assert len(steps) == len(attack.recorded)
            for delta in steps:
                assert torch.isfinite(delta).all()
                assert (x + delta).min() >= 0
                assert (x + delta).max() <= 1
            if handle:
                handle.remove()
            else:
                assert steps[-1].flatten(1).any(dim=1).all()
