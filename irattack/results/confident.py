"""The table of over-confident sources: white-box success and transfer against p_y."""

from collections.abc import Sequence

import pandas as pd

from irattack.pipeline import statistics
from irattack.pipeline.cell import Cell
from irattack.pipeline.results import arrays, rows
from irattack.pipeline.statistics import Interval
from irattack.pipeline.values import number
from irattack.results.criteria import record
from irattack.results.names import method_name, signed, title
from irattack.results.publish import caption, publish
from irattack.results.record import Definition, needs, same_images


def rate_and_gain(cell: Cell, baseline: Cell, targets: Sequence[str]) -> dict[str, Interval]:
    """The mean over targets of a cell's success, in %, and its gain over another, in points."""
    both = [
        [statistics.successes(arrays(one, target)["margins"]) for target in targets]
        for one in (cell, baseline)
    ]
    percent, _ = statistics.mean_rate(both[0])
    gain, _ = statistics.mean_gain([*zip(*both, strict=True)])
    return {"percent": percent, "gain": gain}


def without(method: str, *settings: str) -> str:
    """The name of a method without some of its settings."""
    return " ".join(word for word in method.split() if word.split("=")[0] not in settings)


@needs(same_images)
def confident(name: str, definition: Definition, cells: Sequence[Cell]) -> str:
    """A line a source, confidence and attack; gains over PGD of the same loss and confidence."""
    heads = ["source", "median p_y", "method", "white-box %", "gain over PGD", "transfer %"]
    lines, records = [[*heads, "gain over PGD"]], []

    def place(cell: Cell) -> tuple:
        return cell.cfg.source, cell.norm, cell.cfg.confidence, cell.cfg.loss

    first = {place(cell): cell for cell in reversed(cells) if cell.name == "pgd"}
    for cell in sorted(cells, key=lambda one: (one.cfg.source, number(one.cfg.confidence or 0))):
        source = cell.cfg.source
        groups = {
            "white-box": [target for target in cell.targets if target == source],
            "transfer": [target for target in cell.targets if target != source],
        }
        baseline, measured = first.get(place(cell), cell), float(rows(cell).source_confidence[0])
        method = without(cell.method, "confidence")
        told = []
        for group, targets in groups.items():
            if not targets:
                told += ["–", "–"]
                continue
            of_group = rate_and_gain(cell, baseline, targets)
            told.append(f"{of_group['percent'][0]:.1f}")
            told.append("–" if baseline is cell else signed(of_group["gain"]))
            each = {target: rate_and_gain(cell, baseline, [target]) for target in targets}
            for target, found in {**each, f"mean {group}": of_group}.items():
                where = {"source": source, "norm": cell.norm, "attack": method}
                where |= {"confidence": cell.cfg.confidence, "source_confidence": measured}
                records.append(record(where | {"target": target}, cell.cfg.images, found))
        lines.append([title(source), f"{measured:.4f}", method_name(method), *told])
    remarks = [
        "The logits of the source are multiplied by one number, so that the median of p_y over the "
        "clean images is as the line says; its classes stay as they are, and the targets are not "
        "changed. White-box: on the source itself. Transfer: the mean over the other networks. "
        "Gains are over PGD with the same loss on the same source, in points, paired over images. "
        "IR, balanced: λ is multiplied by ‖∇ℓ‖₂ / ‖∇I‖₂ of each image and step. With the margin "
        "loss both gradients scale alike, so that nothing but rounding can change.",
        caption(cells),
    ]
    frame = {f"{name}.csv": pd.DataFrame(records)}
    return publish(cells, name, definition, [lines], remarks, frame)
