# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab on which things happen: its services with their injection points, a busy client, a wire that is listened to."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

from appliance.errors import TimedOut
from appliance.lab import faults
from appliance.lab.blueprint import VM, Options
from appliance.lab.client import Client
from appliance.lab.database import Database
from appliance.lab.lab import Lab, Progress, is_protected
from appliance.lab.topology import HOSTS
from appliance.lab.wire import Wire

PATIENCE = 20.0  # seconds; for what takes a fraction of one on a machine that is not busy


def _quiet(_line: str) -> None:
    pass


def until(what: str, holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until `holds()` is true. Raises TimedOut after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= deadline:
            raise TimedOut(f"not within {seconds:g} s: {what}", "see the logs of both hosts")
        time.sleep(0.01)


def other(host: str) -> str:
    """The host that `host` is paired with."""
    return HOSTS[1 - HOSTS.index(host)]


class Stage:
    """See the module. Use `up`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = Client(lab)
        self.database = Database(lab) if lab.options.guest == "disk" else None
        self.wire = Wire(lab)

    @classmethod
    def up(cls, options: Options, *, progress: Progress = _quiet) -> Self:
        """A protected VM whose guest serves a client. Raises HoldfastError; leaves nothing then."""
        environment = {host: faults.injectable(options.name, host) for host in HOSTS}
        lab = Lab.up(options, extra_environment=environment, progress=progress)
        try:
            stage = cls(lab)
            stage.goes_on()
        except BaseException:
            lab.down()
            raise
        return stage

    def down(self) -> None:
        """Take everything away."""
        self.leave()
        self.lab.down()

    def leave(self) -> None:
        """Stop client and wire; the lab stays."""
        self.client.close()
        if self.database is not None:
            self.database.close()
        self.wire.close()

    def goes_on(self, seconds: float = 15.0) -> None:
        """Wait until everything asked from now on is answered. Raises TimedOut."""
        self.client.goes_on(seconds)
        if self.database is not None:
            self.database.goes_on(seconds)

    def new_client(self) -> int:
        """Another client, of a VM that was started afresh; returns how many acknowledged writes of the one before are
        gone, of those that have a disk to be on."""
        self.client.close()
        self.lab.wait_guest()
        lost = 0
        if self.database is not None:
            lost = self.client.lost()
            self.database.started_afresh()
        self.client = Client(self.lab)
        self.goes_on()
        return lost

    # --- who is who ---

    def vm(self, host: str) -> dict[str, Any]:
        """What the service of `host` says of the VM; empty when it does not answer."""
        vms: dict[str, dict[str, Any]] = (self.lab.host_status(host) or {}).get("vms", {})
        return vms.get(VM, {})

    def is_protected(self) -> bool:
        return is_protected({host: self.vm(host) for host in HOSTS})

    def protected(self, patience: float = PATIENCE) -> tuple[str, str]:
        """Primary and backup, once the VM is protected. Raises TimedOut after `patience` seconds."""
        self.lab.wait_protected(patience)
        primary = next(host for host in HOSTS if self.vm(host).get("role") == "primary")
        return primary, other(primary)

    def term(self) -> int:
        return max(int(self.vm(host).get("term", 0)) for host in HOSTS)

    def takes_over(self, host: str) -> None:
        """Wait until `host` is primary."""
        until(f"{host} takes over", lambda: self.vm(host).get("role") == "primary")

    # --- faults ---

    def arm(self, host: str, text: str) -> None:
        """Let the service of `host` run into an injected fault: POINT:ACTION[:NTH]."""
        faults.arm(self.lab.name, host, text)

    def heal(self, host: str) -> None:
        self.lab.heal(host, faults.injectable(self.lab.name, host))

    def dead(self, host: str) -> None:
        """Wait until the service of `host` has died of its fault."""
        until(f"the service of {host} dies", lambda: self.lab.service(host) is None)

    def paused(self, host: str) -> None:
        """Wait until the service of `host` stands still."""
        until(f"the service of {host} stands still", lambda: (found := self.lab.service(host)) and found.stopped)
