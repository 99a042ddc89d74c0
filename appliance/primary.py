# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM runs on this host: its output is released as it comes (solo) or per committed epoch (protected).

One epoch, top to bottom: `_epochs` waits for its end, `_one_epoch` takes the checkpoint and sends it,
`acknowledged` hears the backup, `_release_loop` lets the output go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from appliance import config as cfg
from appliance import core
from appliance.errors import HoldfastError
from appliance.first_copy import FirstCopy
from appliance.flights import Flight, Flights
from appliance.front import Front
from appliance.gate import Mark
from appliance.journal import Journal
from appliance.lease import Lease
from appliance.peer import Peer
from appliance.primary_disks import PrimaryDisks, cut
from appliance.replay import ReplayFeed
from appliance.volumes import Volumes
from appliance.watched import watched
from vmlink import inject
from vmlink.checkpoint import Checkpointer, Snapshot, epoch_messages
from vmlink.disk.record import Record
from vmlink.errors import VmError
from vmlink.pace import Pace
from vmlink.qemu import Qemu
from vmlink.ram import GuestRam
from vmlink.tracker import Tracker, choose
from vmlink.wire import Ack, Message, Type, WireError, decode_pieces, encode_frames

log = logging.getLogger("holdfast.primary")

THROTTLE = 0.75
"""Share of the gate's limit at which the VM waits, paused, for an acknowledgement."""
HANDOVER_TIMEOUT = 2.0
"""Seconds within which the last epoch of a handover must be committed and its output out; else the VM runs on."""


