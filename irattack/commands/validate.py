"""Before a long run: what is wrong with a table or a cell, and what it would run.

    irattack validate [TABLE] [name=value …]

Settings are those of `irattack reproduce TABLE`, or without a table those of one cell. Every cell
is composed and its settings checked; every source, target and network that chooses images is built
with its weights and tried on random images (published weights that are not here are downloaded);
the images are listed, and as many as are attacked are read. All that is wrong is named, not only
the first; exit status 2 then. Nothing is attacked or written to the output folder.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from irattack.commands.cli import one_sentence, stop, tidy_arguments
from irattack.commands.composing import composed, hydra
from irattack.commands.launch import of_launcher, without_slurm
from irattack.commands.plans import plan
from irattack.commands.settings import register_resolvers
from irattack.errors import InputError
from irattack.models import zoo
from irattack.pipeline.cell import Cell, attack_of
from irattack.pipeline.counting import readings
from irattack.pipeline.job import jobs_of
from irattack.pipeline.settings import settings_of

UNTRAINED = "pretrained=false"


@dataclass
class Findings:
    """What is said of each part, and the sentences on what cannot be used.

    Attributes:
        lines: of what was found, in order.
        wrong: the sentences.
    """

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def look(self, part: str, at: Callable[[], str]) -> bool:
        """Notes what `at` finds, or the sentence that it raises; whether it is fine."""
        try:
            said = at()
        except InputError as error:
            said = f"WRONG: {error}"
            self.wrong = [*dict.fromkeys([*self.wrong, str(error)])]
        self.lines.append(f"{part}: {said}")
        return not said.startswith("WRONG")


def cells_of(table: str | None, overrides: list[str]) -> list[Cell]:
    """The cells of a table, or the one cell of these settings."""
    with hydra():
        if table is not None:
            return plan(table, overrides).cells
        return [Cell(settings_of(composed(overrides)))]


def validate(table: str | None, overrides: list[str], launcher: list[str]) -> Findings:
    """Looks at all that a run relies on.

    Raises:
        InputError: the settings themselves cannot be used.
    """
    found = Findings()
    cells = cells_of(table, [*overrides, UNTRAINED])  # to which no weights are needed
    if launcher:
        found.look("launcher", lambda: launched(launcher))
    trained = all(text.replace(" ", "") != UNTRAINED for text in overrides)
    names = dict.fromkeys(name for cell in cells for name in networks(cell))
    fine = [found.look(name, lambda n=name: network(n, cells, trained)) for name in bar(names)]  # type: ignore[misc]
    if trained and all(fine):

        def compose() -> str:
            nonlocal cells
            cells = cells_of(table, overrides)
            return f"{len(cells)}, each with settings that can be used"

        found.look("cells", compose)
    for cell in {str(cell.images_facts): cell for cell in cells}.values():
        found.look("images", lambda c=cell: images(c))  # type: ignore[misc]
    found.look("output", lambda: output(cells))
    if not found.wrong:
        found.lines += ["", work(cells)]
    return found


def bar(names: dict[str, None]) -> Iterator[str]:
    """The names, with a progress bar on a terminal."""
    return tqdm(names, desc="networks", leave=False, disable=None)


def networks(cell: Cell) -> list[str]:
    """Of a cell: its source, its targets and those that decide which images are attacked."""
    return [*cell.cfg.benchmark.sources, cell.cfg.source, *cell.targets]


def network(name: str, cells: list[Cell], trained: bool) -> str:
    """Builds a network, tries it, and has the attacks from it find their residual branches."""
    cfg = cells[0].cfg
    of, folder = cfg.benchmark.name, cfg.weights_dir
    model = zoo.build(of, name, trained, folder)
    for cell in cells:
        backward = attack_of(cell).backward if cell.cfg.source == name else None
        if backward is not None:
            with backward(model):
                pass
    members = zoo.card(of, name).get("members")
    if members:
        return f"mean of {', '.join(members)}"
    if not trained:
        return "untrained"
    path, digest = zoo.weights(of, name, folder)
    return f"{path}, {path.stat().st_size / 1e6:.1f} MB, SHA-256 {digest[:12]}…"


def images(cell: Cell) -> str:
    """Lists the candidates and reads as many as are attacked; or all, if they are chosen."""
    from irattack.pipeline.images import check_classes, drawn, images_of, listing

    cfg = cell.cfg
    if listing(cell) is not None:
        return f"{len(images_of(cell))} chosen before, unchanged"
    found = readings(cfg.benchmark.data)
    candidates = next(iter(found.values()))
    count = min(cfg.images, len(candidates))
    if count < cfg.images:
        raise InputError(f"images={cfg.images}: there are only {count}; use images={count}.")
    if len(found) == 1:  # else a network decides, when images are chosen
        check_classes(cell, networks(cell), candidates.ids, candidates.labels)
    order = drawn(candidates.ids, cfg.seed)[:count]
    for start in range(0, count, cfg.block):
        candidates.take(order[start : start + cfg.block])
    judges = ", ".join(cfg.benchmark.sources)
    which = f"those that {judges} classify correctly" if judges else "any"
    return f"{len(candidates)} candidates, {count} of them read; attacked are {count}, {which}"


def launched(launcher: list[str]) -> str:
    """Composes the launcher, and looks for the commands of Slurm."""
    with hydra():
        composed(launcher)
    if "hydra/launcher=slurm" in launcher and (missing := without_slurm()):
        raise InputError(missing)
    return " ".join(launcher)


def output(cells: list[Cell]) -> str:
    """Whether the folder of results can be written and has room for the steps, uncompressed."""
    folder = Path(cells[0].cfg.output).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"output={cells[0].cfg.output}: {there} cannot be written; choose another folder."
        )
    free = shutil.disk_usage(there).free
    most = sum(cell.steps_bytes for cell in {cell.key: cell for cell in cells}.values())
    said = (
        f"{folder}, {free / 1e9:.1f} GB free; the steps of all cells take {most / 1e9:.3g} GB, "
        "compressed about a quarter of that"
    )
    if most / 4 > free:
        raise InputError(f"{said}; use cache.steps=none or another output=FOLDER.")
    return said


def work(cells: list[Cell]) -> str:
    """A line a cell: what is attacked, with how many passes, and what of it is done."""
    from irattack.pipeline.speed import most_gradients

    rows, total = [], 0
    for cell in cells:
        attack, cfg = attack_of(cell), cell.cfg
        jobs = jobs_of(cell)
        artifacts = sum(len(job.names) for job in jobs)
        done = artifacts - sum(len(job.missing()) for job in jobs)
        total += artifacts - done
        lam = None if attack.interaction is None else attack.interaction.lam
        first = [cell.method, cfg.source, cell.norm, lam, cfg.images, attack.steps]
        passes = cfg.images * most_gradients(attack)
        evaluated = cfg.images * cell.recorded * len(cell.targets)
        rows.append([*first, passes, evaluated, f"{done} of {artifacts}"])
    heads = ["attack", "source", "norm", "λ", "images", "steps"]
    heads += ["passes", "of targets", "done"]
    table = tabulate(rows, heads, missingval="–", floatfmt="g")
    return (
        f"{table}\n\nResults to be made: {total}. `passes` are forward and back through the "
        "source, `of targets` forward alone; `irattack estimate` has their hours on this device."
    )


def main() -> None:
    """Prints what is found; exit status 2 if something cannot be used."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        words = sys.argv[1:]
        tables = [word for word in words if "=" not in word and word[0] != "-"]
        if len(tables) > 1:
            raise InputError(f"validate {' '.join(tables)}: one table at a time, or none.")
        launcher = [word for word in words if of_launcher(word)]
        overrides = [w for w in words if "=" in w and w[0] != "-" and w not in launcher]
        found = validate(tables[0] if tables else None, overrides, launcher)
        print("\n".join(found.lines))
        if found.wrong:
            many = "1 thing" if len(found.wrong) == 1 else f"{len(found.wrong)} things"
            stop(f"{many} marked WRONG above; mend that and validate again.")
        print("Nothing is wrong.")
