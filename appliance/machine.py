# SPDX-License-Identifier: GPL-2.0-or-later
"""One VM's QEMU and front on this host: started, made a replica, taken over, handed over, stopped.

Everything that starts or ends a QEMU runs in one worker, in the order it was ordered; what shuts or holds
output happens at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from appliance import config as cfg
from appliance import core
from appliance.backup import Backup
from appliance.backup_disks import BackupDisks
from appliance.disk_sections import followed
from appliance.disk_view import DiskView
from appliance.disks import Disks, Past
from appliance.errors import HoldfastError, told
from appliance.front import Front, FrontSpec
from appliance.journal import Journal
from appliance.peer import Peer
from appliance.primary import Primary
from appliance.primary_disks import PrimaryDisks
from appliance.volume_care import VolumeCare
from appliance.volumes import Volumes
from appliance.watched import watched
from ebpf.errors import BpfError
from vmlink import inject
from vmlink.disk.drive import Drives
from vmlink.disk.spec import DiskSpec, placed
from vmlink.errors import VmError
from vmlink.qemu import Qemu, VmSpec
from vmlink.ram import GuestRam
from vmlink.wire import Message, Type, decode_frames, decode_pieces, vm_id

T = TypeVar("T")
log = logging.getLogger("holdfast.machine")

ANNOUNCEMENTS = (0.0, 0.05, 0.2, 0.6, 1.5)
"""Seconds after the gate opened at which the VM is announced again."""
HALT_TIMEOUT = 1.0
"""Seconds for a VM with disks to pause before it is ended; else its next copy has to compare all of them."""
FAULTS = (VmError, HoldfastError, BpfError, OSError, inject.Injected)


class Machine:
    """See the module. `post` takes what the decision core must hear."""

    def __init__(self, name: str, vm: cfg.Vm, config: cfg.Config, peer: Peer, journal: Journal,
                 post: Callable[[core.Event], None]) -> None:
        self.name, self._id, self._vm, self._config = name, vm_id(name), vm, config
        self._peer, self._journal, self.post = peer, journal, post
        self.front_spec = FrontSpec(name, vm.mac, vm.ip, vm.bridge, vm.limits.held)
        self.front: Front | None = None
        self.qemu: Qemu | None = None
        self._ram: GuestRam | None = None
        self.drives: Drives | None = None
        self.volumes: Volumes | None = None
        self._spec = VmSpec(name=name, memory_bytes=vm.memory, vcpus=vm.vcpus, mac=vm.mac, kernel=vm.kernel,
                            initrd=vm.initrd, append=vm.append, qemu=vm.qemu, accel=vm.accel,
                            disks=placed([DiskSpec(each.name, each.path, each.format, each.size) for each in vm.disk]),
                            volumes=tuple(volume.spec() for volume in vm.volume))
        others = {other: of.disk for other, of in config.vm.items() if other != name}
        self.disks = Disks(self._spec, config.host, others) if vm.disk else None
        self._sizes: dict[str, int] = {}  # what the other host's VM has, by disk
        self.volume_care = VolumeCare(self, vm, config.host, journal)
        self.view = DiskView(self, vm)
        self.primary: Primary | None = None
        self.backup: Backup | None = None
        self._taken_from = 0
        """The term whose replica this VM was taken over from: what its host still forwards belongs here."""
        self._again: list[bytes] = []
        """Frames of committed epochs that clients may not have got, for the moment at which the gate opens."""
        self.life = 0
        self._work: asyncio.Queue[tuple[int, Callable[[], Awaitable[None]]]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._announcer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Prepare the front, silent. Raises HoldfastError or BpfError."""
        self.front = await Front.create(self.front_spec)
        self.front.sends_itself = self._journal.trail.sends_itself
        self.spawn(self._worker())

    async def close(self) -> None:
        """End the VM here and take everything away."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end()
        if self.disks is not None:
            await self.disks.close()
        if self.front is not None:
            await self.front.close()

    @property
    def disk_specs(self) -> tuple[DiskSpec, ...]:
        """The disks that the VM has here, or would have."""
        return self._spec.disks

    def became(self, disks: tuple[DiskSpec, ...]) -> None:
        """The disks of the VM are these from now on."""
        self._spec = replace(self._spec, disks=disks)
        if self.qemu is not None:
            self.qemu.spec = self._spec
        if self.disks is not None:
            self.disks.became(disks)

    async def follow(self, sizes: dict[str, int], slots: dict[str, int]) -> None:
        """Have the disks that the VM has on the other host, bytes and places by name: a replica begins anew with them.

        Raises VmError or ConfigError, and nothing changes.
        """
        disks = await followed(self._config, self.name, sizes, slots)
        here = self.drives.sizes() if self.drives is not None else None
        if self.backup is None or disks == self._spec.disks and here == [sizes[disk.name] for disk in disks]:
            return
        self._sizes = sizes
        self.became(disks)
        self._journal.event("disks-follow", sizes=sizes)
        self.post(core.VmLost("the disks of the VM are others now"))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = watched(work, f"{self.name}: {getattr(work, '__name__', 'task')}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- what the core orders ---

    def start_vm(self, term: int) -> None:
        """Boot the VM, under `term`."""
        self._order(lambda: self._start_vm(term))

    def start_replica(self, copy: int) -> None:
        """A waiting QEMU, for the first copy of this number only."""
        self._order(lambda: self._start_replica(copy))

    def take_over(self, term: int) -> None:
        """Go on under `term` from the last whole epoch; silent until `speak`."""
        self._order(lambda: self._take_over(term))

    def hand_over(self) -> None:
        """Pause the VM for good and let the backup have its last epoch."""
        if self.primary is not None and self.front is not None:
            self.spawn(self._hand_over(self.primary, self.front))

    def speak(self, term: int) -> None:
        """Open the gate and release all output as it comes. Only when the core says that this host may."""
        if self.primary is not None:
            self.primary.write_through(lambda: self._speak(term))

    def _speak(self, term: int) -> None:
        if self.primary is None or self.front is None:
            return
        announced = self.front.guard.stats().term == term
        self.front.open(term)
        if not announced:
            self._journal.event("gate-open", term=term)
            self._announcer = self.spawn(self._announce())
        self._journal.speaks()
        again, self._again = self._again, []
        self.front.send_again(again)
        self._journal.out("again", len(again))
        self.primary.speak()

    def stop(self, reason: str) -> None:
        """Silence at once; the rest follows in the worker."""
        self.life += 1
        if self.front is not None:
            self.front.shut()
            self._drop(reason)
        if self.primary is not None:
            self.primary.hold()  # nobody renews the lease any more
        if self.volumes is not None:
            self.volumes.lease(0.0)
        if self._announcer is not None:
            self._announcer.cancel()
        if self.qemu is not None:
            self._journal.event("vm-stopped", reason=reason)
            self.spawn(self._kill(self.primary, self.qemu))  # a load under way fails now instead of at its timeout
        self._order(self._end)

    async def _kill(self, primary: Primary | None, qemu: Qemu) -> None:
        """End QEMU now; a VM that runs and has disks is paused first, so that all it wrote to them is known."""
        if primary is not None and primary.disks is not None:
            await primary.close()  # nobody lets it go on any more
            with contextlib.suppress(VmError, TimeoutError):
                async with asyncio.timeout(HALT_TIMEOUT):
                    await qemu.stop()
                    primary.disks.drained = True
        await qemu.kill()

    async def message(self, message: Message) -> None:
        """A message of the primary's stream, or what its host forwards. Raises WireError when it makes no sense."""
        if self.backup is not None:
            try:
                await self.backup.message(message)
            except FAULTS as error:  # of this host, not of the stream: the replica cannot be trusted any more
                log.error("%s: the replica failed: %s", self.name, error)
                self.post(core.VmLost(str(error)))
        elif message.type is Type.INBOUND and self.primary is not None and self.front is not None:
            if message.term == self._taken_from:
                frames = [frame for _, frame in decode_frames(decode_pieces(message))]
                self.front.inbound.inject(frames)
                self._journal.trail.copies("injected", "forwarded", frames)

    # --- how it is done ---

    def _order(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work.put_nowait((self.life, work))

    async def _worker(self) -> None:
        while True:
            life, work = await self._work.get()
            if life != self.life:
                continue  # ordered before the VM was stopped
            try:
                await work()
            except FAULTS as error:
                cause = told(error)
                log.error("%s: %s", self.name, cause)
                if life == self.life:
                    self.post(core.VmLost(cause))

    async def _launch(self, *, incoming: bool) -> tuple[Qemu, GuestRam]:
        assert self.front is not None
        vm, host, life, spec = self._vm, self._config.host, self.life, self._spec
        self.drives = await self._usable(Drives.open(spec.disks, vm.limits.disk)) if spec.disks else None
        loop = asyncio.get_running_loop()
        self._ram = await loop.run_in_executor(None, GuestRam.create, host.ram_dir, vm.memory)
        tap = await self.front.attach_vm()
        self.qemu = await Qemu.start(spec, self._ram, tap_fd=tap, incoming=incoming, run_dir=host.run_dir,
                                     drives=self.drives, volumes=self.volumes)
        self.spawn(self._watch(self.qemu, life))
        return self.qemu, self._ram

    async def _watch(self, qemu: Qemu, life: int) -> None:
        cause = await qemu.died()
        if life == self.life:
            self._journal.event("qemu-died", cause=cause)
            self.post(core.VmLost(cause))

    async def _start_vm(self, term: int) -> None:
        life = self.life
        await self.volume_care.keep_redo(term)
        past = await self._usable(self.disks.start(term)) if self.disks is not None else Past(None)
        self.volumes = await self.volume_care.reach(self._spec)
        if self.volumes is not None:
            await self.volumes.start(term)
        if life != self.life:
            return
        qemu, ram = await self._launch(incoming=False)
        if life == self.life:
            self._become_primary(qemu, ram, past)
            self.post(core.VmRunning())

    async def _start_replica(self, copy: int) -> None:
        life = self.life
        if self.disks is not None:
            await self.disks.enlarge(self._sizes)
        self.volumes = await self.volume_care.reach(self._spec)
        if self.volumes is not None:
            await self.volumes.follow()
        qemu, ram = await self._launch(incoming=True)
        disks = None
        if self.disks is not None and self.drives is not None:
            receiving = self.disks.receive(qemu, self._vm.limits.disk, lambda error: self._lost(error, life))
            applier = await self._usable(receiving)
            disks = BackupDisks(applier, self.drives.sizes(), self._id, self._peer)
        self.backup = Backup(self.name, self._vm, self._id, copy, qemu, ram, disks, self.volumes, self._peer,
                             self._journal, self.post, self.follow)
        if life == self.life:  # else it is ended in its turn
            self.post(core.ReplicaReady())

    async def _usable(self, work: Awaitable[T]) -> T:
        """Do what takes images; remember why they cannot be used."""
        try:
            return await work
        except VmError as error:
            self.view.unusable = told(error)
            raise

    def _lost(self, error: Exception, life: int) -> None:
        """The images of the replica cannot take more."""
        cause = told(error)
        log.error("%s: the disks of the replica failed: %s", self.name, cause)
        if life == self.life:
            self.view.unusable = cause
            self._journal.event("images-failed", cause=cause)
            self.post(core.VmLost(cause))

    async def _take_over(self, term: int) -> None:
        life, backup, qemu, ram, front = self.life, self.backup, self.qemu, self._ram, self.front
        if backup is None or qemu is None or ram is None or front is None:
            raise VmError("there is no replica to take over from", "this is a defect: please report it")
        inject.point("takeover.persisted")
        self._journal.event("takeover-begin", term=term, epoch=backup.replica.epoch)
        past = Past(None)

        async def finish_disks() -> None:
            nonlocal past
            if self.disks is not None and backup.disks is not None:
                past = await self.disks.take_over(backup.disks.applier, term)

        await backup.take_over(term, finish_disks)
        if life != self.life:
            return
        self._journal.event("takeover-done", term=term)
        self.backup, self._taken_from = None, backup.replica.term
        await backup.close()
        self._become_primary(qemu, ram, past)
        replayed = backup.replay.take()
        front.inbound.inject(replayed)
        self._journal.trail.copies("injected", "replay", replayed)
        epoch, discarded = backup.discarded()
        self._journal.trail.copies("discarded", "not-whole", discarded, backup.replica.term, epoch)
        self._again = backup.unreleased()
        self._journal.event("replayed", frames=len(replayed), to_send_again=len(self._again))
        self.post(core.VmRunning())

    async def _hand_over(self, primary: Primary, front: Front) -> None:
        try:
            await primary.hand_over()
        except (*FAULTS, TimeoutError) as error:
            if primary is self.primary:
                log.error("%s: the handover failed: %s", self.name, error)
                self.post(core.HandOverFailed(str(error) or "no answer in time"))
            return
        front.guard.close()  # what still comes in is forwarded
        self.post(core.HandedOver())

    def _become_primary(self, qemu: Qemu, ram: GuestRam, past: Past) -> None:
        assert self.front is not None
        disks, self.view.unusable, self._sizes = None, "", {}
        if self.disks is not None and self.drives is not None:
            disks = PrimaryDisks(self.disks, self.drives, past, qemu, self._peer, self._journal, self._id,
                                 self._vm.limits.copy_rate)
        self.primary = Primary(self.name, self._vm, self._id, self.front, qemu, ram, disks, self.volumes, self._peer,
                               self._journal, self._config.timing.lease_max, self.post)

    async def _announce(self) -> None:
        begun = time.monotonic()
        for moment in ANNOUNCEMENTS:
            delay = begun + moment - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            if self.front is None or not self.front.guard.is_open:
                return
            self.front.announce()

    async def _end(self) -> None:
        primary, backup, qemu, ram, drives = self.primary, self.backup, self.qemu, self._ram, self.drives
        self.primary = self.backup = self.qemu = self._ram = self.drives = None
        if qemu is not None:
            await self._kill(primary, qemu)
        if primary is not None:
            await primary.close()
        if backup is not None:
            await backup.close()
        if drives is not None:
            drives.close()
        if self.volumes is not None:
            volumes, self.volumes = self.volumes, None
            await volumes.close()
        if self.disks is not None:
            self.disks.forget_qemu()
            if primary is not None and primary.disks is not None:
                await self._remember(primary.disks)
        if ram is not None:
            ram.close()
        self._drop("the VM has ended here")
        self._journal.trail.ends()

    def _drop(self, reason: str) -> None:
        """Nothing that is held is let out any more."""
        if self.front is not None:
            left, sent = self.front.gate.span()
            self.front.gate.drop()
            self._journal.trail.dropped(left + 1, sent, reason)

    async def _remember(self, disks: PrimaryDisks) -> None:
        """The VM ended: if all its writes are known, its next copy has little to do."""
        try:
            await disks.leave()
        except VmError as error:
            log.warning("%s: the next copy of its disks compares all of them: %s", self.name, error)
