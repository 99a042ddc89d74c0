# SPDX-License-Identifier: GPL-2.0-or-later
"""The history of a host's VMs: listens to events, keeps what follows from them on disk, and answers who asks either
host. A disk that hangs or is full delays nothing: what it does not take is kept in memory, and told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import HoldfastError, UsageError
from appliance.events import Event, Events
from appliance.history.course import Course
from appliance.history.entry import Entry, Kind, Result, steps_ms
from appliance.history.ledger import ENTRIES, Ledger
from appliance.orders import Orders
from appliance.sums import SLOW, Histogram

PATIENCE = 2.0
"""Seconds within which the peer must answer."""
FAREWELL = 1.0
"""Seconds that the disk gets for the last entries when the service ends."""
MOST = 200
"""Entries of one answer: it must fit in what hosts say to each other."""
UNASKED = 50
"""Entries for who does not say how many."""
UNWRITTEN = 1000
"""Lines that may wait for the disk; the oldest are given up."""
MOVES = (Kind.TAKEOVER, Kind.SWITCHOVER, Kind.ALONE)
log = logging.getLogger("holdfast.history")


class History:
    """See the module. `orders` is set before anything is asked."""

    def __init__(self, host: str, peer: str, vms: Iterable[str], directory: Path, events: Events) -> None:
        self._host, self._peer = host, peer
        self._courses = {vm: Course(vm, host) for vm in vms}
        self._ledger = Ledger(directory / "history.jsonl")
        self._entries: dict[str, Entry] = {}
        self._unwritten: deque[Entry] = deque(maxlen=UNWRITTEN)
        self._wake = asyncio.Event()
        self._trouble = ""
        self.failovers = {(vm, kind): Histogram(SLOW) for vm in self._courses for kind in MOVES}
        """Seconds from what this host noticed until the VM spoke here, by VM and kind, since the service started."""
        self.counts: Counter[tuple[str, Kind]] = Counter({(vm, kind): 0 for vm in self._courses for kind in Kind})
        """Entries begun since the service started."""
        self.orders: Orders
        events.listen(self._hear)

    async def load(self) -> None:
        """Read what is on disk; called before anything happens."""
        try:
            known = await asyncio.get_running_loop().run_in_executor(None, self._ledger.load)
        except OSError as error:
            self._fails(error)
            return
        for entry in known:
            if entry.result is Result.OPEN and entry.vm in self._courses:
                entry = msgspec.structs.replace(entry, result=Result.INTERRUPTED)
            self._entries[entry.id] = entry
        if self._ledger.damaged:
            log.warning("%s: %d lines cannot be read and are left out", self._ledger.path, self._ledger.damaged)

    def _hear(self, event: Event, now: float) -> None:
        course = self._courses.get(event.get("vm", ""))
        if course is not None:
            self._keep(course.hear(event, now))

    def _keep(self, entries: list[Entry]) -> None:
        for entry in entries:
            before = self._entries.get(entry.id)
            self._entries[entry.id] = entry
            if before is None:
                self.counts[entry.vm, entry.kind] += 1
            if entry.speaks_at is not None and (before is None or before.speaks_at is None):
                if histogram := self.failovers.get((entry.vm, entry.kind)):
                    histogram.add(entry.speaks_at - entry.detected_at)
            self._unwritten.append(entry)
        while len(self._entries) > ENTRIES:
            del self._entries[next(iter(self._entries))]
        if entries:
            self._wake.set()

    # --- to the disk ---

    async def run(self) -> None:
        """Write what is to be kept, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._write()

    async def _write(self) -> None:
        batch = list(self._unwritten)
        if not batch:
            return
        self._unwritten.clear()
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._ledger.append, batch)
            self._trouble = ""
        except OSError as error:
            self._unwritten.extendleft(reversed(batch))  # with what comes next it is tried again
            self._fails(error)

    def _fails(self, error: OSError) -> None:
        trouble = error.strerror or str(error)
        if trouble != self._trouble:
            log.error("the history is not on disk: %s: %s", self._ledger.path, trouble)
        self._trouble = trouble

    async def close(self) -> None:
        """The service ends: so does what is open."""
        for course in self._courses.values():
            self._keep(course.end(Result.STOPPED, time.monotonic()))
        try:
            async with asyncio.timeout(FAREWELL):
                await self._write()
        except TimeoutError:
            log.error("%s: the disk takes too long; the last entries are lost", self._ledger.path)

    # --- asked ---

    async def verb(self, args: dict[str, Any]) -> dict[str, Any]:
        """holdfast.history/1: the newest `limit` entries of both hosts, oldest first; with `vm` of that VM; with `own`
        of this host alone."""
        limit, vm = args.get("limit", UNASKED), args.get("vm") or ""
        if not isinstance(limit, int) or not 1 <= limit <= MOST:
            raise UsageError(f"{str(limit)[:20]!r} is no number of entries", f"choose from 1 to {MOST}")
        if vm and vm not in self._courses and not any(entry.vm == vm for entry in self._entries.values()):
            raise UsageError(f"there is no VM {str(vm)[:64]!r}", f"known are {', '.join(sorted(self._courses))}")
        hosts = {self._host: self._own()}
        entries = [told(entry) for entry in self._entries.values() if not vm or entry.vm == vm]
        if not args.get("own"):
            hosts[self._peer], theirs = await self._peers(limit, vm)
            entries += theirs
        entries.sort(key=lambda entry: float(entry["detected_at"]))
        return {"schema": "holdfast.history/1", "hosts": hosts, "entries": entries[-limit:]}

    def _own(self) -> dict[str, Any]:
        return {"reachable": True, "reason": "", "entries": len(self._entries), "damaged_lines": self._ledger.damaged,
                "disk": self._trouble or "ok"}

    async def _peers(self, limit: int, vm: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        try:
            answer = await self.orders.ask("history", PATIENCE, own=True, limit=limit, vm=vm)
            found = msgspec.convert(answer, _Answer)
            return found.hosts[self._peer], [told(entry) for entry in found.entries if entry.host == self._peer]
        except HoldfastError as error:
            reason = error.message
        except (msgspec.ValidationError, KeyError) as error:
            reason = f"the peer's history cannot be understood: {error}"
        return {"reachable": False, "reason": reason, "entries": None, "damaged_lines": None, "disk": None}, []


class _Answer(msgspec.Struct):
    hosts: dict[str, dict[str, Any]]
    entries: list[Entry]


def told(entry: Entry) -> dict[str, Any]:
    """As it is told to programs."""
    return {**msgspec.to_builtins(entry), "ms": steps_ms(entry)}
