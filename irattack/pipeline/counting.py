"""The images that may be attacked, and from where their labels count where a network decides that.

A file of labels may count its classes from 0 or from 1 and show neither. `benchmark.data.counting`
says which, or names a network that knows the classes: the reading by which it is right on clearly
more images holds, if there is one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from irattack.data.images import Candidates
from irattack.errors import InputError, unknown
from irattack.hashing import key
from irattack.models import zoo
from irattack.pipeline import statistics
from irattack.pipeline.artifact import Artifact, Card
from irattack.pipeline.cell import Cell

MOST = 200  # images that a network is asked about
AT_ONCE = 20  # of them


class Counted(Card):
    """What a network says of the two readings of a file of labels.

    Attributes:
        first: the number of the first class in the file.
        accuracy_percent: by the reading from 0 and by that from 1.
        n: images.
    """

    first: int
    accuracy_percent: list[float]
    n: int


def readings(data: Mapping[str, Any]) -> dict[int | None, Candidates]:
    """The images of a benchmark's `data`, by each number of the first class that is open.

    Raises:
        InputError: they cannot be used by any.
    """
    given = data.get("counting")
    firsts = [0, 1] if isinstance(given, str) else [given]
    found: dict[int | None, Candidates] = {}
    errors = []
    for first in firsts:
        counting = {"counting": first} if "counting" in data else {}
        try:
            found[first] = instantiate({**data, **counting})
        except (InputError, InstantiationException) as error:
            cause = error if isinstance(error, InputError) else error.__cause__
            if not isinstance(cause, InputError):
                raise
            errors.append(cause)
    if not found:
        raise errors[0] from None
    return found


def candidates_of(cell: Cell) -> Candidates:
    """The images that may be attacked, their labels counted as `benchmark.data.counting` says.

    Raises:
        InputError: they cannot be used, or the network that is named does not tell the readings
            apart.
    """
    found = readings(cell.cfg.benchmark.data)
    if len(found) == 1:
        return next(iter(found.values()))
    name = str(cell.cfg.benchmark.data["counting"])
    known = zoo.names(cell.cfg.benchmark.name)
    try:
        zoo.card(cell.cfg.benchmark.name, name)
    except InputError:
        allowed = f"expected 0, 1, null or a network that decides, one of {', '.join(known)}"
        raise unknown("benchmark.data.counting", name, known, allowed) from None
    labels = {first: candidates.labels.tolist() for first, candidates in found.items()}
    facts = {
        "data": cell.cfg.benchmark.data,
        "labels": key([list(found[0].ids), *labels.values()]),
        "network": cell.identity(name),
    }
    decision = Artifact(cell.root / "images" / f"counting-{key(facts)}.json", facts, Counted)
    card = decision.card()
    if card is None:
        decision.keep(**decided(cell, name, found))
        card = decision.card()
        assert card is not None
    return found[card.first]


def decided(cell: Cell, name: str, found: Mapping[int | None, Candidates]) -> dict[str, Any]:
    """What the card of the decision says.

    Raises:
        InputError: the intervals of the two accuracies overlap.
    """
    from irattack.pipeline.compute import made_with

    ids = found[0].ids
    rows = sorted(range(len(ids)), key=lambda i: key(ids[i]))[:MOST]
    named = named_by(cell, name, found[0], rows)
    hits = [int((named == found[first].labels[rows]).sum()) for first in (0, 1)]
    low, high = np.array([statistics.wilson(count, len(rows)) for count in hits]).T
    rates = [100 * count / len(rows) for count in hits]
    if not (low[0] > high[1] or low[1] > high[0]):
        raise InputError(
            f"benchmark.data.counting={name}: of {len(rows)} images, it is right on "
            f"{rates[0]:.0f} % if classes count from 0 and on {rates[1]:.0f} % if from 1, which "
            "does not decide; name a better network, or give 0 or 1."
        )
    first = int(np.argmax(hits))
    return {
        "first": first,
        "accuracy_percent": rates,
        "n": len(rows),
        "made_with": made_with(cell.cfg),
    }


def named_by(cell: Cell, network: str, candidates: Candidates, rows: Sequence[int]) -> np.ndarray:
    """The class that a network names for each image at these positions, (b,) int64."""
    import torch

    from irattack.exact import without_tf32
    from irattack.models.network import check_finite
    from irattack.pipeline.compute import build, prepare, to_device

    prepare(cell.cfg)
    found = []
    with without_tf32(), torch.no_grad():
        model = build(cell, network, "judge")
        for start in range(0, len(rows), AT_ONCE):
            images = candidates.take(rows[start : start + AT_ONCE])
            logits = model(to_device(images.pixels, cell.cfg))
            check_finite(network, logits.T, images.ids)
            found.append(logits.argmax(dim=1).cpu().numpy())
    return np.concatenate(found)
