# SPDX-License-Identifier: GPL-2.0-or-later
"""The network of a lab: five namespaces, a switch, a client, a third machine and the cables between them. A sixth, with
cables of its own, when the hosts share a volume.

        client [eth0] ------ [client] switch bridge [alpha] ------ [up0] br0   namespace of host alpha
                                                    [beta]  ------ [up0] br0   namespace of host beta
                                                    [witness] ---- [eth0]      the third machine
        alpha [link0] ------ [link0] beta           alpha [link1] ------ [link1] beta
        alpha [san0] ------- [alpha] san bridge [beta] ------- [san0] beta

Every device is made inside its namespace, so that nothing of a lab ever shows up outside of it and labs of
other names cannot clash.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from appliance.errors import NoPermission, Unavailable

HOSTS = ("alpha", "beta")
THIRD = "witness"
PLACES = (*HOSTS, "switch", "client", THIRD)
SAN = "san"
"""Where a shared volume is served, if the lab has one."""
LINKS = ("link0", "link1")
UPLINK = "up0"
SAN_CABLE = "san0"
BRIDGE = "br0"
CLIENT_IP, CLIENT_IP6 = "10.77.0.1", "fd77::1"
WITNESS_IP = "10.77.0.5"
HOST_IPS = {"alpha": "10.77.0.2", "beta": "10.77.0.3"}
SAN_IP = "10.77.7.9"
SAN_HOST_IPS = {"alpha": "10.77.7.1", "beta": "10.77.7.2"}
VM_IP, VM_IP6, VM_MAC = "10.77.0.10", "fd77::10", "52:54:00:77:00:10"
VM2_IP, VM2_IP6, VM2_MAC = "10.77.0.11", "fd77::11", "52:54:00:77:00:11"
NETNS_DIR = Path("/run/netns")
_BRIDGE_MACS = {"alpha": "02:00:00:77:00:01", "beta": "02:00:00:77:00:02", "switch": "02:00:00:77:00:03",
                "san": "02:00:00:77:00:04"}
_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


def netns(lab: str, place: str) -> str:
    """Name of the namespace of `place`, one of PLACES, or SAN."""
    return f"hf-{lab}-{place}"


def link_address(link: int, host: str) -> str:
    """The address of `host` on its end of cable `link` (from 0)."""
    return f"169.254.{77 + link}.{HOSTS.index(host) + 1}"


def exists(lab: str, place: str) -> bool:
    """Is there a namespace of that name?"""
    return (NETNS_DIR / netns(lab, place)).exists()


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread is in the network namespace of this name while the block runs.

    Raises Unavailable (no such namespace) or NoPermission.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            there = os.open(NETNS_DIR / namespace, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise Unavailable(f"there is no namespace {namespace}", "holdfast lab up makes it") from None
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise NoPermission("cannot enter a network namespace", "run this as root")
        raise Unavailable(f"cannot enter a network namespace: {os.strerror(number)}")


def cables(lab: str) -> tuple[str, ...]:
    """The names of a host's cables."""
    return (*LINKS, UPLINK, *((SAN_CABLE,) if exists(lab, SAN) else ()))


def create(lab: str, *, san: bool = False) -> None:
    """Make the whole network; `san`: with a place for a shared volume.

    Raises Unavailable with the cause; what was made then stays for `remove`.
    """
    import pyroute2

    try:
        for place in (*PLACES, *((SAN,) if san else ())):
            pyroute2.netns.create(netns(lab, place))
            with inside(netns(lab, place)):
                _settle_ipv6(silent=place == "switch")
        for place, build in (("switch", _build_switch), ("alpha", _build_alpha), ("beta", _build_beta)):
            with inside(netns(lab, place)), pyroute2.IPRoute() as ip:
                build(_Builder(ip), lab)
        with inside(netns(lab, "client")), pyroute2.IPRoute() as ip:
            _build_client(_Builder(ip))
        with inside(netns(lab, "witness")), pyroute2.IPRoute() as ip:
            _build_witness(_Builder(ip))
        if san:
            _build_san(lab, pyroute2.IPRoute)
    except pyroute2.NetlinkError as exc:
        hint = "the kernel needs veth and bridge; holdfast lab down removes what is left"
        raise Unavailable(f"the lab's network cannot be made: {exc}", hint) from None
    except PermissionError:
        raise NoPermission("making a lab needs root", "run this as root") from None
    except OSError as exc:
        raise Unavailable(f"the lab's network cannot be made: {exc}", "holdfast lab down cleans up") from None


