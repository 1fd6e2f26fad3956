"""`make estimate`: the hours and the disk that each table and figure takes on this device.

    python -m irattack.commands.estimate [name=value …]

The networks are timed here, for a few seconds each, with random weights: bare passes at their best
batch. A table's cells say how many passes they need (probes of the attack, steps, images, targets);
the ratio of the step cache is measured on an attack on photographs. A cell that two tables share
is counted once in the total.
"""

import sys
from dataclasses import dataclass
from typing import Any

from irattack.commands.cli import one_sentence, tidy_arguments

with one_sentence():
    import torch
    from hydra.utils import instantiate
    from tabulate import tabulate
    from tqdm import tqdm

    from irattack.commands import speed
    from irattack.commands.bench import cache_speed, cpu_name
    from irattack.commands.reproduce import Plan, plans
    from irattack.commands.settings import register_resolvers
    from irattack.pipeline.cell import PRECISIONS, Cell, device, prepare

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
    for name in tqdm({**sources, **targets}, desc="timing", leave=False, disable=None):
        model = one.build(name, "source")
        if name in sources:
            kind = speed.forward_backward
            rate = speed.best_rate(kind, model, size, where, batches, least)
            speeds.probe[name] = rate.per_second
        rate = speed.best_rate(speed.forward, model, size, where, batches, least)
        speeds.forward[name] = rate.per_second
    return speeds


def attack_seconds(cell: Cell, speeds: Speeds) -> float:
    """Forward and backward passes of the attack."""
    attack = cell.steps_facts["attack"]
    probes = speed.probes(instantiate(attack))
    return cell.cfg.images * attack["steps"] * probes / speeds.probe[cell.cfg.source]


def evaluation_seconds(cell: Cell, speeds: Speeds) -> float:
    """Forward passes of every recorded step on every target."""
    images = cell.cfg.images * cell.recorded
    return sum(images / speeds.forward[target] for target in cell.targets)


def analysis_seconds(cell: Cell, definition: dict[str, Any], speeds: Speeds) -> float:
    """Forward passes in which interactions are measured, on the source."""
    grid, images = cell.cfg.grid, cell.cfg.images
    each = 2 * grid**2 + 2  # sets of `interactions.contributions`
    kind = definition.get("write", "").rsplit(".", 1)[-1]
    passes = {
        "table4": images * each,
        "equal_length": images * each,
        "fig1": images * each,
        "fig2": definition.get("drawn", 0) * 8 * grid * (grid - 1) * definition.get("contexts", 0),
        "fig5": 3 * images * each,
        "propositions": 2 * 5 * 2 * images * each,  # losses, attacks, lengths
    }.get(kind, 0)
    return passes / speeds.forward[cell.cfg.source]


def cache_bytes(cell: Cell, ratio: float) -> float:
    """Of the step cache, for cache.steps as it is set."""
    return cell.cfg.images * len(cell.kept) * 3 * cell.cfg.benchmark.size**2 * ratio


def estimate(tables: dict[str, Plan], least: float = 1.0) -> str:
    """The table that is printed; every batch of a network is timed for `least` seconds."""
    cells = [cell for table in tables.values() for cell in table.cells]
    prepare(cells[0].cfg)
    speeds, cfg = timed(cells, least), cells[0].cfg
    ratio = cache_speed(device(cfg), cells[0].root)["ratio"]
    lines, total = [], dict[str, tuple[float, float, float]]()
    extra_total = 0.0
    for name, table in tables.items():
        runs = table.cells if table.runs else []
        work = {
            cell.key + str(cell.targets): (
                attack_seconds(cell, speeds),
                evaluation_seconds(cell, speeds),
                cache_bytes(cell, ratio),
            )
            for cell in runs
        }
        extra = sum(analysis_seconds(cell, table.definition, speeds) for cell in table.cells)
        total |= work
        extra_total += extra
        lines.append([name, len(runs), *summed(work, extra)])
    lines.append(["together", len(total), *summed(total, extra_total)])
    heads = ["table or figure", "cells", "attack h", "evaluation h", "analysis h", "h", "GB"]
    where = device(cfg)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name()
    rates = [[network, speeds.probe.get(network), rate] for network, rate in speeds.forward.items()]
    columns = ["network", "forward and back /s", "forward /s"]
    return (
        f"benchmark={cfg.benchmark.name}, n={cfg.images} images, {cfg.steps} steps, "
        f"{PRECISIONS[cfg.precision]}, {name}, {cfg.threads} threads\n\n"
        f"{tabulate(rates, columns, floatfmt='.1f', missingval='–')}\n\n"
        f"{tabulate(lines, heads, floatfmt='.2f')}\n\n"
        f"A step cache of {100 * ratio:.0f} % of raw frames; cache.steps=none needs no disk. Not "
        "counted: loading, the Hessians of fig4, and the attacks of fig5 and propositions. "
        "Rates are of bare passes at the best batch, so that hours are a lower bound. A cell in "
        "several tables counts once in `together`."
    )


def summed(work: dict[str, tuple[float, float, float]], extra: float) -> list[float]:
    """Hours of attack, evaluation and analysis, their sum, and gigabytes."""
    attack, evaluation, size = (
        (sum(values) for values in zip(*work.values(), strict=True)) if (work) else (0.0, 0.0, 0.0)
    )
    hours = [attack / 3600, evaluation / 3600, extra / 3600]
    return [*hours, sum(hours), size / 1e9]


def main() -> None:
    """Times the networks and prints the table."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        given = ["benchmark=imagenet", "pretrained=false", *sys.argv[1:]]
        print(estimate(plans(given)))


if __name__ == "__main__":
    main()
