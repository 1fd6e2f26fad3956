"""Tables of what the paper claims of interactions: Table 4, Section 4, Propositions 1 to 3."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from irattack.interactions.proofs import CLAIMS
from irattack.pipeline import analysis, store
from irattack.pipeline import statistics as evaluation
from irattack.pipeline.analysis import measured
from irattack.pipeline.cell import Cell
from irattack.pipeline.run import rows
from irattack.results.report import NAMES, PAPER, caption, method_name, publish

Definition = dict[str, Any]


def table4(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Average interactions of attacks at their last step, the paper's beside ours."""
    found = pd.DataFrame([analysis.interaction_record(cell) for cell in cells])
    paper = pd.read_csv(PAPER / "interactions.csv").drop(columns="table")
    paper = paper.rename(columns={"average_interaction": "paper"})
    found = found.merge(paper, how="left", on=["source", "attack"])
    sources = list(found.source.unique())
    lines = [["method", *(NAMES.get(source, source) for source in sources)]]
    for attack, group in found.groupby("attack", sort=False):
        of_source = group.set_index("source")
        ours, theirs = [], []
        for source in sources:
            row = of_source.loc[source]
            half = row.average_interaction - row.ci_low
            ours.append(f"{row.average_interaction:.3f} ± {half:.3f}")
            theirs.append("–" if pd.isna(row.paper) else f"{row.paper:.3f}")
        lines.append([method_name(str(attack)), *ours])
        if set(theirs) != {"–"}:
            lines.append([f"{method_name(str(attack))}, paper", *theirs])
    remarks = [
        f"Mean over images and the {found.grid[0]} x {found.grid[0]} cells of v(Λ) − v(Λ∖i) − v(i) "
        "+ v(∅), in logits, at the last step, ± the 95 % interval; per_pair in the CSV has the "
        "factor 1/(L² − 1) of Eq. 28. The paper does not say which of the two its Table 4 has.",
        caption(cells),
    ]
    return publish(cells, name, definition["title"], [lines], remarks, {f"{name}.csv": found})


def equal_length(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Section 4's claim: average interactions at one L2 length, beside success rates."""
    length = definition["length"]
    records = []
    for cell in cells:
        record = analysis.interaction_record(cell, length)
        arrays = store.read_arrays(cell.margins_path(cell.targets[0]))
        record["mean_l2"] = float(arrays["lengths"][-1].mean())
        record["last_step_percent"] = float(rows(cell).last_step_percent.mean())
        records.append(record)
    found = pd.DataFrame(records).sort_values(
        ["source", "average_interaction"], kind="stable", ascending=[True, True]
    )
    lines = [["source", "method", "interaction at equal length", "success %", "mean L2 before"]]
    remarks = []
    for source, group in found.groupby("source", sort=False):
        for row in group.itertuples():
            half = row.average_interaction - row.ci_low
            interaction = f"{row.average_interaction:+.3f} ± {half:.3f}"
            rate = f"{row.last_step_percent:.1f}"
            where = [NAMES.get(str(source), str(source)), method_name(row.attack)]
            lines.append([*where, interaction, rate, f"{row.mean_l2:.2f}"])
        rank = stats.spearmanr(group.average_interaction, group.last_step_percent)
        remarks.append(
            f"{NAMES.get(str(source), str(source))}: Spearman correlation of interaction and "
            f"success over {len(group)} attacks: {rank.statistic:+.2f}."
        )
    remarks += [
        f"Each perturbation of the last step is scaled to ‖δ‖₂ = {length} before its interactions "
        "are measured, as in Table 4. Success is of that step too, the mean over the targets.",
        caption(cells),
    ]
    return publish(cells, name, definition["title"], [lines], remarks, {f"{name}.csv": found})


def propositions(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Propositions 1, 2, 3 and the comparison with noise: paired differences over images."""
    records = []
    for cell in cells:
        for loss in definition["losses"]:
            found = measured(cell, definition, loss)
            for scale, (claim, pair) in product(("own", "equal"), CLAIMS.items()):
                means = [found[f"{scale} {attack}"].mean(axis=(1, 2)) for attack in pair]
                difference = means[0] - means[1]
                mean, low, high = evaluation.mean_interval(difference)
                records.append(
                    {
                        "claim": claim,
                        "source": cell.cfg.source,
                        "loss": loss,
                        "lengths": scale,
                        "n": len(difference),
                        **{"mean_larger": means[0].mean(), "mean_smaller": means[1].mean()},
                        **{"difference": mean, "ci_low": low, "ci_high": high},
                        "share_of_images_percent": 100 * (difference >= 0).mean(),
                        "length_larger": np.median(found[f"length {pair[0]}"]),
                        "length_smaller": np.median(found[f"length {pair[1]}"]),
                    }
                )
    data = pd.DataFrame(records)
    heads = ["proposition", "source", "loss", "lengths", "difference [95 %]", "holds for"]
    lines = [[*heads, "median ‖δ‖₂"]]
    for row in data.sort_values("claim", kind="stable").itertuples():
        lines.append(
            [
                *(row.claim, NAMES.get(row.source, row.source), row.loss, row.lengths),
                f"{row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]",
                f"{row.share_of_images_percent:.0f} %",
                f"{row.length_larger:.2f}, {row.length_smaller:.2f}",
            ]
        )
    cfg = cells[0].cfg
    remarks = []
    for claim, group in data.groupby("claim", sort=False):
        remarks.append(
            f"{claim}: holds on average, with the interval above 0, in "
            f"{(group.ci_low > 0).sum()} of {len(group)} settings; against it, with the interval "
            f"below 0, in {(group.ci_high < 0).sum()}."
        )
    remarks.append(
        f"benchmark={cfg.benchmark.name}, n={cfg.images} images, m = {definition['steps']} steps "
        f"of α = {definition['step_size']} times the gradient, no sign, no ball, no clipping. "
        f"Average interactions over {cfg.grid} x {cfg.grid} cells without 1/(L² − 1), in logits. "
        "Lengths are the attacks' own, or `equal`: scaled to that of the multi-step perturbation, "
        "since interactions grow with length."
    )
    return publish(cells, name, definition["title"], [lines], remarks, {f"{name}.csv": data})
