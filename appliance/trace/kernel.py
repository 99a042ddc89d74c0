# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel itself does to frames of the traced VMs, as events: why it drops one, what a socket sends again.

The kernel is asked while a trace goes on that wants it, by this process; the service has no part in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from appliance.trace import notes
from appliance.trace.event import Event, Frame, Point
from ebpf.drops import DROP, Drops, Vm, function_at, reasons

OURS = frozenset(("tc_ingress", "tc_egress"))
"""Reasons of what our own programs drop: that is told at their points."""
_INET = 2


class Kernel:
    """Asks for the VMs of one trace. Raises BpfError where the kernel cannot be asked."""

    def __init__(self, begin: notes.Begin) -> None:
        self._begin, self._offset = begin, notes.offset(begin)
        self._vms = [vm.vm for vm in begin.vms]
        self._drops = Drops([_asked(vm) for vm in begin.vms], begin.netns)

    def close(self) -> None:
        self._drops.close()

    def events(self) -> Iterator[tuple[int, Event]]:
        """What was seen since the last call, each with its monotonic time."""
        for kind, source, caplen, reason, length, _, at_ns, location, snap in self._drops.read():
            vm = self._vms[source]
            if kind == DROP:
                name = reasons().get(reason, f"reason-{reason}")
                where = function_at(location)
                if name not in OURS:
                    yield at_ns, Frame(at_ns=at_ns + self._offset, host=self._begin.host, vm=vm, point=Point.LOST,
                                       cause=f"{name}@{where}" if where else name, size=max(length, caplen),
                                       segments=1, snap=snap[:caplen])
            else:
                ends = {"from": _address(reason, snap[:16], caplen), "to": _address(reason, snap[16:32], length)}
                yield at_ns, notes.Happened(at_ns=at_ns, vm=vm, event="tcp-retransmit", fields=ends)


def _asked(vm: notes.VmBegin) -> Vm:
    addresses = [ipaddress.ip_address(text) for text in vm.ips]
    four = next((address.packed for address in addresses if address.version == 4), b"")
    six = next((address.packed for address in addresses if address.version == 6), b"")
    return Vm(bytes.fromhex(vm.mac.replace(":", "")), four, six)


def _address(family: int, packed: bytes, port: int) -> str:
    address = ipaddress.ip_address(packed[:4] if family == _INET else packed)
    return f"{address}.{port}"
