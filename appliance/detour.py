# SPDX-License-Identifier: GPL-2.0-or-later
"""The detour: a VM whose host has lost its uplink speaks through the peer's, when it cannot move there.

The host that runs the VM orders its peer to open the far end, opens the near end, and repeats the order: a far end
that is not ordered any more closes by itself. It is over as soon as the VM moves, the uplink is back, or the hosts
lose sight of each other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from appliance import config as cfg
from appliance import tunnel
from appliance.core import SPEAKING, Role
from appliance.errors import HoldfastError, Unavailable, Unsafe, UsageError
from appliance.front import FrontSpec
from appliance.orders import Orders
from appliance.peer import Peer
from appliance.protection import Protection

LOOK = 0.2
"""Seconds between two looks whether detours are as they should be."""
KEPT = 3.0
"""Seconds for which a far end stays open after the last order."""
PATIENCE = 5.0
log = logging.getLogger("holdfast.detour")


@dataclass
class _Far:
    """A far end: for the near end at the address `near`, until `until` (monotonic)."""

    near: str
    until: float


class Detours:
    """See the module. `orders` must be set before `run`."""

    def __init__(self, config: cfg.Config, peer: Peer, vms: dict[str, Protection]) -> None:
        self._config, self._peer, self._vms = config, peer, vms
        self.orders: Orders
        self._near: dict[str, str] = {}
        """By VM: the link that its near end uses."""
        self._far: dict[str, _Far] = {}
        self._trouble: dict[str, str] = {}
        self._busy = asyncio.Lock()

    async def start(self) -> None:
        """Remove what a dead service left. Raises HoldfastError."""
        for vm in self._vms.values():
            await tunnel.remove(self._spec(vm))

    async def run(self) -> None:
        while True:
            for vm in self._vms.values():
                try:
                    async with self._busy:
                        await self._settle_far(vm)
                    await self._settle_near(vm)
                    self._trouble.pop(vm.name, None)
                except HoldfastError as error:
                    if self._trouble.get(vm.name) != error.message:
                        log.error("%s: no detour: %s", vm.name, error)
                    self._trouble[vm.name] = error.message
            await asyncio.sleep(LOOK)

    async def close(self) -> None:
        """No tunnel stays."""
        for vm in self._vms.values():
            await tunnel.remove(self._spec(vm))

    def _spec(self, vm: Protection) -> FrontSpec:
        return vm.machine.front_spec

    # --- the near end, on the host that runs the VM ---

    def _wanted(self, vm: Protection) -> cfg.Link | None:
        """The link to go over, None for no detour."""
        if vm.state.phase not in SPEAKING or not vm.state.conditions.shunt:
            return None
        return self._peer.active_link

    async def _settle_near(self, vm: Protection) -> None:
        link, front = self._wanted(vm), vm.machine.front
        present = self._near.get(vm.name)
        if front is not None and present is not None and (link is None or link.name != present):
            del self._near[vm.name]
            await tunnel.home(front)
            front.announce()
            log.warning("%s: the detour is over", vm.name)
            if link is None and self._peer.up:
                await self.orders.ask("detour", PATIENCE, vm=vm.name, near="")
        if front is None or link is None:
            return
        await self.orders.ask("detour", PATIENCE, vm=vm.name, near=link.address)
        if vm.name not in self._near:
            await tunnel.near(front, link)
            self._near[vm.name] = link.name
            front.announce()
            log.warning("%s: its traffic goes through the uplink of %s, over %s", vm.name, self._peer.name, link.name)

    # --- the far end, on the other host ---

    async def verb(self, args: dict[str, Any]) -> dict[str, Any]:
        """The peer's order: open the far end for the near end at the link address `near`, or close it (empty)."""
        vm, near = self._vms.get(str(args.get("vm"))), str(args.get("near"))
        if vm is None:
            raise UsageError("there is no such VM", "both hosts need the same [vm.*] tables")
        async with self._busy:
            if not near:
                self._far.pop(vm.name, None)
                await tunnel.remove(self._spec(vm))
                return {"open": False}
            link = next((link for link in self._config.link if link.peer == near), None)
            if link is None:
                raise Unavailable(f"no link leads to {near[:64]}", "both ends of a link need each other's address")
            if vm.state.role is Role.PRIMARY:
                raise Unsafe(f"{vm.name} runs here", "this is a defect: please report it")
            far = self._far.get(vm.name)
            if far is None or far.near != near:
                await tunnel.far(self._spec(vm), link)
                log.warning("%s: speaks through the uplink of this host", vm.name)
            self._far[vm.name] = _Far(near, time.monotonic() + KEPT)
        return {"open": True}

    async def _settle_far(self, vm: Protection) -> None:
        far = self._far.get(vm.name)
        if far is None:
            return
        if not self._peer.up or time.monotonic() > far.until or vm.state.role is Role.PRIMARY:
            del self._far[vm.name]
            await tunnel.remove(self._spec(vm))
            log.warning("%s: speaks through the uplink of this host no more", vm.name)

    def status(self, vm: str) -> dict[str, Any] | None:
        """For the status of a VM; None when there is no detour and none is wanted."""
        if vm in self._near:
            return {"end": "near", "link": self._near[vm], "reason": ""}
        if vm in self._far:
            return {"end": "far", "link": self._far[vm].near, "reason": ""}
        return {"end": "none", "link": "", "reason": self._trouble[vm]} if vm in self._trouble else None
