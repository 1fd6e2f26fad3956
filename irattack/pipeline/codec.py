"""The step cache: the adversarial image of every step, 8-bit, compressed.

One Blosc2 file per shard of images, one chunk per step. A frame is stored as its wrap-around uint8
difference to the frame before it, zigzag-coded so that small changes of either sign are small
numbers; every tenth frame is relative to the clean image instead, so that a reader can start there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import blosc2
import numpy as np

from irattack.errors import InputError

KEYFRAME = 10


def zigzag(difference: np.ndarray) -> np.ndarray:
    """uint8 differences mod 256 as 0, 1, 2, 3, … for 0, −1, 1, −2, …"""
    signed = difference.view(np.int8)
    return ((signed << 1) ^ (signed >> 7)).view(np.uint8)


def unzigzag(code: np.ndarray) -> np.ndarray:
    """The inverse of `zigzag`."""
    return (code >> 1) ^ (-(code & 1).astype(np.int8)).view(np.uint8)


def kept_frames(
    clean: np.ndarray,
    frames: Iterable[np.ndarray],
    wanted: Sequence[int],
    keep: Callable[[bytes], None],
) -> Iterator[np.ndarray]:
    """Yields every frame, and calls `keep` with the wanted ones once the last has been taken.

    A frame is compressed while the next one is computed. Nothing is kept before the last, so an
    interrupted shard leaves nothing.

    Args:
        clean: (B, C, H, W) uint8.
        frames: one (B, C, H, W) uint8 array a step.
        wanted: the positions of the steps that are kept, in order; of none, nothing is kept.
        keep: gets what `read_frames` reads.
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
        keep(chunks.to_cframe())


def read_frames(path: Path, clean: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """The frames in a file in step order, each (B, C, H, W) uint8.

    The file is read at once, so that another process may replace it meanwhile.

    Args:
        clean: the clean images, (B, C, H, W) uint8.
        count: how many frames it must hold.

    Raises:
        InputError: it does not hold them.
    """
    foreign = InputError(
        f"{path} does not hold the steps of {len(clean)} images; delete it and run the same "
        "command again."
    )
    try:
        chunks = blosc2.schunk_from_cframe(path.read_bytes())
    except (RuntimeError, ValueError) as error:
        raise foreign from error
    if chunks.nchunks != count or chunks.chunksize != clean.nbytes:
        raise foreign
    before = clean
    for step in range(chunks.nchunks):
        try:
            code = np.frombuffer(chunks.decompress_chunk(step), np.uint8).reshape(clean.shape)
        except (RuntimeError, ValueError) as error:
            raise foreign from error
        before = unzigzag(code) + (clean if step % KEYFRAME == 0 else before)
        yield before
