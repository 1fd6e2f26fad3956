"""Work that does not fit its device is done again in smaller parts; freed memory is kept."""

import ctypes
import gc
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from irattack.errors import InputError

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
log = logging.getLogger(__name__)


@dataclass
class MicroBatch:
    """How many images go through a network at once.

    Attributes:
        size: 1 or more; halved where the device lacks memory, and so for all that follows.
        device: as the user named it, for the sentence that ends in.
    """

    size: int
    device: str

    def fit(self, work: Callable[[int], T], what: str, halves: bool = True) -> T:
        """Runs work(size), again with half the size for as long as the memory is too small.

        Args:
            what: that starts again, for the warning.
            halves: whether a smaller size needs less memory.

        Raises:
            InputError: no smaller size helps.
        """
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                if self.size == 1 or not halves:
                    raise InputError(
                        f"device={self.device}: out of memory, and no smaller micro_batch helps; "
                        "use a smaller block or another device."
                    ) from None
            self.size //= 2
            release()  # now that no traceback holds the tensors of the failure
            log.warning(
                "The device is out of memory: %s starts again with micro_batch=%d.",
                *(what, self.size),
            )


def lacks_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory is too small: a GPU's, a CPU's, or a GPU's library's."""
    words = "DefaultCPUAllocator|CUDA error: out of memory|CU[A-Z]+_STATUS_ALLOC_FAILED"
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search(words, str(error)))


def keep() -> None:
    """Lets glibc keep what is freed for what is asked for next, from now on in this process.

    Otherwise each activation beyond 32 MB is new memory, which the kernel clears page by page,
    and goes back to it: some percent of the time of a network at 224 px (docs/speed.md). Does
    nothing where there is another C library.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def release() -> None:
    """Gives back what nothing uses any more."""
    gc.collect()
    torch.cuda.empty_cache()


def free(where: torch.device) -> float:
    """Bytes that may still be taken on a device; without end on a CPU, which can swap."""
    return torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else math.inf


def peak(where: torch.device) -> float:
    """Bytes in use at most since the last call, on a GPU; 0 on a CPU. Starts to count anew."""
    if where.type != "cuda":
        return 0.0
    found = torch.cuda.max_memory_allocated(where)
    torch.cuda.reset_peak_memory_stats(where)
    return found
