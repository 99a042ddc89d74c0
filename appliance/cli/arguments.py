# SPDX-License-Identifier: GPL-2.0-or-later
"""A command line read as its verb declares it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from appliance.cli import help
from appliance.errors import UsageError
from appliance.registry import Argument, Kind, Verb


class Parser(argparse.ArgumentParser):
    """Of one verb. Reports a wrong command line as our errors are reported, and its help is ours."""

    def __init__(self, verb: Verb) -> None:
        super().__init__(prog=f"holdfast {verb.name}", allow_abbrev=False)
        self._verb = verb
        for argument in verb.all_arguments:
            _add(self, argument)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see {self.prog} --help")

    def format_help(self) -> str:
        return help.of_verb(self._verb) + "\n"


def read(verb: Verb, words: Sequence[str]) -> argparse.Namespace:
    """What stands after the verb's name. Raises UsageError."""
    mixed = any(argument.kind is Kind.PHRASE for argument in verb.arguments)
    return (Parser(verb).parse_intermixed_args if mixed else Parser(verb).parse_args)(list(words))


def _add(parser: Parser, argument: Argument) -> None:
    names = [name for name in (argument.short, argument.name) if name]
    options: dict[str, Any] = {"default": argument.default}
    if argument.kind is Kind.FLAG:
        parser.add_argument(*names, action="store_true")
        return
    if argument.kind is Kind.VERB:
        parser.add_argument(argument.key, nargs="*")
        return
    if argument.kind is Kind.WORDS:
        parser.add_argument(argument.key, nargs=argparse.REMAINDER)
        return
    if argument.kind is Kind.PHRASE:
        parser.add_argument(argument.key, nargs="*", metavar="WORD")
        return
    if argument.choices:
        options["choices"] = argument.choices
    options["metavar"] = argument.placeholder
    options["type"] = _reader(argument)
    if argument.bare is not None:
        options |= {"nargs": "?", "const": argument.bare}
    elif argument.many:
        options["action"] = "append"
    elif argument.optional and not argument.is_option:
        options["nargs"] = "?"
    if argument.is_option:
        parser.add_argument(*names, **options)
    else:
        parser.add_argument(argument.key, **options)


def _reader(argument: Argument) -> Callable[[str], Any]:
    read: Callable[[str], Any] = argument.read or _READERS.get(argument.kind, str)

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(": ".join(map(str, error.args))) from None

    return checked


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"{text!r} is no number", "write digits")
    return int(text)


def seconds(text: str) -> float:
    """A duration such as "500ms"; a bare number is seconds. Raises ValueError."""
    from appliance.units import parse_duration

    return parse_duration(text + "s" if text.replace(".", "", 1).isdigit() else text)


_READERS: dict[Kind, Callable[[str], Any]] = {Kind.COUNT: _count, Kind.SECONDS: seconds}
