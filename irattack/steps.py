"""The step cache: the adversarial image of every step, 8-bit, compressed, checksummed.

One Blosc2 file per shard of images, one chunk per step. A frame is stored as its wrap-around uint8
difference to the frame before it, zigzag-coded so that small changes of either sign are small
numbers; every tenth frame is relative to the clean image instead, so that a reader can start there.
A shard counts only if the manifest beside it, written last, names its checksum.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from irattack import store

KEYFRAME = 10


def zigzag(difference: np.ndarray) -> np.ndarray:
    """uint8 differences mod 256 as 0, 1, 2, 3, … for 0, −1, 1, −2, …"""
    signed = difference.view(np.int8)
    return ((signed << 1) ^ (signed >> 7)).view(np.uint8)


def unzigzag(code: np.ndarray) -> np.ndarray:
    """The inverse of `zigzag`."""
    return (code >> 1) ^ (-(code & 1).astype(np.int8)).view(np.uint8)


def write_shard(
    path: Path, clean: np.ndarray, frames: Iterable[np.ndarray], manifest: dict[str, Any]
) -> None:
    """Writes the frames of a shard, then its manifest.

    Args:
        path: of the shard; its manifest gets the suffix .json.
        clean: (B, C, H, W) uint8.
        frames: one (B, C, H, W) uint8 array a step.
        manifest: what the shard is; the checksum and size are added.
    """
    manifest_path = path.with_suffix(".json")
    manifest_path.unlink(missing_ok=True)
    cparams = blosc2.CParams(
        codec=blosc2.Codec.ZSTD, clevel=1, typesize=1, filters=[blosc2.Filter.BITSHUFFLE]
    )
    chunks = blosc2.SChunk(chunksize=clean.nbytes, contiguous=True, cparams=cparams)
    before = clean
    for step, frame in enumerate(frames):
        base = clean if step % KEYFRAME == 0 else before
        chunks.append_data(zigzag(np.ascontiguousarray(frame - base)))
        before = frame
    with store.replacing(path) as temporary:  # by Python, which notices a full disk
        temporary.write_bytes(chunks.to_cframe())
    facts = {"sha256": store.sha256(path), "bytes": path.stat().st_size}
    store.write_json(manifest_path, manifest | facts)


def is_valid(path: Path, manifest: dict[str, Any]) -> bool:
    """Whether the shard at `path` is whole, unchanged, and what `manifest` says."""
    found = store.read_json(path.with_suffix(".json"))
    return (
        found is not None
        and path.is_file()
        and all(found.get(name) == value for name, value in manifest.items())
        and found.get("sha256") == store.sha256(path)
    )


def read_shard(path: Path, clean: np.ndarray) -> Iterator[np.ndarray]:
    """The frames of a shard in step order, each (B, C, H, W) uint8."""
    chunks = blosc2.open(str(path), mode="r")
    before = clean
    for step in range(chunks.nchunks):
        code = np.frombuffer(chunks.decompress_chunk(step), np.uint8).reshape(clean.shape)
        before = unzigzag(code) + (clean if step % KEYFRAME == 0 else before)
        yield before
