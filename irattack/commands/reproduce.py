"""`irattack reproduce table1 [name=value …]`: runs what it lacks, then makes it.

The cells are run by one multirun of Hydra, with hydra/launcher=slurm or joblib at the same time;
the table or figure is made from what is on the disk. With `aggregate` for `reproduce` nothing is
run.
"""

import sys
from typing import Any

from irattack.code import function
from irattack.commands.cli import one_sentence, tidy_arguments
from irattack.commands.composing import hydra
from irattack.commands.launch import as_sweep, divided, failures, of_launcher
from irattack.commands.plans import Plan, definitions, named_table, once, plan
from irattack.commands.progress import Progress
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import Job, jobs_of
from irattack.pipeline.results import Results
from irattack.results.record import Writer

NAMED = 8  # of the cells that are missing
CURE = "run the same command with `reproduce`, it continues from what is there."


def missing(name: str, cells: list[Cell]) -> str:
    """A sentence that names the results which are not on the disk; empty if none is missing."""
    found = [(cell, job, job.missing()) for cell in cells for job in jobs_of(cell)]
    absent = [entry for entry in found if entry[2]]
    if not absent:
        return ""
    texts = [
        f"source={cell.cfg.source} attack={cell.method} norm={cell.norm} {lacking(job, names)}"
        for cell, job, names in absent[:NAMED]
    ]
    more = f", and those of {len(absent) - NAMED} more cells" if len(absent) > NAMED else ""
    count, total = (
        sum(len(names) for *_, names in absent),
        sum(len(job.names) for _, job, _ in found),
    )
    return f"{name}: {count} of {total} results are missing: {'; '.join(texts)}{more}"


def lacking(job: Job, names: list[str]) -> str:
    """What a job lacks: `target=vgg16,resnet152`, or its kind."""
    return job.kind if names == [job.kind] else f"target={','.join(names)}"


def run(name: str, chosen: list[tuple[Cell, dict[str, Any]]], overrides: list[str]) -> None:
    """Runs the cells of which a job is not done, as one multirun; shows how far the table is.

    Slurm may have some of them in its queue already; these are waited for.
    """
    progress = Progress(name, [cell for cell, _ in chosen])
    if chosen and any(map(of_launcher, overrides)):
        from irattack.commands.submit import Submission

        if (submission := Submission(chosen[0][0].root, overrides)).of_slurm:
            with submission.alone() as queued:
                submission.submit(chosen, queued)
            with progress.shown():
                return submission.wait()
    from irattack.commands.run import job

    waiting = once([chosen[i] for i in progress.waiting])
    asked = {(cell.cfg.precision == "tf32", cell.cfg.device): cell.cfg for cell, _ in waiting}
    if {*asked} - {(False, "auto"), (False, "cpu")}:  # else PyTorch is of no use here
        from irattack.pipeline.compute import check_device

        for cfg in asked.values():
            check_device(cfg)
    if choices := [choice for _, choice in waiting]:
        sys.argv = ["irattack", "-m", as_sweep(choices), *overrides]
        with progress.shown(), failures():
            job()


def writer(table: Plan) -> Writer:
    """What makes the table of its cells, once these are done.

    Raises:
        InputError: it cannot be made of them.
    """
    name = table.definition.get("name", table.called)
    results = any(isinstance(job, Results) for job in table.jobs)
    if "write" not in table.definition and not results:
        raise InputError(
            f"{name}: its jobs measure no success rates; name the function that makes the table, "
            "`write: module.function`, or list irattack.pipeline.results.Results among its jobs."
        )
    named = table.definition.get("write", "irattack.results.tables.write_table")
    cure = "a function that makes a table of its name, definition and cells, such as "
    write = function(f"{name}: write", named, cure + "irattack.results.tables.write_table")
    for check in getattr(write, "checks", ()):
        check(name, table.definition, table.cells)
    return write


def reproduce(table: Plan, launcher: list[str], aggregate: bool) -> str:
    """Runs the cells that a table lacks, unless `aggregate`; makes it and returns what to print."""
    failure, name = "", table.definition.get("name", table.called)
    write = writer(table)  # may refuse the cells, which may take hours
    try:
        if not aggregate:
            run(name, table.chosen, [*table.overrides, *launcher])
    except InputError as error:
        failure = str(error)
    absent = missing(name, table.cells)
    share = table.cells[0].cfg.shard
    if absent and share and not aggregate and not failure:
        return f"shard={share} is done. {absent}; other shards have them to do."
    if absent:
        raise InputError(f"{absent}; {failure or CURE}")
    return write(table.called, table.definition, table.cells)


def asked() -> tuple[Plan, list[str], list[str]]:
    """What the command line asks for: a table, how to launch its cells, and the words but those."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        launcher, words = divided(sys.argv[1:])
        name, overrides = named_table("reproduce", words)
        if name is None:
            names = ", ".join(sorted(definitions()))
            raise InputError(f"reproduce: name a table or figure: one of {names}.")
        with hydra():
            return plan(name, overrides), launcher, [name, *overrides]


def main(aggregate: bool = False) -> None:
    """Runs the cells that are missing, unless `aggregate`, and prints the table."""
    table, launcher, _ = asked()
    with one_sentence():
        print(reproduce(table, launcher, aggregate))


def aggregate() -> None:
    """Prints the table from the disk alone."""
    main(aggregate=True)
