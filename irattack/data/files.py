"""Images of any data set, from a folder or a file that the user names.

What lies there tells how the images are labelled:

    cat/any name.png            a folder for each class
    cat_any name.png            the class in the name
    any name.png                one folder, and a file of labels: see `ground_truth.labels_in`
    test_batch.bin              CIFAR-10's binary version
    a .npy, .npz, .safetensors  an array file: see `arrays.labelled_pixels`

The classes of ImageNet are named by their synsets: n01440764/any name.JPEG, and
n01440764_any name.png as the paper's authors publish theirs.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from irattack.data.arrays import TEST_BATCH, array_file, labelled_pixels
from irattack.data.classes import Classes
from irattack.data.ground_truth import EXTENSIONS, labels_in, stem
from irattack.data.images import Candidates
from irattack.errors import InputError, some

FORMATS = ("BMP", "JPEG", "PNG", "WEBP")  # of the content, whatever the name says


def candidates(
    folder: str | None,
    classes: Any,
    size: int,
    ground_truth: str | None = None,
    counting: int | None = None,
) -> Candidates:
    """All images of a folder or of a file, each read when it is needed.

    An image is resized to the square as a whole, with PIL's bilinear filter and 8 bits, as the
    paper's authors do: its aspect ratio is not kept. Transparency and EXIF orientation are ignored.

    Args:
        folder: of images, or a file, in one of the forms at the top of this module.
        classes: see `Classes.of`.
        size: px, side of the images that are read.
        ground_truth: a file of labels, for images in one folder; see `ground_truth.labels_in`.
        counting: the number of the first class in a file of labels or of arrays, 0 or 1; None if
            the file of labels shows it, and 0 for arrays.

    Returns:
        Candidates named by their path in the folder, without extension, or by their place in
        their file.

    Raises:
        InputError: the folder or a label cannot be used, or, on reading, images are damaged.
    """
    if not folder:
        raise InputError(
            "benchmark.data.folder is not set: these images are not shipped; give the folder or "
            "the file that holds them, benchmark.data.folder=/path."
        )
    if type(size) is not int or size < 1:
        raise InputError(f"benchmark.data.size={size}: expected a number of pixels from 1 on.")
    if counting is not None and (type(counting) is not int or counting not in (0, 1)):
        raise InputError(f"benchmark.data.counting={counting}: expected 0, 1 or null.")
    root = Path(os.path.expanduser(str(folder)))
    file = root / TEST_BATCH if (root / TEST_BATCH).is_file() else None
    if not file and (root.is_file() or not any(listed(root))):
        file = array_file(root)
    if ground_truth and file:
        raise InputError(
            f"benchmark.data.ground_truth={ground_truth}: {file} has labels of its own; leave one "
            "of the two out."
        )
    if counting is not None and not (ground_truth or file):
        raise InputError(
            f"benchmark.data.counting={counting}: the names in {folder} say the classes, nothing "
            "is counted; leave it out."
        )
    known, wanted = Classes.of(classes), None  # after the folder: those of ImageNet take seconds
    if file:
        pixels, labels = labelled_pixels(file, known.count, counting or 0)
        ids = files = [f"{file.stem}-{i}" for i in range(len(labels))]
    else:
        truth = str(ground_truth) if ground_truth else None
        files, labels, wanted = labelled(root, known, truth, counting)
        ids = unique(files, folder)

    def opened(row: int) -> Image.Image:
        return Image.fromarray(pixels[row]).convert("RGB") if file else picture(root / files[row])

    def read(rows: Sequence[int]) -> np.ndarray:
        return in_parallel(opened, rows, files, size, f"benchmark.data.folder={folder}")

    return Candidates(ids, labels, read, wanted)


def listed(folder: Path) -> tuple[list[str], list[str]]:
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


def labelled(
    root: Path, known: Classes, ground_truth: str | None, counting: int | None
) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """The images of a folder, as paths in it, their classes, and those that attacks aim at."""
    given = f"benchmark.data.folder={root}"
    folders, images = listed(root)
    if images and any(name in known.index for name in folders):
        raise InputError(
            f"{given}: has images ({some(images)}) beside class folders; keep one of the two."
        )
    if images and ground_truth:
        return images, *labels_in(ground_truth, [stem(name) for name in images], known, counting)
    if images and not known.index:
        raise InputError(
            f"{given}: nothing says the classes of its {len(images)} images ({some(images)}); put "
            "them into class folders, or set benchmark.data.ground_truth to a file of labels."
        )
    index = known.index
    if folders and not images:
        if ground_truth:
            raise twice_labelled(root, folders, known, ground_truth)
        index = index or numbered(root, folders, known.count)
    names = images or folders
    found = [known.in_name(stem(name)) if images else index.get(name) for name in names]
    odd = [name for name, label in zip(names, found, strict=True) if label is None]
    if odd:
        what = "images" if images else "folders"
        cure = "" if images else "put the images into one folder and "
        one = next(iter(index))
        raise InputError(
            f"{given}: {len(odd)} of {len(names)} {what} are not named after {known} "
            f"({some(odd)}); give a folder that holds class folders ({one}/*.JPEG) or images with "
            f"the class in their names ({one}_*.png), or {cure}set benchmark.data.ground_truth to "
            "a file of labels."
        )
    if not images:
        inside = [(name, file) for name in folders for file in listed(root / name)[1]]
        images = [f"{name}/{file}" for name, file in inside]
        found = [index[name] for name, _ in inside]
    if not images:
        raise InputError(f"{given}: has no images; expected files {', '.join(EXTENSIONS)}.")
    return images, np.array(found, dtype=np.int64), None


def twice_labelled(root: Path, folders: list[str], known: Classes, ground_truth: str) -> InputError:
    """The error for folders, and a file of labels, which is for the images of one folder."""
    if set(folders) <= set(known.index) or (not known.index and len(folders) == known.count):
        return InputError(
            f"benchmark.data.ground_truth={ground_truth}: the class folders in {root} say "
            "the classes already; leave one of the two out."
        )
    return InputError(
        f"benchmark.data.folder={root}: has folders ({some(folders)}) and no images, but "
        "benchmark.data.ground_truth labels the images of one folder; give the folder that holds "
        "them."
    )


def numbered(root: Path, folders: list[str], count: int) -> dict[str, int]:
    """The classes that sorted class folders are.

    Raises:
        InputError: there are more or fewer, or their order is not that of the numbers they are.
    """
    given = f"benchmark.data.folder={root}"
    cure = "list the classes' names in order as benchmark.data.classes=[…]"
    if len(folders) != count:
        raise InputError(
            f"{given}: has {len(folders)} folders ({some(folders)}) for {count} classes; give a "
            f"folder of {count} class folders, or {cure}."
        )
    if all(name.isdecimal() for name in folders) and folders != sorted(folders, key=int):
        raise InputError(
            f"{given}: its folders are {some(folders)} in alphabetical order and "
            f"{some(sorted(folders, key=int))} as numbers; {cure}."
        )
    return {name: i for i, name in enumerate(folders)}


def unique(files: Sequence[str], folder: str) -> list[str]:
    """The images' names, their paths without extension, each printable and there once."""
    ids = [stem(file) for file in files]
    if odd := [ascii(file) for file in files if not file.isprintable()]:
        raise InputError(
            f"benchmark.data.folder={folder}: {len(odd)} images have names that cannot be printed "
            f"({some(odd)}); rename them."
        )
    counts = Counter(ids)
    if clashing := [file for file in files if counts[stem(file)] > 1]:
        raise InputError(
            f"benchmark.data.folder={folder}: {len(clashing)} images differ in nothing but the "
            f"extension ({some(clashing)}); keep one of each."
        )
    return ids


