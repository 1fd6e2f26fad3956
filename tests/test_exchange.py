"""Images to other tools and from them: to the byte, checked, and with the success they had."""

import hashlib
import json
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose
from PIL import Image

from irattack.attacks.losses import margin
from irattack.commands import evaluate as evaluate_command
from irattack.commands import export as export_command
from irattack.data import photos
from irattack.data.saved import as_png, path_in, read_saved
from irattack.errors import InputError
from irattack.models import zoo
from irattack.pipeline.cell import Cell
from irattack.pipeline.codec import read_frames
from irattack.pipeline.exchange import evaluate, export
from irattack.pipeline.images import Choice, images_of
from irattack.pipeline.job import ensure
from irattack.pipeline.results import Results, arrays, cards
from irattack.pipeline.statistics import chosen_steps, wilson
from irattack.pipeline.steps import frames_at, of_shard
from irattack.pipeline.worker import Worker
from irattack.results.evaluated import record

QUICK = ["images=12", "steps=3", "samples=2", "targets=[vgg16]", "threads=1", "block=8"]
GIVEN = [*QUICK, "attack=ir", "source=alexnet"]


pytestmark = pytest.mark.usefixtures("composing")


def cell(folder: Path, *overrides: str) -> Cell:
    return Cell(compose("config", overrides=[f"output={folder / 'out'}", *GIVEN, *overrides]))


def cached(one: Cell) -> np.ndarray:
    """The step cache of a cell that keeps all steps, (T, N, C, H, W)."""
    shards = one.shards(images_of(one))
    each = [
        list(read_frames(of_shard(one, shard).path, shard.images.pixels, one.recorded))
        for shard in shards
    ]
    return np.concatenate([np.stack(frames) for frames in each], axis=1)


def opened(folder: Path, names: list[str]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / f"{name}.png")) for name in names]).transpose(
        0, 3, 1, 2
    )


@pytest.mark.parametrize("step", ["last", "2", "leave-one-out"])
def test_what_is_exported_is_the_step_cache_and_has_its_success(tmp_path: Path, step: str) -> None:
    one, folder = cell(tmp_path), tmp_path / "images"
    manifest = json.loads(export(one, folder, step).read_text())
    ensure(Results(one))
    frames, images = cached(one), images_of(one)
    margins = arrays(one, "vgg16")["margins"]
    every = np.arange(len(images))
    chosen = chosen_steps(margins > 0)
    at = chosen if step == "leave-one-out" else np.full(12, 2 if step == "last" else 1)
    expected = frames[at, every]
    np.testing.assert_array_equal(opened(folder, list(images.ids)), expected)
    assert [entry["id"] for entry in manifest["images"]] == images.ids
    assert [entry["label"] for entry in manifest["images"]] == images.labels.tolist()
    assert [entry["step"] - 1 for entry in manifest["images"]] == list(at)
    for entry in manifest["images"]:
        content = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert (manifest["key"], manifest["eps"], manifest["step"]) == (one.key, "24/255", step)
    assert manifest["radius"] == 24 / 255
    assert manifest["settings"]["attack"]["name"] == "ir"
    assert {*manifest} > {"commit", "benchmark", "source", "norm", "made_with"}
    found = evaluate(one, folder)
    np.testing.assert_array_equal(found.saved.pixels, expected)
    np.testing.assert_array_equal(found.margins["vgg16"], margins[at, every])
    np.testing.assert_array_equal(found.clean["vgg16"], arrays(one, "vgg16")["clean"])
    assert not found.exceeds.any()
    row, (card,) = record(found, "vgg16"), cards(one)
    if step == "last":
        assert row["success_rate_percent"] == pytest.approx(card.last_step_percent)
    if step == "leave-one-out":
        assert row["success_rate_percent"] == pytest.approx(card.success_rate_percent)
        assert row["mean_l2"] == pytest.approx(card.mean_l2, rel=1e-5)
    hits = int((margins[at, every] > 0).sum())
    assert [row["success_rate_ci_low"], row["success_rate_ci_high"]] == pytest.approx(
        [100 * limit for limit in wilson(hits, 12)]
    )


def test_a_step_that_was_not_kept_is_attacked_again(tmp_path: Path) -> None:
    one = cell(tmp_path, "cache.steps=none")
    ensure(Results(one))
    assert not one.steps_folder.exists() or not list(one.steps_folder.glob("*.b2"))
    export(one, tmp_path / "images", "2")
    card = of_shard(one, one.shards(images_of(one))[0]).card()
    assert card is not None
    assert card.kept == [1, 2]
    other = cell(tmp_path / "other")
    ensure(Results(other))
    names = list(images_of(other).ids)
    np.testing.assert_array_equal(opened(tmp_path / "images", names), cached(other)[1])


