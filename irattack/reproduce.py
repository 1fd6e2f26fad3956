"""`python -m irattack.reproduce table1 [name=value …]`: runs what it lacks, then makes it.

Each is a yaml in conf/table or conf/figure: lists of norms, attacks and sources whose products are
its cells, and the function that writes it. The cells are run by one multirun of Hydra, with
hydra/launcher=slurm or joblib at the same time; the table or figure is made from what is on the
disk. With --aggregate nothing is run.
"""

import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

from irattack.cli import one_sentence, tidy_arguments

with one_sentence():
    from hydra import compose, initialize_config_dir
    from hydra.utils import get_method
    from omegaconf import OmegaConf

    from irattack.__main__ import job
    from irattack.errors import InputError, unknown
    from irattack.launch import as_sweep, failures, of_launcher
    from irattack.models.zoo import CONF
    from irattack.pipeline import Cell, is_measured
    from irattack.settings import check, register_resolvers


BASIC = ("norm", "source", "attack")
NAMED = 8  # of the cells that are missing
CURE = "run the same command without --aggregate, it continues from what is there."
ELSEWHERE = ("output", "device", "threads")  # settings that change where, not what


def definitions() -> dict[str, Path]:
    """The yaml of every table and figure, by name."""
    return {path.stem: path for kind in ("table", "figure") for path in (CONF / kind).glob("*")}


def load_definition(name: str) -> dict[str, Any]:
    """The definition of a table or figure."""
    paths = definitions()
    if name not in paths:
        raise unknown("reproduce", name, sorted(paths))
    definition = OmegaConf.to_container(OmegaConf.load(paths[name]))
    assert isinstance(definition, dict)
    return {str(key): value for key, value in definition.items()}


def select(
    legs: list[dict[str, list]], overrides: list[str]
) -> tuple[list[dict[str, list]], list[str]]:
    """Applies the overrides that name what a table lists: they select among its cells.

    Returns the products that are left, and the overrides that are settings of every cell.
    """
    others = []
    for text in overrides:
        key, _, given = text.partition("=")
        listed = [str(value) for leg in legs for value in leg.get(key, [])]
        if not listed:
            others.append(text)
            continue
        wanted = given.strip("[]").split(",")
        for value in wanted:
            if value not in listed:
                raise unknown(f"{key} of this table", value, dict.fromkeys(listed))
        legs = [
            {**leg, key: [value for value in leg[key] if str(value) in wanted]}
            for leg in legs
            if any(str(value) in wanted for value in leg.get(key, []))
        ]
    return legs, others


def cells_of(leg: dict[str, Any], overrides: list[str]) -> list[tuple[Cell, dict[str, Any]]]:
    """The cells of one product of a table, in the order of the paper, and the choices they are."""
    cells: dict[str, tuple[Cell, dict[str, Any]]] = {}  # an override can make two cells one
    for values in product(*leg.values()):
        choice = dict(zip(leg, values, strict=True))
        cfg = compose("config", overrides=[f"{k}={v}" for k, v in choice.items()] + overrides)
        check(cfg)
        cell = Cell(cfg)
        varied = [f"{key}={value}" for key, value in choice.items() if key not in BASIC]
        cell.method = " ".join([cell.name, *varied])
        cells.setdefault(cell.key, (cell, choice))
    return list(cells.values())


def lacking(cell: Cell) -> list[str]:
    """The targets on which a cell is not measured."""
    return [target for target in cell.targets if not is_measured(cell, target)]


def missing(name: str, cells: list[Cell]) -> str:
    """A sentence that names the results which are not on the disk; empty if none is missing."""
    found = [(cell, targets) for cell in cells if (targets := lacking(cell))]
    if not found:
        return ""
    texts = [
        f"source={cell.cfg.source} attack={cell.method} norm={cell.norm} target={','.join(targets)}"
        for cell, targets in found[:NAMED]
    ]
    more = f", and those of {len(found) - NAMED} more cells" if len(found) > NAMED else ""
    count, total = sum(len(targets) for _, targets in found), sum(len(c.targets) for c in cells)
    return f"{name}: {count} of {total} results are missing: {'; '.join(texts)}{more}"


def run(cells: list[tuple[Cell, dict[str, Any]]], overrides: list[str]) -> None:
    """Runs the cells that are not measured, as one multirun."""
    choices = {cell.key: choice for cell, choice in cells if lacking(cell)}
    if choices:
        sys.argv = ["irattack", "-m", as_sweep(list(choices.values())), *overrides]
        with failures():
            job()


def main() -> None:
    """Runs the cells that are missing and prints the table."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        words = [word for word in sys.argv[1:] if word != "--aggregate"]
        aggregate = len(words) < len(sys.argv) - 1
        if not words:
            raise unknown("reproduce", "", definitions())
        launcher = [text for text in words[1:] if of_launcher(text)]
        name, overrides = words[0], [text for text in words[1:] if text not in launcher]
        definition = load_definition(name)
        kept = [text for text in overrides if text.split("=")[0] not in ELSEWHERE]
        called = name
        name = "-".join([name, *(re.sub(r"[^\w.=-]", "_", text) for text in kept)])
        legs = [
            {key: value if isinstance(value, list) else [value] for key, value in leg.items()}
            for leg in definition["cells"]
        ]
        legs, overrides = select(legs, overrides)
        if not definition.get("run", True):  # its settings are those of no attack of the pipeline
            given = [text for text in overrides if text.split("=")[0] in definition]
            definition |= OmegaConf.to_container(OmegaConf.from_dotlist(given))  # type: ignore
            overrides = [text for text in overrides if text not in given]
        targets = f"targets={definition.get('targets', 'paper')}".replace(" ", "")
        overrides = [targets.replace("'", ""), *definition.get("overrides", []), *overrides]
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            chosen = [pair for leg in legs for pair in cells_of(leg, overrides)]
        cells = [cell for cell, _ in chosen]
        if definition.get("run", True):
            failure = ""
            try:
                if not aggregate:
                    run(chosen, [*overrides, *launcher])
            except InputError as error:
                failure = str(error)
            if absent := missing(called, cells):
                raise InputError(f"{absent}; {failure or CURE}")
        elif aggregate:
            raise InputError(f"{called}: has no cells to aggregate; leave --aggregate out.")
        write = get_method(definition.get("write", "irattack.report.write_table"))
        print(write(name, definition, cells))


if __name__ == "__main__":
    main()
