"""ImageNet's images from a user's folder: labels against known classes, pixels against PIL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from irattack.data.classes import synsets as classes
from irattack.data.files import candidates
from irattack.data.images import Candidates
from irattack.errors import InputError

SIZE = 8
KNOWN = {"n01440764": 0, "n02123045": 281, "n15075141": 999}  # tench, tabby, toilet tissue
VAL = "ILSVRC2012_val_0000000"


def picture(seed: int, width: int = 13, height: int = 9) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def expected(image: Image.Image) -> np.ndarray:
    small = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


def load(folder: Path | None, ground_truth: Path | None = None) -> Candidates:
    given = [path if path is None else str(path) for path in (folder, ground_truth)]
    return candidates(given[0], "imagenet", SIZE, given[1])


def labels(images: Candidates) -> dict[str, int]:
    return dict(zip(images.ids, images.labels.tolist(), strict=True))


@pytest.fixture
def in_classes(tmp_path: Path) -> Path:
    """n01440764/0.JPEG … with content of PNG, which has no loss."""
    for i, synset in enumerate(KNOWN):
        (tmp_path / "classes" / synset).mkdir(parents=True)
        picture(i).save(tmp_path / "classes" / synset / f"{i}.JPEG", format="PNG")
    return tmp_path / "classes"


@pytest.fixture
def in_names(tmp_path: Path) -> Path:
    """n01440764_0.png …"""
    (tmp_path / "names").mkdir()
    for i, synset in enumerate(KNOWN):
        picture(i).save(tmp_path / "names" / f"{synset}_{i}.png")
    return tmp_path / "names"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """ILSVRC2012_val_00000001.JPEG …, in the order of KNOWN."""
    (tmp_path / "flat").mkdir()
    for i in range(len(KNOWN)):
        picture(i).save(tmp_path / "flat" / f"{VAL}{i + 1}.JPEG", format="PNG")
    return tmp_path / "flat"


@pytest.fixture(scope="module")
def permuted() -> list[str]:
    """The synset of each ILSVRC2012_ID, not in the order of the synsets."""
    return [str(name) for name in np.random.default_rng(0).permutation(sorted(classes()))]


@pytest.fixture(scope="module")
def meta(permuted: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A devkit's meta.mat: the 1000 classes, then inner nodes of the hierarchy."""
    rows = [(i + 1, name, "words") for i, name in enumerate(permuted)]
    rows += [(1001 + i, f"n{90000000 + i}", "inner node") for i in range(5)]
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    path = tmp_path_factory.mktemp("meta") / "meta.mat"
    savemat(path, {"synsets": np.array(rows, dtype=fields)[:, None]})
    return path.read_bytes()


@pytest.fixture
def devkit(tmp_path: Path, permuted: list[str], meta: bytes) -> Path:
    """A ground truth of the images in `flat` and two more, with its meta.mat."""
    numbers = [permuted.index(synset) + 1 for synset in KNOWN]
    assert all(n - 1 != label for n, label in zip(numbers, KNOWN.values(), strict=True))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.mat").write_bytes(meta)
    path = tmp_path / "data" / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(f"{number}\n" for number in [*numbers, 7, 7]))
    return path


def test_classes_are_those_of_imagenet() -> None:
    assert len(classes()) == 1000
    assert list(classes()) == sorted(classes())
    assert {synset: classes()[synset] for synset in KNOWN} == KNOWN


def test_three_layouts_give_the_same(
    in_classes: Path, in_names: Path, flat: Path, devkit: Path
) -> None:
    layouts = [load(in_classes), load(in_names), load(flat, devkit)]
    assert layouts[0].ids == [f"{synset}/{i}" for i, synset in enumerate(KNOWN)]
    assert layouts[1].ids == [f"{synset}_{i}" for i, synset in enumerate(KNOWN)]
    assert layouts[2].ids == [f"{VAL}{i + 1}" for i in range(3)]
    for images in layouts:
        assert images.labels.tolist() == [0, 281, 999]
        assert images.labels.dtype == np.int64
        pixels = images.read([2, 0, 1, 0])
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, [expected(picture(i)) for i in (2, 0, 1, 0)])
        assert images.read([]).shape == (0, 3, SIZE, SIZE)


