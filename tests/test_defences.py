"""Defended targets, and how visible perturbations are, by plain computations of their own."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from scipy.ndimage import median_filter
from torch import Tensor, nn

from irattack.commands import composing, plans, settings
from irattack.errors import InputError
from irattack.models import zoo
from irattack.models.defences import KINDS, defence, parted
from irattack.models.network import Chance, Defended
from irattack.pipeline import visibility
from irattack.pipeline.cell import Cell
from irattack.pipeline.compute import build
from irattack.pipeline.images import images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.results import Results, arrays, cards
from irattack.pipeline.steps import last_frame
from irattack.pipeline.visibility import Visibility, psnr, ssim
from irattack.results.names import title

SMALL = ["images=8", "steps=2", "samples=2", "grid=4", "cells=3", "threads=1", "block=5"]


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    settings.register_resolvers()
    with composing.hydra():
        yield
    GlobalHydra.instance().clear()


def cell(folder: Path, *overrides: str) -> Cell:
    return Cell(compose("config", overrides=[*SMALL, f"output={folder}", *overrides]))


@pytest.fixture
def pixels() -> np.ndarray:
    """8-bit images that are neither square nor smooth (5, 3, 18, 23)."""
    return np.random.default_rng(3).integers(0, 256, (5, 3, 18, 23)).astype(np.uint8)


@pytest.fixture
def square() -> Tensor:
    """8-bit images (6, 3, 32, 32) in [0, 1]."""
    found = np.random.default_rng(4).integers(0, 256, (6, 3, 32, 32)).astype(np.uint8)
    return tensor(found)


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).float() / 255


class Last(nn.Module):
    """A network that shows what it gets: logits of three channel means, and keeps the images."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.got.append(images)
        return images.mean(dim=(2, 3))


def seen(text: str, images: Tensor, seed: int = 0) -> Tensor:
    """What a network behind a defence gets."""
    network = Last()
    Defended(network, [defence(each, "targets") for each in text.split("+")], seed)(images)
    return network.got[0]


@pytest.mark.parametrize("quality", [10, 75, 100])
def test_jpeg_is_pillows(pixels: np.ndarray, quality: int) -> None:
    found = seen(f"jpeg{quality}", tensor(pixels))
    for image, one in zip(pixels, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.moveaxis(image, 0, 2)).save(file, "JPEG", quality=quality)
        expected = np.moveaxis(np.array(Image.open(io.BytesIO(file.getvalue()))), 2, 0)
        np.testing.assert_array_equal((255 * one).numpy(), expected)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_bits_are_the_nearest_levels(pixels: np.ndarray, depth: int) -> None:
    levels = [k / (2**depth - 1) for k in range(2**depth)]
    expected = [min(levels, key=lambda v: abs(v - p / 255)) for p in pixels.ravel().tolist()]
    found = seen(f"bits{depth}", tensor(pixels))
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)
    assert len(found.unique()) == 2**depth


