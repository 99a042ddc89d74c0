# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the other host's copy of a VM's disks, for a VM whose own images cannot be read."""

from __future__ import annotations

import asyncio
import errno
import itertools

from appliance.peer import Peer
from vmlink.wire import Buffer, DiskData, DiskRead, Message, Type, WireError

READ_TIMEOUT = 3.0
"""Seconds for an answer. A pause of the VM waits for it: less than a command to QEMU may take."""


class Partner:
    """See the module. `vm` is its number on the wire."""

    def __init__(self, peer: Peer, vm: int) -> None:
        self._peer, self._vm = peer, vm
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[int, asyncio.Future[Buffer]]] = {}
        self.term = 0
        """Under which is asked."""

    async def read(self, disk: int, offset: int, length: int) -> Buffer:
        """`length` bytes of the disk of this index. Raises OSError (EIO) when they cannot be had now."""
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._asked[number] = length, answer
        try:
            question = DiskRead(number, disk, offset, length)
            self._peer.send(Message(Type.DISK_READ, self._vm, self.term, 0, (question.encode(),)))
            async with asyncio.timeout(READ_TIMEOUT):
                data: Buffer = await answer
                return data
        except TimeoutError:
            raise OSError(errno.EIO, f"the other host did not answer within {READ_TIMEOUT:g} s") from None
        finally:
            del self._asked[number]

    def answered(self, payload: Buffer) -> None:
        """An answer of the other host. Raises WireError when it makes no sense."""
        said = DiskData.decode(payload)
        length, answer = self._asked.get(said.number, (0, None))
        if answer is None or answer.done():
            return  # too late
        if said.error:
            answer.set_exception(OSError(errno.EIO, "the other host cannot read its copy either"))
        elif len(said.data) != length:
            raise WireError(f"{len(said.data)} bytes of a disk where {length} were asked for")
        else:
            answer.set_result(said.data)

    def lost(self) -> None:
        """Nothing that was asked will be answered."""
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(OSError(errno.EIO, "the other host's copy is not to be had now"))
