# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator can have done to the disks of a VM that runs: `disk resize`, `disk add`, `disk remove`.

One change, top to bottom (`_change`): both hosts say whether it fits; the VM goes on alone; its disk changes here; the
other host begins its replica anew with the same disks; the VM is to be protected again. A host that is away meanwhile
follows when its next copy begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from appliance import config as cfg
from appliance import core
from appliance.core import SPEAKING, Phase, Role
from appliance.disk_changes import DiskChanges
from appliance.disk_sections import fits_add, fits_remove, fits_resize
from appliance.disk_settings import SECTOR
from appliance.errors import HoldfastError, TimedOut, Unavailable, UsageError
from appliance.orders import Orders, Verb
from appliance.peer import Peer
from appliance.protection import Protection
from appliance.units import format_size
from vmlink.disk.spec import DiskSpec, placed
from vmlink.errors import VmError

PATIENCE = 15.0
"""Seconds that one step may take: on the other host, or until the VM is alone."""
WHOLE = 90.0
"""Seconds for all of it, on the other host."""
_MOST = 2**63 - SECTOR


class DiskVerbs:
    """See the module."""

    def __init__(self, config: cfg.Config, vms: dict[str, Protection], peer: Peer) -> None:
        self._config, self._vms, self._peer = config, vms, peer
        self._host = config.host.name
        self._busy: dict[str, str] = {}
        """By VM: what is being done."""
        self.orders: Orders

    def table(self) -> dict[str, Verb]:
        """What the operator may have done."""
        return {"disk-resize": self.resize, "disk-add": self.add, "disk-remove": self.remove}

    def asked(self) -> dict[str, Verb]:
        """What the other host asks meanwhile."""
        return {**self.table(), "disk-fits": self._fits, "disk-follow": self._follow}

    # --- the verbs ---

    async def resize(self, args: dict[str, Any]) -> dict[str, Any]:
        """A disk becomes larger."""
        vm, name, size = self._vm(args), _name(args), _size(args)
        if self._elsewhere(vm):
            return await self.orders.ask("disk-resize", WHOLE, vm=vm.name, disk=name, size=size)
        async with self._one(vm, f"disk {name} is being resized"):
            drive = vm.machine.drives.find(name) if vm.machine.drives is not None else None
            if drive is None:
                raise _unknown(vm, name)
            if size <= drive.size:
                raise Unavailable(f"disk {name} of {vm.name} has {format_size(drive.size)}: a disk does not become "
                                  "smaller", "make a smaller one, add it, and copy in the guest")
            await fits_resize(self._config, vm.name, name, size)
            stand_in = self._config.host.run_dir / f"{vm.name}.{name}.stand-in"
            paused = 0.0

            async def work(changes: DiskChanges) -> None:
                nonlocal paused
                paused = await changes.resize(name, size, stand_in)

            told = await self._change(vm, "resized", {"disk": name, "size": size}, work)
            vm.journal.event("disk-resized", disk=name, size=size, paused_ms=round(paused * 1e3, 1))
            return {**told, "size_bytes": size, "paused_ms": round(paused * 1e3, 1)}

    async def add(self, args: dict[str, Any]) -> dict[str, Any]:
        """A disk that is in the configuration is plugged in."""
        vm, name = self._vm(args), _name(args)
        if self._elsewhere(vm):
            return await self.orders.ask("disk-add", WHOLE, vm=vm.name, disk=name)
        async with self._one(vm, f"disk {name} is being added"):
            if any(disk.name == name for disk in vm.machine.disk_specs):
                raise Unavailable(f"{vm.name} has disk {name} already", "holdfast status shows its disks")
            section, size = await fits_add(self._config, vm.name, name)
            [disk] = [each for each in placed([*vm.machine.disk_specs, DiskSpec(name, section.path, section.format)])
                      if each.name == name]
            told = await self._change(vm, "added", {"disk": name, "form": section.format, "size": size},
                                      lambda changes: changes.add(disk, size))
            vm.journal.event("disk-added", disk=name, size=size)
            return {**told, "size_bytes": size}

    async def remove(self, args: dict[str, Any]) -> dict[str, Any]:
        """A disk that is in the configuration no longer is taken out."""
        vm, name = self._vm(args), _name(args)
        if self._elsewhere(vm):
            return await self.orders.ask("disk-remove", WHOLE, vm=vm.name, disk=name)
        async with self._one(vm, f"disk {name} is being removed"):
            if all(disk.name != name for disk in vm.machine.disk_specs):
                raise _unknown(vm, name)
            if len(vm.machine.disk_specs) == 1:
                raise Unavailable(f"{name} is the last disk of {vm.name}", "a VM that has disks keeps one")
            await fits_remove(self._config, vm.name, name)
            await self._peer_fits(vm, "removed", {"disk": name})
            with _told():
                await self._changes(vm).let_go(name)
            told = await self._change(vm, "removed", {"disk": name}, lambda changes: changes.take_out(name))
            vm.journal.event("disk-removed", disk=name)
            return told

    # --- what they have in common ---

    def _vm(self, args: dict[str, Any]) -> Protection:
        name = args.get("vm")
        if not isinstance(name, str) or name not in self._vms:
            raise UsageError(f"there is no VM {str(name)[:64]!r}", f"known are {', '.join(sorted(self._vms))}")
        return self._vms[name]

    def _elsewhere(self, vm: Protection) -> bool:
        """Does the VM run on the other host? Raises Unavailable when it runs nowhere, or may not be touched now."""
        state = vm.state
        if state.role is not Role.PRIMARY and state.peer is not None and state.peer.role is Role.PRIMARY:
            return True
        if state.phase not in SPEAKING:
            raise Unavailable(f"{vm.name} is {state.phase} on {self._host}: {state.reason}",
                              "its disks can change while it runs; holdfast status tells when it does")
        return False

    def _changes(self, vm: Protection) -> DiskChanges:
        primary = vm.machine.primary
        if primary is None or primary.disks is None:
            raise Unavailable(f"{vm.name} was started without disks",
                              "it gets its first one when the services of both hosts have been started anew")
        if trouble := primary.disks.faults.reason():
            raise Unavailable(f"the disks of {vm.name} are in trouble: {trouble}", "see docs/disks.md")
        return primary.disks.changes

    @contextlib.asynccontextmanager
    async def _one(self, vm: Protection, what: str) -> AsyncIterator[None]:
        """One change at a time. What the VM half says of it becomes an answer."""
        if vm.name in self._busy:
            raise Unavailable(f"another change is under way: {self._busy[vm.name]}", "repeat this when it has ended")
        self._busy[vm.name] = what
        try:
            self._changes(vm)
            with _told():
                yield
        finally:
            del self._busy[vm.name]

    async def _peer_fits(self, vm: Protection, what: str, facts: dict[str, Any]) -> None:
        """Raises what the other host has against it; one that is away is not asked."""
        if self._peer.up:
            await self.orders.ask("disk-fits", PATIENCE, vm=vm.name, what=what, **facts)

    async def _change(self, vm: Protection, what: str, facts: dict[str, Any],
                      work: Callable[[DiskChanges], Awaitable[None]]) -> dict[str, Any]:
        await self._peer_fits(vm, what, facts)
        why = self._busy[vm.name]
        vm.post(core.Want(False, why))
        try:
            await self._alone(vm)
            changes = self._changes(vm)
            await work(changes)
            assert vm.machine.drives is not None
            vm.machine.became(tuple(drive.spec for drive in vm.machine.drives))
            behind = await self._peer_follows(vm)
        finally:
            vm.post(core.Want(True, why))
        return {"schema": "holdfast.disk/1", "vm": vm.name, "disk": facts["disk"], "result": what, "host": self._host,
                "peer": self._peer.name, "behind": behind, "to_be_protected": not vm.state.paused and not behind}

    async def _alone(self, vm: Protection) -> None:
        """Return when nothing of the VM is replicated any more, and it runs on here."""
        try:
            await vm.until(lambda state: state.phase is Phase.SOLO or state.phase not in (*SPEAKING, Phase.ASKING),
                           PATIENCE)
        except TimeoutError:
            raise TimedOut(f"{vm.name} could not go on alone within {PATIENCE:g} s: {vm.state.reason}",
                           "nothing was changed; see holdfast status") from None
        if vm.state.phase is not Phase.SOLO or vm.machine.primary is None:
            raise Unavailable(f"{vm.name} is {vm.state.phase}: {vm.state.reason}", "nothing was changed")
        await vm.machine.primary.quiet()

    async def _peer_follows(self, vm: Protection) -> str | None:
        """Why the other host has not the same disks now; None: it has."""
        if not self._peer.up:
            return f"{self._peer.name} is not reachable: it follows when its next copy begins"
        drives = list(vm.machine.drives or ())
        try:
            await self.orders.ask("disk-follow", PATIENCE, vm=vm.name,
                                  sizes={drive.spec.name: drive.size for drive in drives},
                                  slots={drive.spec.name: drive.spec.slot for drive in drives})
        except HoldfastError as error:
            return str(error)
        return None

    # --- for the other host ---

    async def _fits(self, args: dict[str, Any]) -> dict[str, Any]:
        vm, name = self._vm(args), _name(args)
        with _told():
            match args.get("what"):
                case "resized":
                    await fits_resize(self._config, vm.name, name, _size(args))
                case "added":
                    await fits_add(self._config, vm.name, name, str(args.get("form")), _size(args))
                case "removed":
                    await fits_remove(self._config, vm.name, name)
                case other:
                    raise UsageError(f"this host knows no change {str(other)[:40]!r}", "use the same version on both")
        return {}

    async def _follow(self, args: dict[str, Any]) -> dict[str, Any]:
        vm = self._vm(args)
        if vm.state.role is Role.PRIMARY:
            raise Unavailable(f"{vm.name} runs on {self._host}", "see holdfast status on both hosts")
        with _told():
            await vm.machine.follow(_numbers(args, "sizes"), _numbers(args, "slots"))
        return {}


@contextlib.contextmanager
def _told() -> Any:
    """What the VM half says, as an answer."""
    try:
        yield
    except VmError as error:
        raise Unavailable(error.message, error.hint) from error


def _unknown(vm: Protection, name: str) -> UsageError:
    known = ", ".join(disk.name for disk in vm.machine.disk_specs)
    return UsageError(f"{vm.name} has no disk {name!r}", f"it has {known}")


def _name(args: dict[str, Any]) -> str:
    return str(args.get("disk"))[:64]


def _size(args: dict[str, Any]) -> int:
    size = args.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= _MOST or size % SECTOR:
        raise UsageError(f"{str(size)[:40]} is no size of a disk", f"use a multiple of {SECTOR}B, such as 20GiB")
    return size


def _numbers(args: dict[str, Any], key: str) -> dict[str, int]:
    found = args.get(key)
    if not isinstance(found, dict) or not all(type(value) is int for value in found.values()):
        raise UsageError(f"{key} of disks are missing", "use the same version on both hosts")
    return found
