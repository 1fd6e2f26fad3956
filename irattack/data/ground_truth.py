"""Class indices of images, from files of labels.

What counts from where is known of two published tables: that of the NIPS 2017 competition
(ImageId, TrueLabel, TargetClass, …) counts ImageNet's classes from 1, the labels.csv of the
libraries of transfer attacks (filename, label, targeted_label) from 0. Copies of either are about
that count otherwise, and files without a header, so that class 0 or the last one must show it.
"""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import loadmat

from irattack.data.classes import Classes, synsets
from irattack.errors import InputError, some

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
COLUMNS = {  # what a header may call them, in small letters
    "image": ("imageid", "filename", "file", "image", "path", "name"),
    "label": ("truelabel", "label", "class", "synset", "predictionstring"),
    "wanted": ("targetclass", "targeted_label"),
}
PUBLISHED: dict[tuple[str, ...], int] = {
    ("truelabel", "targetclass"): 1,
    ("label", "targeted_label"): 0,
}


class Row(NamedTuple):
    """A line of a table of labels: its text, the image it names, and the cells of its classes."""

    text: str
    image: str
    cells: list[str]


def stem(name: str) -> str:
    """A file's name without the extension of an image."""
    start, extension = os.path.splitext(name)
    return start if extension.lower() in EXTENSIONS else name


