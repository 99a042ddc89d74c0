# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of verbs: what `holdfast` can be told to do, each declared once.

From a declaration come the command line, the admin shell, completion, the man pages, `holdfast help` and who may use
the verb over the control socket. A module that declares verbs has a tuple `VERBS` and stands in SOURCES; it is cheap to
import: what costs time is imported inside its functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from appliance.exits import Exit

if TYPE_CHECKING:
    from appliance.cli.call import Call

SOURCES = (
    "appliance.cli.status",
    "appliance.cli.health",
    "appliance.cli.events",
    "appliance.cli.waiting",
    "appliance.cli.top",
    "appliance.cli.history",
    "appliance.cli.log",
    "appliance.cli.moving",
    "appliance.cli.protecting",
    "appliance.cli.disks",
    "appliance.cli.running",
    "appliance.cli.shell",
    "appliance.trace.commands",
    "appliance.cli.help",
    "appliance.cli.completion",
    "appliance.cli.report",
    "appliance.lab.commands",
)
"""Looked through in this order until a verb is found: what is used often comes first."""


class Access(Enum):
    """Who may use a verb over the control socket."""

    LOCAL = "local"
    """It asks no service."""
    GROUP = "group"
    """Whoever can open the socket: root and the group of the service. It only reads."""
    ROOT = "root"
    """Root alone: it changes something, or shows packets."""


class Kind(StrEnum):
    """What an argument is: decides how it is read and completed."""

    TEXT = "text"
    FLAG = "flag"
    VM = "vm"
    HOST = "host"
    COUNT = "count"
    SECONDS = "seconds"
    FILE = "file"
    DIRECTORY = "directory"
    VERB = "verb"
    """The name of a verb, of one or more words."""
    WORDS = "words"
    """All that is left of the line, untouched."""
    PHRASE = "phrase"
    """Words, none or many; options may stand between them."""


@dataclass(frozen=True)
class Argument:
    """One argument. `name`: "vm" is given by its place, "--lift" by its name; `short`: "-w".

    `default`: what an argument that is left out comes to; one given by its place must be there unless it is `optional`.
    `bare`: what an option comes to that is given without its value; None when it must have one.
    `many`: an option that may be given again and again; it comes to a list.
    `read` makes the value out of the text and raises ValueError(cause, remedy); without it, `kind` decides.
    """

    name: str
    help: str
    kind: Kind = Kind.TEXT
    short: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    default: Any = None
    optional: bool = False
    bare: Any = None
    many: bool = False
    read: Callable[[str], Any] | None = None

    @property
    def is_option(self) -> bool:
        return self.name.startswith("-")

    @property
    def key(self) -> str:
        """The name of its attribute in `Call.args`."""
        return self.name.lstrip("-").replace("-", "_")

    @property
    def placeholder(self) -> str:
        """How it is written in a synopsis."""
        if self.metavar or self.kind is Kind.FLAG:
            return self.metavar
        if self.choices and len(self.choices) < 5:
            return "|".join(self.choices)
        return _PLACEHOLDERS.get(self.kind, self.key.upper().replace("_", "-"))


@dataclass(frozen=True)
class Verb:
    """One verb. Either `run` does it, or it is a question to the service: `service` names its verb there, `render`
    makes the text for people from the answer and `code` the exit code.

    `name` may have several words ("log set"). `summary` is one line; `text` are paragraphs with an empty line between.
    `schema`: of the document that -j prints, "" for a verb that prints none. `unsafe` gives the question that a person
    must answer with yes before it is done, or None when it is safe as it was called.
    """

    name: str
    summary: str
    text: str = ""
    arguments: tuple[Argument, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    """A command line, and what it is good for."""
    access: Access = Access.LOCAL
    service: str = ""
    schema: str = ""
    run: Callable[[Call], int] | None = None
    render: Callable[[dict[str, Any], Call], str] | None = None
    code: Callable[[dict[str, Any]], Exit] = field(default=lambda reply: Exit.OK)
    exits: dict[Exit, str] = field(default_factory=dict)
    """What its exit codes mean where that is more than MEANING says."""
    unsafe: Callable[[Any], str | None] | None = None
    aliases: tuple[str, ...] = ()
    shell: bool = True
    """Is it offered in the admin shell?"""
    page: str = "holdfast"
    """The man page that has it."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def all_arguments(self) -> tuple[Argument, ...]:
        """With those that it has because of what it is."""
        shared: tuple[Argument, ...] = (CONFIRMED,) if self.unsafe else ()
        shared += (JSON, PRETTY) if self.schema else ()
        shared += (COLOUR,) if self.schema or self.access is not Access.LOCAL else ()
        shared += (CONTROL,) if self.access is not Access.LOCAL else ()
        return self.arguments + shared

    @property
    def exit_codes(self) -> tuple[Exit, ...]:
        """Those that it can end with."""
        found = {Exit.OK, Exit.DEGRADED, Exit.USAGE, *self.exits}
        found |= {Exit.UNREACHABLE, Exit.NO_PERMISSION} if self.access is not Access.LOCAL else set()
        found |= {Exit.UNSAFE} if self.unsafe else set()
        return tuple(sorted(found))


_PLACEHOLDERS = {Kind.COUNT: "N", Kind.SECONDS: "SECS", Kind.FILE: "FILE", Kind.DIRECTORY: "DIR",
                 Kind.WORDS: "WORDS ...", Kind.PHRASE: "WORDS ..."}
DEFAULT_CONTROL = "/run/holdfast/control.sock"
CONTROL_VARIABLE = "HOLDFAST_CONTROL"
CONFIRMED = Argument("--yes", "do not ask: it is meant", kind=Kind.FLAG)
JSON = Argument("--json", "print JSON, errors too", kind=Kind.FLAG, short="-j")
PRETTY = Argument("--pretty", "print indented JSON", kind=Kind.FLAG, short="-p")
COLOUR = Argument("--color", "colour for words that mean good, bad or changing; auto: on a terminal without NO_COLOR",
                  choices=("auto", "always", "never"), default="auto")
CONTROL = Argument("--control", f"control socket of the service; else {CONTROL_VARIABLE}, else {DEFAULT_CONTROL}",
                   kind=Kind.FILE, metavar="PATH")


@cache
def declared(source: str) -> tuple[Verb, ...]:
    """The verbs that one module declares."""
    verbs: tuple[Verb, ...] = importlib.import_module(source).VERBS
    return verbs


def every() -> Iterator[Verb]:
    """All verbs, in the order of SOURCES."""
    for source in SOURCES:
        yield from declared(source)


def find(words: Sequence[str]) -> tuple[Verb, int] | None:
    """The verb that a command line begins with, and how many words its name takes. The longest name wins."""
    for source in SOURCES:
        found = [(verb, len(name.split())) for verb in declared(source) for name in verb.names
                 if list(words[: len(name.split())]) == name.split()]
        if found:
            return max(found, key=lambda one: one[1])
    return None


@cache
def _services() -> dict[str, Access]:
    """Who may use each verb of the control socket that a verb is declared for."""
    found: dict[str, Access] = {}
    for verb in every():
        if verb.service:
            narrower = Access.ROOT in (verb.access, found.get(verb.service))
            found[verb.service] = Access.ROOT if narrower else verb.access
    return found


def declared_for(service: str) -> bool:
    """Is there a verb that asks for that verb of the control socket?"""
    return service in _services()


def access(service: str) -> Access:
    """Who may use that verb of the control socket: root alone, unless all verbs that ask for it only read."""
    return _services().get(service, Access.ROOT)
