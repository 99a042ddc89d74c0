# SPDX-License-Identifier: GPL-2.0-or-later
"""The service's part of a trace: it switches the packet programs on, and tells of epochs while somebody listens.

The frames themselves never come through the service: the kernel puts them into a ring, which whoever traces reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec

from appliance.control.server import Push
from appliance.errors import Unavailable, UsageError
from appliance.protection import Protection
from appliance.trace import notes
from ebpf.errors import BpfError
from ebpf.trace import FILTER, SLOTS, SNAP, Ring

SCHEMA = "holdfast.trace/1"
TOLD = 0.05
"""Seconds between two words on up to when everything has been said."""
_RING = (1 << 16, 1 << 26)  # bytes, at least and at most


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a listener wants: of which VM (all), with frames or epochs alone, and of frames what."""

    vm: str | None = None
    frames: bool = True
    points: int = 0xFFFFFFFF
    snap: int = 128
    filter: list[tuple[int, int, int, int]] = []
    ring_bytes: int = 16 << 20

    def check(self, known: dict[str, Protection]) -> None:
        if self.vm is not None and self.vm not in known:
            raise UsageError(f"there is no VM {self.vm[:64]!r}", f"known are {', '.join(sorted(known))}")
        size = self.ring_bytes
        if not _RING[0] <= size <= _RING[1] or size & size - 1:
            raise UsageError(f"a ring of {size} bytes", f"give a power of two from {_RING[0]} to {_RING[1]}")
        if not 0 <= self.snap <= SNAP:
            raise UsageError(f"{self.snap} bytes of each frame", f"give 0 to {SNAP}")
        limits = (0xFFFF, 0xFF, 0xFF, 0xFFFFFFFF)
        fits = all(0 <= value <= limit for one in self.filter for value, limit in zip(one, limits, strict=True))
        if len(self.filter) > FILTER or not fits or not 0 <= self.points < 1 << 32:
            raise UsageError("the filter is none that the kernel half runs", f"it takes {FILTER} instructions")


class Tracing:
    """See the module. `stream` and `epochs` are verbs of the control socket.

    A note is pushed to the listener before what it tells of has consequences: an acknowledgement is told before the
    frames that waited for it leave. So whoever listens knows all of it even if this process dies then.
    """

    def __init__(self, host: str, peer: str, vms: dict[str, Protection]) -> None:
        self._host, self._peer, self._vms = host, peer, vms
        self._used: set[int] = set()

    @property
    def active(self) -> int:
        """Traces that are going on with frames."""
        return len(self._used)

    async def epochs(self, args: dict[str, Any], push: Push) -> AsyncGenerator[dict[str, Any], None]:
        """The same for who may not see packets: notes of epochs alone."""

        def hide(item: dict[str, Any]) -> bool:
            return item["notes"][0]["kind"] == "copies" or push(item)

        stream = self.stream({"vm": args.get("vm"), "frames": False}, hide)
        async with contextlib.aclosing(stream):
            async for item in stream:
                yield item

    async def stream(self, args: dict[str, Any], push: Push) -> AsyncGenerator[dict[str, Any], None]:
        """A `notes.Begin`, then `notes.Batch`es until the listener goes. Raises UsageError or Unavailable."""
        request = _request(args)
        request.check(self._vms)
        vms = [self._vms[request.vm]] if request.vm is not None else list(self._vms.values())
        listener = _Listener(vms, push)
        slot, ring = -1, None
        try:
            if request.frames:
                slot = self._slot()
                ring = Ring.create(request.ring_bytes)
                for source, vm in enumerate(vms):
                    front = vm.machine.front
                    if front is None:
                        raise Unavailable(f"{vm.name} has no front yet", "try again")
                    front.slots.begin(slot, ring, source, request.points, request.snap, request.filter)
            yield _plain(self._begin(vms, ring))
            listener.begin()
            while True:
                await asyncio.sleep(TOLD)
                lost = sum(vm.machine.front.slots.lost(slot) for vm in vms if vm.machine.front) if ring else 0
                yield _plain(notes.Batch(at_ns=time.monotonic_ns(), notes=[], lost_frames=lost,
                                         lost_notes=listener.lost))
        except BpfError as error:
            raise Unavailable(error.message, error.hint) from None
        finally:
            listener.close()
            self._used.discard(slot)
            for vm in vms:
                if slot >= 0 and vm.machine.front is not None:
                    vm.machine.front.slots.end(slot)
            if ring is not None:
                ring.close()

    def _slot(self) -> int:
        free = set(range(SLOTS)) - self._used
        if not free:
            raise Unavailable(f"{SLOTS} traces are going on already", "end one of them")
        slot = min(free)
        self._used.add(slot)
        return slot

    def _begin(self, vms: list[Protection], ring: Ring | None) -> notes.Begin:
        return notes.Begin(
            schema=SCHEMA, host=self._host, peer=self._peer,
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            netns=os.stat("/proc/thread-self/ns/net").st_ino,
            ring=ring.number() if ring is not None else 0, monotonic_ns=time.monotonic_ns(), unix_ns=time.time_ns(),
            vms=[self._vm(source, vm) for source, vm in enumerate(vms)])

    def _vm(self, source: int, vm: Protection) -> notes.VmBegin:
        machine = vm.machine
        assert machine.front is not None
        acked = machine.primary.committed if machine.primary is not None else 0
        return notes.VmBegin(
            vm=vm.name, source=source, mac=machine.front.spec.mac,
            ips=list(machine.front.spec.ips), term=vm.state.term, phase=vm.state.phase,
            past=vm.journal.trail.past(acked), issued=machine.front.gate.span()[1],
            acked=acked,
            whole=machine.backup.replica.epoch if machine.backup is not None else 0)


class _Listener:
    """Notes of some VMs for one who traces: said at once, from `begin` on; what was noted before is said first."""

    def __init__(self, vms: list[Protection], push: Push) -> None:
        self._vms, self._push = vms, push
        self._early: list[notes.Note] | None = []
        self.lost = 0
        """Notes that could not be said because the listener is too slow."""
        for vm in vms:
            vm.journal.trail.listeners.append(self._hear)

    def begin(self) -> None:
        early, self._early = self._early, None
        for note in early or ():
            self._hear(note)

    def _hear(self, note: notes.Note) -> None:
        if self._early is not None:
            self._early.append(note)
        elif not self._push(_plain(notes.Batch(at_ns=0, notes=[note], lost_frames=0, lost_notes=self.lost))):
            self.lost += 1

    def close(self) -> None:
        for vm in self._vms:
            vm.journal.trail.listeners.remove(self._hear)
        self._vms = []


def _request(args: dict[str, Any]) -> Request:
    try:
        return msgspec.convert(args, Request)
    except msgspec.ValidationError as error:
        raise UsageError(f"trace: {error}", "use the command of the same version") from None


def _plain(message: notes.Begin | notes.Batch) -> dict[str, Any]:
    """As the control socket sends it."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    return plain