def test_steps_that_another_process_needs_stay(tmp_path: Path) -> None:
    one = cell(tmp_path, "cache.steps=none")
    ensure(Choice(one))
    worker = Worker(one)
    shard = one.shards(worker.images)[0]
    frames, _ = worker.frames(shard, [2], all_steps=True)
    export(one, tmp_path / "images", "2")  # keeps the second and the last
    every = list(frames)
    card = of_shard(one, shard).card()
    assert card is not None
    assert card.kept == [1, 2]
    second = np.full(len(shard.images), 1)
    np.testing.assert_array_equal(frames_at(one, shard, second), every[1])


def test_steps_that_another_process_has_replaced_are_made_anew(tmp_path: Path) -> None:
    one = cell(tmp_path, "cache.steps=none")
    export(one, tmp_path / "images", "last")
    shard = one.shards(images_of(one))[0]
    frame = frames_at(one, shard, np.full(len(shard.images), 1))
    other = cell(tmp_path / "other")
    ensure(Results(other))
    np.testing.assert_array_equal(frame, cached(other)[1, : len(frame)])


def test_steps_that_others_go_on_replacing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(tmp_path, "cache.steps=none")
    export(one, tmp_path / "images", "last")
    shard = one.shards(images_of(one))[0]
    monkeypatch.setattr("irattack.pipeline.steps.ensure", lambda job: None)  # they were faster
    with pytest.raises(InputError, match="other processes keep other steps there; when they"):
        frames_at(one, shard, np.full(len(shard.images), 1))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """The clean images, as a tool that attacks them gets them."""
    path = export(cell(tmp_path), tmp_path / "clean", "clean")
    assert json.loads(path.read_text())["key"] is None
    return tmp_path / "clean"


