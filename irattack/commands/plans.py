"""What a table or figure consists of: its yaml, its cells, and the jobs that measure them.

Each is a yaml in conf/table or conf/figure: lists of norms, attacks and sources whose products are
its cells, the jobs that it reads (`jobs`, of conf/config.yaml unless it lists its own), and the
function that writes it.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from irattack.commands.cli import REFUSED, explain
from irattack.commands.composing import Composer, benchmark, hydra
from irattack.conf import yamls
from irattack.errors import InputError, UnfitError, some, unknown
from irattack.hashing import key
from irattack.models import zoo
from irattack.models.defences import parted
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import check_data
from irattack.pipeline.job import Job, jobs_of
from irattack.pipeline.values import number

log = logging.getLogger(__name__)

BASIC = ("norm", "source", "attack")
ELSEWHERE = (  # settings that change where something is computed or kept, not what
    *("output", "track", "device", "threads", "shard", "cache.steps"),
)
LONGEST = 200  # bytes of a stem; file systems allow 255 of a name


class NotListedError(UnfitError):
    """A setting selects among the cells of a table, and leaves none."""


@dataclass(frozen=True)
class Plan:
    """A table or figure with the overrides of the command line.

    Attributes:
        called: its name, as its files have it.
        definition: its yaml.
        chosen: its cells, each with the settings that make it what it is.
        overrides: further settings, of every cell.
    """

    called: str
    definition: dict[str, Any]
    chosen: list[tuple[Cell, dict[str, Any]]]
    overrides: list[str]

    @property
    def cells(self) -> list[Cell]:
        """The cells alone."""
        return [cell for cell, _ in self.chosen]

    @cached_property
    def jobs(self) -> list[Job]:
        """The jobs of all cells."""
        return [job for cell in self.cells for job in jobs_of(cell)]


def definitions() -> dict[str, Path]:
    """The yaml of every table and figure, by name."""
    return yamls("table") | yamls("figure")


def load_definition(name: str) -> dict[str, Any]:
    """The definition of a table or figure."""
    paths = definitions()
    if name not in paths:
        raise unknown("table", name, sorted(paths))
    definition = OmegaConf.to_container(OmegaConf.load(paths[name]))
    assert isinstance(definition, dict)
    return {"name": name, **{str(key): value for key, value in definition.items()}}


def products(
    definition: dict[str, Any], composer: Composer, targets: str | Sequence[str] = ()
) -> list[dict[str, list]]:
    """The products of a table, with the sets of sources that its benchmark names spelled out.

    Args:
        targets: of all cells, to be looked up, too.

    Raises:
        NotListedError: the benchmark has no such set, and no such model.
    """
    name, benchmark = definition["name"], composer.benchmark
    known = zoo.names(benchmark.name)
    legs = [
        {key: value if isinstance(value, list) else [value] for key, value in leg.items()}
        for leg in definition["cells"]
    ]
    roles = {
        "source": [source for leg in legs for source in leg.get("source", [])],
        "target": [targets] if isinstance(targets, str) else list(targets),
    }
    for role, names in roles.items():
        sets = benchmark.get(f"{role}_sets", {})
        for one in names:
            strange = [model for model in sets.get(one, [one]) if parted(model)[0] not in known]
            if strange and not benchmark.any_timm_model:
                raise NotListedError(
                    f"{name}: {role}={one} is neither a model of benchmark={benchmark.name} nor "
                    f"one of its `{role}_sets` of such; add it to "
                    f"{yamls('benchmark')[benchmark.name]}."
                )
    sets = benchmark.get("source_sets", {})
    return [
        {
            key: [one for v in values for one in (sets.get(v, [v]) if key == "source" else [v])]
            for key, values in leg.items()
        }
        for leg in legs
    ]


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


def with_parameters(
    jobs: list[dict[str, Any]], overrides: list[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Applies the overrides that name a parameter which a table gives to its jobs."""
    listed = {name for job in jobs for name in job}
    given = [text for text in overrides if text.split("=")[0] in listed]
    values: Any = OmegaConf.to_container(OmegaConf.from_dotlist(given))
    for name, value in values.items():
        found = number(value)  # 2/255, too
        values[name] = found if isinstance(value, str) and math.isfinite(found) else value
    jobs = [job | {name: values[name] for name in job if name in values} for job in jobs]
    jobs = [job for i, job in enumerate(jobs) if job not in jobs[:i]]  # which may now be one
    return jobs, [text for text in overrides if text not in given]


def cells_of(
    leg: dict[str, Any], common: dict[str, Any], composer: Composer
) -> list[tuple[Cell, dict[str, Any]]]:
    """The cells of one product of a table, in the order of the paper, and the settings of each."""
    cells = list[tuple[Cell, dict[str, Any]]]()
    for values in product(*leg.values()):
        choice = dict(zip(leg, values, strict=True))
        settings = composer(common | choice)
        if not cells and settings.pretrained:
            check_data(settings)
        cell = Cell(settings)
        varied = [f"{key}={value}" for key, value in choice.items() if key not in BASIC]
        cell.method = " ".join([cell.name, *varied])
        cells.append((cell, common | choice))
    return once(cells)  # an override can make two cells one


