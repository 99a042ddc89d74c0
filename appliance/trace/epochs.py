# SPDX-License-Identifier: GPL-2.0-or-later
"""One line for each epoch: how long it was, what its pause was spent on, what it carried, and how long it took to
commit."""

from __future__ import annotations

import msgspec

from appliance.cli.screen import size
from appliance.trace import notes
from appliance.trace.event import Event
from appliance.trace.words import clock

_REMEMBERED = 1024  # epochs that are under way


class Epoch(msgspec.Struct, kw_only=True):
    """Times in UNIX nanoseconds, durations in nanoseconds; None for what has not happened or was not seen."""

    vm: str
    host: str
    term: int
    epoch: int
    at_ns: int = 0
    """When its pause began."""
    length_ns: int | None = None
    """Since the pause before it began."""
    pause_ns: int | None = None
    stop_ns: int | None = None
    save_ns: int | None = None
    resume_ns: int | None = None
    pages: int | None = None
    bytes: int | None = None
    frames: int | None = None
    transfer_ns: int | None = None
    """From the pause until all of it was on the link."""
    ack_ns: int | None = None
    """From then until the backup had acknowledged it."""
    release_ns: int | None = None
    """From then until the last of its frames was out."""
    committed: bool = False
    under_way: bool = False
    """The trace ended before it was committed, or not."""


class Epochs:
    """Puts notes together; `feed` returns the epochs that are over."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, int, int], dict[str, notes.Note]] = {}
        self._paused: dict[tuple[str, str, int, int], int] = {}

    def feed(self, event: Event) -> list[Epoch]:
        if isinstance(event, notes.Alone):
            return self._drop(event) if event.alone else []
        if not isinstance(event, notes.Marked | notes.Taken | notes.Sent | notes.Acked | notes.Released):
            return []
        key = (event.host, event.vm, event.term, event.epoch)
        self._open.setdefault(key, {})[type(event).__name__] = event
        if isinstance(event, notes.Released):
            return [self._made(one) for one in list(self._open) if one[:3] == key[:3] and one[3] <= key[3]]
        if len(self._open) > _REMEMBERED:
            return [self._made(next(iter(self._open)))]
        return []

    def rest(self) -> list[Epoch]:
        """Those of which nothing more is said, at the end of a capture."""
        rest = [self._made(key) for key in list(self._open)]
        for epoch in rest:
            epoch.under_way = not epoch.committed
        return rest

    def _drop(self, alone: notes.Alone) -> list[Epoch]:
        """From now on nobody acknowledges what is under way."""
        return [self._made(key) for key in list(self._open) if key[:2] == (alone.host, alone.vm)]

    def _made(self, key: tuple[str, str, int, int]) -> Epoch:
        seen = self._open.pop(key)
        host, vm, term, epoch = key
        made = Epoch(vm=vm, host=host, term=term, epoch=epoch, committed=not {"Acked", "Released"}.isdisjoint(seen))
        marked, taken = seen.get("Marked"), seen.get("Taken")
        made.at_ns = min(note.at_ns for note in seen.values())
        if isinstance(taken, notes.Taken):
            made.at_ns = taken.stopped_ns
            made.stop_ns, made.save_ns, made.resume_ns = taken.stop_ns, taken.save_ns, taken.resume_ns
            made.pause_ns = taken.stop_ns + taken.save_ns + taken.resume_ns
            made.pages, made.bytes, made.frames = taken.pages, taken.bytes, taken.frames
            before = self._paused.pop((host, vm, term, epoch - 1), None)
            made.length_ns = None if before is None else taken.stopped_ns - before
            self._paused[key] = taken.stopped_ns
            if len(self._paused) > _REMEMBERED:
                del self._paused[next(iter(self._paused))]
        sent, acked = seen.get("Sent"), seen.get("Acked")
        made.transfer_ns, made.ack_ns = _between(marked, sent), _between(sent, acked)
        made.release_ns = _between(acked, seen.get("Released"))
        return made


def _between(earlier: notes.Note | None, later: notes.Note | None) -> int | None:
    return None if earlier is None or later is None else max(0, later.at_ns - earlier.at_ns)


def head(*, hosts: bool = False, vms: bool = False) -> str:
    """What stands above the lines. `hosts`, `vms`: where there are several."""
    where = (f"{'HOST':8} " if hosts else "") + (f"{'VM':10} " if vms else "")
    return (f"{'TIME':15} {where}{'EPOCH':>10} {'LENGTH':>8} {'PAUSE':>7} {'STOP':>6} {'SAVE':>6} {'RESUME':>6} "
            f"{'PAGES':>6} {'SIZE':>10} {'FRAMES':>6} {'XFER':>7} {'ACK':>7} {'OUT':>7}")


def line(epoch: Epoch, *, hosts: bool = False, vms: bool = False) -> str:
    """In columns; durations in milliseconds."""
    where = (f"{epoch.host:8} " if hosts else "") + (f"{epoch.vm:10} " if vms else "")
    lasted = (epoch.length_ns, epoch.pause_ns, epoch.stop_ns, epoch.save_ns, epoch.resume_ns)
    paused = " ".join(_short(step, width) for step, width in zip(lasted, (8, 7, 6, 6, 6), strict=True))
    carried = f"{_or_dash(epoch.pages):>6} {size(epoch.bytes):>10} {_or_dash(epoch.frames):>6}"
    left = " ".join(_short(step, 7) for step in (epoch.transfer_ns, epoch.ack_ns, epoch.release_ns))
    end = "" if epoch.committed else "  under way" if epoch.under_way else "  not committed"
    return f"{clock(epoch.at_ns)} {where}{epoch.epoch:>10} {paused} {carried} {left}{end}"


def _short(nanoseconds: int | None, width: int) -> str:
    return f"{'-' if nanoseconds is None else f'{nanoseconds / 1e6:.2f}':>{width}}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
