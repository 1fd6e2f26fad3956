"""What the paper claims, and whether it holds here.

A yaml of a table lists its `claims`: a sentence, `says`, and two of its attacks, of which the first
has `more` of what the table measures than the second has, `less`. Without `less` the other is the
best of the table's other attacks, or 0 where interactions are measured.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from irattack.pipeline.statistics import Interval
from irattack.results import paper

Spec = dict[str, Any]


class Printed(BaseModel):
    """What the paper prints: how many of its differences are above 0, and their mean."""

    model_config = ConfigDict(strict=True, extra="forbid")
    higher: int
    of: int
    mean: float


class Claim(BaseModel):
    """A claim of the paper as measured here: differences that are positive if it holds.

    Attributes:
        unit: of the differences.
        of: how many differences there are, one a pair of source and target, or a setting.
        higher: how many are above 0.
        above, below: how many have their 95 % interval above 0, and below.
        mean, low, high: the mean difference and its 95 % interval, over images; none of one image.
        paper: the paper's, of the same pairs, where it prints numbers.
        over_best: whether the other attack of each difference is the one that did best on the very
            images that count. That lowers the differences, by some points of equal attacks, which
            no interval knows.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    says: str
    unit: str
    of: int
    higher: int
    above: int
    below: int
    mean: float
    low: float | None
    high: float | None
    paper: Printed | None
    over_best: bool = False

    @property
    def verdict(self) -> str:
        """What the interval of the mean says; nothing against a claim that is `over_best`."""
        if self.low is not None and self.low > 0:
            return "holds"
        fails = self.high is not None and self.high < 0 and not self.over_best
        return "does not hold" if fails else "undecided"


def judge(
    spec: Spec,
    unit: str,
    mean: Interval,
    differences: Sequence[Interval],
    printed: Printed | None = None,
    over_best: bool = False,
) -> Claim:
    """A claim from its differences and their mean, each with its interval."""
    middle, *limits = (float(value) for value in mean)
    low, high = (None if math.isnan(limit) else limit for limit in limits)  # of a single image
    return Claim(
        says=spec["says"],
        unit=unit,
        of=len(differences),
        higher=sum(bool(value > 0) for value, *_ in differences),
        above=sum(bool(low > 0) for _, low, _ in differences),
        below=sum(bool(high < 0) for *_, high in differences),
        mean=middle,
        low=low,
        high=high,
        paper=printed,
        over_best=over_best,
    )


def printed(spec: Spec, table: Any, where: Collection[Any] | None = None) -> Printed | None:
    """The paper's numbers for a claim.

    Args:
        spec: the claim, as its yaml has it.
        table: the number of the paper's table; None if it prints none.
        where: the pairs of source and target, or the sources, that count; None for all.
    """
    if table is None:
        return None
    if table == paper.INTERACTIONS:
        rows = paper.interactions().pivot(index="source", columns="attack", values="paper")
        other = rows[spec["less"]] if "less" in spec else 0.0
    else:
        rates = paper.rates(table)
        rows = rates[rates.norm == spec["norm"]].pivot(
            index=["source", "target"], columns="attack", values="paper_percent"
        )
        rest = rows.drop(columns=spec["more"]).max(axis=1)
        other = rows[spec["less"]] if "less" in spec else rest
    found: pd.Series = (rows[spec["more"]] - other).dropna()
    if where is not None:
        found = found[found.index.isin(where)]
    if found.empty:
        return None
    return Printed(higher=int((found > 0).sum()), of=len(found), mean=float(found.mean()))
