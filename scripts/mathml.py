"""A Markdown extension of `make docs`: $…$ and $$…$$ become MathML, which browsers draw themselves.

A page thus needs no script and no network for its equations, and Markdown's readers elsewhere see
the LaTeX that they know.
"""

import re
import xml.etree.ElementTree as ET
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import ETX, STX

BLOCK = r"(?s)\$\$(.+?)\$\$"
TAG = re.compile(r"\\tag\{(.+?)\}")  # latex2mathml would set it beside the equation
INLINE = r"(?s)(?<![\\$\w])\$(?![\s$])(.+?)(?<![\s\\])\$(?![\d$])"


class Math(InlineProcessor):
    """Converts what a pattern finds; code is found before it and stays as it is."""

    def __init__(self, pattern: str, md: Markdown, display: str):
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(  # noqa: N802
        self, m: re.Match[str], data: str
    ) -> tuple[str, int, int]:
        """The MathML, kept from what Markdown does to text."""
        found = convert(" ".join(TAG.sub("", m[1]).split()), display=self.display)
        if (tag := TAG.search(m[1])) is not None:
            found = f'<div class="equation">{found}<span>({tag[1]})</span></div>'
        ET.fromstring(found)  # a page that is not well-formed ends the build
        return self.md.htmlStash.store(found), m.start(0), m.end(0)


class Underscore(InlineProcessor):
    """An underscore is itself, since docstrings have subscripts; emphasis is by asterisks."""

    def handleMatch(  # noqa: N802
        self, m: re.Match[str], data: str
    ) -> tuple[str, int, int]:
        """As Markdown writes an escaped character."""
        return f"{STX}{ord('_')}{ETX}", m.start(0), m.end(0)


class MathML(Extension):
    """Equations as MathML."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Equations before escapes (180), after code (190); underscores before emphasis (60)."""
        md.inlinePatterns.register(Math(BLOCK, md, "block"), "math block", 186)
        md.inlinePatterns.register(Math(INLINE, md, "inline"), "math", 185)
        md.inlinePatterns.register(Underscore("_", md), "underscore", 65)


def makeExtension(**settings: Any) -> MathML:  # noqa: N802
    """What Markdown calls."""
    return MathML(**settings)
