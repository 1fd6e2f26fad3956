"""Files that are either whole or absent, and names that say what is in them."""

import contextlib
import json
import logging
import os
import platform
import subprocess
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from irattack.errors import InputError
from irattack.hashing import key, sha256

log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved there once it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a binary file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json_once(path: Path, value: Any) -> None:
    """Writes a JSON file unless it is there: of several processes, the first to finish wins."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_json(draft, value)
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        write_json(path, value)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if it is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes named arrays as safetensors, whole or not at all."""
    with replacing(path) as temporary:
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        temporary.write_bytes(safetensors.numpy.save(whole))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_arrays` wrote."""
    try:
        return safetensors.numpy.load_file(path)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} does not hold arrays ({why}); delete it and run the same command again."
        ) from error


def card_of(path: Path) -> Path:
    """The JSON beside a file that says what it is; it is written last and names its checksum."""
    return path.with_suffix(".json")


def keep(path: Path, facts: dict[str, Any], **more: Any) -> None:
    """Writes the card of a file that is complete; it has a checksum of its own as well."""
    digest = {"sha256": sha256(path), "bytes": path.stat().st_size}
    card = json.loads(json.dumps({**facts, **digest, **more}))
    write_json(card_of(path), card | {"checksum": key(card)})


def kept(
    path: Path, facts: dict[str, Any], usable: Callable[[dict[str, Any]], bool] = bool
) -> dict[str, Any] | None:
    """The card of a file that is whole, unchanged and of these facts; else None, with a warning.

    Nothing is said of a file that is not there at all.

    Args:
        usable: whether what a card says, and its file, are what the caller can work with.
    """
    card = read_json(card_of(path))
    checksum = (card or {}).pop("checksum", None)
    if not path.is_file():
        reason = "is missing, its card is there" if card_of(path).is_file() else ""
    elif card is None:
        reason = "has no card beside it, or an unreadable one"
    elif different := [name for name, value in facts.items() if card.get(name) != value]:
        reason = f"is of another configuration ({', '.join(different)})"
    elif checksum != key(card):
        reason = "has a damaged card beside it"
    elif not has_digest(path, card.get("sha256")):
        reason = "is damaged: it is not the file whose checksum its card names"
    elif not usable(card):
        reason = "holds, or its card says, what cannot be used"
    else:
        return card
    if reason:
        log.warning("%s %s; it is made anew.", path, reason)
    return None


def has_digest(path: Path, digest: Any) -> bool:
    """Whether a file has this SHA-256; not if another process has removed it."""
    try:
        return sha256(path) == digest
    except FileNotFoundError:
        return False


def readable(path: Path) -> bool:
    """Whether `read_arrays` can read a file."""
    try:
        return bool(read_arrays(path))
    except (InputError, FileNotFoundError):
        return False


def remembered(
    path: Path, facts: dict[str, Any], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays at `path` if they are whole and of these facts; else computes and keeps them."""
    if kept(path, {"facts": facts}, lambda _: readable(path)) is None:
        write_arrays(path, **compute())
        keep(path, {"facts": facts}, made_with=provenance())
    return read_arrays(path)


@cache
def provenance() -> dict[str, str]:
    """What produced a result: git commit (with + if the tree is changed), versions, machine."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    commit = git("rev-parse", "HEAD") or "unknown"
    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    packages = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    return {"commit": commit + changed, "python": platform.python_version(), **packages}
