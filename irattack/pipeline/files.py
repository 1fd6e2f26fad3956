"""Files that are either whole or absent."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

WRITING = "on writing"  # a note on errors that come up there


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved there once it is complete and on the disk."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.add_note(WRITING)
        raise
    finally:
        with contextlib.suppress(OSError):  # where no folder can be made, there is nothing
            temporary.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process is in here with this path, a file made for the purpose.

    A file system without locks, such as Lustre without `-o flock`, lets all of them in; a warning
    says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            without_locks()
        yield


@cache
def without_locks() -> None:
    """Warns, once a process, that this file system has no locks."""
    log.warning("The output folder's file system has no locks; submit from one process at a time.")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a binary file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, once: bool = False) -> None:
    """Writes a JSON file, whole or not at all.

    Args:
        once: unless it is there; of several processes, the first to finish wins.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    if not once:
        return write_text(path, text)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_text(draft, text)
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        write_text(path, text)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if it is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
