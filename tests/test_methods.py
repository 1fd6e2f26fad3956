"""The later methods, against plain loops over images as their papers write them, and as PGD."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy.fft import dctn, idctn
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from irattack.attacks.diversity import ResizeAndPad, ScaledCopies, Spectrum
from irattack.attacks.linear import LinearBackward
from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.moves import PatchWise, SignDecay
from irattack.attacks.norms import L2, Linf, Norm
from irattack.attacks.objective import gradient
from irattack.attacks.pieces import GaussianNoise, Interaction, Momentum
from irattack.attacks.points import (
    EnhancedMomentum,
    GradientNorm,
    GradientRelevance,
    Lookahead,
    ReversePerturbation,
    VarianceTuning,
)
from irattack.attacks.randomness import Draws
from irattack.attacks.shuffle import ShuffleAndRotate
from irattack.commands.composing import composed
from irattack.commands.settings import register_resolvers
from irattack.conf import CONF, OWN
from irattack.errors import InputError
from irattack.models import zoo
from irattack.models.network import Ensemble
from irattack.pipeline import speed
from irattack.pipeline.cell import Cell, attack_of

EPS, ALPHA, STEPS = 16 / 255, 2 / 255, 5
NORMS: list[Norm] = [Linf(EPS, ALPHA), L2(EPS, 40.0)]
Gradient = Callable[[Tensor], Tensor]  # ∇ℓ by the input, at an input (C, H, W)


def run(attack: Attack, model: nn.Module, x: Tensor, first: int = 0) -> Tensor:
    y = model(x).argmax(dim=1)
    ids = [f"image-{first + i}" for i in range(len(x))]
    start = torch.zeros_like(x) + 1e-3
    return torch.stack(list(perturbations(attack, model, x, y, ids, Draws(0), start=start)))


def pixels(image: int, step: int, purpose: str) -> Tensor:
    """U[-1, 1) for each pixel."""
    return 2 * Draws(0).uniform([f"image-{image}"], step, purpose, (3, 16, 16))[0].double() - 1


# --- a step in L∞ of one image: from (input, memory, ∇ℓ, image, t) to the direction --------------


def mean_normed(g: Tensor) -> Tensor:
    return g / g.abs().mean()


def ni(z: Tensor, memory: dict, grad: Gradient, image: int, t: int) -> Tensor:
    g = grad(z + ALPHA * memory.get("m", 0 * z))
    memory["m"] = memory.get("m", 0 * z) + mean_normed(g)
    return memory["m"]


def emi(z: Tensor, memory: dict, grad: Gradient, image: int, t: int) -> Tensor:
    bar = memory.get("bar", 0 * z)
    g = torch.stack([grad(z + c * ALPHA * bar) for c in np.linspace(-7, 7, 11)]).mean(dim=0)
    memory["bar"] = mean_normed(g)
    memory["m"] = memory.get("m", 0 * z) + memory["bar"]
    return memory["m"]


def vmi(z: Tensor, memory: dict, grad: Gradient, image: int, t: int) -> Tensor:
    g = grad(z)
    hat = g + memory.get("v", 0 * z)
    memory["m"] = memory.get("m", 0 * z) + hat / hat.abs().sum()
    near = [grad(z + 1.5 * EPS * pixels(image, t, f"neighbour {i}")) for i in (1, 2, 3)]
    memory["v"] = sum(near) / 3 - g
    return memory["m"]


def vni(z: Tensor, memory: dict, grad: Gradient, image: int, t: int) -> Tensor:
    point = z + ALPHA * memory.get("m", 0 * z)
    g = grad(point)
    hat = g + memory.get("v", 0 * z)
    memory["m"] = memory.get("m", 0 * z) + mean_normed(hat)
    near = [grad(point + 1.5 * EPS * pixels(image, t, f"neighbour {i}")) for i in (1, 2, 3)]
    memory["v"] = sum(near) / 3 - g
    return memory["m"]


def pgn(z: Tensor, memory: dict, grad: Gradient, image: int, t: int) -> Tensor:
    total = 0 * z
    for i in (1, 2, 3):
        near = z + 3 * EPS * pixels(image, t, f"neighbour {i}")
        first = grad(near)
        total += 0.5 * first + 0.5 * grad(near - ALPHA * mean_normed(first))
    total /= 3
    memory["m"] = memory.get("m", 0 * z) + total / total.abs().sum()
    return memory["m"]


def gra(z: Tensor, memory: dict, grad: Gradient, image: int, t: int) -> Tensor:
    g = grad(z)
    near = [grad(z + 3.5 * EPS * pixels(image, t, f"neighbour {i}")) for i in (1, 2, 3)]
    bar = torch.stack(near).mean(dim=0)
    s = torch.cosine_similarity(g.flatten(), bar.flatten(), dim=0)
    weighted = s * g + (1 - s) * bar
    last = memory.get("m", 0 * z)
    memory["m"] = last + weighted / weighted.abs().sum()
    same = last.sign() == memory["m"].sign()
    memory["M"] = memory.get("M", torch.ones_like(z) / 0.94) * torch.where(same, 1.0, 0.94)
    memory["step"] = ALPHA * memory["M"] * memory["m"].sign()
    return memory["m"]


def pi(z: Tensor, memory: dict, grad: Gradient, image: int, t: int) -> Tensor:
    g = grad(z)
    a = memory.get("a", 0 * z) + 4 * ALPHA * g.sign()
    cut = (a.abs() - EPS).clamp_min(0) * a.sign()
    wide, around = F.pad(cut, (1, 1, 1, 1)), 0 * z
    for c, i, j in product(range(3), range(16), range(16)):
        around[c, i, j] = (wide[c, i : i + 3, j : j + 3].sum() - cut[c, i, j]) / 8
    projected = 4 * ALPHA * around.sign()
    memory["a"] = a + projected
    memory["step"] = 4 * ALPHA * g.sign() + projected
    memory["outside"] = bool(cut.any()) or memory.get("outside", False)
    return g


def rap(z: Tensor, memory: dict, grad: Gradient, image: int, t: int) -> Tensor:
    n = 5 / 255 * pixels(image, t, "reverse")
    for _ in range(3):
        n = (n - 2 / 255 * grad(z + n).sign()).clamp(-5 / 255, 5 / 255)
    return grad(z + n)


METHODS: dict[str, tuple[Callable, dict]] = {
    "ni": (ni, {"look": Lookahead(), "accumulate": Momentum(1.0)}),
    "emi": (emi, {"estimate": EnhancedMomentum(), "accumulate": Momentum(1.0)}),
    "vmi": (vmi, {"estimate": VarianceTuning(3, 1.5 * EPS), "accumulate": Momentum(1.0)}),
    "vni": (
        vni,
        {
            "look": Lookahead(),
            "estimate": VarianceTuning(3, 1.5 * EPS),
            "accumulate": Momentum(1.0),
        },
    ),
    "pgn": (pgn, {"estimate": GradientNorm(3, 3 * EPS), "accumulate": Momentum(1.0)}),
    "gra": (
        gra,
        {
            "estimate": GradientRelevance(3, 3.5 * EPS),
            "move": SignDecay(),
            "accumulate": Momentum(1.0),
        },
    ),
    "pi": (pi, {"move": PatchWise(4.0)}),
    "rap": (rap, {"look": ReversePerturbation(5 / 255, 2 / 255, 3)}),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_loop_of_its_paper(name: str, smooth: nn.Module, images: Tensor) -> None:
    rule, pieces = METHODS[name]
    found = run(Attack(NORMS[0], STEPS, **pieces), smooth, images[:3])
    y = smooth(images[:3]).argmax(dim=1)
    for i, x in enumerate(images[:3]):

        def grad(z: Tensor, label: Tensor = y[i]) -> Tensor:
            z = z.clone().requires_grad_()
            return torch.autograd.grad(F.cross_entropy(smooth(z[None])[0], label), z)[0]

        delta, memory = (x + 1e-3).clamp(0, 1) - x, dict[str, Tensor]()
        for t in range(1, STEPS + 1):
            direction = rule(x + delta, memory, grad, i, t)
            step = memory.get("step", ALPHA * direction.sign())
            delta = (x + (delta + step).clamp(-EPS, EPS)).clamp(0, 1) - x
            torch.testing.assert_close(found[t - 1, i], delta, rtol=0, atol=1e-9)
        assert name != "pi" or memory["outside"]  # or nothing was projected


@pytest.mark.parametrize("norm", NORMS)
def test_neutral_values_give_the_plain_attack(
    norm: Norm, smooth: nn.Module, images: Tensor
) -> None:
    """Zero strength, one sample, the identity: not a bit differs."""
    pgd = run(Attack(norm, 4), smooth, images)
    neutral: list[dict] = [
        {"look": Lookahead(mu=0)},
        {"look": ReversePerturbation(0.0, 0.1, 2)},
        {"estimate": EnhancedMomentum(1, 0.0)},
        {"estimate": VarianceTuning(1, 0.0)},
        {"estimate": GradientNorm(1, 0.0, balance=0)},
        {"estimate": GradientRelevance(1, 0.0)},
        {"move": PatchWise(factor=1, project=0)},
        {"move": SignDecay(eta=1)},
        {"transform": ScaledCopies(1)},
        {"transform": Spectrum(1, sigma=0, rho=0)},
        {"transform": ShuffleAndRotate(1, blocks=1, degrees=0)},
    ]
    for pieces in neutral:
        assert torch.equal(run(Attack(norm, 4, **pieces), smooth, images), pgd), pieces


TRANSFORMS: dict[str, ScaledCopies | Spectrum | ShuffleAndRotate] = {
    "si": ScaledCopies(3),
    "ssa": Spectrum(3, sigma=0.1),
    "bsr": ShuffleAndRotate(3, blocks=2),
}
EVERY: dict[str, dict] = {name: pieces for name, (_, pieces) in METHODS.items()} | {
    name: {"transform": transform} for name, transform in TRANSFORMS.items()
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", EVERY)
def test_the_batch_does_not_matter(
    name: str, norm: Norm, smooth: nn.Module, images: Tensor
) -> None:
    """And the method changes the attack, alone and beside the interaction loss."""
    ir = Interaction(lam=1.0, samples=2, cells=4, grid=4)
    for interaction in (None, ir):
        attack = Attack(norm, 3, interaction=interaction, **EVERY[name])
        together = run(attack, smooth, images)
        parts = [
            run(attack, smooth, images[:2]),
            run(attack, smooth, images[2:3], first=2),
            run(attack, smooth, images[3:], first=3),
        ]
        torch.testing.assert_close(torch.cat(parts, dim=1), together, rtol=0, atol=1e-10)
        without = Attack(norm, 3, interaction=interaction, accumulate=attack.accumulate)
        assert not torch.allclose(together[-1], run(without, smooth, images)[-1], atol=1e-4)


def dimmed(image: Tensor, draws: Tensor) -> Tensor:
    return image / 2 ** int(draws)


def of_spectrum(image: Tensor, draws: Tensor) -> Tensor:
    """By SciPy's transforms, which are not orthonormal unless they are asked to be."""
    z = (image + draws[0]).numpy()
    channels = [idctn(dctn(z[c]) * (1 + draws[1, c].numpy())) for c in range(len(z))]
    return torch.from_numpy(np.stack(channels))


