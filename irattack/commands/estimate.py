"""`make estimate`: the hours and the disk that each table and figure takes on this device.

    irattack estimate [TABLE] [name=value …]

The networks are timed here, for some seconds each, with random weights: bare passes at their best
batch. A table's cells say how many passes they need (probes of the attack, steps, images, targets);
the ratio of the step cache is measured on an attack on photographs. A cell that two tables share
is counted once in the total.
"""

import sys
from dataclasses import dataclass

import torch
from tabulate import tabulate

from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.disk import cache_speed
from irattack.commands.plans import Plan, named_table, plans
from irattack.commands.settings import register_resolvers
from irattack.pipeline import speed
from irattack.pipeline.cell import Cell, attack_of
from irattack.pipeline.choosing import Best
from irattack.pipeline.compute import build, device, prepare
from irattack.pipeline.job import Job
from irattack.pipeline.measures import OfAttack
from irattack.pipeline.results import Results
from irattack.pipeline.values import PRECISIONS

BATCHES = {"cpu": [8, 16, 32], "cuda": [16, 32, 64, 128, 256]}


@dataclass(frozen=True)
class Speeds:
    """Images per second of each network: forward and back, and forward alone."""

    probe: dict[str, float]
    forward: dict[str, float]


def timed(cells: list[Cell], least: float) -> Speeds:
    """Times every network that the cells attack or evaluate."""
    sources = dict.fromkeys(cell.cfg.source for cell in cells)
    targets = dict.fromkeys(target for cell in cells for target in cell.targets)
    one, speeds = cells[0], Speeds({}, {})
    where, size = device(one.cfg), one.cfg.benchmark.size
    batches = BATCHES[where.type]
    names = {**sources, **targets}
    for number, name in enumerate(names, 1):
        print(f"timing {name}, {number} of {len(names)} …", file=sys.stderr, flush=True)
        model = build(one, name, "source")
        if name in sources:
            kind = speed.forward_backward
            rate = speed.best_rate(kind, model, size, where, batches, least)
            speeds.probe[name] = rate.per_second
        rate = speed.best_rate(speed.forward, model, size, where, batches, least)
        speeds.forward[name] = rate.per_second
    return speeds


def attack_seconds(cell: Cell, speeds: Speeds) -> float:
    """Forward and backward passes of the attack."""
    attack = attack_of(cell)
    return cell.cfg.images * speed.most_gradients(attack) / speeds.probe[cell.cfg.source]


def evaluation_seconds(cell: Cell, speeds: Speeds) -> float:
    """Forward passes of every recorded step on every target."""
    images = cell.cfg.images * cell.recorded
    return sum(images / speeds.forward[target] for target in cell.targets)


def cache_bytes(cell: Cell, ratio: float) -> float:
    """Of the step cache, for cache.steps as it is set."""
    return cell.steps_bytes * ratio


Work = dict[tuple, tuple[float, float, float, float]]


def work_of(job: Job, speeds: Speeds, ratio: float) -> Work:
    """Seconds of attack, evaluation and analysis, and bytes, by what all tables do once."""
    cell, found = job.cell, Work()
    if isinstance(job, Results | OfAttack):
        size = cache_bytes(cell, ratio)
        found["attack", cell.key] = (attack_seconds(cell, speeds), 0.0, 0.0, size)
    if isinstance(job, Results):
        found["targets", cell.key, *cell.targets] = (
            0.0,
            evaluation_seconds(cell, speeds),
            0.0,
            0.0,
        )
    if isinstance(job, Best):  # what it tries, and what it chooses, as if it cost as much
        times = 1 + job.trials * job.held_out / cell.cfg.images
        seconds = times * attack_seconds(cell, speeds), times * evaluation_seconds(cell, speeds)
        found["chosen", cell.key] = (*seconds, 0.0, 0.0)
    analysis = job.passes / speeds.forward[cell.cfg.source]
    found["job", job.artifact(job.names[0]).path] = (0.0, 0.0, analysis, 0.0)
    return found


def estimate(tables: dict[str, Plan], least: float = 1.0) -> str:
    """The table that is printed; every batch of a network is timed for `least` seconds."""
    cells = [cell for table in tables.values() for cell in table.cells]
    prepare(cells[0].cfg)
    speeds, cfg = timed(cells, least), cells[0].cfg
    ratio = cache_speed(device(cfg), cells[0].root)["ratio"]
    lines, together = [], Work()
    for name, table in tables.items():
        work = Work()
        for job in table.jobs:
            work |= work_of(job, speeds, ratio)
        together |= work
        lines.append([name, len(table.jobs), *summed(work)])
    lines.append(["together", sum(key[0] == "job" for key in together), *summed(together)])
    heads = ["table or figure", "jobs", "attack h", "evaluation h", "analysis h", "h", "GB"]
    where = device(cfg)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else speed.cpu_name()
    rates = [[network, speeds.probe.get(network), rate] for network, rate in speeds.forward.items()]
    columns = ["network", "forward and back /s", "forward /s"]
    return (
        f"benchmark={cfg.benchmark.name}, n={cfg.images} images, {cfg.steps} steps, "
        f"{PRECISIONS[cfg.precision]}, {name}, {cfg.threads} threads\n\n"
        f"{tabulate(rates, columns, floatfmt='.1f', missingval='–')}\n\n"
        f"{tabulate(lines, heads, floatfmt='.2f')}\n\n"
        f"A step cache of {100 * ratio:.0f} % of raw frames; cache.steps=none needs no disk. Not "
        "counted: loading, the Hessians of fig4, and the attacks of fig5 and propositions. "
        "Rates are of bare passes at the best batch, so that hours are a lower bound. Work that "
        "several tables share counts once in `together`."
    )


def summed(work: Work) -> list[float]:
    """Hours of attack, evaluation and analysis, their sum, and gigabytes."""
    *seconds, size = (sum(values) for values in zip(*work.values(), strict=True))
    hours = [each / 3600 for each in seconds]
    return [*hours, sum(hours), size / 1e9]


def main() -> None:
    """Times the networks and prints the table."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        name, words = named_table("estimate", [w for w in sys.argv[1:] if w[0] != "-"])
        given = ["benchmark=imagenet", "pretrained=false", *words]
        print(estimate(plans(given, only=name)))