def change(path: Path, by: int) -> None:
    """Moves one channel of one pixel."""
    pixels = np.array(Image.open(path)).astype(int)
    pixels[3, 4, 1] += by if pixels[3, 4, 1] + by <= 255 else -by
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_images_of_another_tool(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    one = cell(tmp_path)
    images = images_of(one)
    np.testing.assert_array_equal(opened(clean, list(images.ids)), images.pixels)
    (clean / f"{images.ids[0]}.png").unlink()
    change(clean / f"{images.ids[1]}.png", 25)  # a level too many
    change(clean / f"{images.ids[2]}.png", 24)
    shutil.copy(clean / f"{images.ids[3]}.png", clean / "of-nobody.png")
    jpeg = clean / f"{images.ids[4]}.png"
    Image.open(jpeg).save(jpeg.with_suffix(".jpg"), quality=95)
    jpeg.unlink()
    words = ["evaluate", str(clean), *QUICK, "targets=[resnet34,vgg16]", f"output={tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", words)
    evaluate_command.main()
    said = capsys.readouterr().out
    assert re.search(r"VGG-16 +11 +[\d.]+ \[[\d.]+, [\d.]+\]", said)
    found = read_saved(clean, images.ids, 32)
    levels = np.abs(found.pixels.astype(int) - images.pixels[found.rows]).max(axis=(1, 2, 3))
    assert levels[[0, 1, 2]].tolist() == [25, 24, 0]
    assert f"{(levels > 24).sum()} of 11 images exceed ε ({images.ids[1]}" in said
    assert f"largest ‖δ‖∞ {levels.max()}/255" in said
    assert f"1 of 12 images are missing, and left out ({images.ids[0]})." in said
    assert f"8 of 11 images are the clean ones, unchanged ({images.ids[3]}, " in said
    assert "1 of 11 images are JPEG or WebP, which may have changed their pixels; write PNG " in (
        said
    )
    assert "1 of 12 images of the folder are named as no clean image, and left out (of-n" in said
    (path,) = (tmp_path / "out/photos/evaluated").glob("clean-*.csv")
    table = pd.read_csv(path)
    assert list(table.target) == ["resnet34", "vgg16"]
    assert said.splitlines()[0] in path.with_suffix(".md").read_text()
    y = torch.from_numpy(images.labels[found.rows])
    with torch.no_grad():
        logits = zoo.build("photos", "vgg16")(torch.from_numpy(found.pixels).float() / 255)
    assert table.success_rate_percent[1] == pytest.approx(
        100 * float((margin(logits, y) > 0).float().mean())
    )


def test_outside_the_ball_is_no_success(clean: Path, tmp_path: Path) -> None:
    one = cell(tmp_path)
    images = images_of(one)
    for name in images.ids:  # black images, which are no photograph
        Image.new("RGB", (32, 32)).save(clean / f"{name}.png")
    found = evaluate(one, clean)
    assert found.exceeds.all()
    row = record(found, "vgg16")
    assert row["success_rate_percent"] > 50
    assert row["success_in_ball_percent"] == 0
    assert not evaluate(cell(tmp_path, "eps=1"), clean).exceeds.any()
    assert evaluate(cell(tmp_path, "norm=l2"), clean).exceeds.all()
    plain = np.sqrt(((images.pixels / 255.0) ** 2).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(found.l2, plain, rtol=1e-6)


def png16(path: Path) -> None:
    """An RGB image of 32 x 32 px with 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    lines = zlib.compress((b"\0" + bytes(32 * 6)) * 32)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def sized(path: Path) -> None:
    Image.new("RGB", (64, 48)).save(path)


def mode(name: str) -> Callable[[Path], None]:
    return lambda path: Image.new(name, (32, 32)).save(path)


def twice(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".bmp"))


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "size": (sized, r"1 of 12 images cannot be used \(\S+ is 64 x 48 px\); write each as RGB with"),
    "gray": (mode("L"), r"\(\S+ is of mode L\)"),
    "transparent": (mode("RGBA"), r"\(\S+ is of mode RGBA\)"),
    "palette": (mode("P"), r"\(\S+ is of mode P\)"),
    "deep": (png16, r"\(\S+ has 16 bits a channel\)"),
    "damaged": (lambda path: path.write_bytes(b"\x89PNG"), r"\(\S+ cannot be read\)"),
    "twice": (twice, r"1 images are there with two extensions \(\S+\); keep one of each\."),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_images_that_cannot_be_used(kind: str, clean: Path, tmp_path: Path) -> None:
    spoil, match = MISTAKES[kind]
    one = cell(tmp_path)
    spoil(clean / f"{images_of(one).ids[5]}.png")
    with pytest.raises(InputError, match=match) as error:
        evaluate(one, clean)
    assert "\n" not in str(error.value)


def test_folders_that_cannot_be_used(clean: Path, tmp_path: Path) -> None:
    one = cell(tmp_path)
    with pytest.raises(InputError, match=r"nowhere: is no folder; give one that holds images\."):
        evaluate(one, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file; give a folder, which may be a new one"):
        export(one, tmp_path / "file", "clean")
    (tmp_path / "else").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "else" / "mine.png")
    with pytest.raises(InputError, match=r"has 1 other images \(mine\); give an empty folder\."):
        export(one, tmp_path / "else", "clean")
    with pytest.raises(InputError, match="none of its 1 images is named as one of the 12 clean"):
        evaluate(one, tmp_path / "else")
    export(one, clean, "clean")  # the same images again are no others
    with pytest.raises(InputError, match=r"is there already, of other images \(source=None, a"):
        export(one, clean, "last")
    (clean / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(InputError, match="is there already, and is of no export; it"):
        export(one, clean, "clean")
    with pytest.raises(InputError, match=r"\.\./x: a name of an image that leads out of"):
        path_in(tmp_path, "../x")


@pytest.mark.parametrize(
    ("step", "more", "match"),
    [
        ("4", [], "step 4: this attack has 3 recorded steps, 1 to 3; name one of them or last, le"),
        ("0", [], "step 0: this attack"),
        ("lest", [], "step=lest: did you mean last"),
        ("leave-one-out", ["targets=[vgg16,resnet34]"], r"there are 2; give one, such as targets="),
        ("last", ["shard=1/2"], "shard=1/2: all images are written; leave it out"),
    ],
)
def test_steps_that_there_are_not(step: str, more: list[str], match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        export(cell(tmp_path, *more), tmp_path / "images", step)
    assert not (tmp_path / "images").exists()


def test_names_with_folders_come_back(tmp_path: Path) -> None:
    crops = photos.candidates("test").take(range(3))
    names = ["a/one", "b/one", "b/c/two.x"]
    for name, pixels in zip(names, crops.pixels, strict=True):
        path_in(tmp_path, name).parent.mkdir(parents=True, exist_ok=True)
        path_in(tmp_path, name).write_bytes(as_png(pixels))
    (tmp_path / ".hidden").mkdir()
    shutil.copy(tmp_path / "a/one.png", tmp_path / ".hidden/one.png")
    found = read_saved(tmp_path, [*names, "missing"], 32)
    np.testing.assert_array_equal(found.pixels, crops.pixels)
    assert (found.rows, found.missing, found.strange) == ([0, 1, 2], ["missing"], [])


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = f"output={tmp_path}/out"

    def call(main: Callable[[], None], *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["irattack", *words])
        main()
        return capsys.readouterr().out

    folder = str(tmp_path / "images")
    said = call(export_command.main, folder, *GIVEN, out)
    assert said.startswith("12 images of ir from alexnet, linf, step last, written to ")
    said = call(evaluate_command.main, folder, *QUICK, out)
    assert "No image exceeds ε; largest ‖δ‖∞ 6/255" in said  # three steps of 2/255
    for main, words, sentence in (
        (export_command.main, [], "export: give one FOLDER"),
        (evaluate_command.main, [folder, "last"], "give one FOLDER"),
        (evaluate_command.main, [folder, "attack=ir"], "attack=ir: says how images are made"),
        (evaluate_command.main, [folder, "-m"], "-m: evaluate works on one cell, here; leave it"),
    ):
        with pytest.raises(SystemExit, match="2"):
            call(main, *words, out)
        assert sentence in capsys.readouterr().err