@pytest.mark.parametrize("side", [2, 3, 4, 5, 9])
def test_the_median_is_that_of_each_window(pixels: np.ndarray, side: int) -> None:
    found = (255 * seen(f"median{side}", tensor(pixels))).round().numpy()
    expected = median_filter(pixels, size=(1, 1, side, side), mode="reflect")
    np.testing.assert_array_equal(found, expected)
    height, width, before = *pixels.shape[2:], side // 2
    for row, column in ((9, 11), (0, 22), (17, 1)):  # and by hand: inside, and in two corners
        window = []
        for i in range(row - before, row - before + side):
            for j in range(column - before, column - before + side):
                at = [k if k >= 0 else -1 - k for k in (i, j)]
                at = [min(k, 2 * n - 1 - k) for k, n in zip(at, (height, width), strict=True)]
                window.append(pixels[2, 1, at[0], at[1]])
        assert found[2, 1, row, column] == sorted(window)[side * side // 2]


def test_resize_and_pad(square: Tensor) -> None:
    """Somewhere in grey stands the image, repeated to a size below the largest."""
    found = seen("resizepad1.5", square)
    assert found.shape == (6, 3, 48, 48)
    places = set()
    for image, moved in zip(square, found, strict=True):
        matches = [
            (new, top, left)
            for new in range(32, 48)
            for top in range(48 - new + 1)
            for left in range(48 - new + 1)
            if torch.equal(moved, placed(image, new, top, left))
        ]
        assert len(matches) == 1
        places |= {*matches}
    assert len(places) == 6
    default = seen("resizepad", square)  # 331 / 299
    assert default.shape[-2:] == (35, 35)
    assert set(default.unique().tolist()) <= {0.5, *square.unique().tolist()}


def placed(image: Tensor, new: int, top: int, left: int) -> Tensor:
    nearest = torch.tensor([32 * i // new for i in range(new)])
    frame = torch.full((3, 48, 48), 0.5)
    frame[:, top : top + new, left : left + new] = image[:, nearest][:, :, nearest]
    return frame


@pytest.mark.parametrize("text", ["resizepad", "smooth0.3x3", "bits4+resizepad+smooth0.3x3"])
def test_randomness_is_of_seed_and_image_alone(square: Tensor, text: str) -> None:
    whole = seen(text, square)
    torch.testing.assert_close(seen(text, square[2:5]), whole[2:5], rtol=0, atol=0)
    torch.testing.assert_close(seen(text, square.flip(0)), whole.flip(0), rtol=0, atol=0)
    assert not torch.equal(seen(text, square, seed=1), whole)
    first, other = (zoo.build("photos", f"vgg16+{text}", seed=seed) for seed in (0, 1))
    assert isinstance(first, Defended)
    alone = torch.cat([first(image[None]) for image in square])
    torch.testing.assert_close(first(square), alone, rtol=1e-4, atol=1e-4)
    assert not torch.equal(first(square), other(square))


def test_noise_is_normal_and_of_its_size(square: Tensor) -> None:
    network = Last()
    Defended(network, [defence("smooth0.2x40", "targets")])(square)
    noise = torch.stack(network.got) - square  # of every copy, image and pixel
    assert abs(noise.mean()) < 1e-3
    assert noise.std().item() == pytest.approx(0.2, rel=0.01)
    assert noise.std(dim=0).mean().item() == pytest.approx(0.2, rel=0.02)  # each copy its own
    assert (noise + square).min() < 0  # not clipped


def test_the_majority_is_counted(square: Tensor) -> None:
    model = zoo.build("photos", "vgg16+smooth0.3x9", seed=5)
    plain = zoo.build("photos", "vgg16")
    chance, chain = Chance(square, 5), parted("vgg16+smooth0.3")[1]
    counts = np.zeros((6, 16), int)
    for copy in range(9):
        noisy = chain[0](square, lambda one, c=copy: chance.draw(f"{c}/0/smooth", one))  # type: ignore[misc]
        for i in range(6):
            counts[i, int(plain(noisy[i : i + 1]).argmax())] += 1
    assert (counts.sum(axis=1) == 9).all()
    assert (counts.max(axis=1) < 9).any()
    np.testing.assert_allclose(model(square), np.log(1 + counts), rtol=1e-6)
    shares = model(square).softmax(dim=1)
    np.testing.assert_allclose(shares, (1 + counts) / (9 + 16), rtol=1e-5)


def test_votes_of_nothing_are_refused_as_nan() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3)).log()  # NaN below 0

    images = torch.full((2, 3, 8, 8), 0.5)
    images[1] = -1
    found = Defended(Broken(), [defence("smooth0.01x3", "targets")])(images)
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@pytest.mark.parametrize("text", ["bits8", "median1", "resizepad1", "bits8+median1"])
@pytest.mark.parametrize("name", ["vgg16", "ensemble"])
def test_of_no_strength_it_is_the_network(square: Tensor, name: str, text: str) -> None:
    plain, defended = (zoo.build("photos", each) for each in (name, f"{name}+{text}"))
    torch.testing.assert_close(defended(square), plain(square), rtol=0, atol=0)


def test_defences_follow_each_other_in_their_order(pixels: np.ndarray) -> None:
    images = tensor(pixels)
    first = seen("bits2+median3", images)
    torch.testing.assert_close(first, seen("median3", seen("bits2", images)), rtol=0, atol=0)
    assert not torch.equal(seen("jpeg40+bits2", images), seen("bits2+jpeg40", images))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("jpg75", r"\+jpg75: did you mean jpeg\? .*bits \(bits of a channel, 1 to 8\)"),
        ("", r"\+: expected the name of a defence"),
        ("jpeg", r"\+jpeg: expected jpeg and a whole number from 1 to 100 \(quality\)"),
        ("jpeg0", "from 1 to 100"),
        ("jpeg75.5", "a whole number"),
        ("jpeg75x3", "from 1 to 100"),
        ("bits9", "from 1 to 8"),
        ("median0", "from 1 to 9"),
        ("resizepad0.5", "a number from 1 to 2 .*or none"),
        ("smooth", "expected smooth and a number from 0 to 1"),
        ("smooth0.25x0", "how many copies vote, 1 to 10000"),
        ("smooth1e-3", "expected the name of a defence"),
    ],
)
def test_wrong_names_are_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        cell(tmp_path, f"targets=['vgg16+{text}']")
    assert str(error.value).startswith("targets: ")
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_names_and_titles() -> None:
    network, chain = parted("vgg16+bits5+smooth0.25x100+resizepad+smooth0.5")
    assert network == "vgg16"
    facts = [["bits", 5, 0], ["smooth", 0.25, 100], ["resizepad", 331 / 299, 0]]
    assert [each.facts for each in chain] == [*facts, ["smooth", 0.5, 32]]
    assert title("vgg16+bits5+jpeg75") == "VGG-16+bits5+jpeg75"
    assert title("vgg16") == "VGG-16"
    assert all(kind.apply.__name__ == name for name, kind in KINDS.items())
    with pytest.raises(InputError, match="targets=vgg61: did you mean vgg16"):
        zoo.card("photos", "vgg61+jpeg75", "targets")


