"""Tables of what the paper claims of interactions: Table 4, Section 4, Propositions 1 to 3."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from irattack.interactions.averages import average, per_pair
from irattack.pipeline import statistics
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import job_of, jobs_of
from irattack.pipeline.measures import Contributions
from irattack.pipeline.results import arrays, rows
from irattack.pipeline.sources import Proofs
from irattack.results import headline, paper
from irattack.results.headline import Claim, Spec
from irattack.results.names import method_name, title
from irattack.results.publish import caption, publish
from irattack.results.record import Definition, needs
from irattack.results.tables import comparable


def interaction_record(cell: Cell) -> dict[str, Any]:
    """The average interaction of a cell as a table row, in both scalings."""
    plain = average(job_of(cell, Contributions).values()["contributions"])
    mean, low, high = statistics.mean_interval(plain)
    return {
        "source": cell.cfg.source,
        "attack": cell.method,
        "norm": cell.norm,
        "n": len(plain),
        "grid": cell.cfg.grid,
        "average_interaction": mean,
        "ci_low": low,
        "ci_high": high,
        "per_pair": per_pair(mean, cell.cfg.grid),
    }


def correlation(where: str, interactions: pd.Series, success: pd.Series) -> str:
    """A sentence on the rank correlation over the attacks from a source; (A,) each.

    Args:
        where: what these attacks share, for people: the source, and the norm if there are several.
    """
    from scipy.stats import spearmanr

    rank = spearmanr(interactions, success)
    return (
        f"{where}: Spearman correlation of interaction and "
        f"success over {len(interactions)} attacks: {rank.statistic:+.2f}."
    )


@needs(comparable)
def table4(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Average interactions of attacks at their last step, the paper's beside ours."""
    found = pd.DataFrame([interaction_record(cell) for cell in cells])
    found = found.merge(paper.interactions(), how="left", on=["source", "attack"])
    number = definition.get("paper")
    if cells[0].targeted:  # of which the paper has none
        found["paper"], number = float("nan"), None
    sources = list(found.source.unique())
    lines = [["method", *(title(source) for source in sources)]]
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
    judged = [judge(cells, spec, number) for spec in definition.get("claims", [])]
    claims = [claim for claim in judged if claim]
    return publish(cells, name, definition, [lines], remarks, {f"{name}.csv": found}, claims)


def judge(cells: Sequence[Cell], spec: Spec, table: int | None) -> Claim | None:
    """Whether one attack's interactions are larger than another's, or than 0, over images."""
    found = {
        (cell.cfg.source, cell.method): average(
            job_of(cell, Contributions).values()["contributions"]
        )
        for cell in cells
        if cell.method in (spec["more"], spec.get("less"))
    }
    differences = {
        source: values - found.get((source, spec.get("less", "")), 0.0)
        for (source, method), values in found.items()
        if method == spec["more"] and ("less" not in spec or (source, spec["less"]) in found)
    }
    return over_images(spec, differences, headline.printed(spec, table, differences))


def over_images(
    spec: Spec, differences: dict[Any, np.ndarray], printed: headline.Printed | None = None
) -> Claim | None:
    """A claim of several differences of interactions, (N,) each, of the same images."""
    if not differences:
        return None
    intervals = [statistics.mean_interval(values) for values in differences.values()]
    mean = statistics.mean_interval(np.mean(list(differences.values()), axis=0))
    return headline.judge(spec, "logits", mean, intervals, printed)


def verdicts(cells: Sequence[Cell], definition: Definition) -> tuple[list[Claim], list[str]]:
    """What becomes of a table's claims of interactions that the paper has no number for, told."""
    judged = [judge(cells, spec, None) for spec in definition.get("claims", [])]
    claims = [claim for claim in judged if claim]
    told = [f"{claim.says}: {claim.verdict} ({claim.mean:+.3f})" for claim in claims]
    sentence = f"By the interval of the mean difference: {'; '.join(told)}."
    return claims, [sentence] if told else []


@needs(comparable)
def equal_length(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Section 4's claim: average interactions at one L2 length, beside success rates."""
    length = job_of(cells[0], Contributions).length
    records = []
    for cell in cells:
        record = interaction_record(cell)
        lengths = arrays(cell, cell.targets[0])["lengths"]
        record["mean_l2"] = float(lengths[-1].mean())
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
            where = [title(str(source)), method_name(row.attack)]
            lines.append([*where, interaction, rate, f"{row.mean_l2:.2f}"])
        of_source = title(str(source))
        remarks.append(correlation(of_source, group.average_interaction, group.last_step_percent))
    claims, told = verdicts(cells, definition)
    remarks += [
        *told,
        f"Each perturbation of the last step is scaled to ‖δ‖₂ = {length} before its interactions "
        "are measured; those of Table 4 are not. Success is of that step, the mean over targets.",
        caption(cells),
    ]
    return publish(cells, name, definition, [lines], remarks, {f"{name}.csv": found}, claims)


def propositions(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Propositions 1, 2, 3 and the comparison with noise: paired differences over images."""
    records, differences = [], dict[str, dict[Any, np.ndarray]]()
    specs = {spec["says"]: (spec["more"], spec["less"]) for spec in definition["claims"]}
    for cell in cells:
        for job in jobs_of(cell):
            assert isinstance(job, Proofs)
            found = job.values()
            for scale, (claim, pair) in product(("own", "equal"), specs.items()):
                means = [found[f"{scale} {attack}"].mean(axis=(1, 2)) for attack in pair]
                difference = means[0] - means[1]
                setting = (cell.cfg.source, job.loss, scale)
                differences.setdefault(claim, {})[setting] = difference
                mean, low, high = statistics.mean_interval(difference)
                records.append(
                    {
                        "claim": claim,
                        "source": cell.cfg.source,
                        "loss": job.loss,
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
                *(row.claim, title(row.source), row.loss, row.lengths),
                f"{row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]",
                f"{row.share_of_images_percent:.0f} %",
                f"{row.length_larger:.2f}, {row.length_smaller:.2f}",
            ]
        )
    cfg, job = cells[0].cfg, job_of(cells[0], Proofs)
    remarks = []
    for claim, group in data.groupby("claim", sort=False):
        remarks.append(
            f"{claim}: holds on average, with the interval above 0, in "
            f"{(group.ci_low > 0).sum()} of {len(group)} settings; against it, with the interval "
            f"below 0, in {(group.ci_high < 0).sum()}."
        )
    remarks.append(
        f"benchmark={cfg.benchmark.name}, n={cfg.images} images, m = {job.steps} steps "
        f"of α = {job.step_size} times the gradient, no sign, no ball, no clipping. "
        f"Average interactions over {cfg.grid} x {cfg.grid} cells without 1/(L² − 1), in logits. "
        "Lengths are the attacks' own, or `equal`: scaled to that of the multi-step perturbation, "
        "since interactions grow with length."
    )
    judged = [over_images(spec, differences[spec["says"]]) for spec in definition["claims"]]
    claims = [claim for claim in judged if claim]
    return publish(cells, name, definition, [lines], remarks, {f"{name}.csv": data}, claims)