def picture(path: Path) -> Image.Image:
    """An image in RGB; raises whatever PIL does if it is damaged."""
    with Image.open(path, formats=FORMATS) as file:
        image: Image.Image = file
        if file.mode.startswith("I"):  # 16-bit gray: the upper 8 bits, which PIL keeps of colours
            image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8))
        return image.convert("RGB")


def in_parallel(
    opened: Callable[[int], Image.Image],
    rows: Sequence[int],
    files: Sequence[str],
    size: int,
    given: str,
) -> np.ndarray:
    """The images at these positions, resized, as (b, 3, size, size) uint8 RGB."""
    pixels = np.empty((len(rows), 3, size, size), np.uint8)

    def good(place: int) -> bool:
        try:
            small = opened(rows[place]).resize((size, size), Image.Resampling.BILINEAR)
            pixels[place] = np.asarray(small).transpose(2, 0, 1)
        except Exception:  # a damaged image can raise anything
            return False
        return True

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # of PIL, about large images and odd metadata
        fine = list(pool.map(good, range(len(rows))))
    bad = [files[row] for row, is_fine in zip(rows, fine, strict=True) if not is_fine]
    if bad:
        raise InputError(
            f"{given}: {len(bad)} of {len(rows)} images cannot be read ({some(bad, 5)}); restore "
            "or remove them."
        )
    return pixels
