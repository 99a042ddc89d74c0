# SPDX-License-Identifier: GPL-2.0-or-later
"""The shared volumes of a VM on this host, in whatever role it has.

A write of the VM, top to bottom: `_Volume.write` keeps it and `_Volume.read` serves it from there; `cut` gives it to
the epoch that ends; `allow` hears that the epoch is committed; `_store` writes it; `stored` lets the epoch's output go.

Alone (`write_through`), everything is due at once, and a flush of the VM is answered when the volumes have it.

Invariant (one writer): what is written is due (`vmlink/volume/withheld.py`), and the lease of this host holds
(`vmlink/volume/lease.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from appliance.errors import told
from appliance.redo import Redo
from appliance.watched import watched
from vmlink import inject
from vmlink.disk.nbd import Export
from vmlink.disk.record import DiskWrites, Kind, Record, Write, lay
from vmlink.disk.server import DiskServer
from vmlink.errors import VmError
from vmlink.volume.access import Access
from vmlink.volume.lease import LeaseOver
from vmlink.volume.spec import VolumeSpec
from vmlink.volume.withheld import Batch, Withheld
from vmlink.wire import Buffer

LOOK = 1.0
"""Seconds between two looks whether the volumes answer."""
RETRY = 1.0
"""Seconds between two attempts to reach them again."""
_LOOK_BYTES = 512
log = logging.getLogger("holdfast.volumes")


class _Volume:
    """One volume as the VM's QEMU sees it; a `vmlink.disk.nbd.Cache`."""

    def __init__(self, volumes: Volumes, index: int, size: int) -> None:
        self._volumes, self._index, self.size = volumes, index, size

    def write(self, kind: Kind, offset: int, length: int, data: Buffer) -> bool:
        self._volumes.withheld.write(self._index, Write(kind, offset, length, data))
        self._volumes.written()
        return True

    async def read(self, offset: int, length: int) -> Buffer:
        overlay = self._volumes.withheld.overlay(self._index)
        # What is stored while the answer is under way may be missing in it: kept here until it is laid over.
        pieces = overlay.pieces(offset, length)
        data = bytearray(length) if overlay.covers(offset, length) else \
            await self._volumes.read(self._index, offset, length)
        lay(pieces, offset, data)
        return data

    async def flush(self) -> None:
        await self._volumes.flushed()


