# SPDX-License-Identifier: GPL-2.0-or-later
"""What is typed in the shell: cut into commands, and completed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from appliance import registry
from appliance.errors import UsageError
from appliance.registry import Argument, Kind, Verb
from appliance.shell.situation import Situation

OWN = {"exit": "leave the shell", "quit": "leave the shell"}


@dataclass(frozen=True)
class Command:
    """One command of a line. `pipe`: what its output goes to, run by sh; "" for the screen. `only_if`: the one before
    it must have ended with 0."""

    words: tuple[str, ...]
    pipe: str = ""
    only_if: bool = False


def commands(line: str) -> list[Command]:
    """The commands of a line, between `;`, `&&` or line ends. Raises UsageError when it cannot be understood."""
    found: list[Command] = []
    for part, joined in _parts(line):
        ours, _, pipe = _split(part, "|")
        try:
            words = shlex.split(ours, comments=True)
        except ValueError as error:
            raise UsageError(f"{part.strip()!r}: {str(error).lower()}", "close the quotes") from None
        if words:
            found.append(Command(tuple(words), pipe.strip(), joined))
    return found


def _parts(line: str) -> Iterator[tuple[str, bool]]:
    joined = False
    while line:
        first, mark, line = min((_split(line, mark) for mark in (";", "&&", "\n")), key=lambda parts: len(parts[0]))
        yield first, joined
        joined = mark == "&&"


def _split(text: str, mark: str) -> tuple[str, str, str]:
    """`text` before and after the first `mark` that is not in quotes."""
    quote = ""
    for at, letter in enumerate(text):
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        elif not quote and text.startswith(mark, at):
            return text[:at], mark, text[at + len(mark):]
    return text, "", ""


def offered() -> Iterator[Verb]:
    """The verbs that the shell has."""
    return (verb for verb in registry.every() if verb.shell)


class VerbCompleter(Completer):
    """Verbs, options, and the names that `situation` knows."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        for part, _ in _parts(line):
            line = part
        words, current = line.split(), ""
        if words and not line[-1:].isspace():
            current = words.pop()
        for text, meaning in self._fitting(words):
            if text.startswith(current) and text != current:
                yield Completion(text, start_position=-len(current), display_meta=meaning)

    def _fitting(self, words: list[str]) -> Iterator[tuple[str, str]]:
        found = registry.find(words)
        if found is None or not found[0].shell:
            yield from self._names(words)
            return
        verb, length = found
        if verb.name == "help" and not words[length:]:
            yield from self._names([])
            yield "exit-codes", "the table of exit codes"
            return
        value, place = _place(verb, words[length:])
        if value is not None:
            yield from self._values(value)
            return
        placed = [argument for argument in verb.arguments if not argument.is_option]
        if place < len(placed):
            yield from self._values(placed[place])
        for argument in verb.all_arguments:
            if argument.is_option and argument.name not in words and argument is not registry.CONTROL:
                yield argument.name, argument.help

    def _names(self, words: list[str]) -> Iterator[tuple[str, str]]:
        """The next word of every verb that begins with `words`."""
        told = dict(OWN) if not words else {}
        for verb in offered():
            for name in verb.names:
                parts = name.split()
                if parts[: len(words)] == words and len(parts) > len(words):
                    told.setdefault(parts[len(words)], verb.summary)
        yield from told.items()

    def _values(self, argument: Argument) -> Iterator[tuple[str, str]]:
        situation = self._situation
        if argument.kind is Kind.VM:
            yield from ((name, f"{vm.get('role')} {vm.get('phase')}") for name, vm in sorted(situation.vms.items()))
        elif argument.kind is Kind.HOST:
            names = {situation.host: "this host", situation.peer: "its peer"}
            yield from ((name, meaning) for name, meaning in names.items() if name)
        else:
            yield from ((choice, "") for choice in argument.choices)


def _place(verb: Verb, words: list[str]) -> tuple[Argument | None, int]:
    """The option whose value comes next, and how many of those that are given by their place are there."""
    options = {way: argument for argument in verb.all_arguments for way in (argument.short, argument.name) if way}
    value, place = None, 0
    for word in words:
        if value is not None:
            value = None
        elif word.startswith("-"):
            argument = options.get(word)
            value = argument if argument and argument.kind is not Kind.FLAG and argument.bare is None else None
        else:
            place += 1
    return value, place
