# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rules are about: the links and the fronts of this host, checked before it gets near a ruleset."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from rules.errors import RulesError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Narrower than the kernel's own idea of a device name: nothing that is a wildcard or a quote in a ruleset.
_DEVICE = re.compile(r"[A-Za-z0-9_.@-]{1,15}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
TUNNEL_PORT = 4789
"""VXLAN, by UDP, from host to host."""


def _device(name: str) -> None:
    if not _DEVICE.fullmatch(name):
        raise RulesError(f"{name!r} cannot stand in a packet filter rule",
                         "give the device a name of letters, digits, and - _ . @")


def address(text: str) -> Address:
    """Raises RulesError for what is no plain address."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise RulesError(f"{text!r} is no IP address", "write it like 10.77.0.10 or fd77::10") from None
    if getattr(found, "scope_id", None):
        raise RulesError(f"{text!r} names a scope", "leave out the part from the % on")
    return found


@dataclass(frozen=True, slots=True)
class Link:
    """One link of this host: `port` by TCP and UDP and the tunnel, from `peer` to `local` on `device`."""

    device: str
    local: str
    peer: str
    port: int

    def __post_init__(self) -> None:
        _device(self.device)
        if address(self.local).version != address(self.peer).version:
            raise RulesError(f"{self.local} and {self.peer} are of two IP versions", "use the same on both ends")
        if not 1 <= self.port <= 65535:
            raise RulesError(f"{self.port} is no port", "choose from 1 to 65535")


@dataclass(frozen=True, slots=True)
class Station:
    """The VM behind the out tap `device`. No `ips`: it may use any address, but only its own MAC."""

    vm: str
    device: str
    mac: str
    ips: tuple[str, ...]

    def __post_init__(self) -> None:
        _device(self.device)
        if not _MAC.fullmatch(self.mac) or int(self.mac[:2], 16) & 1:
            raise RulesError(f"{self.mac!r} is no MAC of a VM", "write it in small letters, like 52:54:00:12:34:56")
        for ip in self.ips:
            address(ip)


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the rules need to know."""

    links: tuple[Link, ...]
    stations: tuple[Station, ...]

    def __post_init__(self) -> None:
        devices = [station.device for station in self.stations]
        if len(set(devices)) != len(devices):
            raise RulesError("two VMs have the same out tap", "give one of them another name")
