# SPDX-License-Identifier: GPL-2.0-or-later
"""The section [health] of the configuration, and what cannot work in it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated

from appliance.settings import Bytes, Seconds, Section, parsed
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

    interval: Seconds = 1.0  # between two readings of most monitors
    carrier_interval: Seconds = 0.05  # between two looks at the uplinks' carriers; an event comes sooner
    disk_interval: Seconds = 5.0  # between two small writes to each file system
    rounds: int = 3  # bad readings in a row that make a failure; a lost carrier is one at once
    settle: Seconds = 3.0  # how long a part that failed must be well before it counts as well
    uplink: tuple[str, ...] = ()  # ports of the production bridges that lead outside; empty: all but taps and tunnels
    probe: tuple[Probe, ...] = ()  # neighbours of the production network: one that answers is enough
    errors_warn: float = 1.0  # transmission errors a second on an uplink
    errors_max: float = 100.0
    drops_warn: float = 1000.0  # frames a second that an uplink dropped
    rtt_warn: Seconds = 0.05  # round trip on a link
    jitter_warn: Seconds = 0.05  # change from one round trip to the next
    loss_warn: float = 0.01  # share of segments on a link that were sent again
    disk_warn: Seconds = 1.0  # one small write with fsync
    disk_max: Seconds = 10.0
    space_warn: Bytes = 256 * MIB  # free for the service
    space_min: Bytes = 8 * MIB
    io_errors: int = 10  # new I/O errors in one round
    memory_warn: Bytes = 256 * MIB  # available without swapping
    memory_min: Bytes = 32 * MIB
    pressure_warn: float = 0.4  # share of the time in which something waits for memory
    load_warn: float = 4.0  # runnable threads for each core, over 1 min
    steal_warn: float = 0.2  # share of processor time that a hypervisor gave to others
    qmp_warn: Seconds = 0.5  # for an answer of QEMU
    qmp_max: Seconds = 3.0
    clock_warn: Seconds = 0.5  # a step of the wall clock, or time that was slept
    stall_warn: Seconds = 0.1  # how late the service woke up


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
