# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel of a detour: a VXLAN device (RFC 7348) over a link to the peer, for one VM.

    near: out tap - bridge hs-VM - hx-VM  ====== link ======  hx-VM - production bridge: far

On the near side the tap stands in a bridge with nothing but the tunnel: whatever becomes of the uplink there, no
loop can close. Frames of full size fit; what is too long for the link is cut into IP fragments there.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from appliance import config as cfg
from appliance.front import Front, FrontSpec, device_index, netlink, silence_ipv6
from rules.policy import TUNNEL_PORT
from vmlink.wire import vm_id

MTU = 1500
"""Bytes of the longest frame's payload, as on an Ethernet."""


def number(vm: str) -> int:
    """The VXLAN network identifier (24 bits, never 0) of a VM; the same on both hosts."""
    return vm_id(vm) % ((1 << 24) - 1) + 1


async def near(front: Front, link: cfg.Link) -> None:
    """Lead the VM's frames into the tunnel over `link`. Raises HoldfastError; then nothing is changed."""
    spec = front.spec
    await remove(spec)
    try:
        async with netlink() as connection:
            bridge = spec.device("s")
            await connection.link("add", ifname=bridge, kind="bridge", br_stp_state=0, br_forward_delay=0,
                                  br_mcast_snooping=0)
            silence_ipv6(bridge)
            await connection.link("set", index=device_index(bridge), state="up")
            await _tunnel(connection, spec, link, bridge)
        await front.plug(bridge)
    except BaseException:
        await home(front)
        raise


async def home(front: Front) -> None:
    """Lead them to the production bridge again. Raises HoldfastError."""
    try:
        await front.plug(front.spec.bridge)
    finally:
        await remove(front.spec)


async def far(spec: FrontSpec, link: cfg.Link) -> None:
    """Let what comes out of the tunnel into the production network. Raises HoldfastError; then there is none."""
    await remove(spec)
    try:
        async with netlink() as connection:
            await _tunnel(connection, spec, link, spec.bridge)
    except BaseException:
        await remove(spec)
        raise


async def _tunnel(connection: Any, spec: FrontSpec, link: cfg.Link, bridge: str) -> None:
    device = spec.device("x")
    six = "6" if ":" in link.peer else ""
    ends = {f"vxlan_local{six}": link.address, f"vxlan_group{six}": link.peer}
    # Not tied to the link's interface: the kernel would allow no frames longer than the link's less 50 bytes.
    await connection.link("add", ifname=device, kind="vxlan", vxlan_id=number(spec.vm), mtu=MTU,
                          vxlan_port=TUNNEL_PORT, **ends)
    silence_ipv6(device)
    index = device_index(device)
    await connection.link("set", index=index, mtu=MTU, master=device_index(bridge), state="up")


async def remove(spec: FrontSpec) -> None:
    """Take this VM's tunnel and its bridge away, whoever made them. Raises HoldfastError."""
    for device in (spec.device("x"), spec.device("s")):
        with contextlib.suppress(OSError):
            index = socket.if_nametoindex(device)
            async with netlink() as connection:
                await connection.link("del", index=index)
