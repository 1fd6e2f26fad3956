"""Replays the perturbations recorded from the authors' code through the ordinary loop.

Traces in another folder, named by IRATTACK_TRACES, are replayed as well.
"""

import os
import sys
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from irattack.attacks.loop import Attack, perturbations
from irattack.attacks.norms import L2, Linf, Norm
from irattack.attacks.pieces import GaussianKernel, GaussianNoise, Interaction, Momentum
from irattack.attacks.randomness import Draws
from irattack.attacks.skip import SkipGradient

DATA = Path(__file__).parent / "data"
sys.path.insert(0, str(DATA))
from networks import build, load  # type: ignore[import-not-found]  # noqa: E402

FOLDERS = [DATA / "traces", *map(Path, filter(None, [os.environ.get("IRATTACK_TRACES")]))]
OWN = sorted(FOLDERS[0].glob("*.npz"))
TRACES = sorted(path for folder in FOLDERS for path in folder.glob("*.npz"))
NOT_FIRST = r"(?!.*0\.relu).*relu"
SKIPS = {
    "resnet_basic": {"relus": NOT_FIRST, "root": 1.0, "blocks": r".*layer\d\.\d+$"},
    "resnet_bottleneck": {"relus": NOT_FIRST, "root": 0.5, "blocks": r".*layer\d\.\d+$"},
    "densenet": {"relus": r"(?!.*transition).*relu", "root": 0.5},
}


class Recorded(Draws):
    """The masks and the noise of a trace instead of random ones."""

    def __init__(self, trace: dict):
        super().__init__(0)
        self.trace = trace

    def subsets(self, ids: Sequence[str], step: int, *rest: object) -> Tensor:
        return self.trace["masks"][step - 1][None].bool()

    def normal(self, ids: Sequence[str], step: int, *rest: object) -> Tensor:
        return self.trace["noise"][step - 1][None] / self.trace["meta"]["vr_sigma"]


def authors_attack(meta: dict, n: int) -> Attack:
    """The attack of a trace with every value of `protocol=authors`; n is the input dimension."""
    norm: Norm = Linf(meta["epsilon"], meta["step_size"])
    if meta["norm"] == "l2":  # a trace gives the radius and the step themselves
        norm = L2(meta["epsilon"] / n**0.5, meta["step_size"] / (n / 150528) ** 0.5)
    interaction = Interaction(
        lam=meta["lam"],
        samples=meta["samples"],
        cells=meta["cells"],
        grid=meta["grid"],
        replacement=True,
        border="uncovered",
        rival="step",
        skip_at_zero=False,
    )
    samples = None
    if meta["vr_samples"]:
        samples = GaussianNoise(meta["vr_samples"], meta["vr_sigma"], "sum")
    backward = None
    if meta["gamma"] != 1:
        backward = SkipGradient(meta["gamma"], "authors", SKIPS[meta["net"]])
    return Attack(
        norm,
        meta["steps"],
        interaction=interaction if meta["lam"] else None,
        samples=samples,
        backward=backward,
        smooth=GaussianKernel(meta["ti_kernel"]) if meta["ti_kernel"] > 1 else None,
        accumulate=Momentum(meta["momentum"]),
        record="before",
    )


network = cache(build)  # the traces share a few


def single_steps(trace: dict) -> Tensor:
    """δ_{t+1} by the ordinary update from each recorded δ_t; m comes of the recorded δ as well."""
    meta, x, deltas = trace["meta"], trace["x"], trace["deltas"]
    attack, model = authors_attack(meta, x.numel()), network(meta["net"], meta["seed"])
    m, found, draws = torch.zeros_like(x), [], Recorded(trace)
    for step, delta in enumerate(deltas[:-1].split(1), start=1):
        moved, m = attack.update(model, x, trace["y"], delta, m, ["image"], step, draws)
        found.append(moved)
    return torch.cat(found)


def trajectory(trace: dict, steps: int) -> Tensor:
    """The first perturbations of the ordinary loop, given a trace's start and random draws."""
    meta, x, draws = trace["meta"], trace["x"], Recorded(trace)
    attack, model = authors_attack(meta, x.numel()), network(meta["net"], meta["seed"])
    start = trace["deltas"][:1]
    found = perturbations(attack, model, x, trace["y"], ["image"], draws, start=start)
    return torch.cat(list(islice(found, steps)))


@pytest.mark.parametrize("path", TRACES, ids=lambda p: p.stem)
def test_every_step_is_that_of_the_trace(path: Path, capsys: pytest.CaptureFixture) -> None:
    """Step by step: a rounded δ at a kink of the network would make whole trajectories part."""
    trace = load(path)
    difference = (single_steps(trace) - trace["deltas"][1:]).abs().max().item()
    with capsys.disabled():
        print(f"\n{path.stem}: largest difference {difference:.1e}", end=" ")
    assert difference < 1e-6


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
def test_the_loop_follows_the_trace(path: Path) -> None:
    """The updates are those of the test above; here the loop carries δ and m through two."""
    trace = load(path)
    torch.testing.assert_close(trajectory(trace, 3), trace["deltas"][:3], rtol=0, atol=1e-6)


def test_a_reversed_interaction_does_not_replay() -> None:
    trace = load(DATA / "traces" / "resnet_basic_ir.npz")
    trace["meta"]["lam"] *= -1
    trace["deltas"] = trace["deltas"][1:3]  # from the first δ that is not zero
    trace["masks"] = trace["masks"][1:]
    assert (single_steps(trace) - trace["deltas"][1:]).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("net", SKIPS)
def test_authors_sgm_is_that_of_module_hooks(net: str, batch: int) -> None:
    """The rule as design and traces describe it, written with the hooks that its authors used."""
    gamma, x = 0.3, torch.rand(batch, 3, 64, 64, dtype=torch.float64)
    model = build(net, 3)

    def input_gradient() -> Tensor:
        z = x.clone().requires_grad_()
        return torch.autograd.grad(model(z).log_softmax(1)[:, 0].sum(), z)[0]

    with SkipGradient(gamma, "authors", SKIPS[net])(model):
        ours = input_gradient()
    factor = gamma if net == "resnet_basic" else gamma**0.5
    for name, module in model.named_modules():
        skipped = "transition" if net == "densenet" else "0.relu"
        if "relu" in name and skipped not in name:
            module.register_backward_hook(lambda m, i, o: (factor * i[0],))
        if net != "densenet" and "layer" in (["", *name.split(".")])[-2]:
            module.register_backward_hook(lambda m, i, o: (i[0] / torch.std(i[0]),))
    torch.testing.assert_close(ours, input_gradient(), rtol=1e-9, atol=0)
