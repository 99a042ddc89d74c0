# SPDX-License-Identifier: GPL-2.0-or-later
"""The way to the shared volumes of one VM: a QEMU of our own that knows their protocols, and ends with the lease.

What fails once is not used again: close it, and open another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from vmlink import inject
from vmlink.disk.exporter import exporting
from vmlink.disk.images import write_all
from vmlink.disk.record import DiskWrites, Kind, Write
from vmlink.disk.store import Store
from vmlink.errors import VmError
from vmlink.process import Child
from vmlink.volume.lease import Lease
from vmlink.volume.spec import VolumeSpec

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT = 5.0
"""Seconds in which a volume must have answered: a read, or a portion of what is written."""
PORTION = 1 << 20
"""Bytes in a portion: a volume that is slow, and not gone, has done it in time however much waits for it."""
MOST = 64
"""Writes in a portion."""
ZEROS = 64 << 20
"""Bytes of zeros in a write."""
FLUSH_EACH = 4
"""Portions after which the volumes are flushed: no flush has more to do."""
GONE = 0.2
"""Seconds in which a QEMU that was killed is known to be gone."""
READERS = 4
"""Reads under way at once, of each volume."""


class Access:
    """See the module. Use `open`. `sizes`: bytes of each volume; `identities`: see VolumeSpec."""

    def __init__(self, volumes: Sequence[VolumeSpec]) -> None:
        self._volumes = volumes
        self._undo = contextlib.AsyncExitStack()
        self._threads = ThreadPoolExecutor(READERS + 1, "volumes")
        self._lease = Lease()
        self._writers: list[Store] = []
        self._readers: list[asyncio.Queue[Store]] = []
        self._stores: list[Store] = []
        self._child: Child | None = None
        self._moved = 0.0
        self._closed = False
        self.sizes: list[int] = []
        self.identities: list[str] = []

    @classmethod
    async def open(cls, program: str, volumes: Sequence[VolumeSpec], path: Path) -> Access:
        """Start `program`, a QEMU, and let it reach all volumes; `path` is for its socket. Main thread only.

        Raises VmError.
        """
        self = cls(volumes)
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._open(program, path)
        except TimeoutError:
            await self.close()
            raise VmError(f"{self}: no answer within {TIMEOUT:g} s", _REMEDY) from None
        except BaseException:
            await self.close()
            raise
        return self

    async def _open(self, program: str, path: Path) -> None:
        exports, self._child = await self._undo.enter_async_context(
            exporting(program, path, environment=self._lease.environment(), pass_fds=(self._lease.theirs.fileno(),)))
        self._lease.theirs.close()
        for volume in self._volumes:
            try:
                await exports.shared(volume.name, volume.objects(), volume.node(f"{volume.name}-shared"))
            except VmError as error:
                raise VmError(f"{volume}: {error.message}", _REMEDY) from error
            writer, *readers = [await self._run(self._connected, path, volume) for _ in range(READERS + 1)]
            self._writers.append(writer)
            self._readers.append(asyncio.Queue())
            for reader in readers:
                self._readers[-1].put_nowait(reader)
            self.sizes.append(writer.size)
            self.identities.append(await self._run(volume.identity, writer.size))

    def _connected(self, path: Path, volume: VolumeSpec) -> Store:
        store = Store(volume.name)
        self._stores.append(store)
        store.connect(path, volume.name)
        return store

    async def close(self) -> None:
        """End it; what is under way fails, and so does what is asked for later. Idempotent."""
        self._closed = True
        for store in self._stores:
            store.close()
        await self._undo.aclose()
        self._lease.close()
        self._threads.shutdown(wait=False)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:  # by who reaches the volumes anew, while others still ask here
            raise VmError(f"{self}: not reached at the moment", _REMEDY)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def gone(self) -> bool:
        """Has its QEMU ended, by itself or because the lease did?"""
        if self._child is not None:
            await self._child.condition(GONE)
        return self._child is None or bool(self._child.ended)

    # --- what it is for ---

    def lease(self, until: float) -> None:
        """Writes are allowed until then (monotonic seconds)."""
        self._lease.renew(until)

    async def read(self, volume: int, offset: int, length: int) -> bytearray:
        """What the volume of this index holds there. Raises VmError."""
        store = await self._readers[volume].get()
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._run(store.read, offset, length)
        except TimeoutError:
            store.close()
            raise VmError(f"{self._volumes[volume]}: no answer within {TIMEOUT:g} s", _REMEDY) from None
        finally:
            self._readers[volume].put_nowait(store)

    async def write(self, writes: Sequence[Sequence[Write]]) -> None:
        """Perform writes that do not overlap, by volume; they are flushed when this returns.

        Raises VmError, or LeaseOver.
        """
        self._moved = time.monotonic()
        working = asyncio.ensure_future(self._run(self._write, writes))
        while not working.done():
            left = self._moved + TIMEOUT - time.monotonic()
            if left <= 0:
                for store in self._writers:
                    store.close()  # which ends the work
                await asyncio.wait((working,), timeout=TIMEOUT)
                raise VmError(f"{self}: nothing was written within {TIMEOUT:g} s", _REMEDY)
            await asyncio.wait((working,), timeout=left)
        await working

    def _write(self, writes: Sequence[Sequence[Write]]) -> None:
        portions = list(_portions((volume, write) for volume, some in enumerate(writes) for write in some))
        with self._lease.writing():
            inject.point("volume.writing")
            for number, portion in enumerate(portions, 1):
                passing = _half if number == len(portions) // 2 + 1 else _on
                write_all(self._writers, portion, passing)
                self._moved = time.monotonic()
                if number % FLUSH_EACH == 0 or number == len(portions):
                    self._flush(writes)
        inject.point("volume.written")

    def _flush(self, writes: Sequence[Sequence[Write]]) -> None:
        for store, some in zip(self._writers, writes, strict=True):
            if some:
                store.flush()
                self._moved = time.monotonic()

    def __str__(self) -> str:
        return "; ".join(map(str, self._volumes))


def _half() -> None:
    inject.point("volume.half")


def _on() -> None:
    pass


def _portions(writes: Iterable[tuple[int, Write]]) -> Iterator[DiskWrites]:
    """The writes, which do not overlap, in portions that a slow volume does in time."""
    portion: DiskWrites = []
    size = 0
    for volume, write in writes:
        step = max(PORTION, len(write.data)) if write.kind is Kind.WRITE else ZEROS
        for at in range(0, write.length, step):
            if portion and (size + len(write.data) > PORTION or len(portion) == MOST or not write.data):
                yield portion
                portion, size = [], 0
            portion.append((volume, Write(write.kind, write.offset + at, min(step, write.length - at), write.data)))
            size += len(write.data)
    if portion:
        yield portion


_REMEDY = "look at the storage network, at the target, and at what it lets this host do"
