"""`make status`: what of every table and figure is done, and `make clean-cache`: what none needs.

    python -m irattack.status [clean] [name=value …]

Settings are those of `make reproduce-…`; a cell of other settings is another cell.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from irattack.cli import one_sentence, tidy_arguments

with one_sentence():
    from tabulate import tabulate

    from irattack import store
    from irattack.cell import Cell
    from irattack.pipeline import missing_targets
    from irattack.reproduce import Plan, plans
    from irattack.settings import register_resolvers

KINDS = ("steps", "results", "interactions")  # folders whose entries are named by cells


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def leftovers(root: Path) -> Iterator[Path]:
    """Temporary files of processes that were killed while they wrote."""
    return (path for path in root.rglob(".*") if path.is_file())


def shards(cell: Cell) -> tuple[int, int]:
    """How many shards of the step cache are whole, and how many are not."""
    folder = cell.steps_path
    whole = broken = 0
    for path in sorted(folder.glob("*.b2")):
        good = store.kept(path, {"key": cell.key}) is not None
        whole, broken = whole + good, broken + (not good)
    return whole, broken


def status(tables: dict[str, Plan]) -> str:
    """A line a table: its cells, how many are measured, begun or not, and what lies on disk."""
    lines, seen = [], dict[str, tuple[bool, int, int, int]]()
    for name, table in tables.items():
        cells = table.cells if table.runs else []
        for cell in cells:
            if cell.label not in seen:
                folders = [cell.root / kind / cell.label for kind in KINDS]
                done = not missing_targets(cell)
                seen[cell.label] = (done, *shards(cell), sum(size(folder) for folder in folders))
        of_table = [seen[cell.label] for cell in cells]
        finished = sum(cell[0] for cell in of_table)
        begun = sum(not cell[0] and cell[1] > 0 for cell in of_table)
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
    """Removes cells that no table lists, and what killed processes left; says how much."""
    cells = [cell for table in tables.values() for cell in table.cells]
    root, known = cells[0].root, {cell.label for cell in cells} | {"propositions", "figures"}
    doomed = [
        folder
        for kind in KINDS
        for folder in sorted((root / kind).glob("*"))
        if folder.name not in known
    ]
    doomed += list(leftovers(root))
    freed = sum(size(path) for path in doomed)
    for path in doomed:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
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
