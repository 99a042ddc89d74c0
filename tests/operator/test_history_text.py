# SPDX-License-Identifier: GPL-2.0-or-later
"""The history as people read it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from appliance.cli.history import render
from appliance.cli.screen import PLAIN, Screen
from appliance.history.entry import Entry, Kind, Result
from appliance.history.history import told

TAKEOVER = Entry(id="web1-1", vm="web1", host="beta", kind=Kind.TAKEOVER, term=5, epoch=2, cause="no link left",
                 grant="term 5 is granted", result=Result.PROTECTED, heard_at=1000.0, detected_at=1000.0085,
                 granted_at=1000.0325, recorded_at=1000.04, resumed_at=1000.0425, speaks_at=1000.34,
                 first_frame_at=1000.341, resync_at=1004.5, protected_at=1017.0, ended_at=1017.0)
OFF = Entry(id="web1-2", vm="web1", host="alpha", kind=Kind.TAKEOVER, term=3, cause="no link left", detected_at=2000.0,
            result=Result.CALLED_OFF, note="the peer is back", ended_at=2003.0)
REPLY: dict[str, Any] = {
    "schema": "holdfast.history/1",
    "hosts": {"alpha": {"reachable": True, "damaged_lines": 2, "disk": "No space left on device"},
              "beta": {"reachable": False, "reason": "beta is not reachable over any link"}},
    "entries": [told(TAKEOVER), told(OFF)],
}
TEXT = """\
WHEN                     VM    TERM  HOST   WHAT      SILENCE  GRANT  LOAD  FENCE  FRAME   DARK  RESYNC  RESULT      CAUSE
1970-01-01 00:16:40.008  web1     5  beta   takeover      8ms   24ms  10ms  298ms    1ms  332ms   12.5s  protected   no link left
1970-01-01 00:33:20.000  web1     3  alpha  takeover        -      -     -      -      -      -       -  called-off  no link left; the peer is back
alpha: its history is not on disk: No space left on device
alpha: 2 lines of its history cannot be read
beta does not tell: beta is not reachable over any link"""  # noqa: E501


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_table() -> None:
    assert render(REPLY, PLAIN) == TEXT
    coloured = render(REPLY, Screen(colour="always"))
    assert "\033[32mprotected\033[0m" in coloured and "\033[33mcalled-off\033[0m" in coloured


def test_nothing_yet() -> None:
    assert render({}, PLAIN) == "nothing has happened that is remembered"
    assert render({"entries": [{}]}, PLAIN), "a reply with holes is still shown"


def test_zeros_are_told() -> None:
    entry = told(msgspec.structs.replace(TAKEOVER, speaks_at=TAKEOVER.resumed_at))
    assert entry["ms"]["fence"] == 0.0 and entry["replayed_frames"] == 0 and entry["handed_at"] is None