NAMED = {
    "kaggle": "ImageId,PredictionString\n{v}3,n15075141 1 2 3 4 n15075141 5 6 7 8 \n"
    "{v}1,n01440764 85 1 499 272\n{v}2,n02123045 0 0 9 9 \n{v}9,n02123045 0 0 9 9\n",
    "synsets": "{v}1.JPEG n01440764\n{v}2.JPEG  n02123045\n{v}3.JPEG n15075141\n",
    "tabs": "file\tclass\n{v}1.JPEG\tn01440764\n{v}2\tn02123045\n./val/{v}3.jpeg\tn15075141",
    "caffe": "{v}1.JPEG 0\n{v}2.JPEG 281\n{v}3.JPEG 999\n{v}4.JPEG 65\n",
    "commas": "\ufeff{v}1.JPEG, 0\r\n{v}2.JPEG, 281\r\n{v}3.JPEG, 999\r\n{v}3.JPEG, 999\r\n",
}


@pytest.mark.parametrize("kind", NAMED)
def test_ground_truth_by_name(flat: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "truth.txt"
    path.write_bytes(NAMED[kind].format(v=VAL).encode())
    assert labels(load(flat, path)) == {f"{VAL}1": 0, f"{VAL}2": 281, f"{VAL}3": 999}


def test_devkit_counts_images_by_their_number(flat: Path, devkit: Path) -> None:
    (flat / f"{VAL}2.JPEG").unlink()
    assert labels(load(flat, devkit)) == {f"{VAL}1": 0, f"{VAL}3": 999}


def test_a_ground_truth_is_heard_before_names(in_names: Path, tmp_path: Path) -> None:
    path = tmp_path / "truth.txt"
    path.write_text("".join(f"{name}_{i}.png {i}\n" for i, name in enumerate(KNOWN)))
    assert load(in_names, path).labels.tolist() == [0, 1, 2]


def test_what_else_lies_there_is_no_image(in_names: Path) -> None:
    (in_names / ".n01440764_7.png").touch()
    (in_names / "README.txt").touch()
    (in_names / "more").mkdir()
    picture(5).save(in_names / "n01440764_9.PNG")
    (in_names / "n01440764_8.WebP").touch()  # listed without being opened
    assert labels(load(in_names))["n01440764_9"] == 0
    assert len(load(in_names)) == 5


def converted(mode: str, **save: Any) -> Callable[[Path], np.ndarray]:
    """Saves a picture in a mode; gives the pixels of what PIL makes of it in RGB."""

    def make(path: Path) -> np.ndarray:
        image = picture(4).convert(mode)
        image.save(path, **save)
        with Image.open(path) as saved:
            return expected(saved.convert("RGB"))

    return make


def gray16(path: Path) -> np.ndarray:
    values = np.random.default_rng(4).integers(0, 2**16, (9, 13), dtype=np.uint16)
    Image.fromarray(values).save(path, format="PNG")
    return expected(Image.fromarray((values // 256).astype(np.uint8)).convert("RGB"))


def transparent(path: Path) -> np.ndarray:
    image = picture(4)
    with_alpha = image.copy()
    with_alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    with_alpha.save(path, format="PNG")
    return expected(image)


def rotated(path: Path) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to show
    picture(4).save(path, format="PNG", exif=exif)
    return expected(picture(4))


@pytest.mark.parametrize(
    "make",
    [
        converted("L", format="JPEG"),
        converted("CMYK", format="JPEG"),
        converted("P", format="PNG"),
        converted("1", format="BMP"),
        converted("LA", format="PNG"),
        converted("RGB", format="WEBP", lossless=True),
        gray16,
        transparent,
        rotated,
    ],
    ids=[
        "gray",
        "cmyk",
        "palette",
        "black-and-white",
        "gray-alpha",
        "webp",
        "16-bit",
        "rgba",
        "exif",
    ],
)
def test_every_kind_of_image_becomes_rgb(
    tmp_path: Path, make: Callable[[Path], np.ndarray]
) -> None:
    wanted = make(tmp_path / "n02123045_0.jpg")
    np.testing.assert_array_equal(load(tmp_path).read([0])[0], wanted)


def test_an_image_of_the_right_size_is_kept_as_it_is(tmp_path: Path) -> None:
    picture(4, SIZE, SIZE).save(tmp_path / "n02123045_0.png")
    pixels = load(tmp_path).read([0])[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels, np.asarray(picture(4, SIZE, SIZE)))


def test_large_images_are_read_or_named(in_names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL warns from here, stops from 200 on
    assert load(in_names).read([0]).shape == (1, 3, SIZE, SIZE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(InputError, match="1 of 1 images cannot be read"):
        load(in_names).read([0])


def test_order_and_damaged_images(tmp_path: Path) -> None:
    for i in range(40):
        picture(i, 13 + 5 * (i % 7)).save(tmp_path / f"n01440764_{i:02}.png")
    images = load(tmp_path)
    rows = np.random.default_rng(1).permutation(40).tolist()
    wanted = [expected(picture(i, 13 + 5 * (i % 7))) for i in rows]
    np.testing.assert_array_equal(images.read(rows), wanted)
    for i in (3, 5, 8, 9, 21, 30):
        path = tmp_path / f"n01440764_{i:02}.png"
        path.write_bytes(path.read_bytes()[: 7 * i])
    (tmp_path / "n01440764_31.png").unlink()
    with pytest.raises(InputError) as error:
        images.read(range(40))
    names = ", ".join(f"n01440764_{i:02}.png" for i in (3, 5, 8, 9, 21))
    assert f"7 of 40 images cannot be read ({names}, …); restore or remove" in str(error.value)
    assert len(images.read([0, 1])) == 2


def one_sentence(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    text = str(error.value)
    for part in parts:
        assert part in text
    assert text.endswith(".")
    assert "\n" not in text


def no_folder(tmp_path: Path) -> None:
    load(None)


def missing_folder(tmp_path: Path) -> None:
    load(tmp_path / "nowhere")


def a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    load(tmp_path / "file")


def empty_folder(tmp_path: Path) -> None:
    load(tmp_path)


def empty_classes(tmp_path: Path) -> None:
    (tmp_path / "n01440764" / "images").mkdir(parents=True)
    load(tmp_path)


def a_level_more(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "n01440764").mkdir(parents=True)
    load(tmp_path)


def unknown_folders_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    load(tmp_path / "data", tmp_path / "truth.txt")


def unknown_folders(tmp_path: Path) -> None:
    for name in ("n01440764", "n00000001", "n00000002", "n00000003", "n00000004"):
        (tmp_path / name).mkdir()
    load(tmp_path)


def unknown_names(tmp_path: Path) -> None:
    (tmp_path / "n01440764_1.png").touch()
    (tmp_path / f"{VAL}1.JPEG").touch()
    load(tmp_path)


def both_layouts(tmp_path: Path) -> None:
    (tmp_path / "n01440764").mkdir()
    (tmp_path / "n01440764_1.png").touch()
    load(tmp_path)


def same_name(tmp_path: Path) -> None:
    for extension in ("png", "JPEG"):
        (tmp_path / f"n01440764_1.{extension}").touch()
    load(tmp_path)


def odd_name(tmp_path: Path) -> None:
    (tmp_path / "n01440764_\udce9.png").touch()  # a byte that is not UTF-8
    load(tmp_path)


def no_size(tmp_path: Path) -> None:
    candidates(str(tmp_path), "imagenet", 0)


FOLDERS: dict[Callable[[Path], None], list[str]] = {
    no_folder: ["benchmark.data.folder is not set", "benchmark.data.folder=/path"],
    missing_folder: ["nowhere cannot be listed (No such file or directory)"],
    a_file: ["file: is no folder, nor a file .npy, .npz"],
    empty_folder: ["has no images; expected files .bmp, .jpeg"],
    empty_classes: ["has no images"],
    a_level_more: ["2 of 2 folders are not named after a synset", "(train, val)", "class folders"],
    unknown_folders_and_a_file: [
        "has folders (images) and no images",
        "give the folder that holds",
    ],
    unknown_folders: ["4 of 5 folders", "(n00000001, n00000002, n00000003, …)"],
    unknown_names: ["1 of 2 images", "(ILSVRC2012_val_00000001.JPEG)", "ground_truth"],
    both_layouts: ["has images (n01440764_1.png) beside class folders"],
    same_name: ["2 images differ in nothing but", "(n01440764_1.JPEG, n01440764_1.png)"],
    odd_name: ["1 images have names", r"n01440764_\udce9.png"],
    no_size: ["benchmark.data.size=0: expected a number of pixels"],
}


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_mistakes_in_folders(tmp_path: Path, make: Callable[[Path], None]) -> None:
    with pytest.raises(InputError) as error:
        make(tmp_path)
    one_sentence(error, *FOLDERS[make])


FILES = {
    "empty": ("", ["has no labels"]),
    "header": ("ImageId,PredictionString\n", ["has no labels"]),
    "binary": ("\udcff\udcfe1", ["cannot be read (not text)"]),
    "synset": (
        "{v}1 n01440764\n{v}2 n99999999\n{v}3 0\n",
        [
            "1 of 3 lines are not a file name and a synset of ImageNet-1k or one",
            "(ILSVRC2012_val_00000002 n99999999)",
        ],
    ),
    "two": ("{v}1,n01440764 1 1 2 2 n02123045 1 1 2 2\n", ["1 of 1 lines", "a synset"]),
    "index": ("{v}1 0\n{v}2 1000\n{v}3 -1\n", ["2 of 3 lines", "one number from 0 to 999"]),
    "more": ("{v}1 1 2\n", ["1 of 1 lines"]),
    "bare": ("{v}1\n{v}2\n", ["2 of 2 lines", "(ILSVRC2012_val_00000001, "]),
    "blank": ("1\n\n3\n", ["2 of 2 lines"]),
    "twice": ("{v}1 0\n{v}1.JPEG 1\n{v}2 3\n", ["1 images have more than one class", "00001)"]),
    "missing": (
        "{v}1 0\n",
        ["2 of 3 images (ILSVRC2012_val_00000002, ILSVRC2012_val_00000003) are not among the 1"],
    ),
    "devkit-short": ("4\n5\n", ["1 of 3 images (ILSVRC2012_val_00000003) are not among the 2"]),
    "devkit-range": ("0\n5\n1001\n", ["2 of 3 lines are not an ILSVRC2012_ID", "(0, 1001)"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_mistakes_in_ground_truth(flat: Path, devkit: Path, kind: str) -> None:
    text, parts = FILES[kind]
    devkit.write_bytes(text.format(v=VAL).encode(errors="surrogateescape"))
    with pytest.raises(InputError) as error:
        load(flat, devkit)
    one_sentence(error, f"benchmark.data.ground_truth={devkit}", *parts)


def test_a_devkit_without_its_classes(flat: Path, devkit: Path) -> None:
    path = devkit.with_name("meta.mat")
    whole = path.read_bytes()
    for damaged in (b"", whole[:5000], b"{}" * 500):
        path.write_bytes(damaged)
        with pytest.raises(InputError) as error:
            load(flat, devkit)
        one_sentence(error, f"{path} does not give each ILSVRC2012_ID", "devkit's own file")
    fields = [("ILSVRC2012_ID", object), ("WNID", object)]
    rows = np.array([(1, "n01440764"), (2, "n02123045")], dtype=fields)
    savemat(path, {"synsets": rows})
    with pytest.raises(InputError, match="does not give each ILSVRC2012_ID from 1 to 1000"):
        load(flat, devkit)
    path.unlink()
    with pytest.raises(InputError) as error:
        load(flat, devkit)
    one_sentence(error, "its numbers are ILSVRC2012_IDs", "put meta.mat beside it")


def test_a_ground_truth_that_is_not_there_or_not_needed(flat: Path, in_classes: Path) -> None:
    with pytest.raises(InputError) as error:
        load(flat, flat / "truth.txt")
    one_sentence(error, "truth.txt: cannot be read (No such file or directory)")
    with pytest.raises(InputError) as error:
        load(in_classes, flat / "truth.txt")
    one_sentence(error, "say the classes already; leave one of the two out")
