"""The report's page, filled."""

import base64
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from irattack.errors import InputError
from irattack.pipeline.cell import Cell
from irattack.results import headline
from irattack.results.headline import Claim, Printed
from irattack.results.record import Definition, Record, command, target
from irattack.results.report import charts, gallery, tables

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A section of the report.

    Attributes:
        record: of the table or figure.
        root: the folder of its benchmark.
        cells: what its yaml consists of now; none where that cannot be said.
    """

    record: Record
    root: Path
    cells: Sequence[Cell] = ()

    @property
    def id(self) -> str:
        """Its anchor."""
        return self.record.called

    @property
    def stale(self) -> bool:
        """Whether its command would now measure something else."""
        labels = [cell.label for cell in self.cells]
        return bool(labels) and labels != self.record.cells

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """Its CSV files, by what their names add to the table's: "" and "_gain"."""
        return {
            file.removeprefix(self.record.called).removesuffix(".csv"): pd.read_csv(self.path(file))
            for file in self.record.files
            if file.endswith(".csv")
        }

    def path(self, file: str) -> Path:
        """Of one of its files."""
        return self.root / self.record.kind / file

    @property
    def tables(self) -> list[tables.Table]:
        """Its tables."""
        if self.record.kind == "figures":
            return []
        rates = self.frames.get("")
        if rates is not None and {*rates.columns} >= tables.RATES:
            return tables.of_rates(rates, self.frames.get("_gain"))
        return [tables.of_lines(lines) for lines in self.record.lines]

    @property
    def picture(self) -> str | None:
        """Its figure, as a data URI."""
        file = f"{self.record.called}.png"
        return uri("image/png", self.path(file)) if file in self.record.files else None

    @property
    def inches(self) -> float:
        """The width of its figure on paper."""
        with Image.open(self.path(f"{self.record.called}.png")) as image:
            return image.width / image.info["dpi"][0]

    @property
    def downloads(self) -> dict[str, str]:
        """Its CSV files, as data URIs."""
        return {
            file: uri("text/csv", self.path(file))
            for file in self.record.files
            if file.endswith(".csv")
        }

    @property
    def chart(self) -> dict[str, Any] | None:
        """What draws it for a reader who may choose, where that is known."""
        if self.record.kind == "tables":
            return None
        return charts.of_frame(self.record.title, self.frames[""])

    @property
    def has_legend(self) -> bool:
        """Whether a click on the legend of that chart picks a line out."""
        layers = (self.chart or {}).get("layer", [])
        return any(
            param.get("bind") == "legend" for one in layers for param in one.get("params", [])
        )

    @property
    def gallery(self) -> gallery.Gallery | None:
        """Images, where their steps are on the disk and are still this table's."""
        if self.stale or self.record.kind == "figures":
            return None
        with contextlib.suppress(InputError):  # images have changed; whoever uses them is told
            return gallery.of_cells(self.cells)
        return None


@dataclass(frozen=True)
class Line:
    """A line of the headline; without `found` it is not measured yet."""

    says: str
    command: str
    found: Claim | None = None
    paper: Printed | None = None
    entry: Entry | None = None


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        benchmark: its name.
        entries: the tables and figures that are there.
        missing: the yamls of those that are not.
    """

    benchmark: str
    entries: Sequence[Entry]
    missing: Sequence[Definition] = field(default_factory=list)

    @cached_property
    def headline(self) -> list[Line]:
        """A line a claim, of the record with the fewest settings of its own."""
        first: dict[str, Entry] = {}
        for entry in sorted(self.entries, key=lambda entry: len(entry.record.kept)):
            first.setdefault(entry.record.name, entry)
        lines = [
            Line(claim.says, entry.record.command, claim, claim.paper, entry)
            for entry in first.values()
            for claim in entry.record.claims
        ]
        measured = {line.says for line in lines}
        for definition in self.missing:
            for spec in definition.get("claims", []):
                if spec["says"] in measured:  # with settings of its own
                    continue
                printed = headline.printed(spec, definition.get("paper"))
                lines.append(Line(spec["says"], command(target(definition)), paper=printed))
        return sorted(lines, key=lambda line: place(line.command.split("-", 1)[1]))

    def of_kind(self, kind: str) -> list[Entry]:
        """Its tables, or its figures, those of the paper first."""
        chosen = [entry for entry in self.entries if entry.record.kind == kind]
        return sorted(chosen, key=lambda entry: place(entry.record.called))

    @property
    def summary(self) -> str:
        """How many claims hold."""
        verdicts = [line.found.verdict for line in self.headline if line.found]
        words = ("holds", "undecided", "does not hold")
        counts = [verdicts.count(word) for word in words]
        open_ = len(self.headline) - len(verdicts)
        text = (
            f"Claims measured: {len(verdicts)}; {counts[0]} hold, {counts[1]} undecided, "
            f"{counts[2]} do not hold."
        )
        return text + (f" Not measured yet: {open_}." if open_ else "")


def place(name: str) -> tuple[bool, str]:
    """Where a table or figure stands: those that the paper numbers come first."""
    return not any(letter.isdigit() for letter in name.split("-")[0]), name


def uri(kind: str, path: Path) -> str:
    """A file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def signed(value: float, digits: int = 1) -> str:
    """A difference, with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = signed
    kinds = [(kind, report.of_kind(kind)) for kind in ("tables", "figures")]
    drawn = any(entry.chart for entry in report.entries)
    # What is of the package itself is not escaped; nothing else is marked.
    return environment.get_template("index.html").render(
        report=report,
        kinds=kinds,
        style=Markup((FOLDER / "style.css").read_text("utf-8")),
        script=Markup((FOLDER / "script.js").read_text("utf-8")),
        library=Markup(charts.library()) if drawn else "",
        palette=tables.SCALE,
    )