def labels_in(
    ground_truth: str, ids: Sequence[str], classes: Classes, counting: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The class of each image, from a file of one of three kinds, which may name more images.

    - A table with a header: `COLUMNS`. Further columns are ignored.
    - A file name and a class a line, without a header, as Caffe's val.txt.
    - ILSVRC2012_validation_ground_truth.txt of the devkit, with meta.mat beside it: line i is the
      ILSVRC2012_ID, 1 to 1000, of ILSVRC2012_val_i, where i has eight digits.

    A class is a name, among other words such as the boxes in Kaggle's LOC_val_solution.csv, or a
    number. Images go by their file's name with or without extension; tabs, semicolons, commas or
    spaces separate cells.

    Args:
        ground_truth: the file.
        ids: (N,) images whose classes are wanted.
        classes: that there are.
        counting: the number of the first class in the file, 0 or 1; None if the file shows it.

    Returns:
        Labels (N,) int64, and the classes that targeted attacks aim at, (N,) int64, or None.

    Raises:
        InputError: the file cannot be read, or does not say one class of each image.
    """
    path = Path(os.path.expanduser(ground_truth))
    given = f"benchmark.data.ground_truth={ground_truth}"
    try:
        text = path.read_text("utf-8-sig").strip()
        lines = text.splitlines()
        is_devkit = classes.are_imagenet and all(line.strip().isdecimal() for line in lines)
        rows, header = ([], None) if is_devkit else table(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else f"not a table: {error}"
        why = "not text" if isinstance(error, UnicodeDecodeError) else why
        raise InputError(f"{given}: cannot be read ({why}); give a file of labels.") from None
    if not lines or not (is_devkit or rows):
        raise InputError(f"{given}: has no labels; give a file of labels.")
    if counting is not None and not numbered(rows, classes):
        raise InputError(
            f"benchmark.data.counting={counting}: {given} has no numbers of classes to which it "
            "could apply; leave it out."
        )
    found: list[list[int | None]]
    if is_devkit:
        numbers = devkit_labels(path)
        found = [[numbers.get(line.strip())] for line in lines]
        rows = [Row(line, f"ILSVRC2012_val_{i:08}", []) for i, line in enumerate(lines, 1)]
        expected = "an ILSVRC2012_ID from 1 to 1000"
    else:
        first = counted_from(rows, classes, header, counting, given)
        found = [[class_of(cell, classes, first) for cell in row.cells] for row in rows]
        named = f"{classes} or " if classes.index else ""
        expected = f"a file name and {named}one number from {first} to {first + classes.count - 1}"
    return one_each(ids, rows, found, expected, given)


def one_each(
    ids: Sequence[str],
    rows: Sequence[Row],
    found: list[list[int | None]],
    expected: str,
    given: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The classes found for each image, as `labels_in` returns them; refuses all but one a cell."""
    wrong = [row.text[:40] for row, got in zip(rows, found, strict=True) if None in got]
    if wrong:
        raise InputError(
            f"{given}: {len(wrong)} of {len(rows)} lines are not {expected} ({some(wrong)}); "
            "correct them (a header calls its columns filename and label) or give another file."
        )
    of_image = {row.image: got for row, got in zip(rows, found, strict=True)}
    twice = [row.image for row, got in zip(rows, found, strict=True) if of_image[row.image] != got]
    if twice:
        twice = sorted(set(twice))
        raise InputError(
            f"{given}: {len(twice)} images have more than one class ({some(twice)}); keep one."
        )
    missing = [name for name in ids if name not in of_image]
    if missing:
        raise InputError(
            f"{given}: {len(missing)} of {len(ids)} images ({some(missing)}) are not among the "
            f"{len(of_image)} it labels, {rows[0].image} to {rows[-1].image}; add their lines or "
            "move them out of the folder."
        )
    array = np.array([of_image[name] for name in ids], dtype=np.int64)  # (N, 1 or 2)
    return array[:, 0], array[:, 1] if array.shape[1] == 2 else None


def table(text: str) -> tuple[list[Row], int | None]:
    """The rows of a table of labels, and from where its published header counts; None if unknown.

    Raises:
        csv.Error: a quote is not closed, and the like.
    """
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t;," if mark in first), None)
    if delimiter:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        cells = [[cell.strip() for cell in row] for row in reader]
    else:
        cells = [line.split() for line in text.splitlines()]
    cells = [row for row in cells if any(row)]
    names = [cell.lower() for cell in cells[0]] if cells else []
    at = {
        role: next((names.index(name) for name in known if name in names), None)
        for role, known in COLUMNS.items()
    }
    image, label, wanted = at["image"], at["label"], at["wanted"]
    joined = delimiter or " "
    if image is None or label is None:
        rows = [Row(joined.join(row), _name(row[0]), [" ".join(row[1:])]) for row in cells]
        return rows, None
    columns = [label] if wanted is None else [label, wanted]
    titles = tuple(names[i] for i in columns)
    rows = []
    for row in cells[1:]:
        row += [""] * (len(names) - len(row))
        rows.append(Row(joined.join(row), _name(row[image]), [row[i] for i in columns]))
    return rows, PUBLISHED.get(titles)


def _name(file: str) -> str:
    return stem(file.rpartition("/")[2])


def number_in(cell: str, classes: Classes) -> int | None:
    """The number that a cell is, unless it is the name of a class; else None."""
    return int(cell) if cell.isdecimal() and classes.in_cell(cell) is None else None


def numbered(rows: Sequence[Row], classes: Classes) -> dict[int, Row]:
    """The numbers of classes in a table, each with the first row that has it, in their order."""
    found: dict[int, Row] = {}
    for row in rows:
        for cell in row.cells:
            number = number_in(cell, classes)
            if number is not None:
                found.setdefault(number, row)
    return found


def class_of(cell: str, classes: Classes, first: int) -> int | None:
    """The index of the class that a cell names or numbers from `first` on; None if it does not."""
    number = number_in(cell, classes)
    if number is None:
        return classes.in_cell(cell)
    return number - first if 0 <= number - first < classes.count else None


def counted_from(
    rows: Sequence[Row], classes: Classes, header: int | None, counting: int | None, given: str
) -> int:
    """The number of the first class in a table, 0 or 1.

    Only a table that counts from 0 has class 0, only one that counts from 1 has the number of
    classes; a published header tells as well.

    Raises:
        InputError: it may be either.
    """
    numbers = numbered(rows, classes)
    if counting is not None:
        return counting
    shown = [first for first, number in enumerate((0, classes.count)) if number in numbers]
    readings = {*shown, header} - {None}
    if not numbers or len(shown) == 2:  # both: one of the lines is wrong
        return header or 0
    if len(readings) == 1:
        return readings.pop() or 0
    number, row = next(iter(numbers.items()))
    why = f"neither 0 nor {classes.count} occurs to show which"
    if readings:
        number = 0 if shown == [0] else classes.count
        row = numbers[number]
        why = f"its header is that of a table that counts from {header}, but {number} occurs"
    raise InputError(
        f"{given}: counts classes from 0 or from 1 ({why}), so that {number} of {row.image} is "
        f"the index {number} or {number - 1}; set benchmark.data.counting=0 or "
        "benchmark.data.counting=1."
    )


def devkit_labels(ground_truth: Path) -> dict[str, int]:
    """The class index of each ILSVRC2012_ID, "1" to "1000", from the devkit's meta.mat."""
    path = ground_truth.parent / "meta.mat"
    if not path.is_file():
        raise InputError(
            f"benchmark.data.ground_truth={ground_truth}: its numbers are ILSVRC2012_IDs, which "
            "only the devkit's meta.mat turns into classes (their order is not that of the "
            "synsets); put meta.mat beside it."
        )
    try:
        read = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        pairs = zip(read["ILSVRC2012_ID"], read["WNID"], strict=True)
        found = {str(int(number)): synsets()[name] for number, name in pairs if number <= 1000}
    except Exception:  # a damaged file can raise anything
        found = {}
    if set(found) != {str(i + 1) for i in range(1000)} or len(set(found.values())) != 1000:
        raise InputError(
            f"{path} does not give each ILSVRC2012_ID from 1 to 1000 one synset of ImageNet-1k; "
            "put the devkit's own file there."
        )
    return found
