# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a command prints: text for people, in colour where that means something, or JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

GOOD = frozenset({"protected", "standby", "up", "ok", "loaded", "open", "running"})
BAD = frozenset({"failed", "fenced", "down", "dead", "not loaded"})
_CODES = {"good": "\033[32m", "bad": "\033[31m", "changing": "\033[33m"}
_RESET = "\033[0m"


class Screen:
    """`colour`: auto, always or never. `out` and `err` are standard output and error if not given."""

    def __init__(self, *, json: bool = False, pretty: bool = False, colour: str = "auto", out: TextIO | None = None,
                 err: TextIO | None = None) -> None:
        self.out, self.err = out or sys.stdout, err or sys.stderr
        self.json, self.pretty = json or pretty, pretty
        self.terminal = self.out.isatty()
        """Does a person see what is printed?"""
        self.colour = colour == "always" or colour == "auto" and self.terminal and not os.environ.get("NO_COLOR")

    def show(self, document: dict[str, Any], text: str | Callable[[], str]) -> None:
        """Print `document` where JSON was asked for, `text` otherwise."""
        if self.json:
            self.say(json.dumps(document, indent=2 if self.pretty else None))
        else:
            self.say(text if isinstance(text, str) else text())

    def repaint(self, document: dict[str, Any], text: Callable[[], str]) -> None:
        """In place of what was painted last: the text on a terminal, one JSON object a line elsewhere."""
        if self.terminal and not self.json:
            self.out.write("\033[H\033[2J")
            self.say(text())
        else:
            self.say(json.dumps(document))

    def say(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    def note(self, line: str) -> None:
        """Progress and questions, beside what is printed."""
        print(line, file=self.err, flush=True)

    def progress(self, line: str) -> None:
        """How far long work is, for a person who waits for it."""
        if self.err.isatty():
            self.note(line)

    def confirms(self, question: str) -> bool | None:
        """Does the person at the terminal say yes? None when there is nobody to ask."""
        if not (sys.stdin.isatty() and self.err.isatty()):
            return None
        print(f"{question} [y/N] ", end="", file=self.err, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def paint(self, word: object, kind: str = "") -> str:
        """`word` in the colour of its meaning: good, bad or changing. Without `kind` the word itself decides."""
        if not self.colour:
            return str(word)
        kind = kind or ("good" if word in GOOD else "bad" if word in BAD else "changing")
        return f"{_CODES[kind]}{word}{_RESET}"


PLAIN = Screen(colour="never")


def width(cell: str) -> int:
    """How many columns `cell` takes: colours take none."""
    return len(cell) - (len(_CODES["good"]) + len(_RESET) if cell.startswith("\033") else 0)


def row(head: str, *cells: str) -> str:
    """A line in columns of 16."""
    text = f"{head:<16}"
    for cell in cells:
        text += cell + " " * max(2, 16 - width(cell))
    return text.rstrip()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> str:
    """Aligned columns under their heads. `right`: an r for each column of figures, any other letter for text."""
    lines = [tuple(heads), *rows]
    widths = [max(width(line[number]) for line in lines) for number in range(len(heads))]

    def cell(text: str, number: int) -> str:
        pad = " " * (widths[number] - width(text))
        return pad + text if right[number: number + 1] == "r" else text + pad

    return "\n".join("  ".join(cell(text, number) for number, text in enumerate(line)).rstrip() for line in lines)


def size(count: object) -> str:
    """Bytes as people read them."""
    if not isinstance(count, int | float):
        return "-"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{int(value)} B"
