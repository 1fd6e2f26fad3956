"""Tables of what success means: at equal length, by which criterion, at which step, in which file.

A table is a function of its name, its definition (conf/table) and its cells that returns what to
print.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from irattack.errors import InputError
from irattack.pipeline import statistics
from irattack.pipeline.artifact import Arrays
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import job_of
from irattack.pipeline.results import arrays
from irattack.pipeline.statistics import Interval, Rule
from irattack.pipeline.transfer import Answers, EqualLength
from irattack.results.names import method_name, signed, title
from irattack.results.publish import caption, publish
from irattack.results.record import Definition, needs, same_images

Pair = tuple[np.ndarray, np.ndarray]
RULES: dict[str, Rule] = {
    "last step": statistics.last_step,
    "leave-one-out": statistics.leave_one_out,
    "best step": statistics.best_step,
}
CRITERIA = {
    "misclassified": "the target's class is wrong",
    "known": "the same, of the images that the target classifies correctly when clean",
    "same class": "the target's wrong class is the source's",
}


def by_method(cells: Sequence[Cell]) -> dict[tuple[str, str, str], Cell]:
    """The cells by norm, source and method."""
    return {(cell.norm, cell.cfg.source, cell.method): cell for cell in cells}


def record(where: dict[str, object], n: int, found: dict[str, Interval]) -> dict[str, object]:
    """A line of a CSV: each interval as three columns."""
    columns = {
        f"{name}{suffix}": value
        for name, interval in found.items()
        for suffix, value in zip(("", "_ci_low", "_ci_high"), interval, strict=True)
    }
    return where | {"n": n} | columns


def has_its_rival(name: str, definition: Definition, cells: Sequence[Cell]) -> None:
    """Raises InputError where an attack lacks the one at whose length it is measured."""
    keys = {cell.key for cell in cells}
    for job in (job_of(cell, EqualLength) for cell in cells):
        if job.other.key not in keys:
            raise InputError(f"{name}: needs {job.against} beside the others; add it to attack=.")


@needs(has_its_rival, same_images)
def length(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Gains over one attack, as they are and at equal length, of the last step."""
    heads = ["source", "norm", "method", "success %", "gain", "at equal length %", "gain there"]
    lines, records = [[*heads, "mean L2", "at equal length"]], []
    against = job_of(cells[0], EqualLength).against
    by_key = {cell.key: cell for cell in cells}
    for cell in cells:
        job = job_of(cell, EqualLength)
        if cell.key == job.other.key:
            continue
        baseline, own, equal = by_key[job.other.key], list[Pair](), list[Pair]()
        for target in cell.targets:
            before = [arrays(one, target) for one in (cell, baseline)]
            found = job.values(target)
            ours, theirs = (statistics.successes(a["margins"][-1:]) for a in before)
            own.append((ours, theirs))
            ours, theirs = (statistics.successes(margins[None]) for margins in found["margins"])
            equal.append((ours, theirs))
            lengths = [a["lengths"][-1] for a in before]
            common = found["lengths"][0]
        kinds = {"as_it_is": own, "equal_length": equal}
        means = {}
        for kind, pairs in kinds.items():
            means[f"{kind}_success"] = statistics.mean_rate([ours for ours, _ in pairs])
            means[f"{kind}_against"] = statistics.mean_rate([theirs for _, theirs in pairs])
            means[f"{kind}_gain"] = statistics.mean_gain(pairs)
        where = {"source": cell.cfg.source, "norm": cell.norm, "attack": cell.method}
        where["over"] = against
        of = {"mean_l2": lengths[0].mean(), "mean_l2_over": lengths[1].mean()}
        of |= {"mean_l2_equal": common.mean()}
        for place, target in enumerate(cell.targets):
            each = {what: one[place] for what, (_, one) in means.items()}
            records.append(record(where | {"target": target} | of, common.size, each))
        mean = {what: one for what, (one, _) in means.items()}
        records.append(record(where | {"target": "mean"} | of, common.size, mean))
        lines.append(
            [
                *(title(cell.cfg.source), title(cell.norm), method_name(cell.method)),
                *(f"{mean['as_it_is_success'][0]:.1f}", signed(mean["as_it_is_gain"])),
                *(f"{mean['equal_length_success'][0]:.1f}", signed(mean["equal_length_gain"])),
                f"{of['mean_l2']:.2f} against {of['mean_l2_over']:.2f}",
                f"{of['mean_l2_equal']:.2f}",
            ]
        )
    remarks = [
        f"Success of the last step, in %, the mean over the targets; gains over "
        f"{method_name(against)} in points. At equal length, of both perturbations of an image the "
        "longer is scaled to the L2 length of the shorter (in units of [0, 1] images), and both "
        "are evaluated without being rounded to 8 bits again.",
        caption(cells),
    ]
    return publish(
        cells, name, definition, [lines], remarks, {f"{name}.csv": pd.DataFrame(records)}
    )


