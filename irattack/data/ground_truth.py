"""Class indices of ImageNet-1k, from synsets and from files of labels.

The index of a class, 0 to 999, is the position of its synset among all in alphabetical order, as
networks count them.
"""

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from scipy.io import loadmat
from timm.data import ImageNetInfo

from irattack.errors import InputError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
INDICES = {str(i): i for i in range(1000)}


@cache
def classes() -> dict[str, int]:
    """The index of each synset, 0 to 999."""
    return {name: i for i, name in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, for a sentence."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def stem(name: str) -> str:
    """A file's name without the extension of an image."""
    start, extension = os.path.splitext(name)
    return start if extension.lower() in EXTENSIONS else name


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
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        pairs = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        found = {str(int(number)): classes()[name] for number, name in pairs if number <= 1000}
    except Exception:  # a damaged file can raise anything
        found = {}
    if set(found) != {str(i + 1) for i in range(1000)} or len(set(found.values())) != 1000:
        raise InputError(
            f"{path} does not give each ILSVRC2012_ID from 1 to 1000 one synset of ImageNet-1k; "
            "put the devkit's own file there."
        )
    return found


def labels_in(ground_truth: str, ids: Sequence[str]) -> list[int]:
    """The class index of each image, from a file of one of three kinds, which may name more images.

    - ILSVRC2012_validation_ground_truth.txt of the devkit, with meta.mat beside it: line i is the
      ILSVRC2012_ID, 1 to 1000, of ILSVRC2012_val_i, where i has eight digits.
    - A file name and a synset a line, with or without a header; other words, such as the boxes in
      Kaggle's LOC_val_solution.csv, are ignored.
    - A file name and a class index, 0 to 999, a line, as Caffe's val.txt.

    Names go with or without extension; a comma, a tab or a space ends them.
    """
    path = Path(os.path.expanduser(ground_truth))
    given = f"benchmark.data.ground_truth={ground_truth}"
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").strip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or "not text"
        raise InputError(f"{given}: cannot be read ({why}); give a file of labels.") from None
    if lines and not re.search(r"\d", lines[0]):
        del lines[0]  # a header
    if not lines:
        raise InputError(f"{given}: has no labels; give a file of labels.")
    pairs: list[tuple[str, int | None]]
    if all(line.isdecimal() for line in lines):
        expected = "an ILSVRC2012_ID from 1 to 1000"
        labels = devkit_labels(path)
        pairs = [(f"ILSVRC2012_val_{i:08}", labels.get(line)) for i, line in enumerate(lines, 1)]
    else:
        expected = "a file name and one synset of ImageNet-1k or one index from 0 to 999"
        pairs = [named_label(line) for line in lines]
    wrong = [line[:40] for line, (_, label) in zip(lines, pairs, strict=True) if label is None]
    if wrong:
        raise InputError(
            f"{given}: {len(wrong)} of {len(lines)} lines are not {expected} ({some(wrong)}); "
            "correct them or give another file."
        )
    found = {name: label for name, label in pairs if label is not None}
    twice = sorted({name for name, label in pairs if found[name] != label})
    if twice:
        raise InputError(
            f"{given}: {len(twice)} images have more than one class ({some(twice)}); keep one."
        )
    missing = [name for name in ids if name not in found]
    if missing:
        raise InputError(
            f"{given}: {len(missing)} of {len(ids)} images ({some(missing)}) are not among the "
            f"{len(found)} it labels, {pairs[0][0]} to {pairs[-1][0]}; add their lines or move "
            "them out of the folder."
        )
    return [found[name] for name in ids]


def named_label(line: str) -> tuple[str, int | None]:
    """The image and the class index that a line gives, None where it does not give one."""
    name, _, rest = re.sub(r"\s*[,\t]\s*", ",", line, count=1).partition(",")
    if not rest:
        name, _, rest = line.partition(" ")
    words = set(re.findall(r"[^\s,]+", rest))
    label = {word for word in words if word in classes()} or words
    only = label.pop() if len(label) == 1 else ""
    return stem(name.rpartition("/")[2]), classes().get(only, INDICES.get(only))