def parts(cuts: Tensor, side: int) -> list[int]:
    """Lengths that are in proportion to random numbers and sum to the side."""
    ends = [round(side * float(cuts[: k + 1].sum() / cuts.sum())) for k in range(len(cuts))]
    return [b - a for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def of_blocks(image: Tensor, draws: Tensor) -> Tensor:
    """By cutting, torchvision's rotation and pasting."""
    draws, n = draws.double(), 2
    widths, order, angle = draws[2 * n :].view(3, n, n)
    strips, height = image.split(parts(draws[:n], image.shape[-2]), dim=1), image.shape[-2]
    done = []
    for k in draws[n : 2 * n].argsort().tolist():
        blocks = strips[k].split(parts(widths[k], image.shape[-1]), dim=2)
        turned = []
        for j in order[k].argsort().tolist():
            block, degrees = blocks[j], 24 * (2 * angle[k, j].item() - 1)
            if block.numel():
                bilinear = InterpolationMode.BILINEAR
                turned.append(rotate(block[None], -degrees, bilinear)[0])
        done.append(torch.cat(turned, dim=2) if strips[k].shape[1] else strips[k])
    assert sum(strip.shape[1] for strip in done) == height
    return torch.cat(done, dim=1)


PLAIN = {"si": dimmed, "ssa": of_spectrum, "bsr": of_blocks}


@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 14)])
@pytest.mark.parametrize("name", PLAIN)
def test_a_transform_is_that_of_each_image(name: str, height: int, width: int) -> None:
    x = torch.rand(12, 3, height, width, dtype=torch.float64)
    draws = TRANSFORMS[name].drawn(list("abcd"), 5, Draws(1), 1, x.shape[1:]).flatten(0, 1)
    found = TRANSFORMS[name](x, draws)
    for image, own, ours in zip(x, draws, found, strict=True):
        torch.testing.assert_close(ours, PLAIN[name](image, own), rtol=0, atol=1e-6)
    assert not torch.allclose(found, x, atol=1e-2)


