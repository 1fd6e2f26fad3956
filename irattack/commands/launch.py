"""Hydra's launchers: the cells of a table as one list of jobs, and what to say when a job fails."""

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from irattack.commands.cli import stop
from irattack.commands.queue import absent
from irattack.commands.settings import cpu_count
from irattack.conf import is_group
from irattack.errors import InputError

log = logging.getLogger(__name__)

EVERY_S = 15.0  # at most so many seconds between two looks at Slurm's queue
OURS = (InputError, OSError, HydraException, OmegaConfBaseException)  # have a sentence already


def as_sweep(choices: list[dict[str, Any]]) -> str:
    """The override that makes a multirun of exactly these choices, +cell=…, one job each.

    Hydra sweeps over products only; so each choice becomes a config of the group `cell`.
    """
    names: list[str] = []
    for choice in choices:
        groups = {key: value for key, value in choice.items() if is_group(key)}
        defaults = [{f"override /{key}": value} for key, value in groups.items()]
        node = OmegaConf.create({"defaults": defaults})
        for key in choice.keys() - groups.keys():
            OmegaConf.update(node, key, choice[key])
        told = [value for key, value in choice.items() if key not in ("jobs", "targets")]
        told = [*told, len(names)]  # two may have equal values of unlike settings
        names.append("-".join(re.sub(r"[^\w.]", "_", str(value)) for value in told))
        ConfigStore.instance().store(group="cell", name=names[-1], node=node, package="_global_")
    return f"+cell={','.join(names)}"


def of_launcher(override: str) -> bool:
    """Whether an override of the command line is about how jobs are run, not what they compute."""
    return override.lstrip("+~").startswith(("hydra/", "hydra."))


def divided(words: list[str]) -> tuple[list[str], list[str]]:
    """Flags and settings about how jobs are run, and those about what they compute."""
    launcher = [word for word in words if word.startswith("-") or of_launcher(word)]
    return sorted(launcher, key=of_launcher), [word for word in words if word not in launcher]


def in_worker() -> bool:
    """Whether this job is one of several at a time."""
    return not HydraConfig.get().launcher._target_.endswith("BasicLauncher")


def of_slurm(config: DictConfig) -> bool:
    """Whether the launcher of a configuration is one of Slurm."""
    return config.hydra.launcher._target_.endswith("SlurmLauncher")


def without_slurm() -> str:
    """The sentence for a machine that lacks a command of Slurm; empty if it has them."""
    if not (missing := absent()):
        return ""
    return (
        f"hydra/launcher=slurm: there is no {missing[0]} on this machine; run it where the "
        "cluster's users log in, or use hydra/launcher=joblib for several processes here."
    )


def ready_for_slurm(every_s: float) -> None:
    """Ends the program without Slurm; else has jobs watched in the queue, without sacct."""
    if sentence := without_slurm():
        stop(sentence)
    from submitit.slurm.slurm import SlurmJob

    from irattack.commands.slurm import QueueWatcher

    SlurmJob.watcher = QueueWatcher(every_s)


class Prepare(Callback):
    """Makes Slurm's launcher ready before a multirun.

    Args:
        every_s: at most so many seconds between two looks at Slurm's queue.
    """

    def __init__(self, every_s: float = EVERY_S):
        self.every_s = every_s

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """`ready_for_slurm`, if that is the launcher; of joblib's, says if it is too crowded."""
        if of_slurm(config):
            ready_for_slurm(self.every_s)
        if sentence := crowded(config):
            log.warning(sentence)
        # joblib starts a worker that has grown anew; no job is lost
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)


def crowded(config: DictConfig) -> str:
    """The sentence for processes of joblib with more threads than cores; empty if they fit."""
    launcher = config.hydra.launcher
    if not launcher._target_.endswith("JoblibLauncher"):
        return ""
    cores = cpu_count()
    processes = launcher.n_jobs if launcher.n_jobs > 0 else max(cores + 1 + launcher.n_jobs, 1)
    if processes * config.threads <= cores:
        return ""
    fewer = "" if processes <= cores else f"hydra.launcher.n_jobs={cores} "
    return (
        f"hydra.launcher.n_jobs={launcher.n_jobs}: {processes} processes of threads="
        f"{config.threads} share {cores} cores, which makes all of them slow on a CPU; use "
        f"{fewer}threads={max(cores // processes, 1)}."
    )


@contextlib.contextmanager
def failures(several: bool = False) -> Iterator[None]:
    """Around a multirun: the failure of one of several jobs becomes one sentence.

    Args:
        several: that there are several, even if the command line names no launcher.
    """
    if not several and not any(re.match(r"hydra/launcher=(?!basic$)", a) for a in sys.argv):
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        stop(
            "interrupted; finished shards are kept, run the same command to continue. Jobs of "
            "Slurm go on until they are done or cancelled (scancel --name=irattack).",
            130,
        )
    except OURS:
        raise
    except Exception as error:
        text, kind = str(error), type(error).__name__
        lines = [line.strip() for line in text.splitlines() if line.strip(" -\n")]
        if lost := re.match(r"Job (\S+) .*\bhas not produced any output", text, re.DOTALL):
            what = f"Slurm's job {lost[1]} was cancelled or killed"
        elif refused := re.findall(r"sbatch: error: (.*\w)", text):
            what = f"Slurm refuses the jobs ({'; '.join(refused)})"
        else:
            what = f"a job failed ({kind}{': ' + lines[-1].rstrip('.') if lines else ''})"
        raise InputError(
            f"{what}; the work of the others is kept and the logs are in outputs/<benchmark>/log; "
            "run the same command to continue."
        ) from error