def test_identities(tmp_path: Path) -> None:
    """A defended network is another one, and names of the same are the same."""
    plain = zoo.identity("photos", "vgg16")
    assert "defences" not in plain
    names = ["vgg16+jpeg75", "vgg16+jpeg74", "vgg16+bits5+jpeg75", "vgg16+smooth0.25"]
    names += ["vgg16+jpeg75+bits5", "vgg16+smooth0.25x33", "resnet34+jpeg75", "ensemble+jpeg75"]
    found = [zoo.identity("photos", name) for name in names]
    assert all(each != other for i, each in enumerate(found) for other in found[:i])
    assert found[0]["network"] == plain
    assert found[3] == zoo.identity("photos", "vgg16+smooth0.25x32")
    assert zoo.classes("photos", names[0]) == 16
    assert zoo.weights("photos", names[0]) == zoo.weights("photos", "vgg16")
    assert cell(tmp_path, "targets=[vgg16+jpeg75]").key == cell(tmp_path, "targets=[vgg16]").key


def test_no_gradient_goes_through(tmp_path: Path, square: Tensor) -> None:
    model = zoo.build("photos", "vgg16+bits5")
    with pytest.raises(InputError, match=r"\+bits: a defended network gives no gradients"):
        model(square.requires_grad_())
    with torch.no_grad():
        assert model(square).shape == (6, 16)
    with pytest.raises(InputError, match="gives no gradients; name it as a target"):
        cell(tmp_path, "attack=pgd", "source=vgg16+bits5", "targets=[vgg16]")


def test_defended_targets_of_a_cell(tmp_path: Path) -> None:
    """Margins and clean errors are of the defended network, on images of their own names."""
    names = ["vgg16", "vgg16+bits8", "vgg16+jpeg60+median3", "vgg16+smooth0.2x7"]
    one = cell(tmp_path, "attack=mi", f"targets=[{','.join(names)}]", "seed=3")
    ensure(Results(one))
    found = {name: arrays(one, name) for name in names}
    for what in ("margins", "clean"):
        np.testing.assert_array_equal(found[names[1]][what], found[names[0]][what])
    images = images_of(one)
    y = torch.from_numpy(images.labels)
    frames = np.concatenate([last_frame(one, shard) for shard in one.shards(images)])
    for name in names[2:]:
        model = build(one, name)
        assert isinstance(model, Defended)
        assert model.seed == 3
        for pixels, margins in ((frames, found[name]["margins"][-1]), (images.pixels, None)):
            logits = model(tensor(pixels))
            true = logits.gather(1, y[:, None])[:, 0]
            rest = logits.scatter(1, y[:, None], -np.inf).amax(dim=1)
            expected = found[name]["clean"] if margins is None else margins
            np.testing.assert_allclose(expected, rest - true, atol=1e-3)
            wrong = (logits.argmax(dim=1) != y).numpy() & (true != rest).numpy()
            np.testing.assert_array_equal(expected > 0, wrong)
    by_name = {card.target_name: card for card in cards(one)}
    for name in names:
        clean = found[name]["clean"]
        assert by_name[name].clean_error_percent == 100 * (clean > 0).mean()
    assert found[names[2]]["clean"].tolist() != found[names[0]]["clean"].tolist()


