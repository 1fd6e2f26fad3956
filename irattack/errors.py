"""A user's mistake is answered with one sentence: what was given, what is allowed, what to do."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Real


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
    what: str,
    given: float,
    low: float,
    high: float = math.inf,
    whole: bool = False,
    odd: bool = False,
    above: bool = False,
) -> None:
    """Raises InputError unless a finite number is from `low` to `high`, and whole or odd if asked.

    With `above` it may not be `low` itself.
    """
    fits = isinstance(given, Real) and math.isfinite(given) and low <= given <= high
    fits &= not (above and given == low)
    if not fits or (whole and given % 1) or (odd and given % 2 != 1):
        kind = "an odd number" if odd else "a whole number" if whole else "a number"
        least = f" {'above' if above else 'from'} {low:g}" if low > -math.inf else ""
        most = f" to {high:g}" if high < math.inf else "" if above or not least else " on"
        raise InputError(f"{what}={given}: expected {kind}{least}{most}.")


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
