# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches both services of a lab from outside while it runs, because what a killed service knew dies with it.

Looks at every host about once a second (a look costs a service some milliseconds of its own time), and once
more whenever asked: right before a fault.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance import control
from appliance.errors import HoldfastError, TimedOut
from appliance.lab.blueprint import VM, control_path
from appliance.lab.lab import Lab
from appliance.lab.topology import HOSTS

EVERY_S = 1.0
POLL_S = 0.1


@dataclass(frozen=True)
class Happening:
    """One event of a service: unix time in seconds, host, name, and what else the service said of it."""

    at: float
    host: str
    name: str
    more: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Epoch:
    """One checkpoint: unix time in seconds of the pause, the host that ran the VM, pause in ms, pages sent."""

    at: float
    host: str
    term: int
    number: int
    pause_ms: float
    pages: int


@dataclass
class Seen:
    """All that was seen so far. `early` and `checkpoints`: by host and process, the highest count."""

    happenings: set[Happening] = field(default_factory=set)
    epochs: dict[tuple[str, int, int], Epoch] = field(default_factory=dict)
    early: dict[tuple[str, int], int] = field(default_factory=dict)
    checkpoints: dict[tuple[str, int], int] = field(default_factory=dict)

    def events(self) -> list[Happening]:
        """Everything that happened, in order of time."""
        return sorted(self.happenings, key=lambda happening: happening.at)

    def first(self, name: str, host: str, after: float) -> float | None:
        """When `name` first happened on `host` at or after unix time `after`; None if it did not."""
        times = [h.at for h in self.happenings if h.name == name and h.host == host and h.at >= after]
        return min(times, default=None)

    def protected_spans(self, faults: Sequence[float], end: float) -> list[tuple[float, float]]:
        """When the VM was protected, in unix seconds, until `end`; a fault (its unix time) ends a span."""
        ends = [h.at for h in self.happenings if ("was", "protected") in h.more] + [*faults, end]
        begins = sorted(h.at for h in self.happenings if h.name == "protected" and h.at < end)
        return [(begin, min(at for at in ends if at > begin)) for begin in begins]

    def early_frames(self) -> int:
        """Frames that the guards stopped because nothing had committed them yet."""
        return sum(self.early.values())

    def add_status(self, host: str, reply: dict[str, Any]) -> None:
        vm = reply["vms"].get(VM, {})
        life = (host, int(reply["pid"]))
        for event in vm.get("events", ()):
            more = tuple(sorted((k, str(v)) for k, v in event.items() if k not in ("at", "event")))
            self.happenings.add(Happening(event["at"], host, event["event"], more))
        early = int((vm.get("guard") or {}).get("early", 0))
        self.early[life] = max(early, self.early.get(life, 0))
        self.checkpoints[life] = max(int(vm.get("checkpoints", 0)), self.checkpoints.get(life, 0))

    def add_epochs(self, host: str, reply: dict[str, Any]) -> None:
        for one in reply["vms"].get(VM, ()):
            epoch = Epoch(one["at"], host, one["term"], one["epoch"], one["pause_ms"], one["dirty_pages"])
            # A copy that starts anew under the same term numbers its epochs from 1 again: told apart by the time.
            self.epochs[(host, epoch.term, round(epoch.at * 1e3))] = epoch


class Observer:
    """A background thread that looks at both hosts; `seen` may be read after `stop`, or right after `look`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.seen = Seen()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; idempotent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            for host in HOSTS:
                self.status(host)

    def status(self, host: str) -> dict[str, Any]:
        """What the service of `host` says of the VM; empty if it does not answer within a second."""
        reply = self.lab.host_status(host)
        if reply is None:
            return {}
        with self._lock:
            self.seen.add_status(host, reply)
        vm: dict[str, Any] = reply["vms"].get(VM, {})
        return vm

    def look(self) -> None:
        """Take note of everything the services know now, all their remembered epochs included."""
        for host in HOSTS:
            self.status(host)
            with contextlib.suppress(HoldfastError):
                reply = control.call(control_path(self.lab.name, host), "epochs", timeout=2.0)
                with self._lock:
                    self.seen.add_epochs(host, reply)

    def wait_phase(self, host: str, phases: frozenset[str], timeout: float) -> None:
        """Return when the VM's phase on `host` is one of `phases`. Raises TimedOut after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (phase := self.status(host).get("phase", "no answer")) not in phases:
            if time.monotonic() >= deadline:
                raise TimedOut(f"{host} is {phase} {timeout:g} s later, not {' or '.join(sorted(phases))}",
                               "see the logs of both hosts")  # fmt: skip
            time.sleep(POLL_S)
