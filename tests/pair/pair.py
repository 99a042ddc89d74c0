# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab under test: its two services with their injection points, a busy client, and a wire that is listened to."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.lab import blueprint, processes, topology
from appliance.lab.blueprint import VM, Options
from appliance.lab.lab import Lab, is_protected
from appliance.lab.topology import HOSTS
from tests.pair.client import Client
from tests.pair.wire import Frame, Wire, speakers
from vmlink import inject

HOST_DEVICES = {"lo", topology.BRIDGE, topology.UPLINK, *topology.LINKS}
PATIENCE = 20.0  # seconds; for what takes a fraction of one on a machine that is not busy


def until(what: str, holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def other(host: str) -> str:
    return HOSTS[1 - HOSTS.index(host)]


class Pair:
    """See the module. Use `up`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = Client(lab)
        self.wire = Wire(lab)

    @classmethod
    def up(cls, options: Options) -> Pair:
        """A protected VM whose guest serves."""
        lab = Lab.up(options, extra_environment={host: _environment(options.name, host) for host in HOSTS})
        try:
            pair = cls(lab)
            pair.client.goes_on()
        except BaseException:
            lab.down()
            raise
        return pair

    def down(self) -> None:
        self.client.close()
        self.wire.close()
        self.lab.down()

    def new_client(self) -> None:
        """Another client, of a VM that was started afresh."""
        self.lab.wait_guest()
        self.client = Client(self.lab)
        self.client.goes_on()

    # --- who is who ---

    def vm(self, host: str) -> dict[str, Any]:
        """What the service of `host` says of the VM; empty when it does not answer."""
        vms: dict[str, dict[str, Any]] = (self.lab.host_status(host) or {}).get("vms", {})
        return vms.get(VM, {})

    def is_protected(self) -> bool:
        return is_protected({host: self.vm(host) for host in HOSTS})

    def protected(self) -> tuple[str, str]:
        """Primary and backup, once the VM is protected."""
        self.lab.wait_protected(PATIENCE)
        primary = next(host for host in HOSTS if self.vm(host).get("role") == "primary")
        return primary, other(primary)

    def term(self) -> int:
        return max(int(self.vm(host).get("term", 0)) for host in HOSTS)

    # --- faults ---

    def arm(self, host: str, text: str) -> None:
        """Let the service of `host` run into an injected fault: POINT:ACTION[:NTH]."""
        inject.parse(text)
        file = Path(_environment(self.lab.name, host)["HOLDFAST_INJECT"][1:])
        new = file.with_suffix(".new")
        new.write_text(text)
        os.rename(new, file)

    def heal(self, host: str) -> None:
        self.lab.heal(host, _environment(self.lab.name, host))

    def dead(self, host: str) -> None:
        """Wait until the service of `host` has died of its fault."""
        until(f"the service of {host} dies", lambda: self.lab.service(host) is None)

    def paused(self, host: str) -> None:
        """Wait until the service of `host` stands still."""
        until(f"the service of {host} stands still", lambda: (found := self.lab.service(host)) and found.stopped)

    def nothing_left(self, host: str) -> None:
        """Wait until nothing is left of a service that died: no process, no device."""
        until(f"{host} is free of what the service left: {self.left(host)}", lambda: not self.left(host))

    def left(self, host: str) -> list[str]:
        """What there is on `host` that a host without a service does not have."""
        found = [f"process {process.pid}" for process in processes.ours(self.lab.name, host)]
        return found + [f"device {name}" for name in self.devices(host) - HOST_DEVICES]

    def devices(self, host: str) -> set[str]:
        with topology.inside(self.lab.netns(host)):
            return {name for _, name in socket.if_nameindex()}

    def qemus(self, host: str) -> list[int]:
        """Pids of the QEMU processes on `host`."""
        return [one.pid for one in processes.ours(self.lab.name, host) if processes.is_qemu(one)]

    # --- what must hold whatever happened ---

    def sound(self, *spoke: str) -> list[str]:
        """The client saw nothing amiss, no frame reached a guard early, and only these hosts spoke, in turn.

        Returns who spoke; not compared with anything when nobody is named.
        """
        self.client.goes_on()
        problems = self.client.problems()
        assert not problems, problems
        assert self.client.lost() == 0
        for host in HOSTS:
            guard = self.vm(host)["guard"]
            assert (guard["early_frames"], guard["unstamped_frames"]) == (0, 0), (host, guard)
        frames = self.wire.take()
        found = speakers(frames)
        assert found == list(spoke or found), _scene(frames)
        return found

    def log(self, host: str) -> str:
        return blueprint.log_path(self.lab.name, host).read_text(errors="replace")


def _environment(lab: str, host: str) -> dict[str, str]:
    return {"HOLDFAST_INJECT": f"@{blueprint.host_directory(lab, host)}/inject"}


def _scene(frames: list[Frame]) -> str:
    """The moments at which the speaker changed."""
    changes = [f"{before.port} {before.at:.6f} {before.kind} -> {after.port} {after.at:.6f} {after.kind}"
               for before, after in zip(frames, frames[1:], strict=False) if before.port != after.port]
    return "; ".join(changes) or "nobody spoke, or one alone"
