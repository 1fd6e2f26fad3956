"""Each attack at its best: settings chosen on validation images, success on others."""

from collections.abc import Sequence

import pandas as pd

from irattack.errors import InputError
from irattack.pipeline.cell import Cell
from irattack.pipeline.choosing import Best, Setting
from irattack.pipeline.job import job_of
from irattack.pipeline.results import rows
from irattack.results.compared import MEAN, mean_gain
from irattack.results.names import method_name, signed, title
from irattack.results.publish import caption, publish
from irattack.results.record import Definition, needs, same_images
from irattack.results.tables import gains, summaries


def told(setting: Setting) -> str:
    """Chosen settings as a table has them, such as `step_size=0.0314, start=zero`."""
    values = {path.split(".")[-1]: value for path, value in setting.items()}
    return ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )


def has_its_rival(name: str, definition: Definition, cells: Sequence[Cell]) -> None:
    """Raises InputError where a source lacks the attack that all others are compared with."""
    with_it = {(c.cfg.source, c.norm) for c in cells if c.method == definition["against"]}
    for source, norm in sorted({(c.cfg.source, c.norm) for c in cells} - with_it):
        raise InputError(
            f"{name}: compares with attack={definition['against']}, and has none from {source} in "
            f"{norm}; add it to attack=."
        )


@needs(has_its_rival, same_images)
def tuned(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """A line a cell: the chosen settings, success by default and tuned, and the gain of the last.

    The tuned attack of `against` is what the tuned others are compared with.
    """
    best = {}
    for cell in cells:
        card = job_of(cell, Best).artifact().card()
        assert card is not None, f"{cell.label}: Best comes first"
        best[cell.key] = card, job_of(cell, Best).best(card.settings)
    against = {
        (cell.cfg.source, cell.norm): best[cell.key][1]
        for cell in cells
        if cell.method == definition["against"]
    }
    over = method_name(definition["against"])
    heads = ["source", "norm", "method", "chosen", "on validation", "default", "tuned"]
    lines = [[*heads, "tuned − default [95 %]", f"− {over} tuned [95 %]"]]
    frames, trials = [], []
    for cell in cells:
        card, ours = best[cell.key]
        where = {"source": cell.cfg.source, "norm": cell.norm, "attack": cell.method}
        (validated,) = (one.percent for one in card.tried if one.setting == card.settings)
        for one in card.tried:
            trials.append(
                {**where, "setting": told(one.setting), "n": card.n}
                | {"validation_percent": one.percent, "chosen": one.setting == card.settings}
            )
        by_default, at_best = rows(cell), rows(ours)
        gain, other = mean_gain(ours, cell), against[cell.cfg.source, cell.norm]
        lead = (float("nan"),) * 3 if other is ours else mean_gain(ours, other)
        frames.append(by_default.assign(chosen="default"))
        extra = dict(zip(MEAN, lead, strict=True))
        frames.append(at_best.assign(chosen=told(card.settings), **extra))
        lines.append(
            [
                *(title(cell.cfg.source), title(cell.norm), method_name(cell.method)),
                *(told(card.settings), f"{validated:.1f}"),
                f"{by_default.success_rate_percent.mean():.1f}",
                f"{at_best.success_rate_percent.mean():.1f}",
                *(signed(gain), "–" if other is ours else signed(lead)),
            ]
        )
    results = pd.concat(frames, ignore_index=True)
    every = [*cells, *(ours for _, ours in best.values())]
    each = gains(every, definition.get("gain", []), None).drop(columns="paper_gain")
    counted = " or ".join(str(n) for n in sorted({card.n for card, _ in best.values()}))
    remarks = [
        "Means over the targets in percent, and in points with intervals of the mean, paired over "
        f"images. Settings were chosen by mean success over the same targets on {counted} "
        "validation images, one setting after the other in the order in which they stand; "
        "the trials are in a file of their own. T is chosen by leave-one-out, up to `steps`. Of "
        "the settings below, lam and start are those before the choice.",
        caption(every),
        *summaries(each.assign(paper_gain=float("nan"))),
    ]
    files = {f"{name}.csv": results, f"{name}_gain.csv": each}
    files[f"{name}_trials.csv"] = pd.DataFrame(trials)
    return publish(cells, name, definition, [lines], remarks, files)
