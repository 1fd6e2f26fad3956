"""A data set of one's own: class folders, array files and CIFAR-10's batches; no Python needed."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from irattack.data.files import candidates
from irattack.data.images import Candidates
from irattack.errors import InputError

SIZE = 8
PETS = ["ant", "bee", "hot_dog"]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 0, 2, 1])
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def load(folder: Path, classes: Any = 3, truth: Path | None = None, **more: Any) -> Candidates:
    given = None if truth is None else str(truth)
    return candidates(str(folder), classes, more.pop("size", SIZE), given, **more)


def save(path: Path, i: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[i]).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def in_folders(folder: Path) -> Path:
    for i, label in enumerate(LABELS):
        save(folder / PETS[label] / f"{i}.png", i)
    return folder


def test_class_folders_in_alphabetical_or_in_given_order(in_folders: Path) -> None:
    images = load(in_folders)
    assert images.ids == ["ant/0", "ant/3", "bee/2", "bee/5", "hot_dog/1", "hot_dog/4"]
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    wanted = PIXELS[[0, 3, 2, 5, 1, 4]].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(images.read(range(6)), wanted)
    assert load(in_folders, ["hot_dog", "cow", "bee", "ant"]).labels.tolist() == [3, 3, 2, 2, 0, 0]
    assert images.wanted is None


def test_classes_in_names_may_have_underscores(folder: Path) -> None:
    for i, name in enumerate(["hot_dog_1", "hot_2", "bee"]):
        save(folder / f"{name}.png", i)
    assert load(folder, ["hot", "hot_dog", "bee"]).labels.tolist() == [2, 0, 1]


def test_a_file_of_labels_may_name_or_number_classes(folder: Path, tmp_path: Path) -> None:
    for i in range(3):
        save(folder / f"{i}.png", i)
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n0.png,hot_dog\n1.png,ant\n2.png,1\n9.png,0\n")
    assert load(folder, PETS, table).labels.tolist() == [2, 0, 1]
    table.write_text("file,label\n0.png,1\n1.png,2\n2.png,3\n")
    assert load(folder, 3, table).labels.tolist() == [0, 1, 2]
    assert load(folder, 4, table, counting=0).labels.tolist() == [1, 2, 3]
    table.write_text("filename,label,targeted_label\n0,0,2\n1,1,2\n2,2,0\n")
    images = load(folder, 3, table).take([2, 0])
    assert images.wanted is not None
    assert images.wanted.tolist() == [0, 2]
    assert images.take([1]).wanted == [2]


def npz(names: tuple[str, str]) -> Callable[[Path, np.ndarray, np.ndarray], Path]:
    def write(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
        arrays: dict[str, Any] = {names[0]: pixels, names[1]: labels, "other": labels[:2]}
        np.savez(folder / "x.npz", **arrays)
        return folder / "x.npz"

    return write


def npy(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    np.save(folder / "x.npy", pixels)
    np.save(folder / "labels.npy", labels)
    return folder / "x.npy"


def safetensors(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    arrays = {"images": np.ascontiguousarray(pixels), "labels": labels}
    save_file(arrays, folder / "x.safetensors")
    return folder / "x.safetensors"


OURS = npz(("images", "labels"))
MEDMNIST = npz(("test_images", "test_labels"))
GRAY = PIXELS[..., 0]


@pytest.mark.parametrize("write", [OURS, MEDMNIST, npy, safetensors])
def test_array_files(tmp_path: Path, write: Callable[[Path, np.ndarray, np.ndarray], Path]) -> None:
    planes = PIXELS.transpose(0, 3, 1, 2)
    for pixels, labels, wanted in [
        (PIXELS, LABELS, planes),
        (planes, LABELS[:, None], planes),
        (GRAY, LABELS.astype(np.uint8), np.repeat(GRAY[:, None], 3, axis=1)),
    ]:
        images = load(write(tmp_path, pixels, labels))
        assert images.ids == [f"x-{i}" for i in range(6)]
        assert images.labels.tolist() == LABELS.tolist()
        assert images.labels.dtype == np.int64
        np.testing.assert_array_equal(images.read([4, 0]), wanted[[4, 0]])
    assert load(write(tmp_path, PIXELS, LABELS + 1), counting=1).labels.tolist() == LABELS.tolist()


def test_arrays_are_resized_as_files_are(tmp_path: Path, in_folders: Path) -> None:
    from_array = load(npy(tmp_path, PIXELS[[0, 3]], LABELS[[0, 3]]), size=5).read([0, 1])
    np.testing.assert_array_equal(from_array, load(in_folders, size=5).read([0, 1]))


def batch(path: Path, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Writes records as CIFAR-10's page describes them; gives planes (N, 3, 32, 32) and labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    labels = rng.integers(0, 10, count)
    planes = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    with path.open("wb") as file:
        for label, (red, green, blue) in zip(labels, planes, strict=True):
            file.write(bytes([label]) + red.tobytes() + green.tobytes() + blue.tobytes())
    return planes, labels


def test_batches_of_cifar(folder: Path) -> None:
    planes, labels = batch(folder / "test_batch.bin")
    others, other_labels = batch(folder / "data_batch_1.bin", 3)
    (folder / "batches.meta.txt").touch()
    (folder / "outputs").mkdir()
    images = load(folder, CIFAR, size=32)  # the test batch, whose images no network was trained on
    assert images.ids == [f"test_batch-{i}" for i in range(4)]
    assert images.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(images.read(range(4)), planes)
    named = load(folder / "data_batch_1.bin", CIFAR, size=32)
    assert named.labels.tolist() == other_labels.tolist()
    np.testing.assert_array_equal(named.read([2]), others[[2]])


def write_npz(**arrays: Any) -> Callable[[Path], Candidates]:
    def make(folder: Path) -> Candidates:
        folder.mkdir(exist_ok=True)
        np.savez(folder / "x.npz", **arrays)
        return load(folder / "x.npz")

    return make


def damaged(name: str) -> Callable[[Path], Candidates]:
    def make(folder: Path) -> Candidates:
        folder.mkdir()
        (folder / name).write_bytes(b"\x93NUMPY damaged")
        (folder / "labels.npy").touch()
        return load(folder / name)

    return make


def folders(*names: str, classes: Any = 3, truth: bool = False) -> Callable[[Path], Candidates]:
    def make(folder: Path) -> Candidates:
        for name in names:
            (folder / name).mkdir(parents=True)
        return load(folder, classes, folder / "labels.csv" if truth else None)

    return make


def flat(*names: str, classes: Any = 3, **more: Any) -> Callable[[Path], Candidates]:
    def make(folder: Path) -> Candidates:
        for name in names:
            save(folder / name)
        return load(folder, classes, **more)

    return make


def cifar(name: str, content: bytes, named: bool = True) -> Callable[[Path], Candidates]:
    def make(folder: Path) -> Candidates:
        folder.mkdir()
        (folder / name).write_bytes(content)
        return load(folder / name if named else folder, CIFAR)

    return make


def truth_beside_arrays(folder: Path) -> Candidates:
    folder.mkdir()
    return load(OURS(folder, PIXELS, LABELS), 3, folder / "labels.csv")


def one_label(folder: Path) -> Candidates:
    folder.mkdir()
    np.save(folder / "x.npy", PIXELS)
    return load(folder / "x.npy")


MISTAKES: dict[str, tuple[Callable[[Path], Candidates], str]] = {
    "objects": (
        write_npz(images=np.array([{}] * 6), labels=LABELS),
        "cannot be read (Python objects); give a whole file of arrays of numbers",
    ),
    "floats": (
        write_npz(images=PIXELS / 255, labels=LABELS),
        "its images are float64 of shape (6, 8, 8, 3); expected uint8, 0 to 255",
    ),
    "one image": (write_npz(images=PIXELS[0, 0], labels=LABELS), "uint8 of shape (8, 3); expected"),
    "four channels": (write_npz(images=PIXELS[..., [0, 1, 2, 0]], labels=LABELS), "(6, 8, 8, 4)"),
    "either axis": (write_npz(images=PIXELS[:, :3], labels=LABELS), "(6, 3, 8, 3); expected uint8"),
    "none": (write_npz(images=PIXELS[:0], labels=LABELS[:0]), "x.npz: has no images"),
    "lengths": (write_npz(images=PIXELS, labels=LABELS[1:]), "has 6 images, but 5 labels; give"),
    "one-hot": (write_npz(images=PIXELS, labels=np.eye(3, dtype=int)[LABELS]), "of shape (6, 3);"),
    "fractions": (write_npz(images=PIXELS, labels=LABELS / 2), "its labels are float64 of shape"),
    "range": (
        write_npz(images=PIXELS, labels=LABELS + 1),
        "2 of 6 labels are not from 0 to 2 (3 of image 1, 3 of image 4); correct them or "
        "benchmark.data.classes, or set benchmark.data.counting=1 if they count from 1",
    ),
    "negative": (write_npz(images=PIXELS, labels=LABELS - 1), "(-1 of image 0, -1 of image 3)"),
    "names": (write_npz(x=PIXELS, y=LABELS), "expected arrays named images and labels; rename"),
    "damaged npz": (damaged("x.npz"), "x.npz: cannot be read (damaged)"),
    "damaged npy": (damaged("x.npy"), "x.npy: cannot be read (damaged)"),
    "damaged safetensors": (damaged("x.safetensors"), "x.safetensors: cannot be read (damaged)"),
    "no labels": (one_label, "x.npy: has no labels; put them beside it as labels.npy"),
    "two truths": (truth_beside_arrays, "x.npz has labels of its own; leave one of the two out"),
    "python version": (cifar("test_batch", pickle.dumps({}), False), "CIFAR-10's binary version ("),
    "python batch": (cifar("data_batch_1", pickle.dumps({})), "is a pickle, or holds some"),
    "pickle": (cifar("x.pkl", pickle.dumps({})), "convert it to a .npz file"),
    "archive": (cifar("cifar-10-binary.tar.gz", b""), "is no folder, nor a file .npy, .npz"),
    "training": (
        cifar("data_batch_1.bin", b"", False),
        "has no test_batch.bin and no images, but",
    ),
    "cut": (
        cifar("test_batch.bin", bytes(3072)),
        "has 3072 bytes, which are no whole number of CIFAR-10's records of 3073",
    ),
    "label 10": (cifar("test_batch.bin", bytes([10] * 3073)), "1 of 1 labels are not from 0 to 9"),
    "empty batch": (cifar("test_batch.bin", b""), "has no images"),
    "too few folders": (folders("a", "b"), "has 2 folders (a, b) for 3 classes; give a folder of"),
    "numbers": (
        folders(*map(str, range(11)), classes=11),
        "its folders are 0, 1, 10, … in alphabetical order and 0, 1, 2, … as numbers; list the",
    ),
    "other folders": (
        folders("ant", "cow", classes=PETS),
        "1 of 2 folders are not named after one of the classes ant, bee, hot_dog (cow); give a "
        "folder that holds class folders (ant/*.JPEG) or images with the class in their names "
        "(ant_*.png), or put the images into one folder and set benchmark.data.ground_truth",
    ),
    "folders and truth": (
        folders("ant", "bee", classes=PETS, truth=True),
        "labels.csv: the class folders in",
    ),
    "three folders and truth": (folders("a", "b", "c", truth=True), "say the classes already"),
    "one folder and truth": (
        folders("images", truth=True),
        "has folders (images) and no images, but benchmark.data.ground_truth labels the images of "
        "one folder; give the folder that holds them",
    ),
    "unlabelled": (flat("1.png"), "nothing says the classes of its 1 images (1.png); put them"),
    "beside": (flat("bee_1.png", "bee/1.png", classes=PETS), "beside class folders; keep one"),
    "odd name": (
        flat("cow_1.png", classes=PETS),
        "1 of 1 images are not named after one of the classes ant, bee, hot_dog (cow_1.png)",
    ),
    "counting": (flat("bee_1.png", classes=PETS, counting=1), "nothing is counted; leave it out"),
    "count": (flat("bee_1.png", classes=PETS, counting=2), "counting=2: expected 0, 1 or null"),
    "one class": (flat("1.png", classes=1), "benchmark.data.classes=1: expected imagenet, the"),
    "word": (flat("1.png", classes="pets"), "benchmark.data.classes=pets: expected imagenet"),
    "twice": (flat("1.png", classes=["a", "b", "a"]), "classes: a more than once; name each"),
    "yes": (flat("1.png", classes=[True, False]), "quote yes, no and the like"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes(folder: Path, kind: str) -> None:
    make, part = MISTAKES[kind]
    with pytest.raises(InputError) as error:
        make(folder)
    assert part in str(error.value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)
