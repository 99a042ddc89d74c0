# SPDX-License-Identifier: GPL-2.0-or-later
"""What a section of the configuration is made of: quantities with units, addresses, paths."""

import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from appliance.units import parse_duration, parse_ip, parse_mac, parse_size


def _parse_path(text: object) -> Path:
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path", 'write it as text: "/var/lib/holdfast"')
    return Path(text)


def says(text: str) -> msgspec.Meta:
    """What a setting is for: the one text behind the manual page, to be put beside its type."""
    return msgspec.Meta(description=text)


def parsed(by: Callable[[Any], Any]) -> msgspec.Meta:
    """Marks a type whose values `by` makes out of what is written."""
    return msgspec.Meta(extra={"parse": by})


Seconds = Annotated[float, parsed(parse_duration)]  # written "25ms"
Bytes = Annotated[int, parsed(parse_size)]  # written "128MiB"
Mac = Annotated[str, parsed(parse_mac)]
Address = Annotated[str, parsed(parse_ip)]
FilePath = Annotated[Path, parsed(_parse_path)]  # relative to the directory of the configuration


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the configuration."""


def marks(kind: Any) -> Iterator[msgspec.Meta]:
    """What is said about a type and the types it is made of, the innermost first."""
    for part in typing.get_args(kind):
        if not isinstance(part, msgspec.Meta):
            yield from marks(part)
    yield from (mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, msgspec.Meta))


def plain(kind: Any) -> Any:
    """The type without what is said about it."""
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind
