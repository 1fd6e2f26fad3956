"""Images that go to other tools as files, and come back from them: to the byte, or refused."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from irattack.data.files import FORMATS
from irattack.data.ground_truth import stem
from irattack.errors import InputError, some

LOSSY = ("JPEG", "WEBP")  # formats that may change pixels; whether a WebP did, it does not say
SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEPTH = 24  # where a PNG file says how many bits a channel has


@dataclass(frozen=True)
class Saved:
    """Images that were found in a folder.

    Attributes:
        rows: their positions among the names that were looked for, (n,).
        pixels: (n, 3, H, W) uint8.
        missing: names without a file.
        strange: names of files that nobody looked for.
        lossy: names of files in a format that may have changed their pixels.
    """

    rows: list[int]
    pixels: np.ndarray
    missing: list[str]
    strange: list[str]
    lossy: list[str]


def as_png(pixels: np.ndarray) -> bytes:
    """An image (3, H, W) uint8 as a PNG file, which is lossless."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()


def files_in(folder: str | Path) -> dict[str, list[Path]]:
    """The image files in a folder and those inside it, by their path without extension.

    Raises:
        InputError: it is no folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{folder}: is no folder; give one that holds images.")
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).as_posix()
        hidden = any(part.startswith(".") for part in inside.split("/"))
        if not hidden and stem(inside) != inside and path.is_file():
            found.setdefault(stem(inside), []).append(path)
    return found


def read_saved(folder: str | Path, ids: Sequence[str], size: int) -> Saved:
    """The images of these names in a folder, as they are: nothing is resized or converted.

    Args:
        folder: holds NAME.png, or another extension of images, for each name; a name may have
            folders in it.
        ids: the names.
        size: px, side of each image.

    Raises:
        InputError: there is none of them, or one is damaged, not of this size, or not RGB of 8
            bits a channel.
    """
    files = files_in(folder)
    rows = [row for row, name in enumerate(ids) if name in files]
    if not rows:
        raise InputError(
            f"{folder}: none of its {len(files)} images is named as one of the {len(ids)} clean "
            f"images ({some(ids)}); name them so, or give the images=, seed= or manifest= of those "
            "that were attacked."
        )
    names = [ids[row] for row in rows]
    if twice := [name for name in names if len(files[name]) > 1]:
        raise InputError(
            f"{folder}: {len(twice)} images are there with two extensions ({some(twice)}); keep "
            "one of each."
        )

    def read(name: str) -> tuple[np.ndarray | None, str]:
        return _read(files[name][0], size)

    with ThreadPoolExecutor() as pool:
        read_all = list(pool.map(read, names))
    wrong = [
        f"{name} {said}"
        for name, (image, said) in zip(names, read_all, strict=True)
        if image is None
    ]
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} of {len(rows)} images cannot be used ({some(wrong)}); write "
            f"each as RGB with 8 bits a channel and {size} x {size} px."
        )
    wanted = set(ids)
    return Saved(
        rows=rows,
        pixels=np.stack([image for image, _ in read_all if image is not None]),
        missing=[name for name in ids if name not in files],
        strange=[name for name in files if name not in wanted],
        lossy=[name for name, (_, form) in zip(names, read_all, strict=True) if form in LOSSY],
    )


def _read(path: Path, size: int) -> tuple[np.ndarray | None, str]:
    """An image (3, size, size) and its format, or None and what is wrong with it."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            form, mode, sides = str(file.format), file.mode, file.size
            pixels = np.asarray(file)
        with path.open("rb") as raw:
            head = raw.read(DEPTH + 1)
    except Exception:  # a damaged image can raise anything
        return None, "cannot be read"
    deep = head.startswith(SIGNATURE) and head[DEPTH] > 8  # of which PIL would drop half
    if deep:
        return None, f"has {head[DEPTH]} bits a channel"
    if mode != "RGB":
        return None, f"is of mode {mode}"
    if sides != (size, size):
        return None, f"is {sides[0]} x {sides[1]} px"
    return pixels.transpose(2, 0, 1), form


def path_in(folder: Path, name: str) -> Path:
    """Where the PNG file of an image goes.

    Raises:
        InputError: its name leads out of the folder.
    """
    path = folder / f"{name}.png"
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise InputError(f"{name}: a name of an image that leads out of {folder}; rename it.")
    return path
