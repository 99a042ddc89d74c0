# SPDX-License-Identifier: GPL-2.0-or-later
"""The section [health] of the configuration, and what cannot work in it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated

from appliance.settings import Bytes, Seconds, Section, parsed, says
from appliance.units import format_duration, parse_ip

MIB = 1 << 20


def _parse_probe(text: object) -> str:
    """ADDRESS or ADDRESS@BRIDGE, in the canonical form."""
    address, at, bridge = str(text).partition("@") if isinstance(text, str) else ("", "", "")
    remedy = 'write an IPv4 address, such as "10.77.0.1", or with its bridge "10.77.0.1@br0"'
    if not isinstance(text, str) or at and not re.fullmatch(r"[^\s/:@]{1,15}", bridge):
        raise ValueError(f"{text!r} is nothing to probe", remedy)
    address = parse_ip(address)
    if ipaddress.ip_address(address).version != 4:
        raise ValueError(f"{address} is no IPv4 address, and probes are ARP", remedy)
    return address + at + bridge


Probe = Annotated[str, parsed(_parse_probe)]


class Health(Section, frozen=True, kw_only=True):
    """[health]: how often this host is looked at, and what it takes to be unfit. See docs/health.md."""

    interval: Annotated[Seconds, says("between two readings of most monitors")] = 1.0
    carrier_interval: Annotated[
        Seconds, says("between two looks at the uplinks' carriers; an event comes sooner")] = 0.05
    disk_interval: Annotated[Seconds, says("between two small writes to each file system")] = 5.0
    rounds: Annotated[int, says("bad readings in a row that make a failure; a lost carrier is one at once")] = 3
    settle: Annotated[Seconds, says("how long a part that failed must be well before it counts as well")] = 3.0
    uplink: Annotated[
        tuple[str, ...], says("ports of the production bridges that lead outside; empty: all but taps, tunnels")] = ()
    probe: Annotated[tuple[Probe, ...], says("neighbours of the production network: one that answers is enough")] = ()
    errors_warn: Annotated[float, says("transmission errors a second on an uplink")] = 1.0
    errors_max: Annotated[float, says("as many a second: the uplink has failed")] = 100.0
    drops_warn: Annotated[float, says("frames a second that an uplink dropped")] = 1000.0
    rtt_warn: Annotated[Seconds, says("round trip on a link")] = 0.05
    jitter_warn: Annotated[Seconds, says("change from one round trip to the next")] = 0.05
    loss_warn: Annotated[float, says("share of segments on a link that were sent again")] = 0.01
    disk_warn: Annotated[Seconds, says("for one small write with fsync")] = 1.0
    disk_max: Annotated[Seconds, says("one that takes so long: the disk has failed")] = 10.0
    space_warn: Annotated[Bytes, says("free space for the service")] = 256 * MIB
    space_min: Annotated[Bytes, says("below this the disk has failed")] = 8 * MIB
    io_errors: Annotated[int, says("new I/O errors in one round")] = 10
    memory_warn: Annotated[Bytes, says("memory available without swapping")] = 256 * MIB
    memory_min: Annotated[Bytes, says("below this the memory has failed")] = 32 * MIB
    pressure_warn: Annotated[float, says("share of the time in which something waits for memory")] = 0.4
    load_warn: Annotated[float, says("runnable threads for each core, over 1 min")] = 4.0
    steal_warn: Annotated[float, says("share of processor time that a hypervisor gave to others")] = 0.2
    qmp_warn: Annotated[Seconds, says("for an answer of QEMU")] = 0.5
    qmp_max: Annotated[Seconds, says("no answer for so long: QEMU has failed")] = 3.0
    clock_warn: Annotated[Seconds, says("a step of the wall clock, or time that was slept")] = 0.5
    stall_warn: Annotated[Seconds, says("how late the service woke up")] = 0.1


Fault = tuple[str, str, str]  # key, cause, remedy
_BOUNDS = {"interval": (0.1, 60.0), "carrier_interval": (0.005, 1.0), "disk_interval": (0.1, 3600.0),
           "settle": (0.0, 3600.0), "disk_max": (0.1, 300.0), "qmp_max": (0.1, 60.0)}
_RISING = ("errors_warn", "errors_max"), ("disk_warn", "disk_max"), ("qmp_warn", "qmp_max")
_FALLING = ("space_warn", "space_min"), ("memory_warn", "memory_min")
_SHARES = ("loss_warn", "pressure_warn", "steal_warn")
_POSITIVE = ("drops_warn", "rtt_warn", "jitter_warn", "load_warn", "clock_warn", "stall_warn")


def faults(health: Health, bridges: set[str], guests: set[str]) -> Iterator[Fault]:
    """Everything in it that cannot work on a host with these production bridges, and VMs with these addresses."""
    for name, (low, high) in _BOUNDS.items():
        if not low <= getattr(health, name) <= high:
            usual = format_duration(getattr(Health(), name))
            yield name, f"must be from {format_duration(low)} to {format_duration(high)}", f"{usual} is usual"
    for name in ("rounds", "io_errors"):
        if not 1 <= getattr(health, name) <= 1000:
            yield name, "must be from 1 to 1000", f"{getattr(Health(), name)} is usual"
    for warn, most in _RISING:
        if not 0 < getattr(health, warn) <= getattr(health, most):
            yield warn, f"must be above 0 and at most {most}", "a warning comes before a failure"
    for warn, least in _FALLING:
        if getattr(health, warn) < getattr(health, least):
            yield warn, f"is less than {least}", "a warning comes before a failure"
    for name in _SHARES:
        if not 0 < getattr(health, name) <= 1:
            yield name, f"{getattr(health, name)} is no share", "choose from above 0 to 1"
    for name in _POSITIVE:
        if not 0 < getattr(health, name):
            yield name, "must be above 0", f"the default is {getattr(Health(), name):g}"
    yield from _probe_faults(health, bridges, guests)


def _probe_faults(health: Health, bridges: set[str], guests: set[str]) -> Iterator[Fault]:
    if len(set(health.probe)) != len(health.probe) or len(health.probe) > 16:
        yield "probe", "has an address twice or more than 16", "two or three that do not fail together are enough"
    for probe in health.probe:
        address, at, bridge = probe.partition("@")
        known = ", ".join(sorted(bridges))
        if address in guests:
            yield "probe", f"{address} is a VM's own", "name neighbours that are there without it, such as routers"
        if at and bridge not in bridges:
            yield "probe", f"no VM is on the bridge {bridge}", f"known are {known}"
        elif not at and len(bridges) > 1:
            yield "probe", f"{probe} could be behind any of {known}", f'write "{probe}@BRIDGE"'
