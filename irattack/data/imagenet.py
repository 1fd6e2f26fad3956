"""The images of benchmark=imagenet: ImageNet's, from a folder that the user names.

What the folder holds tells how its images are labelled:

    n01440764/any name.JPEG         a folder for each class
    n01440764_any name.png          the class in the name, as the paper's authors publish theirs
    ILSVRC2012_val_00000001.JPEG    one folder, and a file of labels: see `ground_truth.labels_in`
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from irattack.data.ground_truth import EXTENSIONS, classes, labels_in, some, stem
from irattack.data.images import Candidates
from irattack.errors import InputError

FORMATS = ("BMP", "JPEG", "PNG", "WEBP")  # of the content, whatever the name says


def listed(folder: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the images in a folder, sorted; hidden ones are left out."""
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif stem(entry.name) != entry.name:
                    images.append(entry.name)
    except OSError as error:
        raise InputError(
            f"benchmark.data.folder: {folder} cannot be listed ({error.strerror}); "
            "give a folder of images that you may read."
        ) from None
    return sorted(folders), sorted(images)


def labelled(folder: str, ground_truth: str | None) -> tuple[list[str], list[int]]:
    """The images of a folder, as paths in it, and their class indices."""
    given = f"benchmark.data.folder={folder}"
    folders, files = listed(folder)
    if files and any(name in classes() for name in folders):
        raise InputError(
            f"{given}: has images ({some(files)}) beside class folders; keep one of the two."
        )
    if files and ground_truth:
        return files, labels_in(ground_truth, [stem(file) for file in files])
    names = files or folders
    synsets = [stem(file).partition("_")[0] for file in files] or folders
    odd = [name for name, synset in zip(names, synsets, strict=True) if synset not in classes()]
    if odd:
        what = "images" if files else "folders"
        raise InputError(
            f"{given}: {len(odd)} of {len(names)} {what} are not named after a synset of "
            f"ImageNet-1k ({some(odd)}); give a folder that holds class folders (n01440764/*.JPEG) "
            "or images with the class in their names (n01440764_*.png), or set "
            "benchmark.data.ground_truth to a file of labels."
        )
    if folders and not files:
        if ground_truth:
            raise InputError(
                f"benchmark.data.ground_truth={ground_truth}: the class folders in {folder} say "
                "the classes already; leave one of the two out."
            )
        files = [f"{name}/{file}" for name in folders for file in listed(f"{folder}/{name}")[1]]
    if not files:
        raise InputError(f"{given}: has no images; expected files {', '.join(EXTENSIONS)}.")
    return files, [classes()[re.split("[/_]", stem(file))[0]] for file in files]


def read_image(path: str, size: int) -> np.ndarray:
    """One image as (3, size, size) uint8 RGB; raises whatever PIL does if it is damaged."""
    with Image.open(path, formats=FORMATS) as file:
        image: Image.Image = file
        if file.mode.startswith("I"):  # 16-bit gray: the upper 8 bits, which PIL keeps of colours
            image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8))
        small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


def candidates(folder: str | None, ground_truth: str | None, size: int) -> Candidates:
    """All images of a folder, each read when it is needed.

    An image is resized to the square as a whole, with PIL's bilinear filter and 8 bits, as the
    paper's authors do: its aspect ratio is not kept. Transparency and EXIF orientation are ignored.

    Args:
        folder: of images, in one of the layouts at the top of this file.
        ground_truth: a file of labels, for images in one folder; see `ground_truth.labels_in`.
        size: px, side of the images that are read.

    Returns:
        Candidates named by their path in the folder, without extension.

    Raises:
        InputError: the folder or a label cannot be used, or, on reading, images are damaged.
    """
    if not folder:
        raise InputError(
            "benchmark.data.folder is not set: ImageNet's images are not shipped; give the folder "
            "of the validation images, benchmark.data.folder=/path."
        )
    if not isinstance(size, int) or size < 1:
        raise InputError(f"benchmark.data.size={size}: expected a number of pixels from 1 on.")
    root = os.path.expanduser(str(folder))
    files, labels = labelled(root, str(ground_truth) if ground_truth else None)
    ids = [stem(file) for file in files]
    if odd := [ascii(file) for file in files if not file.isprintable()]:
        raise InputError(
            f"benchmark.data.folder={folder}: {len(odd)} images have names that cannot be printed "
            f"({some(odd)}); rename them."
        )
    counts = Counter(ids)
    clashing = [file for file in files if counts[stem(file)] > 1]
    if clashing:
        raise InputError(
            f"benchmark.data.folder={folder}: {len(clashing)} images differ in nothing but the "
            f"extension ({some(clashing)}); keep one of each."
        )

    def read(rows: Sequence[int]) -> np.ndarray:
        pixels = np.empty((len(rows), 3, size, size), np.uint8)

        def good(place: int) -> bool:
            try:
                pixels[place] = read_image(f"{root}/{files[rows[place]]}", size)
            except Exception:  # a damaged image can raise anything
                return False
            return True

        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore")  # of PIL, about large images and odd metadata
            fine = list(pool.map(good, range(len(rows))))
        bad = [files[row] for row, is_fine in zip(rows, fine, strict=True) if not is_fine]
        if bad:
            raise InputError(
                f"benchmark.data.folder={folder}: {len(bad)} of {len(rows)} images cannot be read "
                f"({some(bad, 5)}); restore or remove them."
            )
        return pixels

    return Candidates(ids, np.array(labels, dtype=np.int64), read)