def test_defended_names_of_a_table_on_another_benchmark() -> None:
    cells = plans.plan("defences", ["benchmark=imagenet", "pretrained=false"]).cells
    assert "vgg16+jpeg75" in cells[0].targets
    with pytest.raises(plans.NotListedError, match="vgg16"):
        plans.plan("defences", ["benchmark=cifar10", "benchmark.data.folder=."])


def by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one channel (Wang et al., 2004, Eq. 13 to 17), term by term."""
    weights = np.array(
        [[np.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-5, 6)] for i in range(-5, 6)]
    )
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x = a[row : row + 11, column : column + 11].astype(float)
            z = b[row : row + 11, column : column + 11].astype(float)
            mean_x, mean_z = (weights * x).sum(), (weights * z).sum()
            var_x = (weights * (x - mean_x) ** 2).sum()
            var_z = (weights * (z - mean_z) ** 2).sum()
            both = (weights * (x - mean_x) * (z - mean_z)).sum()
            bright = (2 * mean_x * mean_z + c1) / (mean_x**2 + mean_z**2 + c1)
            values.append(bright * (2 * both + c2) / (var_x + var_z + c2))
    return float(np.mean(values))


def test_ssim_and_psnr_by_loops() -> None:
    generator = np.random.default_rng(0)
    clean = generator.integers(40, 200, (3, 3, 14, 16)).astype(np.uint8)
    moved = (clean + generator.integers(-24, 25, clean.shape)).astype(np.uint8)
    moved[2] = clean[2]
    channels = [
        [by_loops(a, b) for a, b in zip(image, other, strict=True)]
        for image, other in zip(clean, moved, strict=True)
    ]
    np.testing.assert_allclose(ssim(moved, clean), np.mean(channels, axis=1), atol=1e-6)
    assert ssim(moved, clean)[2] == pytest.approx(1)
    found = psnr(moved, clean)
    assert np.isinf(found[2])
    squares = [float(v) for v in ((clean[0].astype(int) - moved[0]) ** 2).ravel()]
    assert found[0] == pytest.approx(10 * np.log10(255**2 / (sum(squares) / len(squares))))


def test_lpips_where_its_package_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(tmp_path, "attack=mi")
    with pytest.raises(InputError, match="needs the package lpips, which is not installed"):
        Visibility(one, lpips=True)

    class LPIPS(torch.nn.Module):  # in place of the package's, whose network is downloaded
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex"

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert min(a.min(), b.min()) >= -1
            assert 0.9 < max(a.max(), b.max()) <= 1
            return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    monkeypatch.setattr(visibility, "version", lambda name: "0.1.4")
    visibility._perceptual.cache_clear()
    job = Visibility(one, lpips=True)
    ensure(job)
    visibility._perceptual.cache_clear()
    images = images_of(one)
    frames = np.concatenate([last_frame(one, shard) for shard in one.shards(images)])
    distance = np.abs(frames.astype(float) - images.pixels).mean(axis=(1, 2, 3)) / 127.5
    np.testing.assert_allclose(job.values()["lpips"], distance, rtol=1e-4)
    assert job.artifact("visibility").path != Visibility(one).artifact("visibility").path


def test_visibility_of_the_last_step(tmp_path: Path) -> None:
    one = cell(tmp_path, "attack=mi")
    job = Visibility(one)
    ensure(job)
    images = images_of(one)
    frames = np.concatenate([last_frame(one, shard) for shard in one.shards(images)])
    delta = (frames.astype(float) - images.pixels) / 255
    lengths = np.sqrt((delta**2).sum(axis=(1, 2, 3)))
    expected = -20 * np.log10(lengths / np.sqrt(3 * 32 * 32))  # PSNR is ‖δ‖₂ in dB
    np.testing.assert_allclose(job.values()["psnr"], expected, rtol=1e-5)
    np.testing.assert_allclose(job.values()["ssim"], ssim(images.pixels, frames), atol=1e-6)
    assert (job.values()["ssim"] < 1).all()