def succeeded(
    target: Arrays, source: Arrays, form: str, criterion: str
) -> tuple[np.ndarray, np.ndarray]:
    """Which steps succeed by a criterion, (T, N) bool, and which images count, (N,) bool.

    Args:
        target, source: the arrays of `Answers`, of each.
        form: of the files, the clean image's too.
        criterion: one of `CRITERIA`.
    """
    margins = statistics.successes(target[f"margins {form}"])
    clean, wrong = margins[0], margins[1:]
    if criterion == "known":
        return wrong, ~clean
    if criterion == "same class":
        same = target[f"classes {form}"] == source[f"classes {form}"]
        wrong = wrong & same[1:]
    return wrong, np.ones_like(clean)


@needs(same_images)
def success(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """Each criterion, rule and format, with gains over the first attack of the table."""
    first = cells[0].method
    formats = job_of(cells[0], Answers).formats
    others, records, tables = by_method(cells), [], dict[tuple[str, str, str], dict[str, str]]()
    methods = [(cell, others[cell.norm, cell.cfg.source, first]) for cell in cells]
    known = {
        (cell.key, target): job_of(cell, Answers).values(target)
        for cell in cells
        for target in (*cell.targets, cell.cfg.source)
    }

    def steps(cell: Cell, form: str, criterion: str) -> list[tuple[np.ndarray, np.ndarray]]:
        source = known[cell.key, cell.cfg.source]
        return [succeeded(known[cell.key, t], source, form, criterion) for t in cell.targets]

    for cell, baseline in methods:
        place = (cell.norm, cell.cfg.source, cell.method)
        for form, criterion, (rule_name, rule) in product(formats, CRITERIA, RULES.items()):
            own, counted = zip(*steps(cell, form, criterion), strict=True)
            base, _ = zip(*steps(baseline, form, criterion), strict=True)
            means = {
                "percent": statistics.mean_rate(own, rule, 0, counted),
                "gain": statistics.mean_gain([*zip(own, base, strict=True)], rule, 0, counted),
                "over_leave_one_out": statistics.mean_gain(
                    [*zip(own, own, strict=True)], (rule, statistics.leave_one_out), 0, counted
                ),
            }
            where = {"source": cell.cfg.source, "norm": cell.norm, "attack": cell.method}
            where |= {"over": first, "format": form, "criterion": criterion, "step": rule_name}
            for i, target in enumerate(cell.targets):
                clean = known[cell.key, target][f"margins {form}"][0] > 0
                at = where | {"target": target, "clean_error_percent": 100 * clean.mean()}
                each = {what: one[i] for what, (_, one) in means.items()}
                records.append(record(at, int(counted[i].sum()), each))
            mean = {what: one for what, (one, _) in means.items()}
            records.append(record(where | {"target": "mean"}, own[0].shape[1], mean))
            rate, gain = f"{mean['percent'][0]:.1f}", signed(mean["gain"])
            told = tables.setdefault(place, {})
            told[f"{form} {criterion} {rule_name}"] = rate
            told[f"{form} {criterion} {rule_name} gain"] = gain
            told[f"{form} {criterion} {rule_name} bias"] = signed(mean["over_leave_one_out"])
    png = formats[0]

    def table(heads: dict[str, str]) -> list[list[str]]:
        found = [["source", "method", *heads]]
        for (_, source, method), of_cell in tables.items():
            shown = {column: of_cell[key] for column, key in heads.items()}
            if method == first:
                shown |= {column: "–" for column in heads if column.startswith("gain")}
            found.append([title(source), method_name(method), *shown.values()])
        return found

    by_criterion = {
        head: f"{png} {criterion} leave-one-out{suffix}"
        for criterion in CRITERIA
        for head, suffix in ((f"{criterion} %", ""), (f"gain, {criterion}", " gain"))
    }
    by_rule = {
        **{f"{rule} %": f"{png} misclassified {rule}" for rule in RULES},
        "best step − leave-one-out": f"{png} misclassified best step bias",
        **{f"gain, {rule}": f"{png} misclassified {rule} gain" for rule in RULES},
    }
    by_format = {
        head: f"{form} misclassified leave-one-out{suffix}"
        for form in formats
        for head, suffix in ((f"{form} %", ""), (f"gain, {form}", " gain"))
    }
    data = pd.DataFrame(records)
    wrong = data[data.target != "mean"].groupby(["format", "target"], sort=False)
    errors = wrong.clean_error_percent.max().groupby("format", sort=False).mean()
    meaning = "; ".join(f"{criterion}: {what}" for criterion, what in CRITERIA.items())
    remarks = [
        f"Means over the targets, in %, and gains over {method_name(first)} in points, paired over "
        f"images, with 95 % intervals. {meaning[0].upper()}{meaning[1:]}. The first and the third "
        f"table are of steps chosen by leave-one-out, the first two of {png} files. The best step "
        "is chosen by the very answers that it is judged by: optimistic.",
        "Pillow encodes and decodes each image; a clean image, by which `known` counts, is saved "
        "alike. PNG keeps all 8 bits, as does the step cache. Mean clean error over the targets: "
        f"{', '.join(f'{form} {error:.1f} %' for form, error in errors.items())}.",
        caption(cells),
    ]
    lines = [table(by_criterion), table(by_rule), table(by_format)]
    return publish(cells, name, definition, lines, remarks, {f"{name}.csv": data})
