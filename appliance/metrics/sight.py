# SPDX-License-Identifier: GPL-2.0-or-later
"""What one look at a service shows: read once for all figures, so that they fit together. Cheap: no question is asked,
nothing is waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from appliance.arbiter.watch import ArbiterWatch
from appliance.core import BY_OPERATOR, SPEAKING
from appliance.events import Events
from appliance.firewall import Firewall
from appliance.gate import GateStats
from appliance.guard import GuardStats
from appliance.health.report import Report
from appliance.history.history import History
from appliance.journal import EpochRecord
from appliance.logs.logs import Logs
from appliance.peer import Peer
from appliance.protection import Protection
from appliance.sums import Sums
from appliance.volumes import Volumes


class VmSight:
    """One VM at this moment."""

    def __init__(self, vm: Protection) -> None:
        self.name, self.phase, self.role = vm.name, vm.state.phase, vm.state.role
        self.term, self.paused = vm.state.term, BY_OPERATOR in vm.state.paused
        self.sums: Sums = vm.journal.sums
        self.primary, self.backup, self.front = vm.machine.primary, vm.machine.backup, vm.machine.front
        self.last: EpochRecord | None = vm.journal.epochs[-1] if vm.journal.epochs else None
        self.disks: dict[str, Any] | None = vm.machine.view.disks()
        self.volumes: Volumes | None = vm.machine.volumes
        self.shared: list[dict[str, Any]] = vm.machine.view.volumes()

    @cached_property
    def gate(self) -> GateStats | None:
        return self.front.gate.stats() if self.front is not None else None

    @cached_property
    def guard(self) -> GuardStats | None:
        return self.front.guard.stats() if self.front is not None else None

    @property
    def speaks(self) -> bool:
        """May the VM be reached here?"""
        return self.phase in SPEAKING and self.guard is not None and self.guard.open


@dataclass(frozen=True)
class Parts:
    """What there is to look at."""

    host: str
    vms: Mapping[str, Protection]
    peer: Peer
    arbiter: ArbiterWatch
    firewall: Firewall
    health: Report
    history: History
    events: Events
    logs: Logs
    drained: Callable[[], bool]


class Sight:
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.vms = [VmSight(vm) for vm in parts.vms.values()]
        self.peer = parts.peer.status()
        self.arbiter = parts.arbiter.status()
        self.health = parts.health.known()
        self.rules = parts.firewall.known()
