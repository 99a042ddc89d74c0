# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator can have done to the VMs of a pair; each verb works on either host."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from appliance import core
from appliance.core import CLAIMING, SPEAKING, Phase, Role
from appliance.errors import HoldfastError, TimedOut, Unavailable, Unsafe, UsageError
from appliance.orders import Orders, Verb
from appliance.protection import Protection

PATIENCE = 10.0
"""Seconds that a verb may take on one host."""
_GIVEN = (Phase.WAITING, Phase.JOINING, Phase.RECEIVING, Phase.STANDBY, Phase.FAILED, Phase.FENCED)


def _given(state: core.State) -> bool:
    """Is the VM the peer's now? What still arrives here may be forwarded for a while."""
    return state.phase in _GIVEN or (state.phase in (Phase.HANDED, Phase.YIELDED)
                                     and state.peer is not None and state.peer.phase in SPEAKING)


class Verbs:
    """`host` and `peer` are the names of the two; `drained` takes note that this host is to be left alone."""

    def __init__(self, host: str, peer: str, vms: dict[str, Protection], drained: Callable[[bool], None]) -> None:
        self._host, self._peer, self._vms, self._drained = host, peer, vms, drained
        self.orders: Orders

    def table(self) -> dict[str, Verb]:
        """By name."""
        return {"switchover": self.switchover, "drain": self.drain, "fence": self.fence,
                "protect": self.protect, "unprotect": self.unprotect}

    def _vm(self, args: dict[str, Any]) -> Protection:
        name = args.get("vm")
        if name not in self._vms:
            raise UsageError(f"there is no VM {str(name)[:64]!r}", f"known are {', '.join(sorted(self._vms))}")
        return self._vms[str(name)]

    def _host_of(self, args: dict[str, Any]) -> str:
        name = args.get("host")
        if name not in (self._host, self._peer):
            pair = " and ".join(sorted((self._host, self._peer)))
            raise UsageError(f"there is no host {str(name)[:64]!r}", f"the pair is {pair}")
        return str(name)

    # --- moving ---

    async def switchover(self, args: dict[str, Any]) -> dict[str, Any]:
        """Move a VM to the other host, nothing lost."""
        vm = self._vm(args)
        if vm.state.role is not Role.PRIMARY and vm.state.peer is not None and vm.state.peer.role is Role.PRIMARY:
            return await self.orders.ask("switchover", PATIENCE, vm=vm.name)
        return await self._give(vm, str(args.get("reason", "ordered by the operator")))

    async def _give(self, vm: Protection, reason: str) -> dict[str, Any]:
        if vm.state.phase is not Phase.PROTECTED:
            raise Unavailable(f"{vm.name} is not protected now: {vm.state.phase}: {vm.state.reason}",
                              "a VM moves once `holdfast status` says protected")
        if vm.state.conditions.unfit:
            raise Unavailable(f"{self._peer} cannot carry {vm.name}: {vm.state.conditions.unfit}",
                              "`holdfast health` shows both hosts")
        begun = time.monotonic()
        vm.post(core.SwitchOver(reason))
        try:
            await vm.until(lambda state: state.phase in SPEAKING or _given(state), PATIENCE)
        except TimeoutError:
            raise TimedOut(f"{vm.name} has not moved within {PATIENCE:g} s: {vm.state.reason}",
                           "see the logs of both hosts") from None
        if not _given(vm.state):
            raise Unavailable(f"{vm.name} stays on {self._host}: {vm.state.reason}", "see the logs of both hosts")
        return {"schema": "holdfast.switchover/1", "vm": vm.name, "from": self._host, "to": self._peer,
                "ms": round((time.monotonic() - begun) * 1e3)}

    async def drain(self, args: dict[str, Any]) -> dict[str, Any]:
        """Move all VMs away from a host, and none to it until it is undone."""
        if self._host_of(args) != self._host:
            return await self.orders.ask("drain", PATIENCE * (1 + len(self._vms)), **args)
        self._drained(not args.get("undo"))
        moved: dict[str, str] = {}
        for vm in self._vms.values() if not args.get("undo") else ():
            if vm.state.role is Role.PRIMARY:
                try:
                    await self._give(vm, f"{self._host} is drained")
                    moved[vm.name] = "moved"
                except HoldfastError as error:
                    moved[vm.name] = f"stays: {error.message}"
        return {"schema": "holdfast.drain/1", "host": self._host, "drained": not args.get("undo"), "vms": moved}

    # --- fencing ---

    async def fence(self, args: dict[str, Any]) -> dict[str, Any]:
        """Keep a host out: silent at once, and remembered until it is lifted."""
        host, lift = self._host_of(args), bool(args.get("lift"))
        if host == self._host:
            for vm in self._vms.values():
                vm.post(core.Lift() if lift else core.Fence("fenced by the operator"))
                await self._on_disk(vm)
            return self._fenced(host, "lifted" if lift else "fenced")
        try:
            return await self.orders.ask("fence", PATIENCE, **args)
        except Unavailable:
            if lift:
                raise
            if not args.get("off"):
                raise Unsafe(f"{host} is not reachable: whether it speaks cannot be known from here",
                             f"make sure that {host} has no power, then repeat this with --off") from None
        for vm in self._vms.values():
            vm.post(core.PeerIsOff())
            await self._on_disk(vm)
        return self._fenced(host, "taken as off")

    async def _on_disk(self, vm: Protection) -> None:
        try:
            await vm.until(lambda state: not state.writing and not state.forcing, PATIENCE)
        except TimeoutError:
            hint = "is the disk of the state directory full?"
            raise TimedOut(f"{vm.name}: the term cannot be written", hint) from None

    def _fenced(self, host: str, what: str) -> dict[str, Any]:
        vms = {vm.name: {"phase": vm.state.phase, "term": vm.state.term} for vm in self._vms.values()}
        return {"schema": "holdfast.fence/1", "host": host, "result": what, "vms": vms}

    # --- protection wanted or not ---

    async def unprotect(self, args: dict[str, Any]) -> dict[str, Any]:
        """Leave a VM unprotected until `protect`."""
        return await self._want("unprotect", args, protection=False)

    async def protect(self, args: dict[str, Any]) -> dict[str, Any]:
        """Protect it again."""
        return await self._want("protect", args, protection=True)

    async def _want(self, verb: str, args: dict[str, Any], *, protection: bool) -> dict[str, Any]:
        """On both hosts, so that it stands whichever has the VM."""
        vm = self._vm(args)
        here = vm.state.role is Role.PRIMARY
        if verb == "unprotect" and vm.machine.view.away:
            raise Unsafe(f"{vm.name} lives on the other host's copy of its disks ({vm.machine.view.trouble})",
                         f"move it there first: holdfast switchover {vm.name}")
        if not here and not args.get("relayed"):
            told = vm.state.peer is not None and vm.state.peer.phase in CLAIMING
            if not told:
                raise Unavailable(f"{vm.name} runs on no host now", "see holdfast status")
        if not args.get("relayed"):
            try:
                await self.orders.ask(verb, PATIENCE, vm=vm.name, relayed=True)
            except Unavailable:
                if not here:
                    raise
        vm.post(core.Want(protection))
        return {"schema": "holdfast.protect/1", "vm": vm.name, "paused": core.BY_OPERATOR in vm.state.paused}
