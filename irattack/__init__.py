"""Attacks, interactions and the evaluation protocol of the ICLR 2021 paper.

    from irattack import attack, models, interactions, success

`irattack.api` has an example. What takes PyTorch is imported when it is first asked for, so that
the command line need not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irattack import interactions, models
    from irattack.api import attack, success
    from irattack.errors import InputError

__all__ = ["InputError", "attack", "interactions", "models", "success"]

_WHERE = {
    "InputError": "irattack.errors",
    "attack": "irattack.api",
    "success": "irattack.api",
    "interactions": "",
    "models": "",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'irattack' has no attribute {name!r}")
    if not _WHERE[name]:
        return import_module(f"irattack.{name}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
