# SPDX-License-Identifier: GPL-2.0-or-later
"""One entry of the history: a move of a VM as one host saw it, from what it noticed to its end. Data, and what follows
from it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Kind(StrEnum):
    """What happened, from the view of the host that wrote it."""

    START = "start"
    """It started the VM afresh."""
    TAKEOVER = "takeover"
    """The peer was lost, or lost the VM: it goes on here from the last whole epoch."""
    SWITCHOVER = "switchover"
    """The peer handed it over: it goes on here, nothing lost."""
    ALONE = "alone"
    """The backup was lost or given up: it goes on here without one."""
    GIVEN = "given"
    """It was handed over to the peer."""
    LOST = "lost"
    """It does not run here any more, and was not handed over."""
    JOINED = "joined"
    """This host became a backup."""
    FENCED = "fenced"
    """This host was shut out."""


class Result(StrEnum):
    """How it ended."""

    OPEN = "open"
    """Not yet."""
    PROTECTED = "protected"
    """The VM runs here and has a whole replica on the peer."""
    STANDBY = "standby"
    """A whole replica is here."""
    CALLED_OFF = "called-off"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    """Something else happened before it was over."""
    FENCED = "fenced"
    STOPPED = "stopped"
    """The service was stopped before it was over."""
    INTERRUPTED = "interrupted"
    """The service died before it was over."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Moments are UNIX seconds by this host's clock, None for what did not happen; all of one entry are as far apart as
    the steady clock says."""

    id: str
    """Of this host; later lines about the same entry replace earlier ones."""
    vm: str
    host: str
    kind: Kind
    term: Number = 0
    """The last one that it was about."""
    epoch: Number = 0
    """The last whole one that the VM went on from."""
    cause: str = ""
    grant: str = ""
    """What the arbiter said."""
    result: Result = Result.OPEN
    note: str = ""
    """Why it ended like that."""
    replayed_frames: Number = 0
    """That the VM had received since that epoch, and got again."""
    sent_again_frames: Number = 0
    heard_at: float | None = None
    """The last sign of life of a peer that fell silent."""
    detected_at: float
    """This host noticed it."""
    granted_at: float | None = None
    """The arbiter granted the term; None when none was needed."""
    recorded_at: float | None = None
    """The term was on disk."""
    resumed_at: float | None = None
    """The VM ran, silent still."""
    speaks_at: float | None = None
    """The peer's lease was over, or it had yielded: output is let out."""
    first_frame_at: float | None = None
    """The VM's first frame went out."""
    handed_at: float | None = None
    """The VM stood still for good, with all it had sent out and its last epoch committed."""
    resync_at: float | None = None
    """The first copy began, to the peer or from it."""
    protected_at: float | None = None
    """There is a whole replica again."""
    ended_at: float | None = None


STEPS = (
    ("silence", "heard_at", "detected_at"),
    ("grant", "detected_at", "granted_at"),
    ("record", "granted_at", "recorded_at"),
    ("load", "recorded_at", "resumed_at"),
    ("fence", "resumed_at", "speaks_at"),
    ("first_frame", "speaks_at", "first_frame_at"),
    ("hand_over", "detected_at", "handed_at"),
    ("until_resync", "speaks_at", "resync_at"),
    ("resync", "resync_at", "protected_at"),
    ("dark", "detected_at", "speaks_at"),
)
"""Name of a step, its begin, its end. `dark` is the whole from noticing to speaking."""
_INSTEAD = {"granted_at": "detected_at", "resumed_at": "recorded_at"}
"""Where a moment is missing because nothing had to be waited for, or came later, the step after it began here."""


def steps_ms(entry: Entry) -> dict[str, float | None]:
    """How long each step took, in ms; None for one that was not taken."""
    return {name: _between(entry, begin, end) for name, begin, end in STEPS}


def _between(entry: Entry, begin: str, end: str) -> float | None:
    start, stop = getattr(entry, begin), getattr(entry, end)
    while (start is None or stop is not None and start > stop) and begin in _INSTEAD:
        begin = _INSTEAD[begin]
        start = getattr(entry, begin)
    return None if start is None or stop is None else round((stop - start) * 1e3, 3)
