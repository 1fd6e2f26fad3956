"""Code that a yaml names is part of what decides a result: hashes of the sources it comes from.

What ships with irattack is told apart by its versions instead, and a package that is installed by
the one file that holds what is named.
"""

import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from irattack.hashing import sha256

NAMING = ("_target_", "path", "factory")  # keys whose values name a function or a class
OURS = ("irattack", "hydra")


def code_of(facts: Any) -> dict[str, str]:
    """The SHA-256 of each source file behind the functions and classes that some facts name."""
    found: dict[str, str] = {}
    for name in named(facts):
        if name.split(".")[0] not in OURS and (path := source(name)) is not None:
            for file in [path, *local_imports(path)]:
                found[file.name] = sha256(file)
    return dict(sorted(found.items()))


def named(facts: Any) -> Iterator[str]:
    """The dotted names in nested facts."""
    if isinstance(facts, dict):
        for key, value in facts.items():
            if key in NAMING and isinstance(value, str) and "." in value:
                yield value
            else:
                yield from named(value)
    elif isinstance(facts, list):
        for value in facts:
            yield from named(value)


def source(name: str) -> Path | None:
    """The file of the module in which a dotted name is defined; nothing is imported."""
    spec: ModuleSpec | None = None
    for end in range(1, len(name.split(".")) + 1):
        parent = spec.submodule_search_locations if spec else None
        if spec is not None and parent is None:
            break
        deeper = PathFinder.find_spec(".".join(name.split(".")[:end]), parent)
        if deeper is None:
            break
        spec = deeper
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None


def local_imports(path: Path) -> list[Path]:
    """The modules that a file imports, directly or not, where they are not installed packages."""
    places = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")}

    def is_installed(folder: str) -> bool:
        resolved = Path(folder or ".").resolve()
        return any(resolved.is_relative_to(place) for place in places)

    if is_installed(str(path.parent)):
        return []
    finder = ModuleFinder(path=[folder for folder in sys.path if not is_installed(folder)])
    finder.run_script(str(path))
    modules: list[Any] = list(finder.modules.values())
    files = [Path(module.__file__) for module in modules if module.__file__]
    ours = Path(__file__).parent
    return sorted(file for file in files if file != path and not file.is_relative_to(ours))