class Volumes:
    """See the module. Use `open`. `limit`: bytes that may be withheld; then the VM's writes wait. `failed` hears that a
    volume does not answer; it is tried again until `close`."""

    def __init__(self, program: str, specs: Sequence[VolumeSpec], path: Path, access: Access, redo: Redo, limit: int,
                 failed: Callable[[VmError], None]) -> None:
        self._program, self.specs, self._path, self._access = program, specs, path, access
        self._redo, self.limit, self._failed = redo, limit, failed
        self.withheld = Withheld(len(specs))
        self.sizes, self.identities = access.sizes, access.identities
        self._volumes = {spec.name: _Volume(self, index, size)
                         for index, (spec, size) in enumerate(zip(specs, access.sizes, strict=True))}
        self.server = DiskServer(self)
        self.filled = asyncio.Event()
        self.progressed: Callable[[], None] = lambda: None
        """Called when the volumes have more than before."""
        self.trouble = ""
        """Why they do not answer; empty when they do."""
        self.term = 0
        """Under which this host writes."""
        self._draining = False
        self._until = 0.0
        self._due, self._progress, self._leased = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._mending = asyncio.Lock()
        self._tasks = [watched(self._write_loop(), "writing to volumes"), watched(self._look(), "looking at volumes")]

    @classmethod
    async def open(cls, program: str, specs: Sequence[VolumeSpec], path: Path, redo: Redo, limit: int,
                   failed: Callable[[VmError], None]) -> Volumes:
        """Reach the volumes by way of `program`, a QEMU with its socket at `path`. Raises VmError."""
        for spec in specs:
            spec.check()
        access = await Access.open(program, specs, path)
        return cls(program, specs, path, access, redo, limit, failed)

    async def close(self) -> None:
        """Write nothing more, end all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.server.close()
        await self._access.close()

    def __len__(self) -> int:
        return len(self.specs)

    def seen(self) -> dict[str, str]:
        """What each volume is, by its name: equal on two hosts that see the same."""
        return {spec.name: identity for spec, identity in zip(self.specs, self.identities, strict=True)}

    def status(self) -> list[dict[str, Any]]:
        """For the status reply."""
        return [{"name": spec.name, "at": spec.at, "size_bytes": size, "identity": identity,
                 "withheld_bytes": self.withheld.overlay(index).size, "stored_epoch": self.withheld.stored,
                 "trouble": self.trouble or None}
                for index, (spec, size, identity)
                in enumerate(zip(self.specs, self.sizes, self.identities, strict=True))]

    # --- for the server of the VM's QEMU ---

    @property
    def full(self) -> bool:
        """Must the VM's writes wait? Not while it is being paused: what is under way must end."""
        return self.withheld.size >= self.limit and not self._draining

    def find(self, name: str) -> Export | None:
        return self._volumes.get(name)

    def written(self) -> None:
        """The VM wrote something."""
        if self.withheld.size >= self.limit:
            self.filled.set()
        if self.withheld.freely:
            self._due.set()

    async def flushed(self) -> None:
        """A flush of the VM. While output is withheld with the writes, it may be answered at once."""
        serial = self.withheld.flush()
        while self.withheld.freely and not self.withheld.has(serial):
            await self._wait()

    async def read(self, volume: int, offset: int, length: int) -> bytearray:
        """What the volume of this index has, however long that takes."""
        while True:
            access = self._access
            try:
                return await access.read(volume, offset, length)
            except VmError as error:
                await self._mend(access, error)

    # --- epochs ---

    def drain(self) -> None:
        """The VM is about to be paused: let all writes in that are under way."""
        self._draining = True
        self.server.go_on()

    def begin(self) -> None:
        """Epochs begin: nothing is written any more before it is committed. While the VM is paused. Raises VmError when
        something is under way that no epoch has."""
        if self.withheld.size:
            raise VmError("the shared volumes do not have yet what the VM wrote while it was alone",
                          self.trouble or "they are slow")
        self.withheld.begin()

    def cut(self, epoch: int) -> list[Record]:
        """What the VM wrote in the epoch that ends now, by volume. While the VM is paused."""
        self._draining = False
        self._room()
        return self.withheld.cut(epoch)

    @property
    def behind(self) -> bool:
        """Must the epoch go on until the volumes have more of those before? Each pause lets in what the VM has under
        way: without this nothing would bound what is withheld of a VM that writes faster than they take it."""
        return self.withheld.ended >= self.limit // 2

    def allow(self, epoch: int) -> None:
        """Epochs up to this one are committed."""
        self.withheld.allow(epoch)
        self._due.set()

    async def stored(self, epoch: int) -> None:
        """Return when the volumes have everything up to this epoch."""
        while self.withheld.stored < epoch:
            await self._wait()

    # --- roles ---

    async def start(self, term: int) -> None:
        """The VM is about to start afresh here. Raises VmError when it is not certain what the volumes lack."""
        self.term = term
        writes = await asyncio.get_running_loop().run_in_executor(None, self._redo.load, term, self.identities)
        self.withheld.redo(writes)

    async def follow(self) -> None:
        """This host is to be the backup: what it had to write is not its own to write any more. Raises VmError."""
        await asyncio.get_running_loop().run_in_executor(None, self._redo.remove)

    def take_over(self, term: int, writes: DiskWrites) -> None:
        """The VM goes on here, from an epoch of which, and of those before it, the volumes may lack these writes."""
        self.term = term
        self.withheld.redo(writes)

    async def write_through(self, then: Callable[[], None]) -> None:
        """This host rightfully runs the VM alone: write all there is, and from now on everything at once. `then` is
        called when the volumes have what was written until now."""
        self.withheld.allow_all()
        self._due.set()
        await self.flushed()
        then()

    def hold(self) -> None:
        """From now on only what is committed may be written."""
        self.withheld.freely = False

    def lease(self, until: float) -> None:
        """Nothing is written from then (monotonic seconds) on, unless a later call moves it."""
        self._until = until
        self._access.lease(until)
        self._leased.set()

    # --- writing ---

    async def _write_loop(self) -> None:
        while True:
            batch = self.withheld.due()
            if batch is None:
                self._due.clear()
                await self._due.wait()
                continue
            while self._until <= time.monotonic():
                self._leased.clear()
                await self._leased.wait()
            access = self._access
            try:
                await self._store(batch, access)
            except LeaseOver:
                continue
            except (VmError, inject.Injected) as error:
                await self._mend(access, error if isinstance(error, VmError) else VmError(str(error)))
                continue
            self.withheld.done(batch)
            self._progress.set()
            self._room()
            self.progressed()

    async def _store(self, batch: Batch, access: Access) -> None:
        loop = asyncio.get_running_loop()
        if batch.again:
            await loop.run_in_executor(None, self._redo.save, self.term, self.identities, self.sizes, batch.writes)
            inject.point("redo.saved")
        await access.write(batch.merged(len(self)))
        if batch.again:
            inject.point("redo.written")
            await loop.run_in_executor(None, self._redo.remove)

    def _room(self) -> None:
        if self.withheld.size < self.limit:
            self.filled.clear()
            self.server.go_on()

    async def _wait(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    # --- volumes that do not answer ---

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            for index in range(len(self)):
                await self.read(index, 0, _LOOK_BYTES)

    async def _mend(self, access: Access, error: VmError) -> None:
        """`access` failed: reach the volumes anew. That its QEMU is gone, with the lease say, is no word on them."""
        async with self._mending:
            if access is not self._access:
                return
            log.warning("%s", error)
            if not await access.gone():
                self._does_not_answer(error)
            await access.close()
            while True:
                try:
                    self._access = await self._reached_again()
                    break
                except VmError as again:
                    self._does_not_answer(again)
                await asyncio.sleep(RETRY)
            self._access.lease(self._until)
            self.trouble = ""
            log.info("the volumes answer again")

    async def _reached_again(self) -> Access:
        """Raises VmError: also when it is another volume that answers now, which is not this VM's to write to."""
        access = await Access.open(self._program, self.specs, self._path)
        if access.identities == self.identities:
            return access
        await access.close()
        raise VmError(f"another volume answers: {', '.join(access.identities)} instead of {', '.join(self.identities)}",
                      "look at what the target exports; a volume is resized while its VM runs nowhere")

    def _does_not_answer(self, error: VmError) -> None:
        if not self.trouble:
            self._failed(error)
        self.trouble = told(error)
