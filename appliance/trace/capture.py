# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures on disk: pcapng or JSON lines, one or several, as one series of events."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from appliance.errors import BadData, NoPermission
from appliance.trace import lines, notes, pcapng
from appliance.trace.event import Event

_PCAPNG = b"\x0a\x0d\x0d\x0a"


@dataclass
class Capture:
    """What a trace of one or several hosts saw, in the order of time."""

    events: list[Event]
    begins: list[notes.Begin] = field(default_factory=list)
    ends: list[notes.End] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Events and notes that the traces lost."""
        return sum(end.lost_frames + end.lost_notes for end in self.ends)

    @property
    def whole(self) -> bool:
        """Did each trace end in good order? Else its last events, and what it lost, are not known."""
        return len(self.ends) == len(self.begins) > 0


def things(path: Path) -> Iterator[notes.Begin | Event | notes.End]:
    """What is in one file; "-" is standard input. Raises BadData or NoPermission."""
    try:
        with _opened(path) as data:
            head = data.peek(4)[:4] if hasattr(data, "peek") else b""
            yield from pcapng.read(data) if head == _PCAPNG else lines.read(data)
    except BadData as error:
        raise BadData(f"{path}: {error.message}", error.hint) from None
    except PermissionError:
        raise NoPermission(f"{path} cannot be read", "run this as root") from None
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None


def load(paths: Sequence[Path]) -> Capture:
    """All of these files, merged by time. Raises BadData or NoPermission."""
    capture = Capture([])
    series: list[list[Event]] = []
    for path in paths:
        events: list[Event] = []
        for thing in things(path):
            if isinstance(thing, notes.Begin):
                capture.begins.append(thing)
            elif isinstance(thing, notes.End):
                capture.ends.append(thing)
            else:
                events.append(thing)
        if not events and not capture.begins:
            raise BadData(f"{path} has nothing of a trace", "is it a capture of holdfast trace?")
        series.append(sorted(events, key=lambda event: event.at_ns))
    capture.events = list(heapq.merge(*series, key=lambda event: event.at_ns))
    return capture


def _opened(path: Path) -> BinaryIO:
    return sys.stdin.buffer if str(path) == "-" else path.open("rb")