class Primary:
    """See the module. `post` takes what the decision core must hear."""

    def __init__(self, name: str, vm: cfg.Vm, vm_id: int, front: Front, qemu: Qemu, ram: GuestRam,
                 disks: PrimaryDisks | None, volumes: Volumes | None, peer: Peer, journal: Journal, lease: float,
                 post: Callable[[core.Event], None]) -> None:
        self._name, self._vm, self._id, self._post = name, vm, vm_id, post
        self._front, self._qemu, self._ram, self._peer, self._journal = front, qemu, ram, peer, journal
        self.disks, self.volumes = disks, volumes
        epoch = vm.epoch
        adaptive = epoch.mode == "adaptive"
        self._pace = Pace(adaptive, epoch.min, epoch.max if adaptive else epoch.length, epoch.pause_share)
        self.tracker: Tracker | None = None
        self._checkpointer: Checkpointer | None = None
        self._mover: asyncio.Task[None] | None = None
        self._replication: asyncio.Task[None] | None = None
        self._lease = Lease(name, front.guard, volumes, lease)
        self._through: asyncio.Task[None] | None = None
        self._releaser: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self._left: asyncio.Future[None] | None = None
        self._handed = False
        self._out, self._stopping = asyncio.Event(), asyncio.Event()
        self._less = asyncio.Event()  # is under way than before
        if volumes is not None:
            volumes.progressed = self._less.set
        self._release_event = asyncio.Event()
        self._flights = Flights(vm.epoch.in_flight, vm.limits.in_flight)
        self._release_to: Mark | None = None
        self.term = self.epoch = self.committed = self._released = 0
        self._output_at = 0.0
        self.copy: FirstCopy | None = None
        self.throttled = 0
        self.replay = ReplayFeed(front.inbound, peer, vm_id, vm.limits.replay_log)

    async def close(self) -> None:
        """Stop everything. QEMU may be gone already."""
        self.replay.close()
        if self.disks is not None:
            self.disks.close()
        self.hold()
        self.stop_sync()
        if self._replication is not None:
            self._replication.cancel()
            await asyncio.wait([self._replication])
        for part in (self._checkpointer, self.tracker):
            if part is not None:
                part.close()

    # --- alone: output goes out as it comes ---

    def write_through(self, then: Callable[[], None]) -> None:
        """Only when the core says that this host is rightfully solo: let the shared volumes have what they lack, and
        call `then`."""
        if self.volumes is None:
            then()
            return
        self._lease.alone()
        if self._through is not None:  # of an older term: `hold` knows of one
            self._through.cancel()
        self._through = watched(self.volumes.write_through(then), f"{self._name} writes through")

    def speak(self) -> None:
        """Run and release all output as it comes. Only when the core says that this host is rightfully solo."""
        if self._mover is None:
            self._journal.trail.runs_alone(True, self._front.gate.span()[1])
            self._mover = watched(self._move(), f"{self._name} mover")
            self._lease.alone()
        if self._handed:
            self._handed = False
            self._resumer = watched(self._resume(), f"{self._name} resumes")

    async def _resume(self) -> None:
        if self.disks is not None:
            self.disks.back()
        await self._runs_on()

    async def _move(self) -> None:
        gate = self._front.gate
        try:
            while True:
                self._journal.out("solo", await gate.release(gate.mark()))
                await gate.output()
        except HoldfastError as error:  # the VM is mute, but it lives: once protected it can move to the backup
            log.error("%s: output cannot leave this host: %s", self._name, error)
            self._journal.event("output-failed", cause=str(error))

    def hold(self) -> None:
        """Release nothing more, and write nothing more of what is not committed."""
        for task in (self._mover, self._releaser, self._through):
            if task is not None:
                task.cancel()
        self._mover = self._releaser = None
        self._lease.end()
        if self.volumes is not None:
            self.volumes.hold()

    # --- protected: an epoch at a time ---

    def start_sync(self, term: int, copy: int) -> None:
        """Copy the VM to the backup's replica of number `copy`, then keep it protected. Reports SyncDone or SyncFailed.
        """
        previous, self._stopping, self.term = self._replication, asyncio.Event(), term
        self._replication = watched(self._replicate(term, copy, self._stopping, previous), f"{self._name} replication")

    def stop_sync(self) -> None:
        """Take no further checkpoint. One under way is finished, so that the VM runs on."""
        self._stopping.set()
        self._less.set()
        self._out.set()
        self.replay.stop()
        self.copy = None
        if self.disks is not None:
            self.disks.alone()

    async def quiet(self) -> None:
        """Return when a replication that was stopped has ended: no checkpoint pauses the VM any more."""
        if self._replication is not None:
            await asyncio.wait([self._replication])

    async def _replicate(self, term: int, copy: int, stopping: asyncio.Event,
                         previous: asyncio.Task[None] | None) -> None:
        if before := [task for task in (previous, self._through) if task is not None]:
            await asyncio.wait(before)
        if stopping.is_set():
            return
        try:
            await self._first_copy(term, copy, stopping)
            await self._epochs(term, stopping)
        except (VmError, OSError, WireError, inject.Injected) as error:
            if not stopping.is_set():  # else its end, even QEMU's, may have been ordered
                log.error("%s: replication failed: %s", self._name, error)
                self._journal.event("replication-failed", cause=str(error))
            if await self._runs_on() and not stopping.is_set():
                # Without the other host's copy of its disks the VM cannot go on here.
                lost = self.disks is not None and self.disks.faults.away
                self._post(core.VmLost(str(error)) if lost else core.SyncFailed(str(error)))

    async def _runs_on(self) -> bool:
        """Resume a VM that a failed checkpoint may have left paused. One that cannot be is ended: the backup has
        a whole epoch of it."""
        try:
            await self._qemu.cont()
        except VmError as error:
            log.warning("%s: cannot resume: %s", self._name, error)
            await self._qemu.kill()
            return False
        return True

    async def _first_copy(self, term: int, copy: int, stopping: asyncio.Event) -> None:
        if self._checkpointer is None:
            self.tracker = choose(self._qemu, self._ram, self._vm.tracker)
            self._checkpointer = Checkpointer(self._qemu, self.tracker, self.tracker.source)
        self._flights.clear()
        self.epoch = self.committed = self._released = 0
        self._release_to = None
        self._journal.event("sync-begin", term=term)
        disks = self.disks.rounds(term, stopping) if self.disks is not None else None
        self.copy = FirstCopy(self._qemu, self._ram, self._peer, self._id, self._checkpointer, disks,
                              self.volumes, self._journal)
        await self.copy.run(term, copy, stopping)

    async def _epochs(self, term: int, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            leaving = self._leaving.is_set()
            snapshot = await self._one_epoch(term, stopping, resume=not leaving)
            if snapshot is None:
                return
            if leaving and await self._leave():
                return
            await self._until_end_of_epoch(snapshot, stopping)

    # --- handed over: a last epoch ---

    async def hand_over(self) -> None:
        """Return when the VM is paused for good, its last epoch committed and its output out.

        Raises TimeoutError or VmError when that is not to be had; the VM runs on then.
        """
        self._left = asyncio.get_running_loop().create_future()
        self._leaving.set()
        try:
            async with asyncio.timeout(2 * HANDOVER_TIMEOUT):
                await self._left
        finally:
            self._leaving.clear()

    async def _leave(self) -> bool:
        """The last epoch is sent: wait until nothing of it is left here."""
        self._handed = True
        try:
            async with asyncio.timeout(HANDOVER_TIMEOUT):
                while self._released < self.epoch and not self._stopping.is_set():
                    self._out.clear()
                    await self._out.wait()
        except TimeoutError:
            pass
        waiting = self._left is not None and not self._left.done()
        if self._released == self.epoch and waiting and not self._stopping.is_set():
            inject.point("handover.released")
            self._journal.event("handed-over", term=self.term, epoch=self.epoch)
            if self.disks is not None:
                self.disks.given = self.epoch
            self._left.set_result(None)  # type: ignore[union-attr]
            return True
        if self._handed:
            self._handed = False
            await self._runs_on()
        if self._left is not None and waiting:
            self._left.set_exception(TimeoutError("the last epoch was not acknowledged in time"))
        self._leaving.clear()
        return False

    async def _one_epoch(self, term: int, stopping: asyncio.Event, *, resume: bool) -> Snapshot | None:
        """Checkpoint and send. None when replication ended meanwhile. Without `resume` the VM stays paused."""
        assert self._checkpointer is not None
        epoch = self.epoch + 1
        marks: list[tuple[Mark, int]] = []
        records: list[Record] = []

        def at_stop() -> None:
            if not stopping.is_set() and epoch == 1:
                self._begin_holding()
            at_ns = time.monotonic_ns()
            marks.append((self._front.gate.mark(), self._front.inbound.consumed()))
            self._journal.trail.marked(at_ns, term, epoch, marks[0][0].seq)
            records.extend(cut(self.disks))
            if self.volumes is not None:
                records.extend(self.volumes.cut(epoch))

        snapshot = await self._checkpointer.take(at_stop, resume=resume)
        if stopping.is_set():
            if not resume:
                await self._runs_on()
            return None
        mark, consumed = marks[0]
        self.epoch = epoch
        self.replay.epoch(epoch)
        noted = self._journal.epoch(term, epoch, snapshot, mark.seq, self._output_at)
        size = snapshot.size + sum(record.data_bytes for record in records)
        self._flights.add(Flight(epoch, mark, size, noted))
        output = encode_frames(self._front.outbound.take(mark.seq))
        for message in epoch_messages(snapshot, self._id, term, epoch, consumed, self._released, output, records,
                                      0 if self.volumes is None else self.volumes.withheld.stored):
            if not await self._peer.room():
                return None
            if message.type is Type.COMMIT:
                message = replace(message, sent=partial(self._journal.sent, noted))
            self._peer.send(message)
        inject.point("epoch.sent")
        return snapshot

    def _begin_holding(self) -> None:
        """From this pause on nothing leaves before its epoch is committed, nor without a lease."""
        self.hold()
        if self.volumes is not None:
            self.volumes.begin()
        self._journal.trail.runs_alone(False, self._front.gate.span()[1])
        self._lease.by_peer()
        self._front.outbound.forget()
        self.replay.start(self.term)
        self._releaser = watched(self._release_loop(), f"{self._name} releaser")

    async def _until_end_of_epoch(self, last: Snapshot, stopping: asyncio.Event) -> None:
        gate, paused = self._front.gate, False
        while not stopping.is_set() and (self._flights.full or self.volumes is not None and self.volumes.behind):
            if not paused and gate.held_bytes() > THROTTLE * self._vm.limits.held:
                await self._qemu.stop()  # slowed, not dropped
                paused = True
                self.throttled += 1
            self._less.clear()
            await self._less.wait()
        if not stopping.is_set():
            await asyncio.sleep(max(0.0, self._pace.earliest(last.stopped, last.resumed) - time.monotonic()))
        latest, self._output_at = self._pace.latest(last.stopped, last.resumed), last.resumed
        if self._pace.adaptive and not paused and not stopping.is_set() and not gate.pending():
            delay = latest - time.monotonic()
            if delay > 0:
                waits = [gate.output(), self._leaving.wait()]
                waits += [part.filled.wait() for part in (self.disks and self.disks.drives, self.volumes) if part]
                ends = [asyncio.ensure_future(end) for end in waits]
                await asyncio.wait(ends, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                for end in ends:
                    end.cancel()
                self._output_at = time.monotonic()

    def message(self, message: Message) -> None:
        """What the backup says. Raises WireError when it makes no sense."""
        payload = decode_pieces(message)
        if message.type is Type.ACK:
            self.acknowledged(message.epoch, Ack.decode(payload))
        elif message.type is Type.DISK_DATA and self.disks is not None:
            self.disks.message(message)
        elif self.copy is not None and self.copy.disks is not None:
            self.copy.disks.message(message.type, payload)

    def acknowledged(self, epoch: int, ack: Ack) -> None:
        """The backup has all of `epoch`: what the VM sent until its end may go. Raises WireError for an epoch
        that is not in flight."""
        if epoch not in self._flights:
            if self._stopping.is_set():
                return  # of a replication that ended
            raise WireError(f"an acknowledgement of epoch {epoch}, which is not in flight")
        now = time.monotonic()
        for flight in self._flights.land(epoch):
            self._journal.acked(flight.record, now)
            self._release_to = flight.mark
        self.committed = epoch
        if self.disks is not None:
            self.disks.acknowledged(epoch, ack)
        if self.volumes is not None:
            self.volumes.allow(epoch)
        self._less.set()
        self._release_event.set()
        if self.copy is not None:
            self.copy = None
            self._journal.event("sync-done", term=self.term)
            self._post(core.SyncDone())

    def peer_heard(self, until: float) -> None:
        """The peer does not speak in this host's place before `until` (monotonic): so long the VM may."""
        self._lease.heard(until)

    async def _release_loop(self) -> None:
        try:
            while True:
                await self._release_event.wait()
                self._release_event.clear()
                epoch, mark = self.committed, self._release_to
                if mark is None or self.disks is not None and not await self.disks.settled():
                    continue
                inject.point("epoch.acked")
                if self.volumes is not None:  # when both hosts die, they alone know what was acknowledged
                    await self.volumes.stored(epoch)
                await self._lease.granted()  # else the guard would drop what is due
                self._journal.out("commit", await self._front.gate.release(mark))
                inject.point("epoch.released")
                self._released = epoch
                self._journal.released(epoch, time.monotonic())
                self._out.set()
        except (HoldfastError, inject.Injected) as error:  # the backup has all that was to go out: it can speak
            log.error("%s: output cannot leave this host: %s", self._name, error)
            self._post(core.VmLost(f"output cannot leave this host: {error}"))

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def followed(self) -> bool:
        """Has the backup a whole replica that follows?"""
        return self.committed > 0 and not self._stopping.is_set()
