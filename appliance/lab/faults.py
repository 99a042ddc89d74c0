# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of a lab's hosts, each as abrupt as in reality and with the moment at which it took effect.

    crash          power loss: every process stands still, all cables dead, every process killed: nobody hears a
                   farewell, and nobody lives to see its cables die
    qemu-kill      SIGKILL to QEMU
    service-kill   SIGKILL to the service (its QEMU dies with it)
    service-pause  SIGSTOP to the service; `heal` continues it
    link-down[:N]  link cable N dead (0 if not given)
    both-links     all link cables dead: the hosts do not see each other any more
    uplink-down    the cable to the switch dead
    san-down       the cable to the shared volume dead; for a lab up --volume
    disk-fail      every read and write of the host's disk images is an I/O error; for a lab up --disk-faults
    disk-full      the file system with them is full; for the same
    witness-down   SIGKILL to the arbiter on the third machine, `witness`; all others are for the hosts

`power_loss` is the crash of both hosts at once. `arm` lets a service run into a fault at a named step of its work.
"""

import contextlib
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import Unavailable, UsageError
from appliance.lab import blueprint, disks, fallible, processes, third, topology
from appliance.lab.kinds import KINDS
from appliance.lab.processes import Process
from vmlink import inject as injection

_RTM_NEWLINK, _NLM_F_REQUEST_ACK = 16, 5
_NLMSG_ERROR, _IFF_UP = 2, 1
_SIOCGIFFLAGS = 0x8913


@dataclass(frozen=True)
class Fault:
    """A fault that has taken effect: seconds since 1970, and on CLOCK_MONOTONIC, just before it began."""

    kind: str
    host: str
    unix: float
    monotonic: float


class Cables:
    """The ends of a host's cables, of all that it has if none is named.

    Netlink messages are prepared, so that cutting all takes well under 1 ms.
    """

    def __init__(self, lab: str, host: str, names: Sequence[str] = ()) -> None:
        names = names or topology.cables(lab)
        with topology.inside(topology.netns(lab, host)):
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self._netlink.bind((0, 0))
            self._netlink.settimeout(5.0)
            self._query = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._indexes = {}
            for name in names:
                with contextlib.suppress(OSError):
                    self._indexes[name] = socket.if_nametoindex(name)
        if len(self._indexes) < len(names):
            self.close()
            raise Unavailable(f"{host} lacks its cables", "holdfast lab down, then up")
        self._cut = self._message(up=False)
        self._restore = self._message(up=True)

    def _message(self, *, up: bool) -> bytes:
        # A struct nlmsghdr and a struct ifinfomsg for each device; the sequence number tells the answers apart.
        return b"".join(
            struct.pack("=IHHIIBxHiII", 32, _RTM_NEWLINK, _NLM_F_REQUEST_ACK, number, 0, 0, 0, index, int(up), _IFF_UP)
            for number, index in enumerate(self._indexes.values())
        )

    def _send(self, message: bytes) -> None:
        self._netlink.send(message)
        for _ in self._indexes:
            answer = self._netlink.recv(4096)
            kind, error = struct.unpack_from("=4xH10xi", answer)
            if kind != _NLMSG_ERROR or error:
                raise Unavailable(f"cannot switch a cable: {os.strerror(-error)}", "run this as root")

    def cut(self) -> None:
        """All at once; both ends lose the carrier."""
        self._send(self._cut)

    def restore(self) -> None:
        self._send(self._restore)

    def down(self) -> list[str]:
        """The names of those that are cut at this end."""
        return [name for name in self._indexes if not self._flags(name) & _IFF_UP]

    def _flags(self, name: str) -> int:
        request = struct.pack("=16sH22x", name.encode(), 0)
        flags: int = struct.unpack_from("=16xH", fcntl.ioctl(self._query, _SIOCGIFFLAGS, request))[0]
        return flags

    def close(self) -> None:
        self._netlink.close()
        self._query.close()

    def __enter__(self) -> "Cables":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def inject(lab: str, host: str, kind: str, service: Process | None) -> Fault:
    """Make fault `kind` (one of KINDS, see above) happen on `host`, whose service is `service`.

    Raises UsageError (no such fault) or Unavailable (nothing there that it could happen to).
    """
    name, _, which = kind.partition(":")
    if (kind == "witness-down") != (host == third.PLACE) and name in KINDS:
        raise UsageError(f"{kind} of {host}", f"witness-down is for {third.PLACE}, all others for the hosts")
    if name == "link-down" and (which or "0") in ("0", "1"):
        return _cut(lab, host, kind, (topology.LINKS[int(which or "0")],))
    if kind not in KINDS:
        raise UsageError(f"unknown fault {kind!r}", f"known are {', '.join(KINDS)}; also link-down:0, link-down:1")
    if kind == "both-links":
        return _cut(lab, host, kind, topology.LINKS)
    if kind == "uplink-down":
        return _cut(lab, host, kind, (topology.UPLINK,))
    if kind == "san-down":
        if not topology.exists(lab, topology.SAN):
            raise Unavailable("san-down: the hosts share no volume over a cable", "holdfast lab up --volume")
        return _cut(lab, host, kind, (topology.SAN_CABLE,))
    if kind in ("disk-fail", "disk-full"):
        return _disk(lab, host, kind)
    if kind == "crash":
        return _crash(lab, host)
    if kind == "qemu-kill":
        return _signal(host, kind, [p for p in processes.ours(lab, host) if processes.is_qemu(p)], signal.SIGKILL)
    targets = [service] if service is not None else []
    return _signal(host, kind, targets, signal.SIGSTOP if kind == "service-pause" else signal.SIGKILL)


def _now(kind: str, host: str) -> Fault:
    return Fault(kind, host, time.time(), time.monotonic())


def _disk(lab: str, host: str, kind: str) -> Fault:
    if not blueprint.read_state(lab).options.disk_faults:
        raise Unavailable(f"{kind}: the disks of this lab cannot fail", "holdfast lab up --disk-faults")
    fault = _now(kind, host)
    (fallible.fail if kind == "disk-fail" else fallible.fill)(disks.home(lab, host))
    return fault


def _cut(lab: str, host: str, kind: str, names: Sequence[str]) -> Fault:
    with Cables(lab, host, names) as cables:
        fault = _now(kind, host)
        cables.cut()
    return fault


def _signal(host: str, kind: str, targets: Sequence[Process], number: signal.Signals) -> Fault:
    with processes.handles(targets) as found:
        if not found:
            raise Unavailable(f"{kind}: no such process runs on {host}", f"holdfast lab heal {host}")
        fault = _now(kind, host)
        processes.send_all(found, number)
        # A heal that follows at once must not find it still alive, or not yet stopped.
        if number == signal.SIGKILL:
            processes.await_end(found)
        else:
            processes.await_stop(found.values())
    return fault


def _crash(lab: str, host: str) -> Fault:
    with processes.handles(list(processes.ours(lab, host))) as found, Cables(lab, host) as cables:
        fault = _now("crash", host)
        processes.send_all(found, signal.SIGSTOP)
        cables.cut()
        processes.send_all(found, signal.SIGKILL)
        processes.await_end(found)
    return fault


def power_loss(lab: str) -> Fault:
    """Both hosts crash within a few ms."""
    everything = list(processes.ours(lab, *topology.HOSTS))
    with contextlib.ExitStack() as prepared:
        found = prepared.enter_context(processes.handles(everything))
        cables = [prepared.enter_context(Cables(lab, host)) for host in topology.HOSTS]
        fault = _now("power-loss", " and ".join(topology.HOSTS))
        processes.send_all(found, signal.SIGSTOP)
        for of_host in cables:
            of_host.cut()
        processes.send_all(found, signal.SIGKILL)
        processes.await_end(found)
    return fault


def injectable(lab: str, host: str) -> dict[str, str]:
    """The environment in which a service of `host` has to be started for `arm` to reach it."""
    return {"HOLDFAST_INJECT": f"@{_armament(lab, host)}"}


def arm(lab: str, host: str, text: str) -> None:
    """Let the service of `host` run into a fault: POINT:ACTION[:NTH], see vmlink.inject. Raises UsageError."""
    try:
        injection.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    file = _armament(lab, host)
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def _armament(lab: str, host: str) -> Path:
    return blueprint.host_directory(lab, host) / "inject"
