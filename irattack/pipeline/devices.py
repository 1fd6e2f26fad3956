"""Which GPU a process works on: the one that fewest processes have claimed.

A claim is a locked file in a folder of this machine and user, in its memory where that can be: a
folder of temporary files may be a job's own, or on a file system without locks. The kernel takes
the lock away when the process ends, however it ends, so that a claim never outlives its process.
Claims are made one at a time. Processes on one machine thus share its GPUs evenly, whoever started
them.
"""

import fcntl
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from irattack.pipeline import files

MEMORY = Path("/dev/shm")


def folder() -> Path:
    """Where the claims lie."""
    place = MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return place / f"irattack-gpus-{os.getuid()}"


def is_held(path: Path) -> bool:
    """Whether a living process has locked a file."""
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


@dataclass
class Claim:
    """A GPU that this process works on.

    Attributes:
        index: as PyTorch counts them here.
        path: the file that says so.
        file: the same file, locked as long as it is open.
    """

    index: int
    path: Path
    file: IO[str]

    def release(self) -> None:
        """Leaves the GPU to others."""
        self.path.unlink(missing_ok=True)
        self.file.close()


def claim(names: Mapping[int, str], first: int | None = None) -> Claim:
    """Claims the GPU that fewest processes hold.

    Args:
        names: of the GPUs among which to choose, by index; a name is the same for all processes,
            whatever index they give to that GPU.
        first: the index to be preferred among those that equally few hold; else the lowest.
    """
    place = folder()
    with files.locked(place / "lock"):
        holders: Counter[str] = Counter()
        for path in place.glob("*.claim"):
            if is_held(path):
                holders[path.name.split(".")[0]] += 1
            else:  # of a process that was killed
                path.unlink(missing_ok=True)
        index = min(names, key=lambda i: (holders[names[i]], i != first, i))
        path = place / f"{names[index]}.{uuid4().hex}.claim"
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Claim(index, path, file)


_held: Claim | None = None
_last: int | None = None


def held() -> int | None:
    """The index of the GPU that this process holds."""
    return _held.index if _held else None


def last() -> int | None:
    """The index of the GPU that this process held last, or holds."""
    return _last


def hold(names: Mapping[int, str]) -> int:
    """Claims one of these GPUs in place of the one that this process holds; returns its index.

    Where that makes no difference, it is the one that the process held last.
    """
    global _held, _last
    release()
    _held = claim(names, _last)
    _last = _held.index
    return _last


def release() -> None:
    """Leaves the GPU of this process to others."""
    global _held
    if _held is not None:
        _held.release()
        _held = None
