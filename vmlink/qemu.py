# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU process of one VM: started, watched, ended. It cannot outlive the service.

QEMU gets everything by inheritance: guest memory, tap, QMP and console as open descriptors. So there is no
path, no lock and no file to be left behind, and nobody else can get in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol, TypeVar

from vmlink import accel, heap, priority, spec
from vmlink.console import Console
from vmlink.disk.drive import Drives
from vmlink.disk.server import DiskServer
from vmlink.errors import VmError
from vmlink.monitor import Monitor
from vmlink.process import Child
from vmlink.ram import GuestRam
from vmlink.spec import VmSpec as VmSpec

_T = TypeVar("_T")

_SHIM_ANSWER = struct.Struct("=4si")
_SHIM_MAGIC = b"HFUF"


def shim_path() -> Path | None:
    """Where the userfaultfd shim is: $HOLDFAST_SHIM, build/shim beside the package, or the installed one."""
    configured = os.environ.get("HOLDFAST_SHIM")
    candidates = [Path(configured)] if configured else [
        Path(__file__).resolve().parent.parent / "build/shim/holdfast-uffd.so",
        Path("/usr/lib/holdfast/holdfast-uffd.so"),
    ]
    return next((path for path in candidates if path.is_file()), None)


class Served(Protocol):
    """Disks that QEMU reaches through a server of ours alone."""

    server: DiskServer

    def __len__(self) -> int: ...

    def drain(self) -> None:
        """The VM is about to be paused: let all writes in that are under way."""
        ...


class Qemu:
    """A QEMU that runs one VM, or waits to take it over. Use `start`. `drives`: what it reaches its disks at.

    `userfaultfd` is a descriptor made inside QEMU, or None and `no_userfaultfd` says why.
    """

    def __init__(self, vm: VmSpec, drives: Drives | None, volumes: Served | None, child: Child, monitor: Monitor,
                 console: Console, state_fd: int, command: list[str], chosen: accel.Accel,
                 faults: tuple[int | None, str]) -> None:
        self.spec, self.drives, self._volumes = vm, drives, volumes
        self.pid = child.pid
        self.monitor = monitor
        self.accel = chosen
        self.userfaultfd, self.no_userfaultfd = faults
        self.console_log = console.path
        self._child = child
        self._console = console
        self._state_fd = state_fd
        self._command = command
        self._end: asyncio.Task[None] | None = None
        self._paused = False

    @classmethod
    async def start(cls, vm: VmSpec, ram: GuestRam, *, tap_fd: int, incoming: bool, run_dir: Path,
                    drives: Drives | None = None, volumes: Served | None = None, timeout: float = 10.0) -> Qemu:
        """Start QEMU with `ram` as its memory, `tap_fd` as its network (the caller closes both copies), and `drives`
        as the other half of the VM's disks, `volumes` as its volumes, if it has any (the caller closes them when QEMU
        is gone).

        With `incoming` it waits for a device state; write the replica to `ram` only after this has returned,
        since QEMU puts firmware and kernel there first. Otherwise the VM runs when this returns.
        Main thread only. Takes 0.1 to 0.3 s; raises VmError with QEMU's own last words.
        """
        vm.check()
        if (len(vm.disks), len(vm.volumes)) != tuple(0 if part is None else len(part) for part in (drives, volumes)):
            raise VmError(f"VM {vm.name}: its disks are not open", "this is a defect: please report it")
        if ram.size != vm.memory_bytes:
            raise VmError(f"VM {vm.name}: {ram.size} bytes of guest memory for {vm.memory_bytes}")
        program = vm.binary()
        chosen = await accel.choose(vm.accel, program)
        async with contextlib.AsyncExitStack() as undo:
            console, console_end = Console.open(run_dir / f"{vm.name}.console.log")
            undo.callback(console.close)
            qmp, qmp_end = _socketpair(undo)
            shim, shim_end = _socketpair(undo)
            state_fd = os.memfd_create("holdfast-device-state", os.MFD_CLOEXEC)
            undo.callback(os.close, state_fd)
            with console_end, qmp_end, shim_end:
                fds = spec.Inherited(ram.fd, tap_fd, qmp_end.fileno(), console_end.fileno())
                servers = ["" if part is None else part.server.address for part in (drives, volumes)]
                command = [program, *spec.arguments(vm, chosen.name, fds, incoming=incoming, disk_server=servers[0],
                                                    volume_server=servers[1])]
                child = Child.spawn(command, pass_fds=(*vars(fds).values(), state_fd, shim_end.fileno()),
                                    environment=heap.environment() | _shim_environment(shim_end.fileno()))
            for part in (drives, volumes):
                if part is not None:
                    part.server.admit(child.pid)
            undo.push_async_callback(child.kill)
            name = f"VM {vm.name}"
            monitor = await _unless_dead(child, name, Monitor.connect(
                qmp, name=vm.name, state_fd=state_fd, process=child, timeout=timeout))
            undo.push_async_callback(monitor.close)
            faults = _take_userfaultfd(shim)
            if faults[0] is not None:
                undo.callback(os.close, faults[0])
            await _unless_dead(child, name, _only_carried_memory(monitor, name))
            await _unless_dead(child, name, monitor.expect_devices() if incoming else monitor.cont())
            priority.lead(child.pid)  # its main thread alone: it answers QMP, the CPUs are other threads
            undo.pop_all()
        shim.close()
        return cls(vm, drives, volumes, child, monitor, console, state_fd, command, chosen, faults)

    @property
    def version(self) -> str:
        """QEMU's version with the packager's, as in "7.2.22 Debian ..."."""
        return self.monitor.version

    def command_line(self) -> list[str]:
        """The command QEMU was started with."""
        return list(self._command)

    def fingerprint(self) -> str:
        """What must be equal on both hosts, as one hash (blocks for 0.1 s; see `vmlink.spec.fingerprint`)."""
        return spec.fingerprint(self.spec, self.accel.name, self.version)

    async def stop(self) -> None:
        """Pause the VM; when this returns, what it wrote to its disks is on the local image and in their record."""
        self._paused = True
        for part in (self.drives, self._volumes):
            if part is not None:
                part.drain()
        await self.monitor.stop()

    async def cont(self) -> None:
        """Let the VM run. A request that failed is made again."""
        self._paused = False
        await self.monitor.cont()

    async def retry(self) -> None:
        """Let a VM run again that a failed request has stopped; one that was paused on purpose stays so."""
        if not self._paused:
            await self.monitor.cont()

    async def save_devices(self) -> bytes:
        """See `Monitor.save_devices`."""
        return await self.monitor.save_devices()

    async def died(self) -> str:
        """Wait until QEMU is gone; returns the cause: "killed by signal 9", "exited with 1: <last words>"."""
        return await self._child.died()

    async def kill(self) -> None:
        """End QEMU at once, reap it, close everything that belongs to it. Idempotent.

        Once begun it runs to its end, whoever stops waiting for it: half-closed, a monitor cannot be closed again.
        """
        if self._end is None:
            self._end = asyncio.create_task(self._kill(), name=f"end of QEMU {self.pid}")
        await asyncio.shield(self._end)

    async def _kill(self) -> None:
        await self._child.kill()
        await self.monitor.close()
        self._console.close()
        if self._state_fd >= 0:
            os.close(self._state_fd)
            self._state_fd = -1
        if self.userfaultfd is not None:
            os.close(self.userfaultfd)
            self.userfaultfd = None


