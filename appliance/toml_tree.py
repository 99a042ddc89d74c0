# SPDX-License-Identifier: GPL-2.0-or-later
"""A directory of TOML files read as one tree that remembers in which file and line each key stands."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
Key = tuple[str | int, ...]  # ("vm", "web1", "mac"), ("link", 0, "port")
_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_NAME}(?:[ \t]*\.[ \t]*{_NAME})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_ASSIGNMENT = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_TOKEN = re.compile(r'"""|\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]')


@dataclass
class Tree:
    """`data`: the merged content; `where(key)`: the file and line to show in a message about `key`."""

    directory: Path
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, tuple[str, int]] = field(default_factory=dict)

    def error(self, key: Key, reason: str, hint: str = "") -> ConfigError:
        """The ConfigError for a fault at `key`."""
        file, line = self.where(key)
        return ConfigError(reason, hint, file=file, line=line, key=show(key))

    def where(self, key: Key) -> tuple[str, int | None]:
        """File and line of `key`, or of the nearest table around it that is written down."""
        while key:
            if key in self.places:
                return self.places[key]
            key = key[:-1]
        return str(self.directory), None


def show(key: Key) -> str:
    """A key as people write it: link[0].port."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def read(directory: Path) -> Tree:
    """Read every *.toml in `directory`, in the order of their names.

    Raises ConfigError: no such directory or no file, unreadable, too large, not TOML, a key set twice.
    """
    tree = Tree(directory)
    hint = "name a directory that holds *.toml files"
    try:
        files = sorted(entry for entry in directory.iterdir() if entry.suffix == ".toml")
    except OSError as exc:
        raise ConfigError(exc.strerror or str(exc), hint, file=str(directory)) from None
    if not files:
        raise ConfigError("holds no *.toml file", hint, file=str(directory))
    for file in files:
        text = _text(file)
        content = _parse(file, text)
        shift = {name: len(items) for name, items in tree.data.items() if isinstance(items, list)}
        places = {key: (str(file), line) for key, line in _shifted(lines(text), shift)}
        _merge(tree, places, content, tree.data, ())
        tree.places.update({key: place for key, place in places.items() if key not in tree.places})
    return tree


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(exc.strerror or str(exc), "make it a readable file", file=str(file)) from None
    if len(raw) > MAX_FILE_BYTES:
        hint = "this cannot be a configuration"
        raise ConfigError(f"larger than {MAX_FILE_BYTES} bytes", hint, file=str(file))
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise ConfigError("not UTF-8 text", "save the file as UTF-8", file=str(file), line=line) from None


def _parse(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(exc))
        line = int(found.group(1)) if found else None
        cause = str(exc)[: found.start()] if found else str(exc)
        hint = "see https://toml.io for the syntax; text stands in quotes"
        raise ConfigError(cause, hint, file=str(file), line=line) from None
    except RecursionError:
        raise ConfigError("nested too deeply", "this cannot be a configuration", file=str(file)) from None


def _merge(
    tree: Tree, places: dict[Key, tuple[str, int]], new: dict[str, Any], into: dict[str, Any], at: Key
) -> None:
    for name, value in new.items():
        key = (*at, name)
        if name not in into:
            into[name] = value
        elif isinstance(value, dict) and isinstance(into[name], dict) and at != ("vm",):
            _merge(tree, places, value, into[name], key)
        elif not at and _is_tables(value) and _is_tables(into[name]):
            into[name].extend(value)
        else:
            first_file, first_line = tree.where(key)
            file, line = places.get(key, (str(tree.directory), None))
            reason = f"already set in {first_file}:{first_line}"
            raise ConfigError(reason, "keep one of the two", file=file, line=line, key=show(key))


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _shifted(found: Iterator[tuple[Key, int]], shift: dict[str, int]) -> Iterator[tuple[Key, int]]:
    # Tables of an array such as [[link]] count on through the files.
    for key, line in found:
        if len(key) > 1 and isinstance(key[1], int):
            key = (key[0], key[1] + shift.get(str(key[0]), 0), *key[2:])
        yield key, line


def lines(text: str) -> Iterator[tuple[Key, int]]:
    """Each table header and key of valid TOML `text` with its line (from 1), save keys in inline tables."""
    table: Key = ()
    counts: dict[Key, int] = {}
    position, line = 0, 1
    while position < len(text):
        if header := _HEADER.match(text, position):
            table = _names(header.group(2))
            if header.group(1) == "[[":
                counts[table] = counts.get(table, -1) + 1
                yield table, line
            table = _indexed(table, counts)
            yield table, line
            end = _end_of_line(text, header.end())
        elif assignment := _ASSIGNMENT.match(text, position):
            yield (*table, *_names(assignment.group(1))), line
            end = _end_of_value(text, assignment.end())
        else:
            end = _end_of_line(text, position)
        line += text.count("\n", position, end)
        position = end


def _names(dotted: str) -> Key:
    return tuple(name.strip("\"'") for name in re.findall(_NAME, dotted))


def _indexed(table: Key, counts: dict[Key, int]) -> Key:
    # [link.extra] below [[link]] belongs to the last link.
    for length in range(len(table), 0, -1):
        if table[:length] in counts:
            return (*table[:length], counts[table[:length]], *table[length:])
    return table


def _end_of_line(text: str, position: int) -> int:
    found = text.find("\n", position)
    return len(text) if found < 0 else found + 1


def _end_of_value(text: str, position: int) -> int:
    # The end of the line on which every bracket and multi-line string that the value opens is closed again.
    depth = 0
    while True:
        end = _end_of_line(text, position)
        token = _TOKEN.search(text, position)
        if token is None or (token.start() >= end and depth == 0):
            return end
        mark = token.group()
        position = token.end()
        if mark in ('"""', "'''"):
            close = text.find(mark, position)
            position = len(text) if close < 0 else close + 3
        elif mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
