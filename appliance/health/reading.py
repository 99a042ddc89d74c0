# SPDX-License-Identifier: GPL-2.0-or-later
"""What a monitor says of one thing: the measured value, its threshold, and the state that follows from both."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class State(StrEnum):
    """`unknown`: nothing can be said, for a reason that the reading names."""

    OK = "ok"
    WARN = "warn"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`component` is what the thing counts for (see `fitness`), `subject` its name within it.

    value: in `unit`; None when there is none. threshold: what makes it warn or fail, in words. source: where the
    value was read. reason: what is wrong, or why nothing is known. since: UNIX seconds since when it is in `state`.
    doubtful: it warns because it has failed lately, or was as bad as that once, but not yet in a row.
    """

    component: str
    subject: str
    state: State
    value: float | None = None
    unit: str = ""
    threshold: str = ""
    source: str = ""
    reason: str = ""
    since: float = 0.0
    doubtful: bool = False


def worst(states: Iterable[State]) -> State:
    """The state of a whole with parts in these. What is not known does not count, unless nothing is known."""
    found = set(states)
    return next((state for state in (State.FAILED, State.WARN, State.OK) if state in found), State.UNKNOWN)
