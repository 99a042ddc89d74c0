# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a policy as one nftables transaction: the rules as they stand in the .nft files, then what is in the sets.

Only values that `rules.policy` has checked get into the text, and only as elements of sets.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from importlib import resources

from rules.policy import TUNNEL_PORT, Policy, Station, address

TABLE = "holdfast"
FAMILIES = ("inet", "bridge")
DROPS = ("closed", "mac", "arp", "ip4", "ip6", "protocol")
"""Why a VM's frame is dropped; each is a set `dropped_WHY` with a counter for each front."""


def removal() -> str:
    """The transaction that takes our tables away, whether they are there or not."""
    return "".join(f"table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in FAMILIES)


def ruleset(policy: Policy, opened: Iterable[str] = ()) -> str:
    """The transaction that puts our tables in the place of what is there; devices in `opened` may send."""
    text = [removal()]
    text += [resources.files("rules").joinpath(name).read_text() for name in ("links.nft", "fronts.nft")]
    text += _links(policy)
    opened = set(opened)
    for station in policy.stations:
        text += _station(station, station.device in opened)
    return "".join(text)


def _add(family: str, name: str, *fields: object) -> str:
    return f"add element {family} {TABLE} {name} {{ {' . '.join(map(str, fields))} }}\n"


def _links(policy: Policy) -> Iterator[str]:
    for link in policy.links:
        peer, local = address(link.peer), address(link.local)
        for protocol, port in (("tcp", link.port), ("udp", link.port), ("udp", TUNNEL_PORT)):
            yield _add("inet", f"peers{peer.version}", f'"{link.device}"', peer, local, protocol, port)
            yield _add("inet", "ports", protocol, port)


def _station(station: Station, opened: bool) -> Iterator[str]:
    device = f'"{station.device}"'
    yield _add("bridge", "fronts", device)
    for why in DROPS:
        yield _add("bridge", f"dropped_{why}", device)
    yield _add("bridge", "stations", device, station.mac)
    if opened:
        yield _add("bridge", "open", device)
    if not station.ips:
        return
    yield _add("bridge", "addressed", device)
    ips = [address(ip) for ip in station.ips]
    for ip in ips:
        yield _add("bridge", f"own{ip.version}", device, ip)
        if isinstance(ip, ipaddress.IPv6Address):
            yield _add("bridge", "targets", device, f"{int(ip):#034x}")
    if not any(ip.version == 6 and ip.is_link_local for ip in ips):
        yield _add("bridge", "link_local", device)
