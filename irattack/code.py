"""Code that a yaml names is part of what decides a result: hashes of the sources it comes from.

What ships with irattack is told apart by its versions instead, and a package that is installed by
the one file that holds what is named.
"""

import ast
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from irattack.errors import InputError
from irattack.hashing import sha256

NAMING = ("_target_", "path", "factory", "_args_")  # keys of names of functions and classes
OURS = ("irattack", "hydra")


def function(where: str, name: str, cure: str) -> Callable:
    """The function of a dotted name.

    Args:
        where: it is named, for the sentence.
        cure: what to name instead.

    Raises:
        InputError: there is none, or its module cannot be imported.
    """
    from hydra.errors import HydraException
    from hydra.utils import get_method  # which naming a network does without

    try:
        return get_method(name)
    except (HydraException, ImportError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{where}: {name} cannot be imported ({why}); name {cure}.") from error


def code_of(facts: Any) -> dict[str, str]:
    """The SHA-256 of each module behind the functions and classes that some facts name."""
    found: dict[str, Path] = {}
    for name in named(facts):
        if name.split(".")[0] not in OURS and (origin := source(name)) is not None:
            module, path = origin
            if is_installed(path):
                found[module] = path
            else:
                gather(module, found)
    return {module: sha256(path) for module, path in sorted(found.items())}


def named(facts: Any) -> Iterator[str]:
    """The dotted names in nested facts."""
    if isinstance(facts, dict):
        for key, value in facts.items():
            for text in value if key == "_args_" and isinstance(value, list) else [value]:
                if key in NAMING and isinstance(text, str) and "." in text:
                    yield text
                else:
                    yield from named(text)
    elif isinstance(facts, list):
        for value in facts:
            yield from named(value)


def source(name: str) -> tuple[str, Path] | None:
    """The module in which a dotted name is defined, and its file; nothing is imported."""
    found = {module: file_of(module) for module in prefixes(name)}
    return next(((module, path) for module, path in found.items() if path is not None), None)


def prefixes(name: str) -> list[str]:
    """What may be modules in a dotted name: `a.b.c`, `a.b` and `a`."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def file_of(module: str) -> Path | None:
    """The source of a module, where Python searches; a package needs no __init__.py."""
    for folder in sys.path:
        base = Path(folder or ".").joinpath(*module.split("."))
        for path in (base / "__init__.py", base.parent / f"{base.name}.py"):
            if path.is_file():
                return path
    return None


@cache
def places() -> list[Path]:
    """Where Python's own modules and installed packages lie."""
    return [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")]


def is_installed(path: Path) -> bool:
    """Whether a module is Python's own or of an installed package."""
    return any(path.resolve().is_relative_to(place) for place in places())


def gather(name: str, found: dict[str, Path]) -> None:
    """Adds the modules of a dotted name, and those they import, where they are the user's own.

    The packages that a module lies in are among them, since Python runs those first.
    """
    for module in prefixes(name):
        if module in found or module.split(".")[0] in OURS:
            continue
        path = file_of(module)
        if path is not None and not is_installed(path):
            found[module] = path
            for imported in imports(module, path):
                gather(imported, found)


def imports(module: str, path: Path) -> Iterator[str]:
    """What a module imports, as dotted names; of `from a import b` also a.b, if it is a module.

    Raises:
        InputError: it is not Python.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: is not Python ({error}); mend it.") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") + ["__init__"] * (path.name == "__init__.py")
            package = parts[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