def plan(name: str, overrides: list[str], composer: Composer | None = None) -> Plan:
    """What a table or figure consists of. Hydra must be initialised."""
    definition = load_definition(name) | given_by(overrides)
    if missing := [key for key in ("title", "cells") if key not in definition]:
        has = ", ".join(key for key in definition if key != "name")
        raise InputError(f"{definitions()[name]}: lacks {' and '.join(missing)}; it has {has}.")
    if definition.get("benchmark", benchmark(overrides)) != benchmark(overrides):
        raise InputError(f"{name}: is of benchmark={definition['benchmark']} alone.")
    if any(text.lstrip("+").startswith("jobs=") for text in overrides):
        raise InputError(
            f"{name}: what is measured is what its yaml lists, not jobs=…; leave it out, or give "
            "it to `irattack` without `reproduce`."
        )
    called = file_stem(name, overrides)
    composer = composer or Composer(overrides)
    common = {"targets": definition.get("targets", "paper"), **definition.get("settings", {})}
    given = {text.split("=")[0].lstrip("+") for text in overrides}
    targets = () if "targets" in given else common["targets"]
    legs, overrides = select(name, products(definition, composer, targets), overrides)
    jobs, overrides = with_parameters(definition.get("jobs", []), overrides)
    common = {name: value for name, value in common.items() if name not in given}
    if jobs:
        common["jobs"] = jobs
    if composer.overrides != overrides:
        composer = Composer(overrides)
    chosen = [pair for leg in legs for pair in cells_of(leg, common, composer)]
    if len({cell.targeted for cell, _ in chosen}) > 1:
        raise InputError(
            f"{name}: has cells of goal=untargeted and goal=targeted, whose success is not the "
            "same thing; make a table of each, or choose one with goal=…."
        )
    return Plan(called, definition, chosen, overrides)


def once(chosen: Sequence[tuple[Cell, dict[str, Any]]]) -> list[tuple[Cell, dict[str, Any]]]:
    """Of cells whose jobs make the same, which two rows of a table may have, the first alone."""
    found, alike = list[tuple[Cell, dict[str, Any]]](), dict[str, list[Cell]]()
    for cell, choice in chosen:
        others = alike.setdefault(cell.key, [])
        if all(made_of(cell) != made_of(other) for other in others):
            others.append(cell)
            found.append((cell, choice))
    return found


def made_of(cell: Cell) -> list[Path]:
    """What the jobs of a cell make."""
    return [job.artifact(name).path for job in jobs_of(cell) for name in job.names]


def file_stem(name: str, overrides: list[str]) -> str:
    """How the files of a table are called: its name, and the settings that change its numbers."""
    kept = given_by(overrides)["kept"]
    stem = "-".join([name, *map(as_name, kept)])
    return stem if len(stem.encode()) <= LONGEST else f"{name}-{key(kept)}"


def as_name(text: str) -> str:
    """A setting as a part of a file's name; no two paths, such as a/b and a_b, have the same."""
    replaced = re.sub(r"[^\w.=-]", "_", text)
    value = text.partition("=")[2]
    path = "/" in value and not re.fullmatch(r"[\d./,\[\] ]+", value)  # and no fraction
    unlike = set(re.findall(r"_|[^\w.=-]", value))
    alone = value.startswith("/") and len(unlike) == 1  # an absolute path without _
    return f"{replaced}-{key(text)}" if path and not alone else replaced


def given_by(overrides: list[str]) -> dict[str, list[str]]:
    """What the record of a table says of them: all, and those that change its numbers."""
    kept = [text for text in overrides if text.split("=")[0] not in ELSEWHERE]
    return {"overrides": list(overrides), "kept": kept}


def named_table(command: str, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The table or figure that is named among the words of a command, if any, and the settings.

    Raises:
        InputError: several are.
    """
    names = [word for word in words if "=" not in word and not word.startswith(("-", "~"))]
    if len(names) > 1:
        raise InputError(
            f"{command}: {' '.join(names)}: give one name of a table or figure at a time; settings "
            "are name=value."
        )
    return names[0] if names else None, [word for word in words if word not in names]


def plans(overrides: list[str], strict: bool = False, only: str | None = None) -> dict[str, Plan]:
    """Every table and figure of a benchmark that has cells with these overrides, by name.

    One that is itself wrong is left out with a warning; if `strict`, nothing is done instead.

    Args:
        only: the name of the one that is wanted.
    """
    if only is not None:
        with hydra():
            return {only: plan(only, overrides)}
    chosen = benchmark(overrides)
    found, wrong, composer = dict[str, Plan](), dict[str, str](), Composer(overrides)
    with hydra():
        for name in tqdm(sorted(definitions()), "reading", leave=False, disable=None):
            if load_definition(name).get("benchmark", chosen) == chosen:
                try:
                    found[name] = plan(name, overrides, composer)
                except UnfitError:
                    continue
                except REFUSED as error:
                    wrong[name] = explain(error)
    if wrong and not found:  # what most say is the fault of the overrides
        sentences = list(wrong.values())
        raise InputError(max(sentences, key=sentences.count))
    if wrong and strict:
        paths = some([str(definitions()[name]) for name in wrong])
        raise InputError(
            f"nothing is done while {paths} cannot be read: {next(iter(wrong.values()))}"
        )
    for name, why in wrong.items():
        log.warning("%s is left out: %s", definitions()[name], why)
    if not found:
        raise InputError(f"no table or figure has cells with {' '.join(overrides)}.")
    return found
