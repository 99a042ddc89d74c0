# SPDX-License-Identifier: GPL-2.0-or-later
"""The health of this host: runs all monitors, keeps their readings, and says when its fitness changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from appliance import config as cfg
from appliance.health.clocks import Clocks
from appliance.health.disks import Disks, places
from appliance.health.fitness import Fitness, fitness
from appliance.health.links import Link, Links
from appliance.health.machines import Guest, Machines
from appliance.health.memory import Memory
from appliance.health.monitor import Monitor
from appliance.health.processors import Processors
from appliance.health.reach import Reach
from appliance.health.reading import Reading, State
from appliance.health.storage import Storage
from appliance.health.uplink import Uplinks
from appliance.watched import watched

BETWEEN = 0.01
"""Seconds between two readings of one monitor at least, however often it is woken."""
log = logging.getLogger("holdfast.health")


class Health:
    """See the module. `links` are the peer's; `guests` tells of the VMs; `changed` is called when `fitness` differs.

    `run` reads until it is cancelled; before its first round nothing is known, and the host counts as fit.
    """

    def __init__(self, config: cfg.Config, links: Sequence[Link], guests: Callable[[], Iterable[Guest]],
                 changed: Callable[[], None]) -> None:
        self._config, self._links, self._guests, self._changed = config, links, guests, changed
        self._readings: dict[str, list[Reading]] = {}
        self._fitness = Fitness()
        self._wake = asyncio.Event()
        self._broken: set[str] = set()

    def readings(self) -> list[Reading]:
        """The last of every monitor."""
        return [reading for readings in self._readings.values() for reading in readings]

    def fitness(self) -> Fitness:
        """What they mean for the VMs here."""
        return self._fitness

    async def run(self) -> None:
        """Read until cancelled."""
        monitors = self._monitors()
        self._readings = {monitor.name: [] for monitor in monitors}
        tasks = [watched(self._repeat(monitor), f"health: {monitor.name}") for monitor in monitors]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for monitor in monitors:
                monitor.close()

    def _monitors(self) -> list[Monitor]:
        config = self._config
        bridges = sorted({vm.bridge for vm in config.vm.values()})
        return [Uplinks(bridges, config.health, self._wake.set), Reach(bridges, config.health),
                Links(self._links, config.health), Disks(places(config), config.health), Memory(config.health),
                Processors(config.health), Machines(self._guests, config.health), Storage(self._guests, config.health),
                Clocks(config.health)]

    async def _repeat(self, monitor: Monitor) -> None:
        while True:
            self._take(monitor.name, await self._read(monitor))
            if isinstance(monitor, Uplinks):
                await self._until_woken(monitor.interval)
            else:
                await asyncio.sleep(monitor.interval)

    async def _read(self, monitor: Monitor) -> list[Reading]:
        """A monitor that fails is a defect, but no reason to end a service whose VMs are well."""
        try:
            return await monitor.read()
        except Exception as error:
            if monitor.name not in self._broken:
                log.exception("the monitor %s failed", monitor.name)
                self._broken.add(monitor.name)
            reason = f"the monitor failed: {error or type(error).__name__}"
            return [Reading(monitor.name, "monitor", State.UNKNOWN, reason=reason, since=round(time.time(), 3))]

    async def _until_woken(self, longest: float) -> None:
        await asyncio.sleep(BETWEEN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest - BETWEEN):
                await self._wake.wait()
        self._wake.clear()

    def _take(self, name: str, readings: list[Reading]) -> None:
        before = {(one.component, one.subject): one for one in self._readings.get(name, ())}
        self._readings[name] = readings
        for one in readings:
            was = before.get((one.component, one.subject))
            if one.state is not (was.state if was is not None else State.OK):
                _tell(one, was.state if was is not None else State.OK)
        if any(one.doubtful or one.state is State.FAILED for one in (*before.values(), *readings)):
            self._weigh()

    def _weigh(self) -> None:
        found = fitness(self.readings())
        known, self._fitness = self._fitness, found
        if found != known:
            self._changed()


def _tell(reading: Reading, was: State) -> None:
    """Note a change in the log, at the level that it deserves."""
    bad = State.FAILED in (reading.state, was)
    quiet = State.UNKNOWN in (reading.state, was) and not bad
    log.log(logging.WARNING if bad else logging.DEBUG if quiet else logging.INFO, "%s: %s is %s%s", reading.component,
            reading.subject, reading.state, f": {reading.reason}" if reading.reason else "")