def _socketpair(undo: contextlib.AsyncExitStack) -> tuple[socket.socket, socket.socket]:
    """A pair of which the first is ours: closed when the start fails."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    undo.callback(ours.close)
    return ours, theirs


def _shim_environment(fd: int) -> dict[str, str]:
    path = shim_path()
    if path is None:
        return {}
    others = os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": f"{path}:{others}" if others else str(path),
            "HOLDFAST_SHIM_FD": str(fd)}


def _take_userfaultfd(sock: socket.socket) -> tuple[int | None, str]:
    """The descriptor that the shim sent, or why there is none. QEMU has answered QMP: it has been sent."""
    if shim_path() is None:
        return None, "the userfaultfd shim is not built"
    try:
        data, fds, _, _ = socket.recv_fds(sock, _SHIM_ANSWER.size, 1)
    except OSError:
        data, fds = b"", []
    if len(data) == _SHIM_ANSWER.size:
        magic, error = _SHIM_ANSWER.unpack(data)
        if magic == _SHIM_MAGIC and fds:
            os.set_inheritable(fds[0], False)
            return fds[0], ""
        if error == errno.EINVAL:
            return None, "the kernel has no asynchronous write-protection (Linux 6.7 has)"
        return None, f"QEMU could not make a userfaultfd: {os.strerror(error)}"
    return None, "the userfaultfd shim was not loaded into QEMU"


async def _only_carried_memory(monitor: Monitor, name: str) -> None:
    """Raises VmError when QEMU has writable memory that the saved device state leaves out.

    A takeover would find it stale, and a stale UEFI variable flash would even be written back to its image.
    """
    left_out = [block.name for block in await monitor.ramblocks() if not block.carried]
    if left_out:
        raise VmError(f"{name}: a checkpoint does not carry this memory: {', '.join(left_out)}",
                      "remove the device it belongs to (a graphics card, UEFI flash) from extra_args")


async def _unless_dead(child: Child, name: str, work: Awaitable[_T]) -> _T:
    """The result of `work`; VmError with QEMU's last words when it dies first."""
    task = asyncio.ensure_future(work)
    death = asyncio.ensure_future(child.died())
    try:
        await asyncio.wait((task, death), return_when=asyncio.FIRST_COMPLETED)
        if child.ended:
            raise VmError(f"{name}: QEMU {child.ended}",
                          "its words above name the cause; check qemu=, the memory and the extra arguments")
        return await task
    finally:
        task.cancel()
        death.cancel()
        with contextlib.suppress(asyncio.CancelledError, VmError):
            await task
