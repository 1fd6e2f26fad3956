"""Labelled images in one file: an array file, or a batch of CIFAR-10's binary version.

No file is read that could hold code: a pickle, as in CIFAR's python version or in an array of
Python objects, is refused.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from irattack.errors import InputError, some

ARRAYS = (".npy", ".npz", ".safetensors")
NAMED = (("images", "labels"), ("test_images", "test_labels"))  # the second as in MedMNIST
RECORD = 1 + 3 * 32 * 32  # bytes: a label, then red, green and blue, each of 32 rows of 32
PICKLES = (".pickle", ".pkl", ".pt", ".pth")
TEST_BATCH = "test_batch.bin"  # of a folder of batches, the one on which no network was trained
PYTHON_BATCHES = ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))


def labelled_pixels(path: Path, classes: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The images of a file and their classes.

    An array file holds `images`, (N, H, W, 3), (N, 3, H, W) or gray (N, H, W), uint8, and
    `labels`, (N,) or (N, 1), integers; a .npy file, only images, has labels.npy beside it.

    Args:
        path: a .npy, .npz or .safetensors file, or a batch of CIFAR-10 (.bin).
        classes: how many there are.
        first: the number of the first class in the file.

    Returns:
        Pixels (N, H, W, 3) or (N, H, W), uint8, and class indices (N,), int64.

    Raises:
        InputError: the file is of another kind, damaged, or has labels out of range.
    """
    given = f"benchmark.data.folder={path}"
    pixels, labels = cifar(path, given) if path.suffix == ".bin" else arrays(path, given)
    if not len(pixels):
        raise InputError(f"{given}: has no images; give another file.")
    if len(labels) != len(pixels):
        raise InputError(
            f"{given}: has {len(pixels)} images, but {len(labels)} labels; give one label an image."
        )
    labels = labels.astype(np.int64) - first
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        shown = some([f"{labels[i] + first} of image {i}" for i in wrong])
        raise InputError(
            f"{given}: {len(wrong)} of {len(labels)} labels are not from {first} to "
            f"{first + classes - 1} ({shown}); correct them or benchmark.data.classes, or set "
            f"benchmark.data.counting={1 - first} if they count from {1 - first}."
        )
    return pixels, labels


def arrays(path: Path, given: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of an array file, their shapes and types checked."""
    if path.suffix == ".npy" and not path.with_name("labels.npy").is_file():
        raise InputError(f"{given}: has no labels; put them beside it as labels.npy.")
    try:
        if path.suffix == ".npy":
            found = {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
            found["labels"] = np.load(path.with_name("labels.npy"), allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                kept = {name for pair in NAMED for name in pair}
                found = {name: file[name] for name in file.files if name in kept}
        else:
            found = load_file(path)
    except Exception as error:  # a damaged file can raise anything
        why = "Python objects" if "allow_pickle" in str(error) else "damaged"
        raise InputError(
            f"{given}: cannot be read ({why}); give a whole file of arrays of numbers."
        ) from None
    pair = next((names for names in NAMED if set(names) <= set(found)), None)
    if pair is None:
        raise InputError(f"{given}: expected arrays named images and labels; rename its arrays.")
    pixels, labels = (found[name] for name in pair)
    shape = pixels.shape
    colour = len(shape) == 4 and (shape[1] == 3) != (shape[3] == 3)
    if pixels.dtype != np.uint8 or not (colour or len(shape) == 3):
        raise InputError(
            f"{given}: its images are {pixels.dtype} of shape {shape}; expected uint8, 0 to 255, "
            "of shape (N, H, W, 3), (N, 3, H, W) or (N, H, W); convert them."
        )
    if labels.dtype.kind not in "iu" or labels.shape[1:] not in ((), (1,)):
        raise InputError(
            f"{given}: its labels are {labels.dtype} of shape {labels.shape}; expected whole "
            "numbers of shape (N,); convert them."
        )
    pixels = pixels.transpose(0, 2, 3, 1) if colour and shape[1] == 3 else pixels
    return pixels, labels.reshape(-1)


def cifar(path: Path, given: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 32, 32, 3) and labels (N,) of a batch of CIFAR-10's binary version."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(
            f"{given}: cannot be read ({error.strerror}); give another file."
        ) from None
    if len(content) % RECORD:
        raise InputError(
            f"{given}: has {len(content)} bytes, which are no whole number of CIFAR-10's records "
            f"of {RECORD} (a label, 3 x 1024 pixels); download it again, or convert data of "
            "another form to a .npz file of images and labels."
        )
    records = content.reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def array_file(path: Path) -> Path | None:
    """A file of labelled pixels; None for a folder that holds none of the known kinds.

    Raises:
        InputError: a file of another kind, pickles, or a folder of training batches.
    """
    given = f"benchmark.data.folder={path}"
    inside = [path] if path.is_file() else sorted(path.iterdir())
    if any(p.name in PYTHON_BATCHES or p.suffix in PICKLES for p in inside):
        raise InputError(
            f"{given}: is a pickle, or holds some, which can run code; give CIFAR-10's binary "
            "version (cifar-10-binary.tar.gz), or convert it to a .npz file of images and labels."
        )
    if path.is_file():
        if path.suffix not in (*ARRAYS, ".bin"):
            raise InputError(
                f"{given}: is no folder, nor a file {', '.join((*ARRAYS, '.bin'))}; give a folder "
                "of images or one of these."
            )
        return path
    files = [p for p in inside if p.suffix in (*ARRAYS, ".bin")]
    if files:
        raise InputError(
            f"{given}: has no {TEST_BATCH} and no images, but files of arrays; name one of them, "
            f"such as {files[0]}."
        )
    return None
