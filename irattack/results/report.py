"""Results as tables: CSV, Markdown and LaTeX, the paper's numbers beside ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from tabulate import tabulate

from irattack.pipeline import statistics as evaluation
from irattack.pipeline import store
from irattack.pipeline.cell import PRECISIONS, Cell
from irattack.pipeline.run import rows

PAPER = Path(__file__).parent / "paper"
CELL = ["source", "attack", "norm", "target"]
COLUMNS = [*CELL, "n", "success_rate_percent", "ci_low", "ci_high", "paper_percent"]
LATEX = {
    **{ord("∞"): r"$_\infty$", ord("–"): "--", ord("−"): "$-$", ord("λ"): r"$\lambda$"},
    **{ord("≥"): r"$\geq$", ord("±"): r"$\pm$"},
}
NAMES = {
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "resnet34": "RN-34",
    "resnet152": "RN-152",
    "densenet121": "DN-121",
    "densenet201": "DN-201",
    "ensemble": "Ensemble",
    "senet154": "SE-154",
    "inception_v3": "IncV3",
    "inception_v4": "IncV4",
    "inception_resnet_v2": "IncResV2",
    "inception_v3_ens3": "IncV3-ens3",
    "inception_v3_ens4": "IncV3-ens4",
    "inception_resnet_v2_ens3": "IncResV2-ens3",
    "linf": "L∞",
    "l2": "L2",
    "free": "no ball",
}


METHODS = {
    **{
        "miir": "MI+IR",
        "vrir": "VR+IR",
        "sgmir": "SGM+IR",
        "tiir": "TI+IR",
        "hybridir": "HybridIR",
    },
    **{"ironly": "IR only", "singlestep": "single step", "maskaug": "masks", "noise": "noise"},
    "relaxed": "relaxed",
}


def paper_rates(table: int | None = None) -> pd.DataFrame:
    """The paper's success rates: source, attack, norm, target, paper_percent, note."""
    rates = pd.read_csv(PAPER / "success_rates.csv")
    if table is not None:
        rates = rates[rates["table"] == table]
    rates = rates.rename(columns={"success_rate_percent": "paper_percent"})
    return rates[[*CELL, "paper_percent", "note"]].drop_duplicates(CELL)


def with_paper(results: pd.DataFrame, table: int | None = None) -> pd.DataFrame:
    """Adds the column paper_percent; empty where the paper has no such cell."""
    return results.merge(paper_rates(table).drop(columns="note"), how="left", on=CELL)


def render(results: pd.DataFrame) -> str:
    """The rows of one cell, for the terminal."""
    shown = with_paper(results)
    names = {"success_rate_percent": "success %", "ci": "95 % interval", "paper_percent": "paper %"}
    shown["ci"] = [f"{a:.1f} to {b:.1f}" for a, b in zip(shown.ci_low, shown.ci_high, strict=True)]
    shown["paper_percent"] = shown["paper_percent"].map("{:.1f}".format).replace("nan", "–")
    shown = shown[[*CELL, "n", "success_rate_percent", "ci", "paper_percent"]].rename(columns=names)
    return shown.to_markdown(index=False, floatfmt=".1f", tablefmt="simple")


def gains(cells: Sequence[Cell], pairs: Sequence[Sequence[str]], table: int | None) -> pd.DataFrame:
    """The gain of the second attack of each pair over the first, in points.

    Columns: attack, over, source, norm, target, n, gain, ci_low, ci_high (paired over images),
    paper_gain.
    """
    by_name = {(cell.method, cell.cfg.source, cell.norm): cell for cell in cells}
    paper = paper_rates(table).set_index(CELL)["paper_percent"]
    records = []
    for baseline, ours in pairs:
        for (name, source, norm), cell in by_name.items():
            if name != baseline or (ours, source, norm) not in by_name:
                continue
            both = (by_name[ours, source, norm], cell)
            for target in cell.targets:
                measured = [store.read_arrays(c.margins_path(target)) for c in both]
                success = [evaluation.transferred(arrays["margins"]) for arrays in measured]
                percent = [paper.get((source, c.method, norm, target), float("nan")) for c in both]
                gain = evaluation.gain_interval(*success)
                where = (ours, baseline, source, norm, target, len(success[0]))
                records.append((*where, *gain, percent[0] - percent[1]))
    columns = ["attack", "over", *CELL[:1], *CELL[2:], "n", "gain", "ci_low", "ci_high"]
    return pd.DataFrame(records, columns=[*columns, "paper_gain"])


