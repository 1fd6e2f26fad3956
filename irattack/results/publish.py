"""Captions, and the files of a table: CSV, Markdown and LaTeX."""

from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from irattack.pipeline.cell import Cell
from irattack.pipeline.results import Result, cards
from irattack.pipeline.values import PRECISIONS
from irattack.results import record
from irattack.results.headline import Claim
from irattack.results.names import title
from irattack.results.record import Definition, values

WANTED = (
    "Targeted: success is that the target gives the wanted class, which is another than the label "
    "for each image. "
)
LATEX = {
    **{ord("∞"): r"$_\infty$", ord("–"): "--", ord("−"): "$-$", ord("λ"): r"$\lambda$"},
    **{ord("≥"): r"$\geq$", ord("±"): r"$\pm$", ord("×"): r"$\times$"},
}


CHOSEN = (
    "Success is measured at every step and the step chosen by leave-one-out over the answers of "
    "the target (Appendix M), so not strictly black-box. Intervals are 95 %, over images, and "
    "repeat that choice; those of gains are paired. The paper's numbers are of ImageNet. "
)


def caption(cells: Sequence[Cell], success: str = CHOSEN) -> str:
    """On which benchmark, settings, precision and number of images a table was made, by what.

    Args:
        success: a sentence on what its success is.
    """
    cfg = cells[0].cfg
    targeted = cells[0].targeted
    names = ["eps", "steps", "samples", "cells", "grid", "lam", "loss", "start", "seed"]
    names += ["goal", "wanted"] if targeted else []
    settings = ", ".join(f"{name}={values(cells, name)}" for name in names)
    results = [card for cell in cells for card in cards(cell)]
    made = [run for card in results for run in card.runs]
    devices, versions, commits = (
        " and ".join(sorted({getattr(run, fact) for run in made}))
        for fact in ("device", "torch", "commit")
    )
    data = cfg.benchmark.data
    split = f" ({data['split']} crops)" if "split" in data else ""
    used = dict.fromkeys(cell.cfg.precision for cell in cells)
    precision = " and ".join(PRECISIONS[name] for name in used)
    untrained = "" if cfg.pretrained else "UNTRAINED NETWORKS, "
    return (
        f"{untrained}benchmark={cfg.benchmark.name}{split}, "
        f"protocol={values(cells, 'protocol.name')}, n={cfg.images} images, {settings}; "
        f"{precision}, {devices}, torch {versions}, commit "
        f"{commits}. start=auto is zero with an interaction term and random without. "
        f"{WANTED if targeted else ''}{success}{clean_errors(results, targeted)}"
    )


def clean_errors(results: Sequence[Result], targeted: bool = False) -> str:
    """A sentence on the targets that are wrong on clean images, which counts as success."""
    what = "Given the wanted class" if targeted else "Wrong"
    errors: dict[str, float] = {}
    for card in results:
        errors[card.target_name] = max(errors.get(card.target_name, 0), card.clean_error_percent)
    told = ", ".join(f"{title(name)} {error:.1f} %" for name, error in errors.items())
    return f"{what} on the clean images already, which counts as success: {told}."


def publish(
    cells: Sequence[Cell],
    name: str,
    definition: Definition,
    tables: Sequence[list[list[str]]],
    remarks: Sequence[str],
    files: dict[str, pd.DataFrame],
    claims: Sequence[Claim] = (),
) -> str:
    """Writes outputs/<benchmark>/tables/<name>.{md,tex,json} and the CSV files.

    Args:
        tables: lines of cells, the first of them the heads of the columns.
        files: data frames by the name of their CSV file.
        claims: of the paper, as the table judges them.

    Returns:
        What to print.
    """
    head = definition["title"]
    written = {
        file: frame.to_csv(index=False, float_format="%.4f") for file, frame in files.items()
    }

    def text(style: str) -> str:
        return "\n\n".join(
            tabulate(table[1:], headers=table[0], tablefmt=style, disable_numparse=True)
            for table in tables
        )

    written[f"{name}.md"] = "\n\n".join([f"# {head}", text("github"), *remarks]) + "\n"
    latex = "\n".join([f"% {line}" for line in [head, *remarks]])
    written[f"{name}.tex"] = latex + "\n" + text("latex_booktabs").translate(LATEX) + "\n"
    encoded = {file: content.encode() for file, content in written.items()}
    folder = record.write("tables", name, definition, cells, encoded, remarks, tables, claims)
    where = f"Written to {folder}: {', '.join(written)}"
    return "\n\n".join([head, text("simple"), *remarks, where])
