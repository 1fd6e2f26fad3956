"""How accurate each network of a benchmark is on its images, before anything is attacked.

    python -m irattack accuracy benchmark=NAME [name=value …]

The networks are all that the benchmark names as sources or targets, or those of `source=` and
`targets=`; the images are all that there are, or `images=` of them, whoever classifies them.
"""

import sys
from itertools import chain
from typing import Any

from omegaconf import DictConfig

from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.composing import Composer, composed, hydra
from irattack.commands.launch import divided
from irattack.commands.plans import Plan, file_stem, given_by
from irattack.commands.reproduce import reproduce
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.models import zoo
from irattack.pipeline.cell import Cell
from irattack.pipeline.counting import readings
from irattack.pipeline.images import listed
from irattack.pipeline.settings import Settings

DEFINITION = {
    "name": "accuracy",
    "title": "Accuracy of the networks on clean images",
    "target": "accuracy",
    "write": "irattack.results.accuracy.write",
}
ROLES = {"source": "source_sets", "targets": "target_sets"}


def networks(benchmark: DictConfig, given: dict[str, str]) -> list[str]:
    """The networks that are named, or all that a benchmark names, each once.

    Args:
        benchmark: conf/benchmark.
        given: `source` and `targets` as on the command line: names, lists, sets.
    """
    if not given:
        sets = [benchmark[of_role].values() for of_role in ROLES.values()]
        named = dict.fromkeys(chain(benchmark.sources, *chain(*sets)))
        known = named if benchmark.any_timm_model else zoo.names(benchmark.name)
        return [name for name in named if name in known]  # a set may be another benchmark's
    found = []
    for role, text in given.items():
        for name in text.strip("[]").split(","):
            found += benchmark[ROLES[role]].get(name.strip(), [name.strip()])
    return list(dict.fromkeys(found))


def count(settings: Settings) -> int:
    """How many images there are."""
    if settings.manifest is not None:
        return len(listed(settings.manifest).images)
    return len(next(iter(readings(settings.benchmark.data).values())))


def planned(overrides: list[str]) -> Plan:
    """A cell a network, on images that no network has chosen. Hydra must be initialised."""
    named = {text.partition("=")[0]: text.partition("=")[2] for text in overrides}
    if "jobs" in named:
        raise InputError("jobs=…: accuracy measures one thing; leave it out.")
    of_cells = [
        text
        for text in overrides
        if text.partition("=")[0] not in (*ROLES, "benchmark.sources", "benchmark.source_sets")
    ]
    benchmark = composed([text for text in overrides if text.startswith("benchmark")]).benchmark
    names = networks(benchmark, {role: named[role] for role in ROLES if role in named})
    if not names:
        raise InputError(f"benchmark={benchmark.name}: names no network; give source=….")
    composer = Composer(of_cells)
    common: dict[str, Any] = {
        "benchmark.sources": [],
        "jobs": [{"_target_": "irattack.pipeline.sources.Accuracy"}],
    }
    if "images" not in named:
        first = composer({"source": names[0], "targets": names[:1], **common})
        common["images"] = count(first)
    choices = [{"source": name, "targets": [name], **common} for name in names]
    chosen = [(Cell(composer(choice)), choice) for choice in choices]
    definition = DEFINITION | given_by(overrides)
    return Plan(file_stem("accuracy", overrides), definition, chosen, of_cells)


def main() -> None:
    """Measures what is missing and prints the table."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        launcher, overrides = divided(sys.argv[1:])
        with hydra():
            table = planned(overrides)
        print(reproduce(table, launcher, aggregate=False))
