# SPDX-License-Identifier: GPL-2.0-or-later
"""A manual page in the man(7) macros, written line by line."""

from __future__ import annotations

import re
import textwrap

_ESCAPES = (("\\", "\\e"), ("-", "\\-"), ("~", "\\(ti"), ("^", "\\(ha"), ("`", "\\(ga"))


def escaped(text: str) -> str:
    """Text that roff prints as it is, wherever it stands."""
    for plain, roff in _ESCAPES:
        text = text.replace(plain, roff)
    return "\\&" + text if text[:1] in (".", "'") else text


def _quoted(text: str) -> str:
    """Text as one argument of a macro."""
    return '"' + escaped(text).replace('"', "\\(dq") + '"'


class Page:
    """A page under way; `about` is what the index of pages says of it."""

    def __init__(self, name: str, section: int, about: str) -> None:
        self._name, self._section = name, section
        self._lines: list[str] = []
        self.heading("NAME")
        self._lines.append(f"{escaped(name)} \\- {escaped(about)}")

    def heading(self, title: str) -> None:
        self._lines.append(f".SH {_quoted(title)}")

    def subheading(self, title: str) -> None:
        self._lines.append(f".SS {_quoted(title)}")

    def text(self, paragraph: str) -> None:
        """A paragraph; how its lines are broken does not matter."""
        self._paragraph()
        self._flow(paragraph)

    def synopsis(self, line: str) -> None:
        self._paragraph()
        self._lines += [".nh", ".ad l"]
        self._flow(line)
        self._lines += [".ad", ".hy"]

    def item(self, head: str, text: str) -> None:
        """What it is called, and what it is."""
        self._lines += [".TP", f".B {_quoted(head)}"]
        self._flow(text)

    def example(self, command: str, why: str) -> None:
        self._paragraph()
        self._flow(f"{why[:1].upper()}{why[1:]}:")
        self.verbatim(command)

    def verbatim(self, text: str) -> None:
        """Lines that stay as they are."""
        self._paragraph()
        self._lines += [".in +4n", ".EX", *(escaped(line) for line in text.splitlines()), ".EE", ".in"]

    def _paragraph(self) -> None:
        if not self._lines[-1].startswith((".SH", ".SS")):  # which begin one
            self._lines.append(".PP")

    def _flow(self, text: str) -> None:
        # A sentence a line, as man pages are written; long ones are broken.
        for sentence in re.split(r"(?<=[.:?!]) +", " ".join(text.split())):
            lines = textwrap.wrap(sentence, 78, break_long_words=False, break_on_hyphens=False)
            self._lines += [escaped(line) for line in lines]

    def done(self, version: str) -> str:
        """The whole page. It has no date: the same source gives the same page."""
        head = ['.\\" SPDX-License-Identifier: GPL-2.0-or-later', '.\\" Made from the registry of verbs; do not edit.',
                f'.TH {_quoted(self._name.upper())} {self._section} "" {_quoted(f"holdfast {version}")} "Holdfast"']
        return "\n".join([*head, *self._lines]) + "\n"
