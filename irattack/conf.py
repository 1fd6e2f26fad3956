"""Where the yamls stand: conf/ of the project, and first a folder of the user's own.

In a checkout conf/ is beside the package; a wheel has it inside the package, as yamls/.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "yamls").is_dir()
CONF = PACKAGE / "yamls" if INSTALLED else PACKAGE.parent / "conf"
OWN = "IRATTACK_CONFIG_DIR"  # in the environment, so that the processes of a launcher know it


def folders() -> list[Path]:
    """The folders of yamls, the user's own (`--config-dir`) before the project's."""
    own = os.environ.get(OWN)
    return [Path(own), CONF] if own else [CONF]


def yamls(group: str) -> dict[str, Path]:
    """The yaml of each name of a group, such as `attack` or `model/photos`; sorted."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in (folder / group).glob("*.yaml"):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def is_group(name: str) -> bool:
    """Whether a setting chooses a yaml of a group."""
    return any((folder / name).is_dir() for folder in folders())