def layout(results: pd.DataFrame, gain: pd.DataFrame, norm: str) -> list[list[str]]:
    """One norm's half of a table, laid out as in the paper: a line a source and method."""
    results = results[results.norm == norm]
    gain = gain[gain.norm == norm]
    targets = list(dict.fromkeys(results.target))
    lines: list[list[str]] = []

    def line(label: str, cells: dict[str, str]) -> None:
        if any(cells.values()):
            numbers = [float(cells[t].split()[0]) for t in targets if cells.get(t)]
            sign = "+" if "+" in "".join(cells.values()) else ""
            mean = f"{sum(numbers) / len(numbers):{sign}.1f}"
            lines.append(["", label, *(cells.get(target) or "–" for target in targets), mean])

    for source, of_source in results.groupby("source", sort=False):
        first = len(lines)
        for attack, group in of_source.groupby("attack", sort=False):
            percent = dict(zip(group.target, group.success_rate_percent, strict=True))
            paper = dict(zip(group.target, group.paper_percent, strict=True))
            line(method_name(attack), {t: f"{value:.1f}" for t, value in percent.items()})
            printed = {t: "" if pd.isna(v) else f"{v:.1f}" for t, v in paper.items()}
            line(f"{method_name(str(attack))}, paper", printed)
        for (ours, over), group in gain[gain.source == source].groupby(
            ["attack", "over"], sort=False
        ):
            found = {
                row.target: f"{row.gain:+.1f} [{row.ci_low:+.1f}, {row.ci_high:+.1f}]"
                for row in group.itertuples()
            }
            printed = {
                row.target: "" if pd.isna(row.paper_gain) else f"{row.paper_gain:+.1f}"
                for row in group.itertuples()
            }
            line(f"{method_name(ours)} − {method_name(over)} [95 %]", found)
            line("gain, paper", printed)
        lines[first][0] = NAMES.get(str(source), str(source))
    return [
        [f"{NAMES[norm]} source", "method", *(NAMES.get(t, t) for t in targets), "mean"],
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
            *(NAMES.get(row.source, row.source), NAMES[row.norm], method_name(row.attack)),
            *(f"{row.success_rate_percent:.1f}", f"{row.last_step_percent:.1f}"),
            *(f"{row.mean_l2:.2f}", f"{row.source_confidence:.2f}"),
        ]
        for row in means.itertuples()
    ]
    return [names, *lines]


def caption(cells: Sequence[Cell]) -> str:
    """On which benchmark, settings, precision and number of images a table was made, by what."""
    cfg = cells[0].cfg
    names = ("eps", "steps", "samples", "cells", "grid", "lam", "loss", "start", "seed")
    settings = ", ".join(f"{name}={values(cells, name)}" for name in names)
    paths = [cell.margins_path(target) for cell in cells for target in cell.targets]
    records = [store.read_json(path.with_suffix(".json")) or {} for path in paths]

    def made(fact: str) -> str:
        runs = [run for r in records for run in (*r["attacked_with"], r["evaluated_with"])]
        found = {run[fact] for run in runs}
        return " and ".join(sorted(found))

    split = f" ({cfg.benchmark.data.split} crops)" if "split" in cfg.benchmark.data else ""
    used = dict.fromkeys(cell.cfg.precision for cell in cells)
    precision = " and ".join(PRECISIONS[name] for name in used)
    untrained = "" if cfg.pretrained else "UNTRAINED NETWORKS, "
    return (
        f"{untrained}benchmark={cfg.benchmark.name}{split}, "
        f"protocol={values(cells, 'protocol.name')}, n={records[0]['n']} images, {settings}; "
        f"{precision}, {made('device')}, torch {made('torch')}, commit "
        f"{made('commit')}. start=auto is zero with an interaction term and random without. "
        "Success is measured at every step and the step chosen by leave-one-out (Appendix M); "
        "intervals of gains are over images, paired. The paper's numbers are of ImageNet."
    )


