# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files in which the kernel tells numbers: /proc and /sys."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def text(path: Path) -> str | None:
    """What the file says; None when there is none, or it says nothing now."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The number in the file, decimal or 0x; None when there is none."""
    try:
        return int((text(path) or "").strip(), 0)
    except ValueError:
        return None


def total(paths: Iterable[Path]) -> int | None:
    """The sum over files; None when none of them holds a number."""
    found = [value for value in map(number, paths) if value is not None]
    return sum(found) if found else None


def pressure(file: Path, line: str) -> float | None:
    """The share of the last 10 s in which `line` ("some" or "full") of the tasks waited; None without such a file."""
    for one in (text(file) or "").splitlines():
        words = dict(word.partition("=")[::2] for word in one.split())
        if one.startswith(line) and "avg10" in words:
            try:
                return float(words["avg10"]) / 100
            except ValueError:
                return None
    return None
