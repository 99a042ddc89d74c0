# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a replica: the copy that begins it, what the primary asks of them, and the epochs they have taken."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from appliance.peer import Peer
from appliance.watched import watched
from vmlink.disk.apply import Applier
from vmlink.disk.compare import Question
from vmlink.disk.offer import Begin
from vmlink.disk.record import DiskWrites
from vmlink.errors import VmError
from vmlink.wire import Ack, Buffer, DiskData, DiskRead, Message, Type, WireError

MOST_ASKED = 1024
"""Questions and reads that may be open at once; a primary asks less."""
log = logging.getLogger("holdfast.backup")


class BackupDisks:
    """See the module. `applier` works on the images and is ours to close; `sizes`: bytes of each disk."""

    def __init__(self, applier: Applier, sizes: list[int], vm: int, peer: Peer) -> None:
        self.applier, self.sizes, self._vm, self._peer = applier, sizes, vm, peer
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = False
        self._unsaid: list[tuple[int, int]] = []
        """Term and number of whole epochs that wait for room before they are acknowledged."""

    async def close(self) -> None:
        """Answer nothing more, apply nothing more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.applier.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= MOST_ASKED:
            work.close()
            raise WireError(f"more than {MOST_ASKED} questions about disks at once")
        task = watched(work, "disks of a replica")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what the primary says and asks, in its order ---

    def offer(self, term: int) -> None:
        """A first copy is to begin: say what these images hold. Nobody waits any more for what was asked before."""
        for task in list(self._tasks):
            task.cancel()
        self._unsaid.clear()
        self._begun = False
        self._spawn(self._answer(Type.DISK_STATE, term, self._offered))

    def message(self, message: Message, payload: Buffer) -> None:
        """A message about disks that belongs to no epoch. Raises WireError when it makes no sense."""
        term = message.term
        if message.type is Type.DISK_BEGIN:
            begin = Begin.decode(payload)
            self.applier.begin(begin.generation, begin.since, term)
            self._begun = True
        elif message.type is Type.DISK_ASK:
            question = Question.decode(payload, self.sizes)
            self._spawn(self._answer(Type.DISK_HASHES, term, lambda: self._hashes(question)))
        elif message.type is Type.DISK_READ:
            read = DiskRead.decode(payload, self.sizes)
            self._spawn(self._answer(Type.DISK_DATA, term, lambda: self._read(read)))

    def copy(self, writes: DiskWrites) -> None:
        """A piece of the first copy. Raises WireError before one has begun: the images are still those of another."""
        if not self._begun:
            raise WireError("a piece of a disk before its first copy has begun")
        self.applier.copy(writes)

    async def _answer(self, kind: Type, term: int,
                      work: Callable[[], Coroutine[Any, Any, tuple[Buffer, ...]]]) -> None:
        try:
            payload = await work()
        except VmError as error:  # the applier has told it, or will: whoever asks hears that the replica is gone
            log.debug("%s is not answered: %s", kind.name, error)
            return
        self._peer.send(Message(kind, self._vm, term, 0, payload))

    async def _offered(self) -> tuple[Buffer, ...]:
        return (await self.applier.offered()).encode()

    async def _hashes(self, question: Question) -> tuple[Buffer, ...]:
        return ((await self.applier.answer(question)).encode(),)

    async def _read(self, read: DiskRead) -> tuple[Buffer, ...]:
        try:
            data = await self.applier.read(read.disk, read.offset, read.length)
        except VmError as error:
            log.warning("a read for the primary failed: %s", error)
            return DiskData(read.number, errno.EIO).encode()
        return DiskData(read.number, 0, data).encode()

    # --- epochs ---

    def commit(self, term: int, epoch: int, writes: DiskWrites) -> None:
        """A whole epoch: apply it, and acknowledge it as soon as not too much waits. Raises WireError as `copy`."""
        if not self._begun:
            raise WireError(f"epoch {epoch} before the first copy of the disks has begun")
        self.applier.add(epoch, writes)
        self._unsaid.append((term, epoch))
        if len(self._unsaid) == 1:
            if self.applier.has_room:
                self._acknowledge()
            else:
                self._spawn(self._acknowledge_later())

    async def _acknowledge_later(self) -> None:
        await self.applier.room()
        self._acknowledge()

    def _acknowledge(self) -> None:
        for term, epoch in self._unsaid:
            self._peer.send(Message(Type.ACK, self._vm, term, epoch, (Ack(self.applier.durable).encode(),)))
        self._unsaid.clear()
