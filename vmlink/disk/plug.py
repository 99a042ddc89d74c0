# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk is plugged into a QEMU whose VM runs, or taken out of it.

Events of QEMU (qapi/qdev.json): DEVICE_DELETED comes when the guest has let go of a device and it is gone,
DEVICE_UNPLUG_GUEST_ERROR when the guest refuses. A guest that does neither has no driver that listens, or hangs.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmlink.disk.spec import DiskSpec, device, joined, plugged
from vmlink.errors import VmError
from vmlink.monitor import Monitor


async def plug_in(monitor: Monitor, disk: DiskSpec, server: str) -> None:
    """The guest gets this disk, whose other half is at `server`. Raises VmError; nothing of it is left then."""
    within = f"plugging in disk {disk.name}"
    try:
        for node in (*disk.nodes(f"{disk.name}-local"), *joined(disk, server)):
            await monitor.call("blockdev-add", node, within=within)
        await monitor.call("device_add", plugged(disk), within=within)
    except VmError:
        await close(monitor, disk)
        raise


async def ask_to_let_go(monitor: Monitor, disk: str) -> bool:
    """Ask the guest to let go of a disk: its answer is an event. False when it has let go already. Raises VmError."""
    if not await is_plugged(monitor, disk):
        return False
    await monitor.call("device_del", {"id": device(disk)}, within=f"taking out disk {disk}")
    return True


async def is_plugged(monitor: Monitor, disk: str) -> bool:
    """Has the guest this disk? Raises VmError."""
    devices = await monitor.call("qom-list", {"path": "/machine/peripheral"})
    return isinstance(devices, list) and any(isinstance(one, dict) and one.get("name") == device(disk)
                                             for one in devices)


def answered(event: str, data: Mapping[str, object]) -> tuple[str, bool] | None:
    """Which disk an event says that the guest has let go of (True) or will not let go of; None for every other."""
    name = str(data.get("device") or "")
    if event not in ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR") or not name.endswith(device("")):
        return None
    return name.removesuffix(device("")), event == "DEVICE_DELETED"


async def close(monitor: Monitor, disk: DiskSpec) -> None:
    """Close the image of a disk that no device shows, and its link, as far as they are open. Raises VmError."""
    there = await named(monitor)
    image = [str(node["node-name"]) for node in disk.nodes(f"{disk.name}-local")]
    for name in (disk.name, f"{disk.name}-link", *reversed(image)):  # from the top down
        if name in there:
            await monitor.call("blockdev-del", {"node-name": name}, within=f"closing disk {disk.name}")


async def named(monitor: Monitor) -> set[str]:
    """The names of all block nodes. Raises VmError."""
    nodes = await monitor.call("query-named-block-nodes", {"flat": True})
    if not isinstance(nodes, list):
        raise VmError("query-named-block-nodes: no list")
    return {str(one.get("node-name")) for one in nodes if isinstance(one, dict)}