def values(cells: Sequence[Cell], name: str) -> str:
    """The values that a setting takes in a table, with the sources they belong to."""
    of_value: dict[str, list[str]] = {}
    for cell in cells:
        source = NAMES.get(cell.cfg.source, cell.cfg.source)
        of_value.setdefault(str(OmegaConf.select(cell.cfg, name)), []).append(source)
    if len(of_value) == 1 or len({frozenset(sources) for sources in of_value.values()}) == 1:
        return " ".join(of_value)
    return " ".join(f"{v} ({' '.join(dict.fromkeys(s))})" for v, s in of_value.items())


def summaries(gain: pd.DataFrame) -> list[str]:
    """A sentence a pair: how often and by how much one attack beats the other, for each norm."""
    sentences = []
    for (ours, over), of_pair in gain.groupby(["attack", "over"], sort=False):
        parts = [(NAMES[str(norm)], g) for norm, g in of_pair.groupby("norm", sort=False)]
        for norm, g in [*parts, *([("both norms", of_pair)] if len(parts) > 1 else [])]:
            sentence = (
                f"{method_name(ours)} against {method_name(over)}, {norm}: higher on "
                f"{(g.gain > 0).sum()} of {len(g)} pairs ({(g.ci_low > 0).sum()} with the interval "
                f"above 0), lower on {(g.gain < 0).sum()} ({(g.ci_high < 0).sum()} below 0); mean "
                f"gain {g.gain.mean():+.1f} points."
            )
            paper = g.paper_gain.dropna()
            if len(paper):
                higher = (paper > 0).sum()
                sentence += f" Paper: higher on {higher} of {len(paper)}, mean {paper.mean():+.1f}."
            sentences.append(sentence)
    return sentences


def method_name(method: str) -> str:
    """How a table writes a method: `ir lam=0.3` as `IR lam=0.3`."""
    name, _, settings = method.partition(" ")
    return f"{METHODS.get(name, name.upper())} {settings}".strip()


def write_table(name: str, definition: dict[str, Any], cells: Sequence[Cell]) -> str:
    """A table of success rates (conf/table): writes its files, returns what to print."""
    paper = definition.get("paper")
    results = pd.concat([rows(cell) for cell in cells], ignore_index=True)
    results = with_paper(results, paper)
    controls = definition.get("layout") == "overview"
    if not controls:
        results = results[COLUMNS]
    files = {f"{name}.csv": results}
    remarks = [caption(cells)]
    gain = gains(cells, definition.get("gain", []), paper)
    if len(gain):
        files[f"{name}_gain.csv"] = gain
        remarks += summaries(gain)
    notes = paper_rates(paper).dropna(subset="note").merge(results[CELL], on=CELL)
    for n in notes.itertuples():
        pair = f"{NAMES.get(n.source, n.source)} to {NAMES.get(n.target, n.target)}"
        remarks.append(
            f"The paper's {method_name(n.attack)} {pair} ({NAMES[n.norm]}), quoted as "
            f"{n.paper_percent:.1f}: {n.note.replace('linf', 'L∞')}."
        )
    halves = (
        [overview(results)]
        if controls
        else [layout(results, gain, norm) for norm in results.norm.unique()]
    )
    return publish(cells, name, definition["title"], halves, remarks, files)


def publish(
    cells: Sequence[Cell],
    name: str,
    title: str,
    tables: Sequence[list[list[str]]],
    remarks: Sequence[str],
    files: dict[str, pd.DataFrame],
) -> str:
    """Writes outputs/<benchmark>/tables/<name>.{md,tex} and the CSV files; returns what to print.

    Args:
        tables: lines of cells, the first of them the heads of the columns.
        files: data frames by the name of their CSV file.
    """
    folder = cells[0].root / "tables"
    for file, frame in files.items():
        store.write_text(folder / file, frame.to_csv(index=False, float_format="%.4f"))

    def text(style: str) -> str:
        return "\n\n".join(
            tabulate(table[1:], headers=table[0], tablefmt=style, disable_numparse=True)
            for table in tables
        )

    markdown = "\n\n".join([f"# {title}", text("github"), *remarks])
    store.write_text(folder / f"{name}.md", markdown + "\n")
    latex = "\n".join([f"% {line}" for line in [title, *remarks]])
    latex += "\n" + text("latex_booktabs").translate(LATEX) + "\n"
    store.write_text(folder / f"{name}.tex", latex)
    where = f"Written to {folder}: {', '.join([*files, f'{name}.md', f'{name}.tex'])}"
    return "\n\n".join([title, text("simple"), *remarks, where])
