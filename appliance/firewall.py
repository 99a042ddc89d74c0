# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's packet filter, kept as the configuration asks: who reaches the links, what a VM may send.

A second line behind the guard. It is loaded before the first front is there and removed after the last; somebody
else's `flush ruleset` is noticed and made good. Opening and shutting a front is the front's own doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from appliance import config as cfg
from appliance.errors import Unavailable
from appliance.front import FrontSpec
from appliance.watched import watched
from rules.errors import RulesError
from rules.latch import Latch
from rules.policy import Link, Policy, Station
from rules.render import DROPS
from rules.tables import Reading, Tables

log = logging.getLogger("holdfast.firewall")

LOOK = 1.0
"""Seconds between looks whether the rules are still there."""
FRESH = 0.2
"""Seconds for which the status repeats a reading."""


def policy(config: cfg.Config) -> Policy:
    """What the rules are to enforce on this host. Raises RulesError for a name that cannot stand in a rule."""
    links = tuple(Link(link.interface, link.address, link.peer, link.port) for link in config.link)
    return Policy(links, tuple(
        Station(name, FrontSpec(name, vm.mac, vm.ip, vm.bridge, vm.limits.held).device("o"), vm.mac, vm.ip)
        for name, vm in config.vm.items()))


class Known(NamedTuple):
    """Are the rules in force? What they dropped, by VM and reason, when they were last looked at."""

    mode: str
    loaded: bool
    drops: dict[str, dict[str, int]]


class Firewall:
    """See the module. `opened`: names of the VMs whose front is open at the moment."""

    def __init__(self, config: cfg.Config, opened: Callable[[], Iterable[str]]) -> None:
        self._config, self._opened = config, opened
        self.mode = config.host.firewall
        self.reason = "off by the configuration" if self.mode == "off" else "not loaded yet"
        """Why the rules are not in force; empty when they are."""
        self.restored = 0
        """How often the rules had gone and were loaded again."""
        self._tables: Tables | None = None
        self._devices: dict[str, str] = {}
        self._busy = asyncio.Lock()
        self._reading: Reading | None = None
        self._read_at = 0.0
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Put the rules in force, with every front shut. Raises Unavailable if they are required and cannot be."""
        try:
            rules = Policy((), ()) if self.mode == "off" else policy(self._config)
            self._tables = Tables(rules)
            self._devices = {station.vm: station.device for station in rules.stations}
            if self.mode == "off":
                await asyncio.to_thread(self._tables.remove)  # what a dead service left would shut every front
                return
            await asyncio.to_thread(self._tables.load)
        except RulesError as error:
            self._unable(error)
            return
        self.reason = ""
        self._watch = watched(self._keep(), "firewall")

    def _unable(self, error: RulesError) -> None:
        if self.mode == "off":
            return
        if self.mode == "required":
            raise Unavailable(f"the packet filter rules cannot be loaded: {error.message}",
                              f"{error.hint}; or set host.firewall to auto") from None
        self.reason = str(error)
        log.warning("the packet filter rules cannot be loaded, and nothing but the guard watches what a VM sends: %s",
                    error)

    async def close(self) -> None:
        """Take the rules away again. Idempotent."""
        async with self._busy:  # a look under way ends first
            if self._watch is not None:
                self._watch.cancel()
                await asyncio.gather(self._watch, return_exceptions=True)
                self._watch = None
            tables, self._tables = self._tables, None
            if tables is None:
                return
            if not self.reason:
                with contextlib.suppress(RulesError):
                    await asyncio.to_thread(tables.remove)
                self.reason = "stopped"
            tables.close()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            async with self._busy:
                if self._tables is not None:
                    await self._look(self._tables)

    async def _look(self, tables: Tables) -> None:
        """Read what is in force, and put right what is not as it should be."""
        try:
            reading = await asyncio.to_thread(tables.read)
            if reading is None:
                await asyncio.to_thread(tables.load, self._open_devices())
                self.restored += 1
                log.warning("somebody removed or changed the packet filter rules: they are loaded again")
                reading = await asyncio.to_thread(tables.read)
            if reading is not None:
                self._read(reading)
                self._align(reading.opened)
                self.reason = ""
        except RulesError as error:
            if not self.reason:
                log.error("%s", error)
            self.reason = str(error)

    def _read(self, reading: Reading) -> None:
        self._reading, self._read_at = reading, time.monotonic()

    def _open_devices(self) -> set[str]:
        return {self._devices[vm] for vm in self._opened()}

    def _align(self, seen: frozenset[str]) -> None:
        """A front that moved while the rules were being loaded, or could not tell them."""
        wanted = self._open_devices()
        for device in set(self._devices.values()):
            if (device in wanted) != (device in seen):
                with contextlib.closing(Latch(device)) as latch:
                    latch.set(device in wanted)

    def known(self) -> Known:
        """Without looking."""
        return Known(self.mode, not self.reason, self._reading.vms if self._reading is not None else {})

    async def status(self) -> dict[str, Any]:
        """The `rules` section of the status: zeros are never left out."""
        if self._tables is not None and not self.reason and time.monotonic() - self._read_at > FRESH:
            reading = await asyncio.to_thread(self._tables.read)
            if reading is not None:  # else the next look tells
                self._read(reading)
        seen = self._reading or Reading(frozenset(), 0, {vm: dict.fromkeys(DROPS, 0) for vm in self._devices})
        return {"mode": self.mode, "loaded": not self.reason, "reason": self.reason, "restored": self.restored,
                "drops": {"strangers": seen.strangers, "vms": seen.vms}}
