# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's end of a live trace, against a service that is a list."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from appliance.errors import BadData
from appliance.trace import notes
from appliance.trace import session as module
from appliance.trace.session import Session
from tests.trace.events import acked, batch, begin


def said(*things: Any) -> Any:
    def stream(**words: Any) -> Iterator[dict[str, Any]]:
        yield from (msgspec.to_builtins(thing) for thing in things)

    return stream


def silent() -> notes.Begin:
    """A trace of epochs alone."""
    return msgspec.structs.replace(begin(), ring=0)


def told(session: Session) -> list[notes.Note]:
    return [event for events in session.events() for event in events if not hasattr(event, "snap")]  # type: ignore[misc]


def test_what_is_said_until_the_service_ends() -> None:
    with Session(said(silent(), batch(10, acked(5, 1)), batch(0, acked(12, 2)))) as session:
        assert [note.epoch for note in told(session)] == [1, 2]  # type: ignore[union-attr]
        assert session.ended == "the service has ended"


@pytest.mark.parametrize("things", [[], [{"kind": "begin"}], [{"kind": "batch"}], [5]])
def test_a_service_that_says_nonsense(things: list[Any]) -> None:
    with pytest.raises(BadData):
        Session(said(*things))


def test_nonsense_later_ends_it() -> None:
    with Session(said(silent(), {"kind": "batch", "at_ns": "now"})) as session:
        assert told(session) == [] and "at_ns" in session.ended


def test_who_does_not_take_it_loses_it_and_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE", 10)

    def stream(**words: Any) -> Iterator[dict[str, Any]]:
        yield msgspec.to_builtins(silent())
        for number in range(50):
            yield msgspec.to_builtins(batch(0, acked(number + 1, number)))
        taken.wait(10)
        yield msgspec.to_builtins(batch(100))

    taken = threading.Event()
    with Session(stream) as session:
        deadline = time.monotonic() + 10
        while session._unheard < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
        found = session.events()
        first = next(found)
        taken.set()
        rest = [event for events in found for event in events]
        assert len(first) + len(rest) == 10 and session.journey.lost_notes == 40
