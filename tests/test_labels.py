"""Files of labels: published tables against known classes, and what could be read in two ways."""

from pathlib import Path

import numpy as np
import pytest
import torch

from irattack.data.classes import Classes
from irattack.data.files import candidates
from irattack.data.ground_truth import labels_in
from irattack.errors import InputError

IMAGENET = Classes.of("imagenet")
SHARED = Path(__file__).parents[2] / "shared" / "imagenet"

# The same two images in the form of the competition and in that of the libraries.
NIPS = (
    "\ufeffImageId,TrueLabel,TargetClass,License,Author,OriginalLandingURL\r\n"
    'a033832d9ff8913b,101,357,https://x.org/by/2.0/,"McClarren, C. ""Chrissy""",https://x.org/1\r\n'
    '4b8517e927f32962,866,271,,"two\r\nlines",https://x.org/2\r\n'
    "00c3cd597f1ee96f,5,6,,,\r\n"
)
LIBRARIES = (
    "filename,label,targeted_label\n4b8517e927f32962.png,865,270\na033832d9ff8913b.png,100,356\n"
)
IDS = ["a033832d9ff8913b", "4b8517e927f32962"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


def read(
    file: Path, text: str, counting: int | None = None, ids: list[str] | None = None
) -> tuple[list[int], list[int] | None]:
    file.write_bytes(text.encode())
    labels, wanted = labels_in(str(file), IDS if ids is None else ids, IMAGENET, counting)
    assert labels.dtype == np.int64
    return labels.tolist(), None if wanted is None else wanted.tolist()


@pytest.mark.parametrize("text", [NIPS, LIBRARIES, LIBRARIES.replace(",", ";")])
def test_published_tables_tell_from_where_they_count(file: Path, text: str) -> None:
    assert read(file, text) == ([100, 865], [356, 270])


def test_columns_go_by_their_names(file: Path) -> None:
    text = 'TargetClass,Author,TrueLabel,ImageId\n6,"a, b",5,x\n'
    assert read(file, text, ids=["x"]) == ([4], [5])


AMBIGUOUS = {
    "libraries": "filename,label\n{0}.png,101\n{1}.png,866\n",
    "nips": "ImageId,TrueLabel\n{0},101\n{1},866\n",
    "caffe": "{0}.JPEG 101\n{1}.JPEG 866\n",
    "commas": "{0}.JPEG,101\n{1}.JPEG,866\n",
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_may_count_either_way_is_refused(file: Path, kind: str) -> None:
    text = AMBIGUOUS[kind].format(*IDS)
    with pytest.raises(InputError) as error:
        read(file, text)
    assert (
        "counts classes from 0 or from 1 (neither 0 nor 1000 occurs to show which), so that 101 of "
        "a033832d9ff8913b is the index 101 or 100; set benchmark.data.counting=0 or "
        "benchmark.data.counting=1."
    ) in str(error.value)
    assert read(file, text, counting=0) == ([101, 866], None)
    assert read(file, text, counting=1) == ([100, 865], None)


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_a_class_that_only_one_counting_has_decides(file: Path, kind: str) -> None:
    """Copies of both tables are about that count otherwise than the published ones."""
    text = AMBIGUOUS[kind].format(*IDS)
    more = text.splitlines()[-1].replace(IDS[1], "other")
    assert read(file, text + more.replace("866", "0"))[0] == [101, 866]
    assert read(file, text + more.replace("866", "1000"))[0] == [100, 865]


@pytest.mark.parametrize(
    ("text", "old", "new", "counting", "found"),
    [(NIPS, ",5,6", ",0,6", 0, [101, 866]), (LIBRARIES, "865", "1000", 1, [99, 999])],
)
def test_a_header_that_its_numbers_contradict_is_refused(
    file: Path, text: str, old: str, new: str, counting: int, found: list[int]
) -> None:
    changed = text.replace(old, new)
    number = 1000 * counting
    why = rf"its header is that of a table that counts from {1 - counting}, but {number} occurs"
    with pytest.raises(InputError, match=why):
        read(file, changed)
    assert read(file, changed, counting)[0] == found


MISTAKES = {
    "unclosed quote": ('filename,label\n"x.png,0\n', "cannot be read (not a table: unexpected end"),
    "unknown header": ("id,diagnosis\nx,0\n", "1 of 2 lines are not a file name"),
    "empty cell": ("filename,label,targeted_label\nx,0,\n", "1 of 1 lines are not a file name"),
    "short line": ("filename,label\nx,0\ny\n", "1 of 2 lines are not a file name"),
    "fraction": ("filename,label\nx,0\ny,1.0\n", "(y,1.0); correct them (a header calls"),
    "both ends": ("filename,label\nx,0\ny,1000\n", "one number from 0 to 999 (y,1000)"),
    "two targets": (
        "filename,label,targeted_label\nx,0,1\nx,0,2\n",
        "1 images have more than one class (x)",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_in_tables(file: Path, kind: str) -> None:
    text, part = MISTAKES[kind]
    with pytest.raises(InputError) as error:
        read(file, text, ids=["x"])
    assert part in str(error.value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_counting_is_refused_where_nothing_is_counted(file: Path) -> None:
    with pytest.raises(InputError, match=r"counting=1: .* no numbers of classes .* leave it out"):
        read(file, "x n01440764\n", counting=1, ids=["x"])
    assert read(file, "x n01440764\n", ids=["x"])[0] == [0]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/imagenet beside the checkout")
def test_trained_networks_agree_with_the_published_table() -> None:
    """A ResNet-18 trained on ImageNet knows the classes as read, not those beside them."""
    from safetensors.torch import load_file
    from timm import create_model

    given = str(SHARED / "images"), "imagenet", 224, str(SHARED / "images.csv")
    images = candidates(*given).take(range(40))
    network = create_model("resnet18")
    weights = load_file(SHARED / "weights" / "pqf_resnet18.safetensors")
    network.load_state_dict(
        {name: value.to(torch.get_default_dtype()) for name, value in weights.items()}
    )
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        x = (torch.from_numpy(images.pixels) / 255 - mean) / std
        found = network.eval()(x).argmax(1).numpy()
    rates = {shift: np.mean(found == images.labels + shift) for shift in (-1, 0, 1)}
    assert rates[0] >= 0.7
    assert max(rates[-1], rates[1]) <= 0.1
    assert images.wanted is not None
    assert (images.wanted != images.labels).all()