def _settle_ipv6(*, silent: bool) -> None:
    # Addresses must work at once: no duplicate address detection, no waiting for routers.
    settings = {"accept_dad": "0", "dad_transmits": "0", "accept_ra": "0", "keep_addr_on_down": "1"}
    if silent:
        settings["disable_ipv6"] = "1"  # a switch has no address
    for device in ("all", "default"):
        for name, value in settings.items():
            file = Path(f"/proc/sys/net/ipv6/conf/{device}/{name}")
            if file.exists():  # absent in a kernel without IPv6
                file.write_text(value)


class _Builder:
    """Sets up devices in the namespace that `ip` (a pyroute2.IPRoute) is bound to."""

    def __init__(self, ip: Any) -> None:
        self._ip = ip
        self._link("set", "lo", state="up")

    def _link(self, verb: str, name: str, **attributes: Any) -> None:
        self._ip.link(verb, index=self._index(name), **attributes)

    def _index(self, name: str) -> int:
        found: list[int] = list(self._ip.link_lookup(ifname=name))
        if not found:
            raise Unavailable(f"the device {name} is missing", "holdfast lab down, then up")
        return found[0]

    def bridge(self, name: str, mac: str) -> None:
        # A fixed MAC: the bridge would take on that of a port and change it when the port leaves.
        options = {"br_stp_state": 0, "br_forward_delay": 0, "br_mcast_snooping": 0}
        self._ip.link("add", ifname=name, kind="bridge", address=mac, **options)
        self._link("set", name, state="up")

    def cable(self, name: str, far_namespace: str, far_name: str) -> None:
        peer = {"ifname": far_name, "net_ns_fd": far_namespace}
        self._ip.link("add", ifname=name, kind="veth", peer=peer)

    def plug(self, name: str, bridge: str) -> None:
        self._link("set", name, master=self._index(bridge), state="up")

    def address(self, name: str, address: str, length: int) -> None:
        self._ip.addr("add", index=self._index(name), address=address, prefixlen=length)

    def up(self, name: str) -> None:
        self._link("set", name, state="up")


def _build_switch(build: _Builder, lab: str) -> None:
    build.bridge("switch", _BRIDGE_MACS["switch"])
    for host in HOSTS:
        build.cable(host, netns(lab, host), UPLINK)
        build.plug(host, "switch")
    build.cable("client", netns(lab, "client"), "eth0")
    build.plug("client", "switch")
    build.cable("witness", netns(lab, "witness"), "eth0")
    build.plug("witness", "switch")


def _build_alpha(build: _Builder, lab: str) -> None:
    for link in LINKS:
        build.cable(link, netns(lab, "beta"), link)
    _build_host(build, "alpha")


def _build_beta(build: _Builder, lab: str) -> None:
    _build_host(build, "beta")


def _build_host(build: _Builder, host: str) -> None:
    build.bridge(BRIDGE, _BRIDGE_MACS[host])
    build.plug(UPLINK, BRIDGE)
    build.address(BRIDGE, HOST_IPS[host], 24)
    for number, link in enumerate(LINKS):
        build.address(link, link_address(number, host), 24)
        build.up(link)


def _build_client(build: _Builder) -> None:
    build.up("eth0")
    build.address("eth0", CLIENT_IP, 24)
    build.address("eth0", CLIENT_IP6, 64)


def _build_witness(build: _Builder) -> None:
    build.up("eth0")
    build.address("eth0", WITNESS_IP, 24)


def _build_san(lab: str, connect: Callable[[], Any]) -> None:
    with inside(netns(lab, SAN)), connect() as ip:
        build = _Builder(ip)
        build.bridge(BRIDGE, _BRIDGE_MACS[SAN])
        build.address(BRIDGE, SAN_IP, 24)
        for host in HOSTS:
            build.cable(host, netns(lab, host), SAN_CABLE)
            build.plug(host, BRIDGE)
    for host in HOSTS:
        with inside(netns(lab, host)), connect() as ip:
            build = _Builder(ip)
            build.address(SAN_CABLE, SAN_HOST_IPS[host], 24)
            build.up(SAN_CABLE)


def remove(lab: str) -> list[str]:
    """Remove what there is of the network; returns the names of the namespaces removed.

    Devices go first, by hand: a namespace itself lives on while any process is in it, and then goes in the
    background.
    """
    import pyroute2

    removed = []
    for place in (*PLACES, SAN):
        name = netns(lab, place)
        if not (NETNS_DIR / name).exists():
            continue
        with contextlib.suppress(Unavailable, pyroute2.NetlinkError), inside(name):
            _remove_devices(pyroute2.IPRoute)
        try:
            pyroute2.netns.remove(name)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise Unavailable(f"the namespace {name} cannot be removed: {exc}", "try again as root") from None
        removed.append(name)
    return removed


def _remove_devices(connect: Callable[[], Any]) -> None:
    with connect() as ip:
        for link in ip.get_links():
            kind = link.get(("linkinfo", "kind"))
            if kind in ("veth", "bridge", "tun"):
                ip.link("del", index=link["index"])
