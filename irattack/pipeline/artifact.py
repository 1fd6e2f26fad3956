"""The one kind of thing on the disk: a payload, and a card beside it that says what it is of.

A card is a JSON file, written last. It holds the facts that decide the payload, the payload's
checksum, what made it, and what else its kind has to say, as the kind's schema (a `Card`) demands;
and a checksum of itself. So a thing is whole or absent, and is never trusted when it is damaged,
of other facts, or not what its schema says.
"""

import hashlib
import json
import logging
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from irattack.conf import INSTALLED, PACKAGE
from irattack.errors import InputError
from irattack.hashing import key, sha256
from irattack.pipeline import files

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

Arrays = dict[str, "np.ndarray"]
Shapes = Mapping[str, tuple[int, ...]]


class MadeWith(BaseModel):
    """What produced something: device, threads, git commit, versions."""

    model_config = ConfigDict(strict=True, extra="allow")
    device: str
    threads: int | None = None
    torch: str
    commit: str


class Card(BaseModel):
    """What every card says.

    Attributes:
        facts: all that decides the payload.
        made_with: what produced it.
        measured_with: what produced the shards of which it was put together, each once.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    facts: dict[str, Any]
    made_with: MadeWith
    measured_with: list[MadeWith] = []

    @property
    def runs(self) -> list[MadeWith]:
        """All that its numbers come from."""
        return self.measured_with or [self.made_with]


C = TypeVar("C", bound=Card)


@dataclass(frozen=True)
class Artifact(Generic[C]):
    """A thing on the disk that is named by what decides it.

    Attributes:
        path: of the payload; the card beside it has the suffix .json. Where this is the card's
            own path, the card holds everything and there is no payload.
        facts: all that decides the payload, as JSON can express it.
        schema: what the card must say.
        shapes: of the float arrays that the payload holds; None for a payload of another kind.
    """

    path: Path
    facts: dict[str, Any]
    schema: type[C]
    shapes: Shapes | None = None

    @property
    def card_path(self) -> Path:
        """The path of the card."""
        return self.path.with_suffix(".json")

    def card(self) -> C | None:
        """The card, if the payload is whole, unchanged and of these facts; else None.

        A warning says why; nothing is said of what is not there at all.
        """
        found = files.read_json(self.card_path)
        checksum = (found or {}).pop("checksum", None)
        digest = (found or {}).pop("sha256", None)
        given = (found or {}).get("facts")
        facts = json.loads(json.dumps(self.facts))
        if not self.path.is_file():
            reason = "is missing, its card is there" if self.card_path.is_file() else ""
        elif found is None:
            reason = "has no card beside it, or an unreadable one"
        elif given != facts:
            reason = f"is of another configuration ({', '.join(different(given, facts))})"
        elif checksum != key(found | {"sha256": digest}):
            reason = "has a damaged card beside it"
        elif self.path != self.card_path and not has_digest(self.path, digest):
            reason = "is damaged: it is not the file whose checksum its card names"
        elif (card := self._valid(found)) is None:
            reason = "holds, or its card says, what cannot be used"
        else:
            return card
        if reason:
            log.warning("%s %s; it is made anew.", self.path, reason)
        return None

    def _valid(self, found: dict[str, Any]) -> C | None:
        try:
            card = self.schema.model_validate(found)
        except (ValidationError, RecursionError, LookupError, TypeError):  # facts of another kind
            return None
        return card if self.shapes is None or shapes_of(self.path) == dict(self.shapes) else None

    def keep(self, payload: bytes | Arrays | None = None, once: bool = False, **says: Any) -> None:
        """Writes the payload, then the card that makes it count.

        Args:
            payload: arrays are stored as safetensors.
            once: leave a card that is there already, of another process that was faster.
            says: what the schema demands besides the facts.

        Raises:
            InputError: the arrays are not those that `shapes` says; they would never be read.
        """
        digest = None
        if isinstance(payload, dict) and self.shapes is not None:
            check_arrays(self.path, payload, self.shapes)
        if payload is not None:
            content = payload if isinstance(payload, bytes) else to_bytes(payload)
            files.write_bytes(self.path, content)
            digest = hashlib.sha256(content).hexdigest()  # another may lie there
        card = self.schema.model_validate({"facts": self.facts, **says}).model_dump()
        card = json.loads(json.dumps(card)) | {"sha256": digest}
        files.write_json(self.card_path, card | {"checksum": key(card)}, once)

    def arrays(self) -> Arrays:
        """The arrays of the payload.

        Raises:
            InputError: the payload is not one of arrays.
        """
        import safetensors.numpy
        from safetensors import SafetensorError

        try:
            return safetensors.numpy.load_file(self.path)
        except (SafetensorError, LookupError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())[:120]
            raise InputError(
                f"{self.path} does not hold arrays ({why}); delete it and run the same command "
                "again."
            ) from error

    def remove(self) -> None:
        """Removes the card, then the payload."""
        self.card_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def different(given: Any, facts: dict[str, Any]) -> list[str]:
    """The names of the facts that a card says otherwise, or not at all."""
    said = given if isinstance(given, dict) else {}
    return [name for name in {**facts, **said} if said.get(name) != facts.get(name)] or ["facts"]


def check_arrays(path: Path, arrays: Arrays, shapes: Shapes) -> None:
    """Raises InputError unless these are float arrays of these shapes."""
    given = {name: array.shape for name, array in arrays.items()}
    kinds = sorted({str(array.dtype) for array in arrays.values()})
    if given != dict(shapes) or not {*kinds} <= {"float32", "float64"}:
        raise InputError(
            f"{path}: gets {' and '.join(kinds)} arrays {given} where its job promises float32 or "
            f"float64 {dict(shapes)}; mend the job's `shapes` or what it measures."
        )


def to_bytes(arrays: Arrays) -> bytes:
    """Named arrays as safetensors."""
    import numpy as np
    import safetensors.numpy

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(whole)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the arrays in a file of floats; None if it is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {found.get_dtype() for found in slices.values()}
            shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
    except (SafetensorError, OSError, LookupError, TypeError, ValueError):
        return None
    return shapes if kinds <= {"F32", "F64"} else None


def has_digest(path: Path, digest: Any) -> bool:
    """Whether a file has this SHA-256; not if another process has removed it."""
    try:
        return sha256(path) == digest
    except FileNotFoundError:
        return False


@cache
def provenance() -> dict[str, str]:
    """What code and which versions ran: see `commit`."""
    packages = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    return {"commit": commit(PACKAGE), "python": platform.python_version(), **packages}


def commit(package: Path) -> str:
    """The git commit of the code in a package's folder, with + if the tree is changed.

    Of an installed package it is the commit that it was installed from, if pip noted one (PEP 610),
    else its version, said as such; `unknown` for a copy of the project that is no checkout. A
    repository that merely has the package somewhere inside, as in a .venv, is not asked.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    if INSTALLED:
        origin = json.loads(distribution("irattack").read_text("direct_url.json") or "{}")
        installed = f"unknown (version {version('irattack')} as installed)"
        return origin.get("vcs_info", {}).get("commit_id") or installed
    if git("rev-parse", "--show-prefix") != f"{package.name}/":
        return "unknown"
    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "HEAD") + changed
