"""Hashes that name things by their content."""

import hashlib
import json
from pathlib import Path
from typing import Any


def key(facts: Any) -> str:
    """A short content hash of anything that JSON can express."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
