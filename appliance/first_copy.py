# SPDX-License-Identifier: GPL-2.0-or-later
"""The first copy of a VM to its backup, while it runs: what both must have alike, then everything it has."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from appliance.disk_rounds import WINDOW, DiskRounds
from appliance.journal import Journal
from appliance.peer import Peer
from appliance.volumes import Volumes
from vmlink import inject
from vmlink.checkpoint import Checkpointer, Round, round_messages
from vmlink.qemu import Qemu
from vmlink.ram import GuestRam
from vmlink.wire import Message, Type


class SyncOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the first copy will need on the other side. `disks`: the size of each, in bytes, by name; `slots`: its place
    on their bus. `volumes`: what each shared volume is, by name."""

    memory_bytes: int
    qemu: str
    machine: str  # vmlink.spec.fingerprint: machine, command line, content of kernel and initrd
    disks: dict[str, int] = {}
    slots: dict[str, int] = {}
    volumes: dict[str, str] = {}


async def offer_of(qemu: Qemu, ram: GuestRam, volumes: Volumes | None) -> SyncOffer:
    """What `qemu` is; both hosts must come to the same."""
    machine = await asyncio.get_running_loop().run_in_executor(None, qemu.fingerprint)
    disks = {drive.spec.name: drive.size for drive in qemu.drives or ()}
    slots = {drive.spec.name: drive.spec.slot for drive in qemu.drives or ()}
    seen = volumes.seen() if volumes is not None else {}
    return SyncOffer(ram.size, qemu.version, machine, disks, slots, seen)


class FirstCopy:
    """One first copy. `progress` is for the status."""

    def __init__(self, qemu: Qemu, ram: GuestRam, peer: Peer, vm: int, checkpointer: Checkpointer,
                 disks: DiskRounds | None, volumes: Volumes | None, journal: Journal) -> None:
        self._qemu, self._ram, self._peer, self._vm, self._checkpointer = qemu, ram, peer, vm, checkpointer
        self.disks, self._volumes, self._journal = disks, volumes, journal
        self._memory: dict[str, Any] | None = None

    async def run(self, term: int, copy: int, stopping: asyncio.Event) -> None:
        """Copy to the replica of number `copy`; returns early when `stopping` is set or the peer is gone."""
        offer = await offer_of(self._qemu, self._ram, self._volumes)
        self._peer.send(Message(Type.SYNC, self._vm, term, copy, (msgspec.json.encode(offer),)))
        if self.disks is None:
            await self._copy_memory(term, stopping)
        else:
            async with self.disks.copying() as disks:
                if not (await disks.most() and await self._copy_memory(term, stopping)
                        and await disks.catch_up() and await self._copy_memory(term, stopping, again=True)):
                    return
                if not await disks.last():
                    return
                self._journal.event("disks-copied", term=term, **disks.summary())
        await self._peer.room(1)  # from the next pause on output waits: not behind all that is still under way

    async def _copy_memory(self, term: int, stopping: asyncio.Event, *, again: bool = False) -> bool:
        """`again`: only what was written since. Returns whether it got to its end."""
        done, begun = 0, time.monotonic()
        async for piece in self._checkpointer.rounds(again=again):
            if stopping.is_set() or not await self._peer.room(WINDOW):
                return False
            for message in round_messages(piece, self._vm, term):
                self._peer.send(message)
            inject.point("sync.round")
            done = self._count(piece, done, time.monotonic() - begun)
        return not stopping.is_set()

    @property
    def progress(self) -> dict[str, Any] | None:
        """For the status: of what is being copied now."""
        return self._memory if self.disks is None or self.disks.progress is None else self.disks.progress

    def _count(self, piece: Round, done: int, seconds: float) -> int:
        page = self._ram.pages.shape[1]
        done += len(piece.numbers) * page
        total = max(done, self._ram.size + (piece.pages * page if piece.number else 0))
        rate = done / max(seconds, 1e-3)
        self._memory = {"round": piece.number, "done_bytes": done, "total_bytes": total, "bytes_per_s": round(rate),
                        "left_s": round((total - done) / rate, 1) if rate else None}
        return done
