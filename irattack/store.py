"""Files that are either whole or absent, and names that say what is in them."""

import contextlib
import hashlib
import json
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


def key(facts: Any) -> str:
    """A short content hash of anything that JSON can express."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if it is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes named arrays as safetensors, whole or not at all."""
    with replacing(path) as temporary:
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        temporary.write_bytes(safetensors.numpy.save(whole))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_arrays` wrote."""
    return safetensors.numpy.load_file(path)


def remembered(
    path: Path, facts: dict[str, Any], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays at `path` if they are whole and of these facts; else computes and keeps them."""
    card = path.with_suffix(".json")
    found = read_json(card)
    if path.is_file() and found == {**(found or {}), "facts": facts, "sha256": sha256(path)}:
        return read_arrays(path)
    card.unlink(missing_ok=True)
    arrays = compute()
    write_arrays(path, **arrays)
    write_json(card, {"facts": facts, "sha256": sha256(path), "made_with": provenance()})
    return arrays


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
