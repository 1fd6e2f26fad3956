"""Normal numbers by the counter-based generator Philox, the same on every device.

The pair of numbers j of a key is a function of key and j alone, so that any device may fill any
part of a tensor. On the CPU the bits are NumPy's; on CUDA one kernel fills the batch, with the
same bits. What differs between devices is the rounding of logarithm, sine and cosine. (PyTorch's
own generator on CUDA is a Philox, too, but which number goes where depends on how many
multiprocessors the device has.)
"""

import logging
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.language.random import philox_impl
except ImportError:  # where PyTorch has no CUDA
    triton = None

log = logging.getLogger(__name__)
Key = tuple[int, int]  # two words of 64 bits
PART = 2**14  # pairs that the CPU makes at once, so that they stay in its cache


def on_cpu(key: Key, count: int) -> Tensor:
    """N(0, 1), (count,) float32, by Philox-4x64-10 (Salmon et al., 2011) and Box and Muller.

    A word of 64 bits gives two uniform numbers of 24 bits, of its lower and its upper half, and
    these the pair √(−2 log(1 − u)) (cos 2πv, sin 2πv), at most 5.8 in size.
    """
    bits = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
    found = np.empty((-(-count // 2), 2), dtype=np.float32)
    for start in range(0, len(found), PART):
        part = found[start : start + PART]
        u, v = bits.random(part.shape, dtype=np.float32).T
        radius, angle = np.sqrt(-2 * np.log(1 - u)), np.float32(2 * math.pi) * v
        np.multiply(radius, np.cos(angle), out=part[:, 0])
        np.multiply(radius, np.sin(angle), out=part[:, 1])
    return torch.from_numpy(found).flatten()[:count]


def on_cuda(keys: Sequence[Key], count: int, device: torch.device) -> Tensor | None:
    """The numbers of `on_cpu` for each key, (B, count), in one launch; None without a compiler."""
    if not _compiles(device):
        return None
    words = np.array(keys, dtype=np.uint64).view(np.int64)
    found = torch.empty(len(keys), count, device=device)
    with torch.cuda.device(device):  # on which Triton launches
        fill(found, torch.from_numpy(words).pin_memory().to(device, non_blocking=True))
    return found


def fill(found: Tensor, keys: Tensor, lanes: int = 128) -> None:
    """Writes the numbers of the keys, (B, 2) int64, to (B, count) float32, on the same device."""
    rows, count = found.shape
    _kernel[triton.cdiv(count, 8 * lanes), rows](found, keys, count, LANES=lanes)


@cache
def _compiles(device: torch.device) -> bool:
    try:
        with torch.cuda.device(device):
            fill(torch.empty(1, 2, device=device), torch.zeros(1, 2, dtype=torch.int64).to(device))
    except Exception as error:  # no Triton, no C compiler, an old device
        log.warning(
            "VR's noise is drawn on the CPU and copied, which is slow and gives the same numbers: "
            "its kernel cannot be compiled here (%s).",
            " ".join(str(error).split())[:200],
        )
        return False
    return True


if triton is not None:

    @triton.jit  # which compiles the annotations, too, and knows of no `Any`
    def _kernel(found, keys, count, LANES: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
        row = tl.program_id(1).to(tl.int64)
        counter = (tl.program_id(0) * LANES + tl.arange(0, LANES)).to(tl.uint64)
        zero = tl.zeros([LANES], dtype=tl.uint64)
        low = tl.load(keys + 2 * row).to(tl.uint64, bitcast=True)
        high = tl.load(keys + 2 * row + 1).to(tl.uint64, bitcast=True)
        a, b, c, d = philox_impl(counter + 1, zero, zero, zero, low, high, 10)  # NumPy's first is 1
        word = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
        u = ((word & 0xFFFFFFFF) >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2 ** -24
        v = (word >> 40).to(tl.float32) * 5.9604644775390625e-08
        radius = tl.sqrt(-2 * tl.log(1 - u))
        angle = 6.283185307179586 * v
        pairs = tl.interleave(radius * tl.cos(angle), radius * tl.sin(angle))
        at = tl.program_id(0) * 8 * LANES + tl.arange(0, 8 * LANES)
        tl.store(found + row * count + at, pairs, mask=at < count)
