# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes history out of events: which entry an event begins, adds to or ends. Pure: events in, entries to keep out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from appliance.core import REPLICA, RUNNING, SPEAKING, Effect, Phase, State, StopSync, StopVm
from appliance.history.entry import Entry, Kind, Result

SAME_MOMENT = 0.05
"""Seconds: a peer that went down so recently is why something begins."""
_OUT = (Phase.WAITING, Phase.FAILED)
_AWAY = (Phase.HANDED, Phase.YIELDED)
_PHASES = set(Phase)


def cause(state: State, effects: Iterable[Effect]) -> str:
    """Why a step was taken that ordered `effects`: what it stopped it stopped for that; else what the state says."""
    return next((effect.reason for effect in effects if isinstance(effect, StopSync | StopVm)), state.reason)


class Course:
    """Of one VM on one host. At most one entry is open."""

    def __init__(self, vm: str, host: str) -> None:
        self._vm, self._host = vm, host
        self.open: Entry | None = None
        self._begun = (0.0, 0.0)
        """The open entry's beginning, by the clock on the wall and by the steady one."""
        self._heard: tuple[float, float] = (0.0, 0.0)
        """When the peer went down, and when it was last heard; monotonic."""

    def hear(self, event: dict[str, Any], now: float) -> list[Entry]:
        """What has to be kept because of an event of this VM at `now` (monotonic): entries that are new, have come to
        a point worth keeping, or have ended."""
        name = str(event["event"])
        if name in _PHASES:
            return list(self._phase(Phase(event["was"]), Phase(name), event, now))
        at = self._wall(now)
        match name:
            case "peer-down":
                self._heard = (now, now - float(event.get("silent_ms", 0.0)) / 1e3)
            case "granted" if self.open is not None and self.open.speaks_at is None:
                self._set(granted_at=at, grant=str(event.get("reason", "")))
            case "refused":
                self._set(grant=str(event.get("reason", "")))
            case "takeover-begin":
                self._set(epoch=int(event.get("epoch", 0)))
            case "takeover-done":
                self._set(resumed_at=at)
            case "replayed":
                self._set(replayed_frames=int(event.get("frames", 0)),
                          sent_again_frames=int(event.get("to_send_again", 0)))
            case "handed-over":
                self._set(handed_at=at, epoch=int(event.get("epoch", 0)))
            case "first-frame" if self.open is not None and self.open.first_frame_at is None:
                self._set(first_frame_at=at)
                return [self.open]
        return []

    def end(self, result: Result, now: float, note: str = "") -> list[Entry]:
        """Nothing more is heard of this VM."""
        return list(self._end(result, now, note))

    # --- phases ---

    def _phase(self, was: Phase, to: Phase, event: dict[str, Any], now: float) -> Iterator[Entry]:
        reason, keep = str(event.get("reason", "")), False
        if kind := self._begins(was, to, planned=bool(event.get("planned"))):
            yield from self._end(Result.SUPERSEDED, now, reason)
            self._begin(kind, str(event.get("cause") or reason), event, now)
            keep = True
        elif self.open is not None and self.open.kind is Kind.ALONE and was is Phase.ASKING and to in _OUT:
            self._set(kind=Kind.LOST, note=reason)  # the other host had it
        if self.open is None:
            return
        at, term = self._wall(now), max(self.open.term, int(event.get("term", 0)))
        self._set(term=term)
        if to is Phase.TAKING_OVER or (was is Phase.ASKING and to in SPEAKING):
            self._set(recorded_at=at)
        if to in SPEAKING and was is not Phase.HANDOVER and self.open.speaks_at is None:
            self._set(speaks_at=at, note=reason if was in _AWAY else self.open.note)
            keep = True
        if to in (Phase.SYNCING, Phase.RECEIVING):
            self._set(resync_at=at)
        if result := self._ends(was, to):
            if result in (Result.PROTECTED, Result.STANDBY):
                self._set(protected_at=at)
            yield from self._end(result, now, "" if result in (Result.PROTECTED, Result.STANDBY) else reason)
        elif keep:
            yield self.open

    def _begins(self, was: Phase, to: Phase, planned: bool) -> Kind | None:
        """The kind of entry that this step begins."""
        kind = self.open.kind if self.open is not None else None
        if to is Phase.FENCED:
            return Kind.FENCED
        if to is Phase.ASKING:
            taking = Kind.SWITCHOVER if planned else Kind.TAKEOVER
            return taking if was is Phase.STANDBY else Kind.ALONE if was in RUNNING else None
        if was is Phase.PROTECTED and to in (Phase.SOLO, Phase.SYNCING):
            return Kind.ALONE
        if to is Phase.STARTING:
            return Kind.START
        if to is Phase.HANDOVER:
            return Kind.GIVEN
        if to in _OUT and was in RUNNING and not (kind in (Kind.START, Kind.TAKEOVER, Kind.SWITCHOVER)
                                                  and was not in SPEAKING):
            return Kind.LOST
        if to in REPLICA - {Phase.STANDBY} and (was is Phase.STANDBY or kind is None):
            return Kind.JOINED
        return None

    def _ends(self, was: Phase, to: Phase) -> Result | None:
        """How the open entry ends with this step; None when it goes on."""
        assert self.open is not None
        kind = self.open.kind
        if to is Phase.PROTECTED:
            return Result.CALLED_OFF if was is Phase.HANDOVER else Result.PROTECTED
        if to is Phase.STANDBY:
            return Result.CALLED_OFF if was is Phase.ASKING else Result.STANDBY
        if to is Phase.FENCED:
            return Result.FENCED
        if to in _OUT and kind in (Kind.TAKEOVER, Kind.SWITCHOVER, Kind.JOINED, Kind.START):
            return Result.CALLED_OFF if was is Phase.ASKING else Result.FAILED
        return None

    # --- the open entry ---

    def _begin(self, kind: Kind, reason: str, event: dict[str, Any], now: float) -> None:
        at = float(event["at"])
        down, heard = self._heard
        silent = kind in (Kind.TAKEOVER, Kind.ALONE) and now - down < SAME_MOMENT
        self._begun = (at, now)
        self.open = Entry(id=f"{self._vm}-{at:.6f}", vm=self._vm, host=self._host, kind=kind,
                          term=int(event.get("term", 0)), cause=reason, detected_at=at,
                          heard_at=self._wall(heard) if silent else None)

    def _wall(self, now: float) -> float:
        at, begun = self._begun
        return round(at + now - begun, 6)

    def _set(self, **fields: Any) -> None:
        if self.open is not None:
            self.open = msgspec.structs.replace(self.open, **fields)

    def _end(self, result: Result, now: float, note: str) -> Iterator[Entry]:
        if self.open is not None:
            self._set(result=result, ended_at=self._wall(now), note=note or self.open.note)
            yield self.open
        self.open = None
