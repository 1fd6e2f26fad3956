"""The classes of a data set: how many there are, and which name has which index."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from irattack.errors import InputError, some


@cache
def synsets() -> dict[str, int]:
    """The index of each synset of ImageNet-1k: its position among all in alphabetical order."""
    from timm.data import ImageNetInfo  # takes seconds, which other data need not wait

    return {name: i for i, name in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, as `benchmark.data.classes` gives them.

    Attributes:
        count: of classes; their indices are 0 to count − 1, as networks order them.
        index: of each name; empty where the classes have none but those of their folders.
    """

    count: int
    index: dict[str, int]

    @classmethod
    def of(cls, given: Any) -> "Classes":
        """The classes that a setting means.

        Args:
            given: `imagenet`, for the synsets of ImageNet-1k; the classes' names in the order of
                their indices; or their number, where the sorted names of class folders are the
                classes.

        Raises:
            InputError: the setting is something else.
        """
        if given == "imagenet":
            return cls(len(synsets()), synsets())
        if type(given) is int and given >= 2:
            return cls(given, {})
        named = isinstance(given, Sequence) and not isinstance(given, str) and len(given) >= 2
        names = [str(name) for name in given] if named else []
        if not names or any(type(name) not in (str, int) for name in given):
            raise InputError(
                f"benchmark.data.classes={given}: expected imagenet, the number of classes, or "
                "their names in the order of the networks' outputs (quote yes, no and the like)."
            )
        index = {name: i for i, name in enumerate(names)}
        if len(index) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(
                f"benchmark.data.classes: {some(twice)} more than once; name each class once."
            )
        return cls(len(names), index)

    @property
    def are_imagenet(self) -> bool:
        """Whether these are the synsets of ImageNet-1k."""
        return self.index == synsets()

    def __str__(self) -> str:
        """What a name of one of these classes is called in a sentence."""
        if self.are_imagenet:
            return "a synset of ImageNet-1k"
        return f"one of the classes {some(list(self.index))}"

    def in_name(self, name: str) -> int | None:
        """The index of the class before an underscore at which a name begins, else None."""
        parts = name.split("_")
        beginnings = ("_".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self.index[text] for text in beginnings if text in self.index), None)

    def in_cell(self, text: str) -> int | None:
        """The index of the one class that the words of a table's cell name, else None."""
        if text in self.index:
            return self.index[text]
        found = {self.index[word] for word in text.split() if word in self.index}
        return found.pop() if len(found) == 1 else None
