# SPDX-License-Identifier: GPL-2.0-or-later
"""A local image that fails: what QEMU tells of it, and how a VM goes on without it.

Events of QEMU (qapi/quorum.json, qapi/block-core.json): QUORUM_REPORT_BAD names a child of a quorum that failed, at
most once a second for each; BLOCK_IO_ERROR comes when a request failed altogether and the VM was stopped for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vmlink.disk.drive import Drive
from vmlink.disk.plug import named
from vmlink.disk.spec import device, link
from vmlink.monitor import Monitor


class Place(StrEnum):
    """What failed."""

    IMAGE = "image"  # the local one alone
    REQUEST = "request"  # what the VM asked for: it is stopped, and the request will be made again


@dataclass(frozen=True)
class Fault:
    """`operation`: read, write or flush; "write" of a REQUEST may be a flush."""

    disk: str
    place: Place
    operation: str
    cause: str

    def __str__(self) -> str:
        return f"{self.operation} failed: {self.cause}"


def understand(event: str, data: Mapping[str, object]) -> Fault | None:
    """What an event of QEMU says of a disk; None for every other."""
    node = str(data.get("node-name", ""))
    if event == "QUORUM_REPORT_BAD" and node.endswith("-local"):
        return Fault(node.removesuffix("-local"), Place.IMAGE, str(data.get("type", "request")),
                     str(data.get("error", "no cause was given")))
    if event == "BLOCK_IO_ERROR" and data.get("action") == "stop":
        full = " (the storage is full)" if data.get("nospace") else ""
        return Fault(node.removesuffix(_AWAY), Place.REQUEST, str(data.get("operation", "request")),
                     str(data.get("reason", "no cause was given")) + full)
    return None


_AWAY = "-away"


async def leave(monitor: Monitor, drive: Drive, server: str) -> None:
    """From now on the VM's disk is the other host's copy alone, by way of `server`. QEMU may be running or paused.

    That the local image will not be whole must have been remembered before. Raises VmError; the VM may have left the
    image then or not, and this can be tried again.
    """
    drive.away = True
    within, node = f"leaving the image of disk {drive.spec.name}", drive.spec.name + _AWAY
    place = {"path": f"/machine/peripheral/{device(drive.spec.name)}", "property": "drive"}
    if await monitor.call("qom-get", place, within=within) == node:
        return  # QEMU 7.2 ends in an assertion when it is told what is so already
    if node not in await named(monitor):
        await monitor.call("blockdev-add", link(drive.spec.name, node, server), within=within)
    await monitor.call("qom-set", {**place, "value": node}, within=within)
