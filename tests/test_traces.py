"""Replays the perturbations recorded from the authors' code through the ordinary loop.

Traces in another folder, named by IRATTACK_TRACES, are replayed as well.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from irattack.attack import Attack, perturbations
from irattack.norms import L2, Linf, Norm
from irattack.pieces import GaussianKernel, GaussianNoise, Interaction, Momentum
from irattack.randomness import Draws
from irattack.skip import SkipGradient

DATA = Path(__file__).parent / "data"
sys.path.insert(0, str(DATA))
from networks import build, load  # type: ignore[import-not-found]  # noqa: E402

FOLDERS = [DATA / "traces", *map(Path, filter(None, [os.environ.get("IRATTACK_TRACES")]))]
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


def replay(trace: dict) -> Tensor:
    """The perturbations of the ordinary loop, given a trace's start and random draws."""
    meta, x = trace["meta"], trace["x"]
    attack, model = authors_attack(meta, x.numel()), build(meta["net"], meta["seed"])
    start = trace["deltas"][:1]
    steps = perturbations(attack, model, x, trace["y"], ["image"], Recorded(trace), start=start)
    return torch.cat(list(steps))


@pytest.mark.parametrize("path", TRACES, ids=lambda p: p.stem)
def test_trace(path: Path, capsys: pytest.CaptureFixture) -> None:
    trace = load(path)
    difference = (replay(trace) - trace["deltas"]).abs().max().item()
    with capsys.disabled():
        print(f"\n{path.stem}: largest difference {difference:.1e}", end=" ")
    assert difference < 1e-6


def test_a_reversed_interaction_does_not_replay() -> None:
    trace = load(DATA / "traces" / "resnet_basic_ir.npz")
    trace["meta"]["lam"] *= -1
    assert (replay(trace) - trace["deltas"]).abs().max() > 1e-2
