"""Kinds of values that settings take; each says what the user is told to give instead."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from irattack.errors import InputError
from irattack.models.files import check_folder

PRECISIONS = {  # how models compute; images, losses and perturbations are always float32
    "fp32": "float32, TF32 off",
    "tf32": "float32 with TF32",
    "bf16": "bfloat16 networks",
}


def number(value: Any) -> float:
    """A number, or a fraction such as 8/255, as a float; not a number where it is neither."""
    try:
        result = _fraction(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return math.nan
    return math.nan if isinstance(value, bool) else result


def _fraction(text: str) -> float:
    above, *below = text.replace(" ", "").split("/")
    (divisor,) = below or ["1"]  # a ValueError if there are more
    return float(Fraction(above) / Fraction(divisor))


def refuse() -> NoReturn:
    """Refuses a value; the field's description says what is expected."""
    raise ValueError


def within(
    low: float, high: float = math.inf, open_below: bool = False, open_above: bool = False
) -> AfterValidator:
    """Whether a value, which stays as it was given, is a finite number in a range."""

    def check(value: Any) -> Any:
        found = number(value)
        outside = not low <= found <= high or (open_below and found == low)
        if not math.isfinite(found) or outside or (open_above and found == high):
            refuse()
        return value

    return AfterValidator(check)


def one_of(*names: str) -> Any:
    """One of these names."""

    def check(value: Any) -> Any:
        if value not in names:
            raise ValueError(names)
        return value

    return Annotated[str, BeforeValidator(check)]


def no_flag(value: Any) -> Any:
    """A value that is neither true nor false, which would pass for 1 and 0."""
    return refuse() if isinstance(value, bool) else value


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of 1 or more."""
    return type(value) is int and value >= 1


Given = Annotated[int | float | str, BeforeValidator(no_flag)]
T = TypeVar("T")
AsNumber = Annotated[T, AfterValidator(number)]  # 8/255 becomes 0.0313…
Whole = Annotated[int, Field(strict=True, ge=1, description="a whole number of 1 or more")]
WholeOrAuto = Annotated[
    int | Literal["auto"],
    BeforeValidator(lambda value: value if value == "auto" or is_whole(value) else refuse()),
    Field(description="a whole number of 1 or more, or auto"),
]
Odd = Annotated[
    int,
    Field(strict=True, ge=1, description="an odd whole number above 0"),
    AfterValidator(lambda value: value if value % 2 else refuse()),
]
Positive = Annotated[
    Given, within(0, open_below=True), Field(description="a finite number above 0, such as 2/255")
]
AtLeast0 = Annotated[
    Given, within(0), Field(description="a finite number such as 0.5; it must be 0 or more")
]
Step = Annotated[
    Given,
    within(0, 1, open_below=True),
    Field(description="a number in (0, 1] for images in [0, 1], such as 2/255"),
]
Deviation = Annotated[
    Given, within(0, 1), Field(description="a number from 0 to 1 for images in [0, 1], or 15/255")
]
RADIUS = "a radius in (0, 1] for images in [0, 1], such as 8/255"
Radius = Annotated[Given, within(0, 1, open_below=True), Field(description=RADIUS)]
Flag = Annotated[bool, Field(strict=True, description="true or false")]
FlagOrAuto = Annotated[
    bool | Literal["auto"],
    BeforeValidator(lambda value: value if value == "auto" or type(value) is bool else refuse()),
    Field(description="true, false or auto"),
]
Names = Annotated[list[str], Field(description="a list of names, such as [vgg16,resnet152]")]
Path_ = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value),
    AfterValidator(lambda value: str(Path(value).expanduser()) if value else refuse()),
    Field(description="the path of a folder, such as results or '~/results' in quotes"),
]
Device = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu, cuda, or one GPU such as cuda:3",
    ),
]


def check_paths(manifest: str | None, weights_dir: str | None) -> None:
    """Raises InputError for a manifest or a folder of weights that is given and not there."""
    if manifest is not None and not Path(manifest).is_file():
        raise InputError(
            f"manifest={manifest}: no such file; name one such as outputs/photos/images/*.json, or "
            "leave it out and images are chosen."
        )
    check_folder(weights_dir)
