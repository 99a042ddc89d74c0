# SPDX-License-Identifier: GPL-2.0-or-later
"""The way out of each production bridge: the carriers of its uplinks, and how many frames they spoil.

A carrier that goes is seen by the next look at the carriers, or sooner by the kernel's event (which it may batch for
a second). Both cost a few us; whatever differs then is read at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from appliance.carrier import CarrierWatch
from appliance.health import rtnl
from appliance.health.judge import Rule
from appliance.health.monitor import Assessor, Counter
from appliance.health.reading import Reading, State
from appliance.health.settings import Health

OURS = frozenset({"tun", "vxlan"})
"""Kinds of devices that are no way out: VMs' taps, tunnels between the hosts."""
_CARRIER = "ETHTOOL_GLINK, RTM_GETLINK"
_COUNTERS = "IFLA_STATS64"


class Uplinks:
    """The monitor `uplink`. `woken` is called when a carrier has changed: `read` is due."""

    name = "uplink"

    def __init__(self, bridges: list[str], health: Health, woken: Callable[[], None]) -> None:
        self.interval, self._look_every = health.interval, health.carrier_interval
        self._bridges, self._named = bridges, health.uplink
        self._assess = Assessor(self.name, health.rounds, health.settle)
        self._errors = Rule(health.errors_warn, health.errors_max)
        self._drops = Rule(health.drops_warn)
        self._counter = Counter()
        self._woken = woken
        self._watch = CarrierWatch(self._compare)
        self._present: dict[str, bool] = {}
        self._ports: dict[str, list[str]] = {bridge: [] for bridge in bridges}
        self._gone: set[str] = set()
        self._carriers: dict[str, bool] = {}
        self._spoilt: list[Reading] = []
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        self._watch.close()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_every, self._look)
        self._compare()

    def _compare(self) -> None:
        if self._differs():
            self._woken()

    def _differs(self) -> bool:
        return any(self._watch.carrier(port) is not well for port, well in self._carriers.items())

    async def read(self) -> list[Reading]:
        if self._timer is None:
            self._look()
        if not self._differs():  # else the list of devices can wait, it may take long
            try:
                devices = await asyncio.get_running_loop().run_in_executor(None, rtnl.devices)
            except OSError as error:
                reason = f"the kernel does not list its network devices: {error}"
                return [self._assess.unknown(f"{bridge} carrier", reason, _CARRIER) for bridge in self._bridges]
            self._spoilt = [reading for bridge in self._bridges for reading in self._list(bridge, devices)]
        self._carriers = {port: self._watch.carrier(port) for ports in self._ports.values() for port in ports}
        return [*map(self._carrier, self._bridges), *self._spoilt]

    def _list(self, bridge: str, devices: list[rtnl.Device]) -> list[Reading]:
        """Look which ports the bridge has, and at their counters."""
        found = next((device for device in devices if device.name == bridge), None)
        self._present[bridge] = found is not None and found.up
        ports = [device for device in devices if found is not None and device.master == found.index
                 and (device.name in self._named if self._named else device.kind not in OURS)]
        # One that is gone is missed: a NIC that fell off its bus, or was taken out of the bridge, leads nowhere.
        names = {port.name for port in ports}
        self._gone = self._gone - names | (set(self._ports[bridge]) - names)
        self._ports[bridge] = sorted({*self._ports[bridge], *names})
        return [reading for port in ports for reading in self._counters(port)]

    def _carrier(self, bridge: str) -> Reading:
        ports = self._ports[bridge]
        dead = [port for port in ports if port in self._gone or not self._carriers[port]]
        here = self._present.get(bridge, False)
        if not ports and here:
            return self._assess.unknown(f"{bridge} carrier", "no uplink is a port of the bridge", _CARRIER)
        state = State.FAILED if not here or len(dead) == len(ports) else State.WARN if dead else State.OK
        why = "; ".join(f"{port}: {'no port of it' if port in self._gone else 'no carrier'}" for port in dead)
        reason = why if here else f"the bridge {bridge} is missing or down"
        return self._assess.found(f"{bridge} carrier", state, source=_CARRIER, value=len(ports) - len(dead),
                                  unit="up", threshold=f"failed <= 0 of {len(ports)}", rounds=1,
                                  reason="" if state is State.OK else reason)

    def _counters(self, port: rtnl.Device) -> list[Reading]:
        return [self._assess.value(f"{port.name} {what}", self._counter.rate(f"{port.name} {what}", count), rule,
                                   unit="/s", source=_COUNTERS)
                for what, count, rule in (("errors", port.errors, self._errors), ("drops", port.drops, self._drops))]
