# SPDX-License-Identifier: GPL-2.0-or-later
"""The way out of each production bridge: the carriers of its uplinks, and how many frames they spoil.

A carrier that goes is seen by the next look, or sooner by the kernel's event (which it may batch for a second).
"""

from __future__ import annotations

import time
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
    """The monitor `uplink`. `woken` is called when a carrier may have changed: `read` is due."""

    name = "uplink"

    def __init__(self, bridges: list[str], health: Health, woken: Callable[[], None]) -> None:
        self.interval = health.carrier_interval
        self._bridges, self._named, self._refresh = bridges, health.uplink, health.interval
        self._assess = Assessor(self.name, health.rounds, health.settle)
        self._errors = Rule(health.errors_warn, health.errors_max)
        self._drops = Rule(health.drops_warn)
        self._counter = Counter()
        self._woken, self._stale, self._listed = woken, True, 0.0
        self._watch = CarrierWatch(self._changed)
        self._present: dict[str, bool] = {}
        self._ports: dict[str, list[str]] = {bridge: [] for bridge in bridges}
        self._spoilt: list[Reading] = []

    def close(self) -> None:
        self._watch.close()

    def _changed(self) -> None:
        self._stale = True
        self._woken()

    async def read(self) -> list[Reading]:
        now = time.monotonic()
        if self._stale or now - self._listed >= self._refresh:
            error = self._list(count=now - self._listed >= self._refresh, now=now)
            if error:
                return [self._assess.unknown(f"{bridge} carrier", error, _CARRIER) for bridge in self._bridges]
        return [*map(self._carrier, self._bridges), *self._spoilt]

    def _list(self, *, count: bool, now: float) -> str:
        """Look which ports there are; with `count`, at their counters. Returns why that cannot be known."""
        try:
            devices = rtnl.devices()
        except OSError as error:
            return f"the kernel does not list its network devices: {error}"
        self._stale = False
        if count:
            self._listed, self._spoilt = now, []
        indexes = {device.name: device.index for device in devices}
        self._present = {bridge: any(one.up for one in devices if one.name == bridge) for bridge in self._bridges}
        for bridge in self._bridges:
            ports = [device for device in devices if device.master and device.master == indexes.get(bridge)
                     and (device.name in self._named if self._named else device.kind not in OURS)]
            for port in ports if count else ():
                self._spoilt += self._counters(port)
            # One that is gone is missed: a NIC that fell off its bus has no carrier either.
            self._ports[bridge] = sorted({*self._ports[bridge], *(port.name for port in ports)})
        return ""

    def _carrier(self, bridge: str) -> Reading:
        ports = self._ports[bridge]
        dead = [port for port in ports if not self._watch.carrier(port)]
        here = self._present.get(bridge, False)
        if not ports and here:
            return self._assess.unknown(f"{bridge} carrier", "no uplink is a port of the bridge", _CARRIER)
        state = State.FAILED if not here or len(dead) == len(ports) else State.WARN if dead else State.OK
        reason = f"{', '.join(dead)}: no carrier" if here else f"the bridge {bridge} is missing or down"
        return self._assess.found(f"{bridge} carrier", state, source=_CARRIER, value=len(ports) - len(dead),
                                  unit="ports", threshold=f"failed <= 0 of {len(ports)}", rounds=1,
                                  reason="" if state is State.OK else reason)

    def _counters(self, port: rtnl.Device) -> list[Reading]:
        return [self._assess.value(f"{port.name} {what}", self._counter.rate(f"{port.name} {what}", count), rule,
                                   unit="/s", source=_COUNTERS)
                for what, count, rule in (("errors", port.errors, self._errors), ("drops", port.drops, self._drops))]
