# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves the disks of one QEMU over a nameless UNIX socket. See `nbd.py` for the protocol.

The socket has an address that the kernel chose, in the abstract name space: nothing is left behind, and QEMU can
come back when a connection breaks. Only the process that was admitted gets in.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections import deque
from collections.abc import Awaitable
from typing import Protocol

from vmlink.disk import far_end
from vmlink.disk.nbd import Cache, Conversation, Export, ProtocolError
from vmlink.wire import Buffer

HANDSHAKE_TIMEOUT = 5.0
"""Seconds in which a connection must have said which disk it wants."""
MOST_CONNECTIONS = 64
UNSENT = 4 << 20
"""Bytes of answers that QEMU may leave unread; nothing more is read from it meanwhile."""
TURNS = 4
"""Times that a connection is read before others have their turn."""
_CREDENTIALS = struct.Struct("3i")
log = logging.getLogger("holdfast.disk")


class Disks(Protocol):
    """All disks of a VM."""

    @property
    def full(self) -> bool:
        """Must the VM's writes wait?"""
        ...

    def find(self, name: str) -> Export | None:
        """The disk of this name."""
        ...


class DiskServer:
    """See the module. `address` is what QEMU connects to."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._loop = asyncio.get_running_loop()
        self._admitted = 0
        self._connections: set[_Connection] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind("")  # the kernel chooses
        self._socket.listen(MOST_CONNECTIONS)
        self.address = bytes(self._socket.getsockname()[1:]).decode()
        self._loop.add_reader(self._socket, self._accept)

    def admit(self, pid: int) -> None:
        """Let this process in, and no other."""
        self._admitted = pid

    def serves(self, name: str) -> bool:
        """Is there a connection for the disk of this name?"""
        disk = self._disks.find(name)
        return disk is not None and any(connection.about(disk) for connection in self._connections)

    def go_on(self) -> None:
        """There is room again: take what waits."""
        for connection in list(self._connections):
            connection.go_on()

    def close(self) -> None:
        """End it all. Idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        for connection in list(self._connections):
            connection.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return
        pid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        if pid != self._admitted or len(self._connections) >= MOST_CONNECTIONS:
            log.warning("refused process %d at the disks of process %d", pid, self._admitted)
            sock.close()
            return
        sock.setblocking(False)
        far_end.widen(pid, sock.getsockname())
        self._connections.add(_Connection(sock, self._disks, self._connections))


class _Connection:
    """One connection of QEMU's."""

    def __init__(self, sock: socket.socket, disks: Disks, all_of_them: set[_Connection]) -> None:
        self._socket, self._disks, self._all = sock, disks, all_of_them
        self._loop = asyncio.get_running_loop()
        self._talk = Conversation(disks.find, self._read, self._flush)
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._listening = False
        self._reads: set[asyncio.Task[None]] = set()
        self._patience = self._loop.call_later(HANDSHAKE_TIMEOUT, self._impatient)
        self._send()
        self._listen()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._patience.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._all.discard(self)
        for read in list(self._reads):
            read.cancel()

    def about(self, disk: Export) -> bool:
        return self._talk.export is disk

    def _impatient(self) -> None:
        if self._talk.export is None:
            log.warning("a connection of QEMU did not say which disk it wants")
            self.close()

    # --- receiving ---

    def _listen(self) -> None:
        """Read from QEMU, unless it has to wait."""
        wanted = self._wanted
        if wanted and not self._listening:
            self._loop.add_reader(self._socket, self._readable)
        elif self._listening and not wanted:
            self._loop.remove_reader(self._socket)
        self._listening = wanted

    @property
    def _wanted(self) -> bool:
        return not (self._talk.stuck or self._disks.full or self._unsent_bytes > UNSENT)

    def go_on(self) -> None:
        if self._socket.fileno() >= 0:
            self._listen()

    def _readable(self) -> None:
        """Take what has arrived, and what arrives while it is taken: QEMU sends request after request."""
        try:
            for _ in range(TURNS):
                count = self._socket.recv_into(self._talk.room())
                if not count:
                    self.close()
                    return
                self._talk.received(count)
                if self._talk.over or not self._wanted:
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            return
        except ProtocolError as error:
            self._broken(error)
            return
        self._answer_all()

    def _answered(self) -> None:
        """A read has its answer: go on with what waited for it."""
        try:
            self._talk.proceed()
        except ProtocolError as error:
            self._broken(error)
            return
        self._answer_all()

    def _broken(self, error: ProtocolError) -> None:
        log.error("a connection of QEMU to a disk ends: %s", error)
        self.close()

    def _answer_all(self) -> None:
        self._send()
        if self._talk.over:
            self.close()
        elif self._socket.fileno() >= 0:
            self._listen()

    # --- reads and flushes, which take their time ---

    def _read(self, handle: int, offset: int, length: int) -> None:
        disk = self._talk.export
        assert disk is not None
        self._start(handle, disk.read(offset, length))

    def _flush(self, handle: int) -> None:
        disk = self._talk.export
        assert isinstance(disk, Cache)
        self._start(handle, _nothing(disk.flush()))

    def _start(self, handle: int, work: Awaitable[Buffer]) -> None:
        task = self._loop.create_task(self._answer(handle, work))
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)

    async def _answer(self, handle: int, work: Awaitable[Buffer]) -> None:
        try:
            data = await work
        except OSError as error:
            self._talk.fail(handle, error.errno or errno.EIO)
        else:
            self._talk.data(handle, data)
        self._answered()

    # --- sending ---

    def _send(self) -> None:
        """What was answered, in one piece if QEMU takes it."""
        answers = self._talk.answers
        if not answers:
            return
        data = memoryview(answers[0] if len(answers) == 1 else b"".join(answers))
        answers.clear()
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if len(self._unsent) == 1:
            self._writable()

    def _writable(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent[0])
                self._unsent_bytes -= sent
                if sent < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                else:
                    self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket, self._writable)
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._socket)
        self._listen()


async def _nothing(work: Awaitable[None]) -> Buffer:
    await work
    return b""
