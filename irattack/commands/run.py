"""One cell from start to end, or with -m a cell for each combination."""

import logging
import socket

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.composing import called
from irattack.commands.launch import failures, in_worker
from irattack.commands.progress import of_table
from irattack.commands.settings import register_resolvers, without_effect
from irattack.conf import CONF
from irattack.pipeline import devices
from irattack.pipeline.cell import Cell
from irattack.pipeline.images import check_data
from irattack.pipeline.job import do, jobs_of
from irattack.pipeline.results import Results, rows
from irattack.pipeline.settings import settings_of
from irattack.pipeline.values import number
from irattack.results import tracking

log = logging.getLogger(__name__)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def job(cfg: DictConfig) -> None:
    """Checks one configuration, runs it, prints its rows.

    One of several jobs at a time leaves its failure to the process that launched it.
    """
    register_resolvers()  # a process of its own has none yet
    if not in_worker():
        with one_sentence():
            measure(cfg)
        return
    what = f"{cfg.attack.name} from {cfg.source}"
    log.info("%s starts on %s.", what, socket.gethostname())
    try:
        measure(cfg)
    except Exception:
        log.exception("%s failed.", what)
        raise
    log.info("%s is done.", what)


def measure(cfg: DictConfig) -> None:
    """One cell, from its checks to its rows on the terminal."""
    try:
        work(cfg)
    finally:  # a process may wait long for its next cell, or never get one
        devices.release()


def work(cfg: DictConfig) -> None:
    """`measure`, on a GPU that is left to others afterwards."""
    settings = settings_of(cfg)
    check_data(settings)
    tracking.check(settings.track)
    choices = HydraConfig.get().runtime.choices
    for group, name in (("attack", cfg.attack.name), ("benchmark", cfg.benchmark.name)):
        called(group, choices.get(group, name), name)
    cell = Cell(settings)
    level = logging.INFO if of_table() else logging.WARNING  # other cells may well use it
    for name in without_effect(cfg, HydraConfig.get().overrides.task):
        log.log(level, "%s=… has no effect: attack=%s does not use it.", name, cfg.attack.name)
    if cell.norm == "linf" and number(settings.eps) < 1 / 255 - 1e-6:
        log.warning("eps=%s is below 1/255: in 8 bits every image stays as it is.", settings.eps)
    if not cfg.pretrained:
        log.warning("pretrained=false: the networks are untrained; no success rate means anything.")
    made = False
    for one in jobs_of(cell):
        missing = one.missing()
        if missing and not made:
            from irattack.pipeline.compute import check_device  # before images are chosen

            check_device(settings)
        made |= bool(missing)
        if missing and in_worker():
            log.info("%s: %s.", one.title, one.kind)
        if waiting := do(one, missing):
            if not of_table():
                print(
                    f"{cell.label}: shard={cfg.shard} of the {one.kind} is done, "
                    f"{len(waiting)} shards of others are not."
                )
            return
    if made:
        tracking.log(cell)
    if of_table():
        return
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        print(*HydraConfig.get().overrides.task)
    for one in jobs_of(cell):
        if isinstance(one, Results):
            show(cell)
        else:
            paths = [str(one.artifact(name).path) for name in one.names]
            print(f"{one.title}: {one.kind} in {', '.join(paths)}")


def show(cell: Cell) -> None:
    """Prints the results of a cell."""
    from irattack.results.tables import render

    results = rows(cell)
    print(render(results))
    short = results.below_tau.max()
    if short == short and short is not None:  # not NaN
        tau = cell.steps_facts["attack"]["stop"]["tau"]
        print(f"{short:.0f} of {cell.cfg.images} images never reached ‖δ‖₂ = τ = {tau}.")


def main() -> None:
    """The entry point."""
    tidy_arguments()
    register_resolvers()
    with one_sentence(), failures():
        job()
