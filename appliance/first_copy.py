# SPDX-License-Identifier: GPL-2.0-or-later
"""The first copy of a VM to its backup, while it runs: what both must have alike, then everything it has."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from appliance.peer import Peer
from vmlink import inject
from vmlink.checkpoint import Checkpointer, Round, round_messages
from vmlink.qemu import Qemu
from vmlink.ram import GuestRam
from vmlink.wire import Message, Type

WINDOW = 8 << 20
"""Bytes of a first copy under way at once: enough for the links, little for what has to follow."""


class SyncOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the first copy will need on the other side. `disks`: the size of each, in bytes, by name."""

    memory_bytes: int
    qemu: str
    machine: str  # vmlink.spec.fingerprint: machine, command line, content of kernel and initrd
    disks: dict[str, int] = {}


async def offer_of(qemu: Qemu, ram: GuestRam) -> SyncOffer:
    """What `qemu` is; both hosts must come to the same."""
    machine = await asyncio.get_running_loop().run_in_executor(None, qemu.fingerprint)
    disks = {drive.spec.name: drive.size for drive in qemu.drives or ()}
    return SyncOffer(ram.size, qemu.version, machine, disks)


class FirstCopy:
    """One first copy. `progress` is for the status."""

    def __init__(self, qemu: Qemu, ram: GuestRam, peer: Peer, vm: int, checkpointer: Checkpointer) -> None:
        self._qemu, self._ram, self._peer, self._vm, self._checkpointer = qemu, ram, peer, vm, checkpointer
        self.progress: dict[str, Any] | None = None

    async def run(self, term: int, copy: int, stopping: asyncio.Event) -> None:
        """Copy to the replica of number `copy`; returns early when `stopping` is set or the peer is gone."""
        offer = await offer_of(self._qemu, self._ram)
        self._peer.send(Message(Type.SYNC, self._vm, term, copy, (msgspec.json.encode(offer),)))
        done, begun = 0, time.monotonic()
        async for piece in self._checkpointer.rounds():
            if stopping.is_set() or not await self._peer.room(WINDOW):
                return
            for message in round_messages(piece, self._vm, term):
                self._peer.send(message)
            inject.point("sync.round")
            done = self._count(piece, done, time.monotonic() - begun)
        await self._peer.room(1)  # from the next pause on output waits: not behind all that is still under way

    def _count(self, piece: Round, done: int, seconds: float) -> int:
        page = self._ram.pages.shape[1]
        done += len(piece.numbers) * page
        total = max(done, self._ram.size + (piece.pages * page if piece.number else 0))
        rate = done / max(seconds, 1e-3)
        self.progress = {"round": piece.number, "done_bytes": done, "total_bytes": total, "bytes_per_s": round(rate),
                         "left_s": round((total - done) / rate, 1) if rate else None}
        return done
