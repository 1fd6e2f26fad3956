"""Tables of success rates, the paper's numbers beside ours."""

from collections.abc import Iterator, Sequence
from operator import itemgetter

import pandas as pd

from irattack.pipeline import statistics
from irattack.pipeline.cell import Cell
from irattack.pipeline.results import arrays, rows
from irattack.results import headline, paper
from irattack.results.headline import Claim, Spec
from irattack.results.names import clean_name, method_name, title
from irattack.results.paper import CELL
from irattack.results.publish import caption, publish
from irattack.results.record import Definition, needs, same_images

COLUMNS = [
    *(*CELL, "n", "success_rate_percent", "ci_low", "ci_high", "paper_percent"),
    *("crossfit_percent", "crossfit_ci_low", "crossfit_ci_high", "last_step_percent"),
    *("optimistic_best_step_percent", "clean_error_percent"),
]
GAIN = [
    *("attack", "over", "source", "norm", "target", "n", "gain", "ci_low", "ci_high"),
    *("crossfit_gain", "crossfit_ci_low", "crossfit_ci_high", "paper_gain"),
]


def render(results: pd.DataFrame) -> str:
    """The rows of one cell, for the terminal."""
    shown = paper.with_paper(results)
    names = {
        "success_rate_percent": "success %",
        "ci": "95 % interval",
        "clean_error_percent": clean_name(results.attack.str.endswith(" targeted").all()),
        "paper_percent": "paper %, its settings",
    }
    shown["ci"] = [f"{a:.1f} to {b:.1f}" for a, b in zip(shown.ci_low, shown.ci_high, strict=True)]
    shown["paper_percent"] = shown["paper_percent"].map("{:.1f}".format).replace("nan", "–")
    shown = shown[[*CELL, "n", *names]].rename(columns=names)
    return shown.to_markdown(index=False, floatfmt=".1f", tablefmt="simple")


def gains(cells: Sequence[Cell], pairs: Sequence[Sequence[str]], table: int | None) -> pd.DataFrame:
    """The gain of the second attack of each pair over the first, in points, paired over images.

    Columns: attack, over, source, norm, target, n, those of `statistics.gains`, paper_gain.
    """
    printed = paper.rates(table).set_index(CELL)["paper_percent"]
    records = []
    for both in paired(cells, pairs):
        (source, norm), (ours, baseline) = (both[0].cfg.source, both[0].norm), both
        for target in baseline.targets:
            margins = [arrays(c, target)["margins"] for c in both]
            first, second = (
                float("nan")
                if c.targeted  # of which the paper has none
                else printed.get((source, c.method, norm, target), float("nan"))
                for c in both
            )
            where = {"attack": ours.method, "over": baseline.method, "source": source}
            where |= {"norm": norm, "target": target, "n": margins[0].shape[1]}
            found = statistics.gains(*margins) | {"paper_gain": first - second}
            records.append(where | found)
    return pd.DataFrame(records, columns=GAIN)


def paired(cells: Sequence[Cell], pairs: Sequence[Sequence[str]]) -> Iterator[tuple[Cell, Cell]]:
    """The cells of the second attack of each pair and of the first, of each source and norm."""
    by_name = {(cell.method, cell.cfg.source, cell.norm): cell for cell in cells}
    for baseline, ours in pairs:
        for (name, source, norm), cell in by_name.items():
            if name == baseline and (ours, source, norm) in by_name:
                yield by_name[ours, source, norm], cell


def comparable(name: str, definition: Definition, cells: Sequence[Cell]) -> None:
    """Raises InputError where a gain or a claim is of different images."""
    for both in paired(cells, definition.get("gain", [])):
        same_images(name, definition, both)
    for spec in definition.get("claims", []):
        named = {spec["more"], spec["less"]} if "less" in spec else {cell.method for cell in cells}
        norm = spec.get("norm")
        judged = [cell for cell in cells if cell.method in named and norm in (None, cell.norm)]
        same_images(name, definition, judged)


def judge(cells: Sequence[Cell], spec: Spec, table: int | None) -> Claim | None:
    """Whether one attack transfers better than another, or than the best of the others.

    Success is at the step chosen by leave-one-out. None if no pair of cells is there for it.
    """
    found = {
        (cell.cfg.source, target, cell.method): statistics.successes(
            arrays(cell, target)["margins"]
        )
        for cell in cells
        if cell.norm == spec["norm"]
        for target in cell.targets
    }
    where, pairs, most = [], [], 0  # rivals among which one was chosen
    if "less" not in spec and set(paper.rates(table).attack) - {cell.name for cell in cells}:
        return None  # the best of some of them is another claim
    for (source, target, method), ours in found.items():
        rivals = [
            (success[statistics.chosen_steps(success), range(success.shape[1])].mean(), success)
            for (*place, other), success in found.items()
            if place == [source, target] and other == spec.get("less", other) != method
        ]
        if method == spec["more"] and rivals:
            most = max(most, len(rivals))
            where.append((source, target))
            pairs.append((ours, max(rivals, key=itemgetter(0))[1]))
    if not pairs:
        return None
    printed = headline.printed(spec, table, where)
    gained = statistics.mean_gain(pairs)
    return headline.judge(spec, "points", *gained, printed, over_best=most > 1)


