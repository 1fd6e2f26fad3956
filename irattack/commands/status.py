"""`make status`: what of every table and figure is done, and `make clean-cache`: what none needs.

    python -m irattack.commands.status [clean] [name=value …]

Settings are those of `make reproduce-…`; a cell of other settings is another cell.
"""

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from irattack.commands.cli import one_sentence, tidy_arguments

with one_sentence():
    from tabulate import tabulate

    from irattack.commands.reproduce import Plan, plans
    from irattack.commands.settings import register_resolvers
    from irattack.pipeline import store
    from irattack.pipeline.cell import Cell, file_name
    from irattack.pipeline.run import is_measured, missing_targets

CACHES = ("steps", "interactions")
KINDS = ("steps", "results", "interactions")  # folders whose entries are named by cells


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder, nothing for what a link points to."""
    entries = [path] if path.is_symlink() or path.is_file() else path.rglob("*")
    return sum(e.stat().st_size for e in entries if e.is_file() and not e.is_symlink())


def leftovers(root: Path) -> Iterator[Path]:
    """Temporary files (`store.replacing`) of processes that were killed while they wrote."""
    paths = (path for path in root.rglob(".*") if re.search(r"\.[0-9a-f]{32}$", path.name))
    old = time.time() - 3600  # a younger one may be in use
    return (path for path in paths if path.is_file() and path.lstat().st_mtime < old)


def parts(cell: Cell) -> dict[str, list[Path]]:
    """What lies of single shards on each target, until it is merged."""
    return {
        target: [
            path
            for path in cell.part_path(target, Path("x")).parent.glob("*")
            if path.stem.partition("-")[2] == file_name(target) and path.name[0] != "."
        ]
        for target in cell.targets
    }


def shards(cell: Cell) -> tuple[int, int]:
    """How many shards of the step cache are whole, and how many are not."""
    folder = cell.steps_path
    whole = broken = 0
    names = {path.stem for kind in ("b2", "json") for path in folder.glob(f"[0-9]*.{kind}")}
    for name in sorted(names):
        good = store.kept(folder / f"{name}.b2", {"key": cell.key}) is not None
        whole, broken = whole + good, broken + (not good)
    return whole, broken


def status(tables: dict[str, Plan]) -> str:
    """A line a table: its cells, how many are measured, begun or not, and what lies on disk."""
    lines, seen = [], dict[str, tuple[bool, bool, int, int]]()
    for name, table in tables.items():
        if not table.runs:  # its cells lend their images and sources only
            continue
        cells = table.cells
        for cell in cells:
            if cell.label not in seen:
                folders = [cell.root / kind / cell.label for kind in KINDS]
                missing, (whole, broken) = missing_targets(cell), shards(cell)
                some = whole > 0 or len(missing) < len(cell.targets) or any(parts(cell).values())
                on_disk = sum(size(folder) for folder in folders)
                seen[cell.label] = (not missing, some, broken, on_disk)
        of_table = [seen[cell.label] for cell in cells]
        finished = sum(cell[0] for cell in of_table)
        begun = sum(not cell[0] and cell[1] for cell in of_table)
        megabytes = sum(cell[3] for cell in of_table) / 1e6
        broken = sum(cell[2] for cell in of_table)
        lines.append(
            [
                name,
                len(cells),
                finished,
                begun,
                len(cells) - finished - begun,
                broken,
                f"{megabytes:.1f}",
            ]
        )
    heads = ["table or figure", "cells", "done", "begun", "pending", "broken shards", "MB"]
    return tabulate(lines, heads)


def clean(tables: dict[str, Plan]) -> str:
    """Removes steps and interactions of cells that no table lists; says how much.

    And what killed processes left, and the parts of what is merged. Results stay: they are small.
    Of a link only the link is removed, and nothing outside the output folder.
    """
    cells = [cell for table in tables.values() for cell in table.cells]
    root, home = cells[0].root, Path(cells[0].cfg.output).resolve()
    known = {cell.label for cell in cells} | {"propositions", "hessian"}  # of `interactions`
    found = [path for kind in CACHES for path in sorted((root / kind).glob("*"))]
    doomed = [path for path in found if path.name not in known and path.name[0] != "."]
    for cell in cells:
        merged = [paths for name, paths in parts(cell).items() if paths and is_measured(cell, name)]
        doomed += [path for paths in merged for path in paths]
    doomed += [path for path in leftovers(root) if not {*doomed} & {*path.parents}]
    inside = [path for path in doomed if path.parent.resolve().is_relative_to(home)]
    doomed = list(dict.fromkeys(inside))
    freed = sum(size(path) for path in doomed)
    for path in doomed:
        linked = path.is_symlink() or not path.is_dir()
        path.unlink(missing_ok=True) if linked else shutil.rmtree(path)
    names = "".join(f"  {path.relative_to(root)}\n" for path in doomed)
    return f"{names}Removed {len(doomed)} of {root}, {freed / 1e6:.1f} MB."


def main() -> None:
    """Prints the status, or cleans."""
    tidy_arguments()
    register_resolvers()
    with one_sentence():
        words = sys.argv[1:]
        overrides = [word for word in words if word != "clean"]
        tables = plans(overrides)
        print(clean(tables) if "clean" in words else status(tables))


if __name__ == "__main__":
    main()
