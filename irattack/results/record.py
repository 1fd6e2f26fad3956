"""What a table or figure says, as one JSON file beside its others: what the report is made of."""

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from irattack.errors import InputError
from irattack.hashing import sha256
from irattack.pipeline import files as disk
from irattack.pipeline.cell import Cell
from irattack.pipeline.job import jobs_of
from irattack.pipeline.values import PRECISIONS
from irattack.results.headline import Claim
from irattack.results.names import title

log = logging.getLogger(__name__)

Definition = dict[str, Any]
Writer = Callable[[str, Definition, Sequence[Cell]], str]
Check = Callable[[str, Definition, Sequence[Cell]], None]
Kind = Literal["tables", "figures"]
SETTINGS = {
    **{"benchmark": "benchmark.name", "protocol": "protocol.name", "images": "images"},
    **{"seed": "seed", "eps": "eps", "steps": "steps", "samples": "samples", "cells": "cells"},
    **{"grid": "grid", "lam": "lam", "loss": "loss", "start": "start", "precision": "precision"},
}


def needs(*checks: Check) -> Callable[[Writer], Writer]:
    """Marks what writes a table with what it needs, which is asked before any cell runs.

    Args:
        checks: raise InputError for cells of which the table cannot be made, done or not.
    """

    def marked(write: Writer) -> Writer:
        write.checks = checks  # type: ignore[attr-defined]
        return write

    return marked


def same_images(name: str, definition: Definition, cells: Sequence[Cell]) -> None:
    """Raises InputError unless the cells of a source and norm have the same images."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        other = first.setdefault((cell.cfg.source, cell.norm), cell)
        if cell.images_facts != other.images_facts:
            raise InputError(
                f"{name}: compares {other.method} and {cell.method} image by image, and they are "
                "of different images (seed, images, manifest or the benchmark's data and sources "
                "differ); compare attacks on the same."
            )


class Record(BaseModel):
    """A table or figure that was made.

    Attributes:
        name: of its yaml.
        target: of the Makefile, that makes it.
        called: of its files; it has the settings of the command line.
        overrides: those settings.
        kept: those of them that change what is measured.
        files: the SHA-256 of each of its files.
        lines: the tables as they are printed, each a list of lines whose first has the heads.
        settings: of its cells, as text.
        cells: the names of its cells; they change with whatever changes its numbers.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str
    target: str
    called: str
    kind: Kind
    title: str
    overrides: list[str]
    kept: list[str]
    files: dict[str, str]
    lines: list[list[list[str]]]
    remarks: list[str]
    claims: list[Claim]
    settings: dict[str, str]
    made_with: list[dict[str, str]]
    cells: list[str]

    @property
    def command(self) -> str:
        """What makes it again."""
        machine = ("track", "device", "threads", "shard", "cache.steps")
        given = [text for text in self.overrides if text.split("=")[0] not in machine]
        return command(self.target, given)


def target(definition: Definition) -> str:
    """What the Makefile calls the making of a table or figure."""
    return definition.get("target", f"reproduce-{definition['name']}")


def command(target: str, overrides: Sequence[str] = ()) -> str:
    """The command that makes a table or figure."""
    extra = f' EXTRA="{" ".join(overrides)}"' if overrides else ""
    return f"make {target}{extra}"


def values(cells: Sequence[Cell], name: str) -> str:
    """The values that a setting takes in a table, with the sources they belong to."""
    of_value: dict[str, list[str]] = {}
    for cell in cells:
        value = str(attrgetter(name)(cell.cfg))
        of_value.setdefault(value, []).append(title(cell.cfg.source))
    if len(of_value) == 1 or len({frozenset(sources) for sources in of_value.values()}) == 1:
        return " ".join(of_value)
    return " ".join(f"{v} ({' '.join(dict.fromkeys(s))})" for v, s in of_value.items())


def told(fact: object) -> str:
    """A fact, or all that held for some of the shards, as text."""
    return " ".join(map(str, fact)) if isinstance(fact, list) else str(fact)


def runs(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """The devices, threads, versions and commits that what a table reads was made with."""
    jobs = [job for cell in cells for job in jobs_of(cell)]
    cards = [job.artifact(name).card() for job in jobs for name in job.names]
    found = [run for card in cards if card is not None for run in card.runs]
    texts = [{name: told(fact) for name, fact in run.model_dump().items()} for run in found]
    return [run for i, run in enumerate(texts) if run not in texts[:i]]


def write(
    kind: Kind,
    called: str,
    definition: Definition,
    cells: Sequence[Cell],
    files: Mapping[str, bytes],
    remarks: Sequence[str],
    lines: Sequence[list[list[str]]] = (),
    claims: Sequence[Claim] = (),
) -> Path:
    """Writes the files of a table or figure to outputs/<benchmark>/<kind>, the record last.

    Returns:
        The folder.
    """
    folder = cells[0].root / kind
    for file, content in files.items():
        disk.write_bytes(folder / file, content)
    settings = {name: values(cells, path) for name, path in SETTINGS.items()}
    settings["precision"] = " and ".join(
        PRECISIONS[name] for name in dict.fromkeys(cell.cfg.precision for cell in cells)
    )
    record = Record(
        name=definition["name"],
        target=target(definition),
        called=called,
        kind=kind,
        title=definition["title"],
        overrides=definition.get("overrides", []),
        kept=definition.get("kept", []),
        files={file: sha256(folder / file) for file in files},
        lines=list(lines),
        remarks=list(remarks),
        claims=list(claims),
        settings=settings,
        made_with=runs(cells),
        cells=[cell.label for cell in cells],
    )
    disk.write_json(folder / f"{called}.json", record.model_dump())
    return folder


def read(root: Path) -> list[Record]:
    """The tables and figures in an output folder whose files are those that were made.

    A warning names one whose files are not.
    """
    found = []
    for path in sorted(
        path for kind in ("tables", "figures") for path in (root / kind).glob("*.json")
    ):
        try:
            record = Record.model_validate(disk.read_json(path) or {})
        except ValidationError:
            log.warning("%s is no record of a table or figure; it is left out.", path)
            continue
        wrong = [
            file
            for file, digest in record.files.items()
            if not (path.parent / file).is_file() or sha256(path.parent / file) != digest
        ]
        if wrong:
            log.warning(
                "%s: %s missing or changed since it was made; it is left out, `%s` makes it anew.",
                *(path, ", ".join(wrong), record.command),
            )
            continue
        found.append(record)
    return found
