"""How strong λ is: the lengths of the gradients that it weighs, and their table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose

from irattack.attacks.losses import margin, strongest_rival
from irattack.attacks.objective import to_pixels
from irattack.attacks.randomness import Draws
from irattack.commands import composing, reproduce, settings
from irattack.models import zoo
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure, job_of
from irattack.pipeline.measures import Strength
from irattack.pipeline.steps import last_frame

SMALL = ["images=6", "steps=2", "samples=3", "grid=4", "cells=3", "threads=1", "block=4"]
JOBS = ["jobs=[{_target_: irattack.pipeline.measures.Strength}]"]


@pytest.mark.parametrize(
    "given",
    [["loss=ce"], ["loss=margin", "protocol=authors", "images=48", "eps=64/255", "cells=8"]],
    ids=["paper", "authors"],
)
def test_the_lengths_are_those_of_equation_42(tmp_path: Path, given: list[str]) -> None:
    """Against ∇ℓ and ∇I written out, set by set, at the δ that the step cache has."""
    settings.register_resolvers()
    given = [*SMALL, *JOBS, *given, f"output={tmp_path}", "source=alexnet", "attack=mi"]
    with composing.hydra():
        cell = Cell(compose("config", overrides=given))
    job = job_of(cell, Strength)
    ensure(job)
    found, images = job.values(), images_of(cell)
    frames = np.concatenate([last_frame(cell, shard) for shard in cell.shards(images)])
    x, y = torch.from_numpy(images.pixels).double() / 255, torch.from_numpy(images.labels)
    delta = (torch.from_numpy(frames).double() / 255 - x).requires_grad_()
    net = zoo.build("photos", "alexnet").double()
    authors = cell.cfg.protocol.name == "authors"
    sets = Draws(0).subsets(
        images.ids, 3, 3, cell.cfg.cells, 4, authors
    )  # of step 3: steps are 1 and 2
    fixed = strongest_rival(net(x + delta), y) if authors else None

    def v(part: torch.Tensor) -> torch.Tensor:
        return margin(net(x + part), y, fixed)

    interaction, others = torch.zeros(len(x)).double(), 0
    for k in range(3):
        inside = to_pixels(sets[:, k], 32, 32)[:, None].double()
        whole = v(delta) - v(delta * (1 - inside)) - v(delta * inside) + v(delta * 0)
        interaction = interaction + whole / 3
        if fixed is not None:
            own = strongest_rival(net(x + delta * inside), y)
            others += int((own != fixed).sum())
    assert authors == (others > 0)  # or the two rules would not differ here
    logits = net(x + delta)
    loss = margin(logits, y) if authors else torch.nn.functional.cross_entropy(
        logits, y, reduction="none"
    )  # fmt: skip
    by_loss, by_interaction = (
        torch.autograd.grad(value.sum(), delta, retain_graph=True)[0].flatten(1).numpy()
        for value in (loss, interaction)
    )
    lengths = [np.linalg.norm(g, axis=1) for g in (by_loss, by_interaction)]
    np.testing.assert_allclose(found["loss"], lengths[0], rtol=1e-3)
    np.testing.assert_allclose(found["interaction"], lengths[1], rtol=1e-3)
    cosine = -(by_loss * by_interaction).sum(axis=1) / lengths[0] / lengths[1]
    np.testing.assert_allclose(found["cosine"], cosine, atol=1e-3)


def test_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*SMALL, f"output={tmp_path}", "source=alexnet,vgg16"]
    monkeypatch.setattr("sys.argv", ["reproduce", "strength", *given])
    reproduce.main()
    (path,) = (tmp_path / "photos/tables").glob("strength-*.csv")
    data = pd.read_csv(path)
    assert list(data.source) == ["alexnet", "vgg16"]
    assert (data.ratio_ci_low < data.ratio).all()
    assert (data.ratio < data.ratio_ci_high).all()
    np.testing.assert_allclose(data.ratio, data.interaction / data.loss, rtol=1e-3)
    assert f"{data.ratio[0]:.2f} [" in capsys.readouterr().out


def test_images_without_a_gradient_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*SMALL, f"output={tmp_path}", "source=vgg16"]
    values = Strength.values

    def flat(job: Strength) -> dict[str, np.ndarray]:
        found = values(job)
        found["loss"][0], found["cosine"][0] = 0, np.nan
        return found

    monkeypatch.setattr(Strength, "values", flat)
    monkeypatch.setattr("sys.argv", ["reproduce", "strength", *given])
    reproduce.main()
    (path,) = (tmp_path / "photos/tables").glob("strength-*.csv")
    data = pd.read_csv(path)
    assert data.n[0] == 5
    assert np.isfinite(data.ratio[0])
    assert "1 images of which a gradient is 0 are left out" in capsys.readouterr().out
