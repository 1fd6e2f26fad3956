"""`python -m irattack report [benchmark=… output=…]`: one page of all that is on the disk.

It goes to outputs/<benchmark>/report/index.html and needs neither server nor network.
"""

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from irattack.commands.cli import REFUSED, explain, one_sentence, tidy_arguments
from irattack.commands.composing import Composer, composed, hydra
from irattack.commands.plans import NotListedError, definitions, load_definition, plan, products
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.pipeline import files
from irattack.pipeline.cell import Cell
from irattack.results import record
from irattack.results.record import Definition, Record
from irattack.results.report.build import Entry, Report, render

log = logging.getLogger(__name__)

TAKES = ("benchmark", "output", "weights_dir", "benchmark.data.folder")
# settings that leave some of a table out
PARTS = ("images", "steps", "norm", "source", "attack", "targets")


def cells(found: Record, given: Sequence[str]) -> list[Cell]:
    """What the yaml of a table consists of now; nothing where that cannot be said."""
    names = [text.split("=")[0] for text in given]
    overrides = [text for text in found.overrides if text.split("=")[0] not in names]
    with contextlib.suppress(InputError):
        return plan(found.name, [*given, *overrides]).cells
    return []


def whole(found: Record) -> bool:
    """Whether nothing of a table was left out: a trial must not pass for the table."""
    return not any(text.split("=")[0] in PARTS for text in found.kept)


def missing(benchmark: str, given: list[str], there: set[str]) -> list[Definition]:
    """The yamls of this benchmark's tables and figures that were not made, or only in part."""
    found, composer = [], Composer(given)
    for name in sorted(set(definitions()) - there):
        definition = load_definition(name)
        if definition.get("benchmark", benchmark) == benchmark:
            try:
                products(definition, composer)
            except NotListedError:
                continue
            except REFUSED as error:
                log.warning("%s is left out: %s", definitions()[name], explain(error))
                continue
            found.append(definition)
    return found


def write(given: list[str]) -> Path:
    """Writes the report and returns where.

    Raises:
        InputError: a setting that changes nothing here, or no table or figure is there.
    """
    if wrong := [text for text in given if text.split("=")[0] not in TAKES]:
        raise InputError(
            f"report: {wrong[0]} has no effect, since it shows what is there, of all settings; "
            f"give {', '.join(f'{name}=…' for name in TAKES)} or none."
        )
    with hydra():
        cfg = composed(given)
        root = Path(cfg.output) / cfg.benchmark.name
        records = record.read(root)
        if not records:
            raise InputError(
                f"report: no table or figure is in {root}; make one, such as by "
                "`make reproduce-table1`."
            )
        entries = [Entry(one, root, cells(one, given)) for one in records]
        absent = missing(cfg.benchmark.name, given, {one.name for one in records if whole(one)})
    path = root / "report" / "index.html"
    files.write_text(path, render(Report(cfg.benchmark.name, entries, absent)))
    return path


def main() -> None:
    """Writes the report and says where it is."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        print(f"Written to {write(sys.argv[1:])}")