@pytest.mark.parametrize("name", PLAIN)
def test_the_gradient_of_a_transform_is_its_own(name: str) -> None:
    x = torch.rand(3, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    draws = TRANSFORMS[name].drawn(["a"], 5, Draws(1), 1, x.shape[1:]).flatten(0, 1)
    assert torch.autograd.gradcheck(lambda z: TRANSFORMS[name](z, draws), x)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_the_loss_is_the_mean_over_copies(
    name: str, noisy: bool, smooth: nn.Module, images: Tensor
) -> None:
    """With VR, of as many copies for each of its noisy images."""
    ids, delta = list("abcdefghi"), 0.05 * torch.randn_like(images)
    times, transform = 2 if noisy else 1, TRANSFORMS[name]
    samples = GaussianNoise(2, 0.1) if noisy else None
    attack = Attack(NORMS[0], 1, samples=samples, transform=transform)
    y = smooth(images).argmax(dim=1)
    ours = gradient(smooth, images, delta, y, attack.terms(delta, ids, 2, Draws(5)), 7)
    noise = 0.1 * Draws(5).normal(ids, 2, "noise", (2, 3, 16, 16)).double()
    draws = transform.drawn(ids, 2, Draws(5), times, (3, 16, 16))
    d, loss = delta.requires_grad_(), torch.zeros(())
    for m, k in product(range(times), range(3)):
        z = images + d + (noise[:, m] if noisy else 0)
        logits = smooth(transform(z, draws[:, 3 * m + k]))
        loss = loss + F.cross_entropy(logits, y, reduction="sum") / (3 * times)
    torch.testing.assert_close(ours, torch.autograd.grad(loss, d)[0])


class Rectified(nn.Module):
    """Three convolutions; the second ReLU works in place, the first is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.ReLU(), nn.ReLU(inplace=True)
        sizes = [(3, 6), (6, 6), (6, 6)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)
        self.head = nn.Linear(6, 5)
        self.double().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        a, b, c = self.convolutions
        hidden = self.first(b(self.first(a(images))))
        return self.head(self.last(c(hidden)).mean(dim=(2, 3)))


@pytest.mark.parametrize(("since", "linear"), [(0.0, "all"), (0.5, "last"), (1.0, "none")])
@pytest.mark.parametrize("within", [False, True])
def test_the_backward_pass_is_linear_from_a_relu_on(
    since: float, linear: str, within: bool, images: Tensor
) -> None:
    net = Rectified()
    model: nn.Module = Ensemble([net]) if within else net
    z = (images - 0.5).requires_grad_()
    a, b, c = net.convolutions
    plain = model(z)
    (as_usual,) = torch.autograd.grad((plain * torch.arange(5.0)).sum(), z)
    with LinearBackward(since)(model):
        logits = model(z)
        (found,) = torch.autograd.grad((logits * torch.arange(5.0)).sum(), z)
    assert torch.equal(logits, plain)
    assert torch.equal(found, as_usual) == (linear == "none")
    assert torch.equal(torch.autograd.grad((model(z) * torch.arange(5.0)).sum(), z)[0], as_usual)
    if within:  # whose logits are those of probabilities
        return
    u = a(z)
    v = b(u.relu())
    w = c(v.relu())
    g = (torch.arange(5.0).double() @ net.head.weight).view(1, 6, 1, 1).expand_as(w) / 256
    for pre, layer, always in (
        (w, c, linear != "none"),
        (v, b, linear == "all"),
        (u, a, linear == "all"),
    ):
        g = g if always else g * (pre > 0)
        g = F.conv_transpose2d(g, layer.weight, padding=1)  # type: ignore[arg-type]
    torch.testing.assert_close(found, g)


def test_what_cannot_be_linear_is_refused(smooth: nn.Module) -> None:
    with pytest.raises(InputError, match="needs a source with ReLUs"), LinearBackward()(smooth):
        pass
    with pytest.raises(InputError, match="from 0 to 1"):
        LinearBackward(1.5)
    with pytest.raises(InputError, match="NI looks ahead"):
        Attack(NORMS[0], 1, look=Lookahead(), accumulate=Momentum(rule="none"))


# --- by name -------------------------------------------------------------------------------------

NAMED = ("ni", "si", "sini", "emi", "vmi", "vni", "pgn", "gra", "pi", "ssa", "bsr", "rap", "linbp")
COSTS = dict(zip(NAMED, (1, 5, 5, 11, 4, 4, 6, 4, 1, 3, 3, 9, 1), strict=True))  # N = 3
COSTS_OF_IR = {name: count + 6 for name, count in COSTS.items()}
COSTS_OF_IR |= {"ni": 7, "emi": 77, "vmi": 28, "vni": 28, "gra": 28, "pgn": 42, "pi": 7, "rap": 63}
COSTS_OF_IR |= {"linbp": 7, "si": 12, "sini": 12, "ssa": 10, "bsr": 10}  # a forward pass for v(Λ)


@pytest.fixture(scope="module")
def config() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def named(*given: str) -> Attack:
    given = (*given, "steps=3", "samples=3", "benchmark.copies=3")
    return instantiate(Cell(compose("config", overrides=list(given))).steps_facts["attack"])


@pytest.mark.parametrize("more", [(), ("+piece=[ir]",), ("+piece=[ir]", "start=random")])
@pytest.mark.parametrize("name", NAMED)
def test_gradients_are_counted_as_the_network_sees_them(
    name: str, more: tuple[str, ...], config: None
) -> None:
    attack, model = named(f"attack={name}", *more), zoo.build("photos", "resnet34").double()
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4)).double()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    steps = list(perturbations(attack, model, x, torch.tensor([1]), ["a"], Draws(0)))
    assert len(steps) == 3
    assert sum(seen) == speed.gradients(attack)
    assert speed.probes(attack) == (COSTS_OF_IR if more else COSTS)[name]
    if "start=random" in more:
        assert sum(seen) == 3 * speed.probes(attack) == speed.most_gradients(attack)


@pytest.mark.parametrize(
    ("attack", "piece", "slot"),
    [
        *(("si", "di", "transform"), ("ssa", "bsr", "transform"), ("vmi", "pgn", "estimate")),
        *(("ni", "rap", "look"), ("linbp", "sgm", "backward"), ("pi", "gra", "move")),
        *(("vr", "copies", "samples"), ("maskaug", "irbaseline", "masked")),
    ],
)
def test_two_pieces_for_one_slot_end_in_one_sentence(
    attack: str, piece: str, slot: str, config: None
) -> None:
    with pytest.raises(InputError, match=f"{piece}.* both fill the slot `{slot}`") as error:
        named(f"attack={attack}", f"+piece=[{piece}]")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("attack", "piece", "slot"),
    [
        *(("irmax", "ir", "interaction"), ("vrdraws", "vr", "samples")),
        *(("singlestep", "fine", "norm"), ("mine", "di", "transform")),
        ("mine", "mi", "accumulate"),
    ],
)
def test_a_piece_does_not_undo_what_an_attack_says_itself(
    attack: str,
    piece: str,
    slot: str,
    config: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = tmp_path / "attack/mine.yaml"
    own.parent.mkdir()
    own.write_text(
        "defaults: [base, /piece: [mi], _self_]\nname: mine\naccumulate: { mu: 0.5 }\n"
        "transform: { _target_: hydra.utils.get_method, path: torch.relu }\n"
    )
    monkeypatch.setenv(OWN, str(tmp_path))

    def made(*given: str) -> Attack:
        return attack_of(Cell(composed([*given, "steps=3"])))

    sentence = f"piece: {piece} replaces what attack={attack} itself has in the slot `{slot}`; le"
    with pytest.raises(InputError, match=sentence):
        made(f"attack={attack}", f"+piece=[{piece}]")
    assert made("attack=mine", "attack.accumulate.mu=0.25", "+piece=[ti]").accumulate.mu == 0.25
    assert made("attack=mi", "+piece=[mi]") == made("attack=mi")  # twice the same is once


def test_pieces_of_other_slots_compose(config: None) -> None:
    attack = named("attack=pgd", "+piece=[mi,ni,vt,si,ti,ir,pi,linbp]")
    assert attack.look == Lookahead()
    assert isinstance(attack.estimate, VarianceTuning)
    assert attack.transform == ScaledCopies()
    assert isinstance(attack.move, PatchWise)
    assert attack.interaction is not None
    assert isinstance(attack.backward, LinearBackward)
    assert named("attack=linbp", "source=vgg16").backward == LinearBackward()
    assert attack.estimate.radius == pytest.approx(36 / 255)


@pytest.mark.parametrize(
    ("piece", "settings", "told"),
    [
        (Lookahead, {"mu": -1}, "mu=-1: expected a number from 0 on"),
        (ReversePerturbation, {"radius": -1, "step_size": 1}, "radius=-1"),
        (ReversePerturbation, {"radius": 1, "step_size": 1, "steps": 0}, "steps=0"),
        (EnhancedMomentum, {"samples": 0}, "samples=0: expected a whole number from 1 on"),
        (VarianceTuning, {"samples": 0, "radius": 1}, "samples=0"),
        (GradientRelevance, {"samples": 2.5, "radius": 1}, r"samples=2\.5: expected a whole"),
        (GradientNorm, {"samples": 0, "radius": 1}, "samples=0"),
        (GradientNorm, {"samples": 2, "radius": 1, "balance": 2}, "balance=2: .* from 0 to 1"),
        (PatchWise, {"size": 4}, "size=4: expected an odd"),
        (PatchWise, {"factor": -1}, "factor=-1"),
        (SignDecay, {"eta": 0}, "eta=0: expected a number above 0"),
        (ShuffleAndRotate, {"copies": 0}, "copies=0"),
        (ShuffleAndRotate, {"copies": 1, "blocks": 0}, "blocks=0"),
        (ScaledCopies, {"copies": 0}, "copies=0"),
        (Spectrum, {"copies": 1, "sigma": -1}, "sigma=-1"),
        (Spectrum, {"copies": 0, "sigma": 1}, "copies=0"),
        (ResizeAndPad, {"probability": 2}, "probability=2"),
        (LinearBackward, {"since": 2}, "since=2: expected a number from 0 to 1"),
    ],
)
def test_pieces_refuse_what_means_nothing(piece: Any, settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        piece(**settings)
