"""Where the weights of a network lie: in a folder, where its yaml says, or published."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

from irattack.errors import InputError
from irattack.hashing import sha256

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def find_weights(name: str, card: dict[str, Any], folder: str | None) -> Path:
    """The file of a network's weights: from the folder if it is there, else downloaded once.

    Raises:
        InputError: it is nowhere, and cannot be downloaded.
    """
    check_folder(folder)
    for stem in stems(name, card) if folder is not None else ():
        for suffix in SUFFIXES:
            path = Path(str(folder)) / f"{stem}{suffix}"
            if path.is_file():
                return path
    own = Path(card["weights"]).expanduser() if "weights" in card else None
    if own is not None and own.is_file():
        return own
    wanted = " or ".join(f"{stem}.safetensors" for stem in dict.fromkeys(stems(name, card)))
    wanted = f"weights_dir=FOLDER with {wanted}"
    if own is not None:
        how = f": {card['how']}" if "how" in card else ""
        raise InputError(
            f"{name}: its yaml names `weights: {card['weights']}`, and there is no such file{how}; "
            f"correct the path, or give {wanted}."
        )
    if "factory" in card:
        raise InputError(f"{name}: its yaml names no `weights:`; add them there, or give {wanted}.")
    from irattack.models.published import download  # takes seconds, which others need not wait

    try:
        return download(card)
    except (OSError, URLError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: its weights cannot be downloaded ({why}); where there is no internet give "
            f"{wanted} (or the published .pth)."
        ) from error


def check_folder(folder: str | None) -> None:
    """Raises InputError if a folder of weights is given and not there."""
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"weights_dir={folder}: no such folder; name one that holds weights.")


def stems(name: str, card: dict[str, Any]) -> Iterator[str]:
    """What the file may be called, without its suffix."""
    if "weights" in card:
        yield Path(card["weights"]).stem
        return
    yield name
    if "timm" in card:
        yield card["timm"]
    if "factory" not in card:
        from irattack.models.published import address

        url = address(card)
        if url:
            yield url.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def digest(path: Path) -> str:
    """SHA-256 of a file of weights, remembered while the file stays as it is."""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@cache
def _digest(path: Path, mtime: int, size: int) -> str:
    return sha256(path)
