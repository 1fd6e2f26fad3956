"""`python -m irattack`: one cell from start to end, or with -m a cell for each combination."""

import logging
import socket

from irattack.commands.cli import one_sentence, tidy_arguments

with one_sentence():
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from irattack.commands.launch import failures, in_worker
    from irattack.commands.settings import check, register_resolvers, without_effect
    from irattack.models.zoo import CONF
    from irattack.pipeline.cell import Cell, device
    from irattack.pipeline.run import rows, run
    from irattack.results.report import render

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
    log.info("%s from %s starts on %s.", cfg.attack.name, cfg.source, socket.gethostname())
    try:
        measure(cfg)
    except Exception:
        log.exception("%s from %s failed.", cfg.attack.name, cfg.source)
        raise
    log.info("%s from %s is done.", cfg.attack.name, cfg.source)


def measure(cfg: DictConfig) -> None:
    """One cell, from its checks to its rows on the terminal."""
    check(cfg)
    for name in without_effect(cfg, HydraConfig.get().overrides.task):
        log.warning("%s=… has no effect: attack=%s does not use it.", name, cfg.attack.name)
    if not cfg.pretrained:
        log.warning("pretrained=false: the networks are untrained; no success rate means anything.")
    if cfg.precision == "tf32" and device(cfg).type != "cuda":
        log.warning("precision=tf32 has no effect: there is no CUDA device.")
    cell = Cell(cfg)
    waiting = run(cell)
    if waiting:
        print(f"{cell.label}: shard={cfg.shard} is done, {len(waiting)} shards of others are not.")
        return
    results = rows(cell)
    print(render(results))
    short = results.below_tau.max()
    if short == short:  # not NaN
        print(f"{short:.0f} of {cfg.images} images never reached ‖δ‖₂ = τ = {cfg.tau}.")


def main() -> None:
    """The entry point."""
    tidy_arguments()
    register_resolvers()
    with one_sentence(), failures():
        job()


if __name__ == "__main__":
    main()
