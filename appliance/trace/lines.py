# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace as JSON, one object a line, for programs; and read back. `kind` says what a line is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, TextIO

import msgspec

from appliance.errors import BadData
from appliance.trace import notes
from appliance.trace.decode import summary
from appliance.trace.event import Event, Frame

_LONGEST = 1 << 20  # bytes of a line
_THINGS: msgspec.json.Decoder[notes.Begin | Event | notes.End] = msgspec.json.Decoder(notes.Begin | Event | notes.End)


class Writer:
    """Writes a trace of one host to `out`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._encoder = msgspec.json.Encoder()

    def begin(self, begin: notes.Begin) -> None:
        self._write(begin)

    def event(self, event: Event) -> None:
        if isinstance(event, Frame):
            event.summary = summary(event.snap)
        self._write(event)

    def end(self, end: notes.End) -> None:
        self._write(end)

    def flush(self) -> None:
        self._out.flush()

    def _write(self, thing: notes.Begin | Event | notes.End) -> None:
        self._out.write(self._encoder.encode(thing).decode() + "\n")


def read(data: BinaryIO) -> Iterator[notes.Begin | Event | notes.End]:
    """What `Writer` wrote, in order. Raises BadData."""
    number = 0
    while line := data.readline(_LONGEST + 1):
        number += 1
        if len(line) > _LONGEST:
            raise BadData(f"line {number} has no end", "is it a capture of holdfast trace?")
        try:
            yield _THINGS.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            cause = f"line {number} is no event of a trace: {error}"
            raise BadData(cause, "is it a capture of holdfast trace?") from None
