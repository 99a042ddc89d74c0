# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of one VM on this host, in whatever role it has: what their images hold is remembered before it changes.

    start --> a VM that boots        receive --> a waiting QEMU whose images take epochs --> take over
    readable --> a VM that runs, whose disks are copied        rest, handed over --> the VM has ended here
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

from appliance import config as cfg
from appliance.disk_settings import Disk, claimed
from vmlink import inject
from vmlink.disk import state as st
from vmlink.disk.apply import Applier
from vmlink.disk.dirty import DirtyBlocks
from vmlink.disk.drive import Drive, Drives
from vmlink.disk.export import Exports
from vmlink.disk.exporter import connected, exporting, offer, replay
from vmlink.disk.holders import refuse_in_use
from vmlink.disk.images import Images
from vmlink.disk.mirror import Mirror
from vmlink.disk.resize import enlarge
from vmlink.disk.spec import DiskSpec
from vmlink.disk.state import Point
from vmlink.disk.store import Store
from vmlink.errors import VmError
from vmlink.qemu import Qemu, VmSpec

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Past:
    """What is known of the images when the VM begins to run on them: since when, and where, the other host's copy of
    each disk may differ."""

    point: Point | None
    lists: Sequence[DirtyBlocks] = ()


class Disks:
    """See the module. Everything raises VmError when the images or the journal cannot be used. `others`: the disks of
    this host's other VMs, by their names."""

    def __init__(self, spec: VmSpec, host: cfg.Host, others: Mapping[str, tuple[Disk, ...]]) -> None:
        self._spec, self._others = spec, others
        self._journal_path = host.state_dir / f"{spec.name}.disks"
        self._socket_path = host.run_dir / f"{spec.name}.disks.sock"
        self._images: Images | None = None
        self._exports: Exports | None = None

    async def close(self) -> None:
        """The images may be used by others then."""
        if self._images is not None:
            await _in_thread(self._images.close)
            self._images = None

    async def _look(self) -> Images:
        """The images as they are now: while no VM of ours used them, the operator may have changed them."""
        await self.close()
        await _in_thread(self._refuse_foreign)
        self._images = await _in_thread(Images, self._spec.disks, self._journal_path)
        return self._images

    def _refuse_foreign(self) -> None:
        """What is another's would be spoilt, for both. The configuration was checked, but files may come later."""
        for disk in self._spec.disks:
            if whose := claimed(disk.path, self._others):
                raise VmError(f"{disk}: it is {whose} as well", "each disk needs its own image: correct path= of one")
            refuse_in_use(disk)

    def _opened(self) -> Images:
        assert self._images is not None
        return self._images

    def status(self, drives: Drives | None, applier: Applier | None) -> dict[str, Any]:
        """For the status reply; see docs/disks.md."""
        state = self._images.state if self._images is not None else None
        whole = {image.name: image.whole for image in state.images} if state is not None else {}
        opened = {drive.spec.name: drive for drive in drives or ()}
        return {
            "standing": state.standing if state is not None else None,
            "unapplied_bytes": applier.waiting_bytes if applier is not None else 0,
            "durable_epoch": applier.durable if applier is not None else None,
            "disks": [{"name": disk.name, "path": str(disk.path), "format": disk.format, "whole": whole.get(disk.name),
                       **_figures(opened.get(disk.name), runs=applier is None)} for disk in self._spec.disks],
        }

    # --- a VM that boots ---

    async def start(self, term: int) -> Past:
        """The VM is about to start afresh here. Raises VmError when an image is not whole."""
        images = await self._look()
        await self._replay(images)
        return Past(*await _in_thread(images.start, term))

    async def _replay(self, images: Images) -> None:
        """Bring the epochs that the journal has into the images, which no QEMU uses."""
        if images.pending:
            async with exporting(self._spec.binary(), self._socket_path) as (exports, _):
                await offer(exports, self._spec.disks)
                await _in_thread(replay, images, exports, self._spec.disks)

    # --- disks that come, go and grow ---

    def became(self, disks: tuple[DiskSpec, ...]) -> None:
        """The disks are these from now on."""
        self._spec = replace(self._spec, disks=disks)

    async def remember(self, work: Callable[Concatenate[Images, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have `work` done on what is remembered of the images; it is on disk when this returns."""
        await _in_thread(work, self._opened(), *args, **kwargs)

    async def enlarge(self, sizes: dict[str, int]) -> None:
        """Give images that no VM uses these sizes, bytes by name of the disk: those of the VM on the other host."""
        images = await self._look()
        late = {disk: sizes[disk.name] for disk, size in zip(self._spec.disks, images.sizes, strict=True)
                if sizes.get(disk.name, size) != size}
        if late:
            await self._replay(images)
        for disk, size in late.items():
            await self.remember(Images.growing, disk.name, size)
            inject.point("disk.follow.noted")
            await _in_thread(enlarge, disk, size)
            inject.point("disk.follow.done")

    # --- a replica ---

    async def receive(self, qemu: Qemu, limit: int, failed: Callable[[Exception], None]) -> Applier:
        """Have epochs applied to the images of a QEMU that waits. See Applier for `limit` and `failed`."""
        images = await self._look()
        self._exports = exports = Exports(qemu.monitor, self._socket_path)
        await offer(exports, self._spec.disks)
        applier = Applier(images, limit, failed)
        try:
            await applier.open(lambda: connected(exports, self._spec.disks))
        except BaseException:
            await applier.close()
            raise
        return applier

    async def take_over(self, applier: Applier, term: int) -> Past:
        """Finish all epochs, remember that the VM writes here from now on, and give the images free for it."""
        point = await applier.take_over(term)
        await applier.close()
        assert self._exports is not None
        await self._exports.withdraw()
        return Past(point)

    # --- a VM that runs ---

    def mirror(self, drives: Drives, past: Past) -> Mirror:
        """What is known of the other host's copies, from now on."""
        for drive, blocks in zip(drives, past.lists, strict=bool(past.lists)):
            drive.dirty.add(blocks.take())
        return Mirror(drives, past.point)

    @contextlib.asynccontextmanager
    async def readable(self, qemu: Qemu) -> AsyncIterator[list[Store]]:
        """Stores to read the disks of a VM that runs here; for one thread."""
        if self._exports is None:
            self._exports = Exports(qemu.monitor, self._socket_path)
        exports = self._exports
        stores: list[Store] = []
        try:
            for disk in self._spec.disks:
                await exports.node(disk.name, f"{disk.name}-local")
            stores = await _in_thread(connected, exports, self._spec.disks)
            yield stores
        finally:
            for store in stores:
                store.close()
            with contextlib.suppress(VmError):  # with QEMU they are gone as well
                await exports.withdraw()

    async def fail(self, disk: str) -> None:
        """Remember that this disk's image will miss what the VM writes from now on; it is on disk when this returns.
        """
        await _in_thread(self._opened().fail, disk)

    # --- a VM that ended ---

    async def rest(self, mirror: Mirror, drives: Drives) -> None:
        """The VM ended in good order, all its writes done: where it wrote since the common point is kept."""
        images = self._opened()
        await _in_thread(images.rest, mirror.point, [drive.dirty for drive in drives])

    async def handed_over(self, point: Point) -> None:
        """The VM was paused for good, and the other host has all of it: these images are a replica of that point."""
        images = self._opened()
        await _in_thread(images.set, st.handed_over(images.state, point))

    def forget_qemu(self) -> None:
        """The QEMU is gone, and its exports with it."""
        if self._exports is not None:
            self._exports.close()
            self._exports = None


def _figures(drive: Drive | None, *, runs: bool) -> dict[str, int | None]:
    """Of one disk, None if it is not open; `runs`: by the VM here."""
    return {"size_bytes": drive.size if drive is not None else None,
            "to_copy_bytes": drive.dirty.marked_bytes if drive is not None and runs else 0,
            "recorded_bytes": drive.recorded_bytes if drive is not None else 0,
            "other_reads": drive.reads if drive is not None else 0}


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, lambda: work(*args, **kwargs))
