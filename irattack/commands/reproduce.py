"""`python -m irattack.commands.reproduce table1 [name=value …]`: runs what it lacks, then makes it.

Each is a yaml in conf/table or conf/figure: lists of norms, attacks and sources whose products are
its cells, and the function that writes it. The cells are run by one multirun of Hydra, with
hydra/launcher=slurm or joblib at the same time; the table or figure is made from what is on the
disk. With --aggregate nothing is run.
"""

import contextlib
import re
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from irattack.commands.cli import one_sentence, tidy_arguments

with one_sentence():
    from hydra import compose, initialize_config_dir
    from hydra.utils import get_method
    from omegaconf import OmegaConf

    from irattack.commands.launch import as_sweep, failures, of_launcher
    from irattack.commands.run import job
    from irattack.commands.settings import check, register_resolvers
    from irattack.errors import InputError, unknown
    from irattack.models.zoo import CONF
    from irattack.pipeline.cell import Cell
    from irattack.pipeline.run import missing_targets


BASIC = ("norm", "source", "attack")
NAMED = 8  # of the cells that are missing
CURE = "run the same command without --aggregate, it continues from what is there."
ELSEWHERE = (  # settings that change where something is computed or kept, not what
    *("output", "device", "threads", "shard", "cache.steps", "weights_dir"),
    *("benchmark.data.folder", "benchmark.data.ground_truth"),
)


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


class NotListedError(InputError):
    """A setting selects among the cells of a table, and leaves none."""


def select(
    name: str, legs: list[dict[str, list]], overrides: list[str]
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
                raise NotListedError(str(unknown(f"{name}: {key}", value, dict.fromkeys(listed))))
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


def missing(name: str, cells: list[Cell]) -> str:
    """A sentence that names the results which are not on the disk; empty if none is missing."""
    found = [(cell, targets) for cell in cells if (targets := missing_targets(cell))]
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
    choices = {cell.key: choice for cell, choice in cells if missing_targets(cell)}
    if choices:
        sys.argv = ["irattack", "-m", as_sweep(list(choices.values())), *overrides]
        with failures():
            job()


@dataclass(frozen=True)
class Plan:
    """A table or figure with the overrides of the command line.

    Attributes:
        called: its name, as its files have it.
        definition: its yaml.
        chosen: its cells, each with the choices that it is.
        overrides: settings of every cell.
    """

    called: str
    definition: dict[str, Any]
    chosen: list[tuple[Cell, dict[str, Any]]]
    overrides: list[str]

    @property
    def cells(self) -> list[Cell]:
        """The cells alone."""
        return [cell for cell, _ in self.chosen]

    @property
    def runs(self) -> bool:
        """Whether its cells are attacks of the pipeline; else it needs their images only."""
        return self.definition.get("run", True)


def plan(name: str, overrides: list[str]) -> Plan:
    """What a table or figure consists of. Hydra must be initialised."""
    definition = load_definition(name)
    if definition.get("benchmark", benchmark(overrides)) != benchmark(overrides):
        raise InputError(f"{name}: is of benchmark={definition['benchmark']} alone.")
    kept = [text for text in overrides if text.split("=")[0] not in ELSEWHERE]
    called = "-".join([name, *(re.sub(r"[^\w.=-]", "_", text) for text in kept)])
    legs = [
        {key: value if isinstance(value, list) else [value] for key, value in leg.items()}
        for leg in definition["cells"]
    ]
    legs, overrides = select(name, legs, overrides)
    if not definition.get("run", True):  # its settings are those of no attack of the pipeline
        given = [text for text in overrides if text.split("=")[0] in definition]
        definition |= OmegaConf.to_container(OmegaConf.from_dotlist(given))  # type: ignore
        overrides = [text for text in overrides if text not in given]
    targets = f"targets={definition.get('targets', 'paper')}".replace(" ", "").replace("'", "")
    overrides = [targets, *definition.get("overrides", []), *overrides]
    chosen = [pair for leg in legs for pair in cells_of(leg, overrides)]
    return Plan(called, definition, chosen, overrides)


def benchmark(overrides: list[str]) -> str:
    """The benchmark that the overrides choose."""
    chosen = [text.split("=")[1] for text in overrides if text.startswith("benchmark=")]
    return [*OmegaConf.load(CONF / "config.yaml").defaults[0].values(), *chosen][-1]


def plans(overrides: list[str]) -> dict[str, Plan]:
    """Every table and figure of a benchmark that has cells with these overrides, by name."""
    wanted = [
        name
        for name in sorted(definitions())
        if load_definition(name).get("benchmark", benchmark(overrides)) == benchmark(overrides)
    ]
    found = {}
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        for name in wanted:
            with contextlib.suppress(NotListedError):
                found[name] = plan(name, overrides)
    if not found:
        raise InputError(f"no table or figure has cells with {' '.join(overrides)}.")
    return found


def reproduce(name: str, overrides: list[str], launcher: list[str], aggregate: bool) -> str:
    """Runs the cells that a table lacks, unless `aggregate`; makes it and returns what to print."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        table = plan(name, overrides)
    if table.runs:
        failure = ""
        try:
            if not aggregate:
                run(table.chosen, [*table.overrides, *launcher])
        except InputError as error:
            failure = str(error)
        absent = missing(name, table.cells)
        share = table.cells[0].cfg.shard
        if absent and share and not aggregate and not failure:
            return f"shard={share} is done. {absent}; other shards have them to do."
        if absent:
            raise InputError(f"{absent}; {failure or CURE}")
    elif aggregate:
        raise InputError(f"{name}: has no cells to aggregate; leave --aggregate out.")
    write = get_method(table.definition.get("write", "irattack.report.write_table"))
    return write(table.called, table.definition, table.cells)


def main() -> None:
    """Runs the cells that are missing and prints the table."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        words = [word for word in sys.argv[1:] if word != "--aggregate"]
        if not words:
            raise unknown("reproduce", "", definitions())
        name, *settings = words
        launcher = [text for text in settings if of_launcher(text)]
        overrides = [text for text in settings if text not in launcher]
        print(reproduce(name, overrides, launcher, aggregate="--aggregate" in sys.argv))


if __name__ == "__main__":
    main()
