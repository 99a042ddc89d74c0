# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks' part of a first copy: rounds while the VM runs, each with what was written during the one before.

Every round begins with a short pause. A write may be listed here before the local image has it: with the VM paused and
its disks drained, what is listed is there. The last round is short; from its pause on what the VM writes is recorded
for the first epoch, so that nothing is missed and no pause is long.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np

from appliance.disks import Disks
from appliance.peer import Peer
from vmlink.disk.copy import DiskCopy
from vmlink.disk.dirty import DirtyBlocks, Numbers
from vmlink.disk.drive import Drives
from vmlink.disk.mirror import Mirror
from vmlink.disk.offer import Begin, Offer
from vmlink.errors import VmError
from vmlink.qemu import Qemu
from vmlink.wire import Buffer, Message, Type

WINDOW = 8 << 20
"""Bytes under way at once: enough for the links, little for what has to follow."""
SMALL = 4 << 20
"""Bytes in written blocks that may be left for the last round."""
ROUNDS = 12
SHRINKS = 0.7
"""A round that leaves more than this share of what the one before left is one of the last: more would not help."""
OFFER_TIMEOUT = 60.0
"""Seconds for the backup to say what its images hold."""


class DiskRounds:
    """See the module. Use `copying`, then in this order `most`, `catch_up` and `last`."""

    def __init__(self, disks: Disks, drives: Drives, qemu: Qemu, mirror: Mirror, peer: Peer, vm: int, term: int,
                 rate: int, stopping: asyncio.Event) -> None:
        self._disks, self._drives, self._qemu, self._mirror, self._peer = disks, drives, qemu, mirror, peer
        self._vm, self._term, self._rate, self._stopping = vm, term, rate, stopping
        self.listed = False
        """Is it done by lists of what was written, and not by comparing everything?"""
        self._offer: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        self._copy: DiskCopy | None = None
        self._busy = False
        self._pause: asyncio.Task[list[Numbers]] | None = None

    @property
    def progress(self) -> dict[str, Any] | None:
        """For the status, while disks are being copied."""
        return self._copy.progress.status() if self._copy is not None and self._busy else None

    def message(self, kind: Type, payload: Buffer) -> None:
        """What the backup says of its disks. Raises WireError when it makes no sense."""
        if kind is Type.DISK_STATE and not self._offer.done():
            self._offer.set_result(Offer.decode(payload, self._drives.sizes()))
        elif kind is Type.DISK_HASHES and self._copy is not None:
            self._copy.answered(payload)

    @contextlib.asynccontextmanager
    async def copying(self) -> AsyncIterator[DiskRounds]:
        """For as long as disks are copied. Raises VmError when they cannot be read."""
        async with self._disks.readable(self._qemu) as stores:
            self._copy = DiskCopy(stores, self._vm, self._term, self._send, self._rate)
            try:
                yield self
            finally:
                self._copy.close()
                self._copy = None

    # --- the steps: each returns whether it got to its end ---

    async def most(self) -> bool:
        """Begin, and copy while much is left. Raises VmError."""
        return await self._unless_stopped(self._most())

    async def catch_up(self) -> bool:
        """What was written meanwhile, until little is left. Raises VmError."""
        return await self._unless_stopped(self._catch_up())

    async def last(self) -> bool:
        """The rest; what the VM writes from now on belongs to its first epoch. Raises VmError."""
        return await self._unless_stopped(self._last())

    def summary(self) -> dict[str, Any]:
        """What the copy took, in bytes and seconds; for a record of events, at its end."""
        progress = self._running().progress
        return {"by": "lists" if self.listed else "checksums", "rounds": progress.round, "looked_at": progress.done,
                "moved": progress.moved, "seconds": round(progress.seconds, 3)}

    async def _most(self) -> None:
        try:
            async with asyncio.timeout(OFFER_TIMEOUT):
                offer = await self._offer
        except TimeoutError:
            raise VmError(f"the other host did not say within {OFFER_TIMEOUT:g} s what its disks hold",
                          "see its log") from None
        mirror, copy = self._mirror, self._running()
        self.listed = listed = mirror.agrees(offer.point, offer.lists, offer.beyond)
        generation = secrets.randbits(62) | 1
        mirror.begin(generation)
        begin = Begin(generation, mirror.point if listed else None)
        await self._send(Message(Type.DISK_BEGIN, self._vm, self._term, 0, (begin.encode(),)))
        taken = await self._taken()
        if listed:
            await copy.blocks(self._blocks(taken))
        else:
            await copy.everything()
        await self._catch_up()

    async def _catch_up(self) -> None:
        before = None
        for _ in range(ROUNDS):
            left = sum(drive.dirty.marked_bytes for drive in self._drives)
            if left <= SMALL or before is not None and left > SHRINKS * before:
                break
            before = left
            await self._running().blocks(self._blocks(await self._taken()))
        await self._running().flushed()

    async def _last(self) -> None:
        taken = await self._taken(record=True)
        await self._running().blocks(self._blocks(taken))
        await self._running().flushed()

    async def _taken(self, *, record: bool = False) -> list[Numbers]:
        """The blocks that were written and have not been sent, all of them on the local image by now."""
        self._pause = asyncio.create_task(self._paused(record))  # to its end, whatever becomes of us: the VM runs on
        return await asyncio.shield(self._pause)

    async def _paused(self, record: bool) -> list[Numbers]:
        await self._qemu.stop()
        try:
            if self._stopping.is_set():  # it is all marked for the next copy already
                return [np.zeros(0, np.int64) for _ in self._drives]
            taken = self._mirror.take()
            if record:
                self._drives.record_on()
            return taken
        finally:
            await self._qemu.cont()

    # --- with what ---

    def _blocks(self, taken: list[Numbers]) -> list[tuple[DirtyBlocks, Numbers]]:
        return [(drive.dirty, numbers) for drive, numbers in zip(self._drives, taken, strict=True)]

    def _running(self) -> DiskCopy:
        assert self._copy is not None
        return self._copy

    async def _send(self, message: Message) -> None:
        if self._stopping.is_set() or not await self._peer.room(WINDOW):
            raise VmError("the other host is gone")
        self._peer.send(message)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do it, unless the copy has to end before: then it is broken off."""
        self._busy = True
        working = asyncio.create_task(work)
        ending = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                return False
            await working
            return True
        finally:
            self._busy = False
            for task in (working, ending):
                task.cancel()
            await asyncio.gather(working, ending, *([self._pause] if self._pause else []), return_exceptions=True)
