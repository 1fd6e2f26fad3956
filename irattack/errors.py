"""A user's mistake is answered with one sentence: what was given, what is allowed, what to do."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class InputError(ValueError):
    """What the user gave cannot be used. The message is the sentence that the user reads."""


class UnfitError(InputError):
    """A setting asks for what other networks or tables have, and this one has not."""


def one_of(what: str, given: object, allowed: Iterable[str]) -> None:
    """Raises InputError unless `given` is one of the allowed names."""
    names = list(allowed)
    if given not in names:
        raise unknown(what, given, names)


def ranged(
    what: str, given: float, low: float, high: float = math.inf, whole: bool = False
) -> None:
    """Raises InputError unless a number is from `low` to `high`, and whole if it has to be."""
    if not low <= given <= high or (whole and given % 1):
        kind = "a whole number" if whole else "a number"
        allowed = f"from {low:g} on" if high == math.inf else f"from {low:g} to {high:g}"
        raise InputError(f"{what}={given}: expected {kind} {allowed}.")


def unknown(what: str, given: object, allowed: Iterable[str], cure: str = "") -> InputError:
    """The error for a name outside `allowed`, with the nearest valid names first."""
    names = list(allowed)
    near = get_close_matches(str(given), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    rest = cure or f"expected one of {', '.join(names)}"
    return InputError(f"{what}={given}: {hint}{rest}.")


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, for a sentence."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