def layout(results: pd.DataFrame, gain: pd.DataFrame, norm: str) -> list[list[str]]:
    """One norm's half of a table, laid out as in the paper: a line a source and method."""
    results = results[results.norm == norm]
    gain = gain[gain.norm == norm]
    targets = list(dict.fromkeys(results.target))
    lines: list[list[str]] = []

    def line(label: str, of: pd.DataFrame, column: str, form: str = ".1f") -> None:
        values = of.dropna(subset=column).set_index("target")
        if len(values):
            cells = {target: f"{value:{form}}" for target, value in values[column].items()}
            if column == "gain":
                limits = zip(values.index, values.ci_low, values.ci_high, strict=True)
                cells = {t: f"{cells[t]} [{low:+.1f}, {high:+.1f}]" for t, low, high in limits}
            mean = f"{values[column].mean():{form}}"
            lines.append(["", label, *(cells.get(target, "–") for target in targets), mean])

    for source, of_source in results.groupby("source", sort=False):
        first = len(lines)
        for attack, group in of_source.groupby("attack", sort=False):
            line(method_name(str(attack)), group, "success_rate_percent")
            line(f"{method_name(str(attack))}, paper", group, "paper_percent")
        gains_of = gain[gain.source == source].groupby(["attack", "over"], sort=False)
        for (ours, over), group in gains_of:
            line(f"{method_name(ours)} − {method_name(over)} [95 %]", group, "gain", "+.1f")
            line("gain, paper", group, "paper_gain", "+.1f")
        lines[first][0] = title(str(source))
    wrong = results.groupby("target", sort=False).clean_error_percent.max().reset_index()
    targeted = results.attack.str.endswith(" targeted").all()
    clean = "clean images, given the class" if targeted else "clean images, wrong"
    line(clean, wrong, "clean_error_percent")
    return [
        [f"{title(norm)} source", "method", *(title(t) for t in targets), "mean"],
        *lines,
    ]


def overview(results: pd.DataFrame) -> list[list[str]]:
    """A line a source and method: means over the targets, instead of a column a target."""
    keys = ["source", "norm", "attack"]
    columns = ["success_rate_percent", "last_step_percent", "mean_l2", "source_confidence"]
    means = results.groupby(keys, sort=False)[columns].mean().reset_index()
    names = ["source", "norm", "method", "success %", "at last step %", "mean L2", "median p_y"]
    lines = [
        [
            *(title(row.source), title(row.norm), method_name(row.attack)),
            *(f"{row.success_rate_percent:.1f}", f"{row.last_step_percent:.1f}"),
            *(f"{row.mean_l2:.2f}", f"{row.source_confidence:.2f}"),
        ]
        for row in means.itertuples()
    ]
    return [names, *lines]


def summaries(gain: pd.DataFrame) -> list[str]:
    """A sentence a pair: how often and by how much one attack beats the other, for each norm."""
    sentences = []
    for (ours, over), of_pair in gain.groupby(["attack", "over"], sort=False):
        parts = [(title(str(norm)), g) for norm, g in of_pair.groupby("norm", sort=False)]
        for norm, g in [*parts, *([("both norms", of_pair)] if len(parts) > 1 else [])]:
            sentence = (
                f"{method_name(ours)} against {method_name(over)}, {norm}: higher on "
                f"{(g.gain > 0).sum()} of {len(g)} pairs ({(g.ci_low > 0).sum()} with the interval "
                f"above 0), lower on {(g.gain < 0).sum()} ({(g.ci_high < 0).sum()} below 0); mean "
                f"gain {g.gain.mean():+.1f} points. By cross-fit {g.crossfit_gain.mean():+.1f} "
                f"({(g.crossfit_ci_low > 0).sum()} above 0, "
                f"{(g.crossfit_ci_high < 0).sum()} below)."
            )
            paper = g.paper_gain.dropna()
            if len(paper):
                higher = (paper > 0).sum()
                sentence += f" Paper: higher on {higher} of {len(paper)}, mean {paper.mean():+.1f}."
            sentences.append(sentence)
    return sentences


@needs(comparable)
def write_table(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """A table of success rates (conf/table): writes its files, returns what to print."""
    number = definition.get("paper")
    results = pd.concat([rows(cell) for cell in cells], ignore_index=True)
    results = paper.with_paper(results, number)
    controls = definition.get("layout") == "overview"
    if not controls:
        results = results[COLUMNS]
    files = {f"{name}.csv": results}
    remarks = [caption(cells)]
    gain = gains(cells, definition.get("gain", []), number)
    if len(gain):
        files[f"{name}_gain.csv"] = gain
        remarks += summaries(gain)
    notes = paper.rates(number).dropna(subset="note").merge(results[CELL], on=CELL)
    for n in notes.itertuples():
        pair = f"{title(n.source)} to {title(n.target)}"
        remarks.append(
            f"The paper's {method_name(n.attack)} {pair} ({title(n.norm)}), quoted as "
            f"{n.paper_percent:.1f}: {n.note.replace('linf', 'L∞')}."
        )
    halves = (
        [overview(results)]
        if controls
        else [layout(results, gain, norm) for norm in results.norm.unique()]
    )
    specs = [] if cells[0].targeted else definition.get("claims", [])  # the paper's
    judged = [judge(cells, spec, number) for spec in specs]
    claims = [claim for claim in judged if claim]
    return publish(cells, name, definition, halves, remarks, files, claims)
