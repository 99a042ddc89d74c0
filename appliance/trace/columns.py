# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace as lines for people: one for each frame at each point, in columns."""

from __future__ import annotations

from appliance.cli.screen import Screen
from appliance.trace import notes
from appliance.trace.decode import summary
from appliance.trace.event import Event, Frame, Point
from appliance.trace.words import clock, ms, says

_KIND = {Point.RELEASED: "good", Point.HELD: "changing", Point.DROPPED: "bad", Point.FENCED: "bad",
         Point.OVERFLOW: "bad", Point.DISCARDED: "bad", Point.REFUSED: "bad"}
_SHOWN = (notes.Happened, notes.Alone, notes.Dropped)
"""Notes that stand between the frames; those of single epochs are what `trace epochs` is for."""


class Columns:
    """Prints to `screen`. `names`: which VM and host are shown, where there are several. `verbose`: every wait."""

    def __init__(self, screen: Screen, *, vms: bool = False, hosts: bool = False, verbose: bool = False) -> None:
        self._screen, self._vms, self._hosts, self._verbose = screen, vms, hosts, verbose
        self._headed = False

    def begin(self, begin: notes.Begin) -> None:
        """What a person is told of the beginning stands beside the events."""

    def end(self, end: notes.End) -> None:
        """The same."""

    def flush(self) -> None:
        self._screen.out.flush()

    def event(self, event: Event) -> None:
        if not self._headed:
            self._headed = True
            self._say(self._head())
        if isinstance(event, Frame):
            self._say(self._line(event))
        elif isinstance(event, _SHOWN):
            host = f"{event.host} " if self._hosts else ""
            self._say(f"{clock(event.at_ns)} -- {host}{says(event)}")

    def _say(self, line: str) -> None:
        self._screen.out.write(line + "\n")

    def _head(self) -> str:
        waits = f"{'EPOCH':>7} {'XFER':>7} {'ACK':>7} {'OUT':>7} " if self._verbose else ""
        return (f"{'TIME':15} {self._where('HOST', 'VM')}{'EPOCH.SEQ':>13} {'POINT':10} {'HOLD_MS':>8} {waits}"
                f"{'CAUSE':9} {'LEN':>5} PACKET")

    def _where(self, host: str, vm: str) -> str:
        return (f"{host:8} " if self._hosts else "") + (f"{vm:10} " if self._vms else "")

    def _line(self, frame: Frame) -> str:
        waits = ""
        if self._verbose:
            found = frame.waits
            steps = (found.epoch_ns, found.transfer_ns, found.ack_ns, found.release_ns) if found else (None,) * 4
            waits = "".join(f"{ms(step):>7} " for step in steps)
        point = f"{frame.point:10}"
        painted = self._screen.paint(point, _KIND[frame.point]) if frame.point in _KIND else point
        return (f"{clock(frame.at_ns)} {self._where(frame.host, frame.vm)}{frame.name:>13} {painted} "
                f"{ms(frame.hold_ns):>8} {waits}{frame.cause or '-':9} {frame.size:>5} {summary(frame.snap)}")
