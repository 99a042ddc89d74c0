# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab under test: what must hold on it whatever happened."""

from __future__ import annotations

import socket

from appliance.lab import blueprint, processes, topology
from appliance.lab.stage import Stage, other, until
from appliance.lab.topology import HOSTS
from appliance.lab.wire import Frame, speakers

__all__ = ["HOST_DEVICES", "Pair", "other", "until"]
HOST_DEVICES = {"lo", topology.BRIDGE, topology.UPLINK, *topology.LINKS}


class Pair(Stage):
    """See the module. Use `up`."""

    def nothing_left(self, host: str) -> None:
        """Wait until nothing is left of a service that died: no process, no device."""
        until(f"{host} is free of what the service left: {self.left(host)}", lambda: not self.left(host))

    def left(self, host: str) -> list[str]:
        """What there is on `host` that a host without a service does not have."""
        found = [f"process {process.pid}" for process in processes.ours(self.lab.name, host)]
        return found + [f"device {name}" for name in self.devices(host) - HOST_DEVICES - {topology.SAN_CABLE}]

    def devices(self, host: str) -> set[str]:
        with topology.inside(self.lab.netns(host)):
            return {name for _, name in socket.if_nameindex()}

    def qemus(self, host: str) -> list[int]:
        """Pids of the QEMU processes on `host`."""
        return [one.pid for one in processes.ours(self.lab.name, host) if processes.is_qemu(one)]

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


def _scene(frames: list[Frame]) -> str:
    """The moments at which the speaker changed."""
    changes = [f"{before.port} {before.at:.6f} {before.kind} -> {after.port} {after.at:.6f} {after.kind}"
               for before, after in zip(frames, frames[1:], strict=False) if before.port != after.port]
    return "; ".join(changes) or "nobody spoke, or one alone"
