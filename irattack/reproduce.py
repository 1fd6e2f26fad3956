"""`python -m irattack.reproduce table1 [name=value …]`: runs what it lacks, then makes it.

Each is a yaml in conf/table or conf/figure: lists of norms, attacks and sources whose products are
its cells, and the function that writes it. The cells are run by Hydra's multirun; the table or
figure is made from what is on the disk.
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
    from irattack.cell import Cell
    from irattack.errors import unknown
    from irattack.models.zoo import CONF
    from irattack.pipeline import is_measured
    from irattack.settings import check, register_resolvers


BASIC = ("norm", "source", "attack")
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


def cells_of(leg: dict[str, Any], overrides: list[str]) -> list[Cell]:
    """The cells of one product of a table, in the order of the paper."""
    cells: dict[str, Cell] = {}  # by key: an override can make two cells one
    for values in product(*leg.values()):
        choice = [f"{key}={value}" for key, value in zip(leg, values, strict=True)]
        cfg = compose("config", overrides=choice + overrides)
        check(cfg)
        cell = Cell(cfg)
        varied = [text for text in choice if text.split("=")[0] not in BASIC]
        cell.method = " ".join([cell.name, *varied])
        cells.setdefault(cell.key, cell)
    return list(cells.values())


def run_missing(legs: list[dict[str, list]], cells: list[list[Cell]], overrides: list[str]) -> None:
    """Runs the products of which a cell is missing, each as one multirun."""
    for leg, of_leg in zip(legs, cells, strict=True):
        if all(is_measured(cell, target) for cell in of_leg for target in cell.targets):
            continue
        choices = [f"{key}={','.join(map(str, values))}" for key, values in leg.items()]
        sys.argv = ["irattack", "-m", *choices, *overrides]
        job()


def main() -> None:
    """Runs the cells that are missing and prints the table."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        if len(sys.argv) < 2:
            raise unknown("reproduce", "", definitions())
        name, overrides = sys.argv[1], sys.argv[2:]
        definition = load_definition(name)
        kept = [text for text in overrides if text.split("=")[0] not in ELSEWHERE]
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
            cells = [cells_of(leg, overrides) for leg in legs]
        if definition.get("run", True):
            run_missing(legs, cells, overrides)
        write = get_method(definition.get("write", "irattack.report.write_table"))
        print(write(name, definition, [cell for of_leg in cells for cell in of_leg]))


if __name__ == "__main__":
    main()
