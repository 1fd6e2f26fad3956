"""The step cache: the adversarial image of every step, 8-bit, compressed, checksummed.

One Blosc2 file per shard of images, one chunk per step. A frame is stored as its wrap-around uint8
difference to the frame before it, zigzag-coded so that small changes of either sign are small
numbers; every tenth frame is relative to the clean image instead, so that a reader can start there.
A shard counts only if the card beside it, written last, names its checksum.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from irattack.errors import InputError
from irattack.pipeline import store

KEYFRAME = 10


def zigzag(difference: np.ndarray) -> np.ndarray:
    """uint8 differences mod 256 as 0, 1, 2, 3, … for 0, −1, 1, −2, …"""
    signed = difference.view(np.int8)
    return ((signed << 1) ^ (signed >> 7)).view(np.uint8)


def unzigzag(code: np.ndarray) -> np.ndarray:
    """The inverse of `zigzag`."""
    return (code >> 1) ^ (-(code & 1).astype(np.int8)).view(np.uint8)


def kept_frames(
    path: Path,
    clean: np.ndarray,
    frames: Iterable[np.ndarray],
    wanted: Sequence[int],
    facts: dict[str, Any],
    made_with: dict[str, Any],
) -> Iterator[np.ndarray]:
    """Yields every frame, and keeps the wanted ones at `path` once the last has been taken.

    A frame is compressed while the next one is computed. Nothing is written before the last, so an
    interrupted shard leaves nothing.

    Args:
        path: of the shard; its card (`store.keep`) gets the suffix .json.
        clean: (B, C, H, W) uint8.
        frames: one (B, C, H, W) uint8 array a step.
        wanted: the positions of the steps that are kept, in order; of none, no file is written.
        facts, made_with: what the card says of the shard.
    """
    cparams = blosc2.CParams(
        codec=blosc2.Codec.ZSTD, clevel=1, typesize=1, filters=[blosc2.Filter.BITSHUFFLE]
    )
    chunks = blosc2.SChunk(chunksize=clean.nbytes, contiguous=True, cparams=cparams)
    before, places = clean, set(wanted)

    def append(frame: np.ndarray, base: np.ndarray) -> None:
        chunks.append_data(zigzag(np.ascontiguousarray(frame - base)))

    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: Future[None] | None = None
        for step, frame in enumerate(frames):
            if step in places:
                if pending:
                    pending.result()
                base = clean if chunks.nchunks % KEYFRAME == 0 else before
                pending, before = pool.submit(append, frame, base), frame
            yield frame
        if pending:
            pending.result()
    if wanted:
        with store.replacing(path) as temporary:  # by Python, which notices a full disk
            temporary.write_bytes(chunks.to_cframe())
        store.keep(path, facts | {"kept": list(wanted)}, made_with=made_with)


def has_steps(card: dict[str, Any] | None, wanted: Iterable[int]) -> bool:
    """Whether a shard with this card holds all of the wanted steps."""
    return card is not None and set(wanted) <= set(card["kept"])


def says_steps(card: dict[str, Any], recorded: int) -> bool:
    """Whether a card says which of this many steps its shard holds."""
    kept = card.get("kept")
    if not isinstance(kept, list) or not kept or any(type(step) is not int for step in kept):
        return False
    return kept == sorted({*kept} & {*range(recorded)})


def read_shard(path: Path, clean: np.ndarray, count: int | None = None) -> Iterator[np.ndarray]:
    """The frames of a shard in step order, each (B, C, H, W) uint8.

    The file is read at once, so that another process may replace it meanwhile.

    Args:
        count: how many frames it must hold, where that is known.
    """
    foreign = InputError(
        f"{path} does not hold the steps of {len(clean)} images; delete it and run the same "
        "command again."
    )
    try:
        chunks = blosc2.schunk_from_cframe(path.read_bytes())
    except (RuntimeError, ValueError) as error:
        raise foreign from error
    if chunks.nchunks != (count or chunks.nchunks) or chunks.chunksize != clean.nbytes:
        raise foreign
    before = clean
    for step in range(chunks.nchunks):
        try:
            code = np.frombuffer(chunks.decompress_chunk(step), np.uint8).reshape(clean.shape)
        except (RuntimeError, ValueError) as error:
            raise foreign from error
        before = unzigzag(code) + (clean if step % KEYFRAME == 0 else before)
        yield before
