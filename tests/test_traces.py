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
from irattack.pieces import Interaction, Momentum
from irattack.randomness import Draws

DATA = Path(__file__).parent / "data"
sys.path.insert(0, str(DATA))
from networks import build, load  # type: ignore[import-not-found]  # noqa: E402

FOLDERS = [DATA / "traces", *map(Path, filter(None, [os.environ.get("IRATTACK_TRACES")]))]
TRACES = sorted(path for folder in FOLDERS for path in folder.glob("*.npz"))
LATER = ("sgm", "sgmir", "vr", "ti", "tiir", "hybridir")


class Recorded(Draws):
    """The masks of a trace instead of random ones."""

    def __init__(self, trace: dict):
        super().__init__(0)
        self.trace = trace

    def subsets(self, ids: Sequence[str], step: int, *rest: object) -> Tensor:
        return self.trace["masks"][step - 1][None].bool()


@pytest.mark.parametrize(
    "path",
    [p for p in TRACES if not p.stem.endswith(tuple(f"_{a}" for a in LATER))],
    ids=lambda p: p.stem,
)
def test_trace(path: Path) -> None:
    trace = load(path)
    meta, x = trace["meta"], trace["x"]
    norm: Norm = Linf(meta["epsilon"], meta["step_size"])
    if meta["norm"] == "l2":
        n = x.numel()  # a trace gives the radius and the step themselves
        norm = L2(meta["epsilon"] / n**0.5, meta["step_size"] / (n / 150528) ** 0.5)
    interaction = None
    if meta["lam"]:
        interaction = Interaction(
            meta["lam"], meta["samples"], meta["cells"], meta["grid"], skip_at_zero=False
        )
    attack = Attack(
        norm, meta["steps"] - 1, interaction=interaction, accumulate=Momentum(meta["momentum"])
    )
    start = trace["deltas"][:1]
    model = build(meta["net"], meta["seed"])
    found = [
        start,
        *perturbations(attack, model, x, trace["y"], ["image"], Recorded(trace), start=start),
    ]
    difference = (torch.cat(found) - trace["deltas"]).abs().max().item()
    print(f"{path.stem}: largest difference {difference:.1e}")
    assert difference < 1e-6
