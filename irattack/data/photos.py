"""The embedded benchmark: labelled crops of the photographs that ship inside scikit-image.

A class is a photograph. Each photograph is divided into square blocks, and every block belongs to
exactly one split, so a held-out crop shows a region that no training crop has touched. Nothing is
downloaded: the files come from the installed package and are checked by hash.
"""

import hashlib
from functools import cache
from importlib.resources import as_file, files

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from irattack.data.images import Candidates
from irattack.errors import InputError, unknown

CROP = 32  # px, the networks' input size
BLOCK = 64  # px, the unit that is train, validation or test as a whole
MIN_STD = 6 / 255  # a crop of less contrast shows nothing that could be named

# Photograph: (file, SHA-256, integer factor by which the photograph is first box-averaged)
PHOTOS: dict[str, tuple[str, str, int]] = {
    "astronaut": (
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        1,
    ),
    "brick": ("brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf", 1),
    "camera": ("camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a", 1),
    "cell": ("cell.png", "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515", 1),
    "chelsea": (
        "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        1,
    ),
    "page": ("page.png", "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3", 1),
    "coffee": ("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", 1),
    "coins": ("coins.png", "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba", 1),
    "grass": ("grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89", 1),
    "gravel": ("gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12", 1),
    "hubble": (
        "hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        2,
    ),
    "ihc": ("ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef", 1),
    "moon": ("moon.png", "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577", 1),
    "motorcycle": (
        "motorcycle_left.png",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        1,
    ),
    "retina": ("retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6", 3),
    "rocket": ("rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c", 1),
}
CLASSES = list(PHOTOS)
SPLITS = ("train", "val", "test")


def split_of(row: int, column: int) -> str:
    """The split of a block: a lattice, so that held-out blocks are spread over the photograph."""
    return {0: "val", 3: "test", 6: "test"}.get((column + 3 * row) % 8, "train")


@cache
def photograph(name: str) -> np.ndarray:
    """One photograph as (H, W, 3) uint8, its file checked by hash, box-averaged by its factor."""
    file, digest, factor = PHOTOS[name]
    with as_file(files("skimage") / "data" / file) as path:
        if not path.is_file():
            raise InputError(f"benchmark=photos: scikit-image has no {file}; run `make setup`.")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != digest:
            raise InputError(
                f"benchmark=photos: {path} has SHA-256 {found[:12]}…, expected {digest[:12]}…; "
                "reinstall scikit-image with `make setup`."
            )
        pixels = np.asarray(Image.open(path).convert("RGB"))
    height, width = (size // factor for size in pixels.shape[:2])
    boxes = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.round(boxes.mean(axis=(1, 3))).astype(np.uint8)


def blocks(split: str) -> list[tuple[str, np.ndarray]]:
    """The (class name, (H, W, 3) uint8 block) pairs of a split; H and W from CROP to BLOCK."""
    found = []
    for name in CLASSES:
        photo = photograph(name)
        for row in range(photo.shape[0] // BLOCK + 1):
            for column in range(photo.shape[1] // BLOCK + 1):
                area = photo[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
                if min(area.shape[:2]) >= CROP and split_of(row, column) == split:
                    found.append((name, area))
    return found


def has_contrast(crop: np.ndarray) -> np.ndarray:
    """Whether crops (..., CROP, CROP, 3) show anything: a contrast of at least MIN_STD."""
    return crop.std(axis=(-3, -2)).max(axis=-1) >= 255 * MIN_STD


def crops(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The fixed crops of a split: images (N, CROP, CROP, 3) uint8, labels (N,), and ids (N,)."""
    images, labels, ids = [], [], []
    for index, (name, block) in enumerate(blocks(split)):
        for top in range(0, block.shape[0] - CROP + 1, CROP):
            for left in range(0, block.shape[1] - CROP + 1, CROP):
                crop = block[top : top + CROP, left : left + CROP]
                if has_contrast(crop):
                    images.append(crop)
                    labels.append(CLASSES.index(name))
                    ids.append(f"{split}-{name}-{index}-{top}-{left}")
    return np.stack(images), np.array(labels), ids


def candidates(split: str) -> Candidates:
    """The fixed crops of a split, as the pipeline takes them."""
    if split not in SPLITS:
        raise unknown("benchmark.data.split", split, SPLITS)
    images, labels, ids = crops(split)
    pixels = images.transpose(0, 3, 1, 2)
    return Candidates(ids, labels, lambda rows: pixels[list(rows)])


def to_tensor(images: np.ndarray) -> Tensor:
    """Images (N, H, W, 3) uint8 as (N, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
