"""How strong λ = 1 is from each source: the lengths of the two gradients of the IR attack."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from irattack.pipeline.cell import Cell
from irattack.pipeline.job import job_of
from irattack.pipeline.measures import Strength
from irattack.pipeline.statistics import Interval, mean_interval
from irattack.results.names import method_name, title
from irattack.results.publish import caption, publish
from irattack.results.record import Definition


def geometric(values: np.ndarray) -> Interval:
    """The geometric mean of (N,) values above 0 and its 95 % interval."""
    mean, low, high = (float(np.exp(each)) for each in mean_interval(np.log(values)))
    return mean, low, high


def strength(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """A line a source: ‖∇ℓ‖₂, ‖∇I‖₂, their ratio, and how far the two agree."""
    lines, records = [["source", "method", "‖∇ℓ‖₂", "‖∇I‖₂", "ratio [95 %]", "cosine [95 %]"]], []
    left_out = 0
    for cell in cells:
        found = job_of(cell, Strength).values()
        known = np.isfinite(found["cosine"])  # where neither gradient is 0
        left_out += int((~known).sum())
        found = {part: values[known] for part, values in found.items()}
        ratio = geometric(found["interaction"] / found["loss"])
        cosine = mean_interval(found["cosine"])
        lengths = {part: geometric(found[part])[0] for part in ("loss", "interaction")}
        lines.append(
            [
                *(title(cell.cfg.source), method_name(cell.method)),
                *(f"{length:.3g}" for length in lengths.values()),
                f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]",
                f"{cosine[0]:+.2f} [{cosine[1]:+.2f}, {cosine[2]:+.2f}]",
            ]
        )
        records.append(
            {"source": cell.cfg.source, "attack": cell.method, "n": len(found["loss"]), **lengths}
            | dict(zip(("ratio", "ratio_ci_low", "ratio_ci_high"), ratio, strict=True))
            | dict(zip(("cosine", "cosine_ci_low", "cosine_ci_high"), cosine, strict=True))
        )
    remarks = [
        "The gradients by δ of the classification loss ℓ and of the interaction loss I of Eq. 42 "
        "at the last step, geometric means over images. IR climbs ∇ℓ − λ ∇I: λ times the ratio is "
        "how strong λ is there. The cosine is that of ∇ℓ and −∇I. `attack=irbalance` keeps λ times "
        "the ratio fixed.",
        *([f"{left_out} images of which a gradient is 0 are left out."] if left_out else []),
        caption(cells, ""),
    ]
    data = {f"{name}.csv": pd.DataFrame(records)}
    return publish(cells, name, definition, [lines], remarks, data)
