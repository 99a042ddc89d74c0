# SPDX-License-Identifier: GPL-2.0-or-later
"""[[vm.NAME.volume]]: the shared volumes of a VM, and what about them cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from appliance.disk_settings import MOST_DISKS, Disk, Fault
from appliance.settings import FilePath, Section, says
from vmlink.errors import VmError
from vmlink.volume.spec import VolumeSpec


class Volume(Section, frozen=True, kw_only=True):
    """[[vm.NAME.volume]]: a disk of the VM that there is only one of, which both hosts reach; after its disks."""

    name: Annotated[str, says("the guest finds it as /dev/disk/by-id/virtio-NAME")]
    at: Annotated[str, says("iscsi://PORTAL[:PORT]/TARGET/LUN, nbd://HOST[:PORT]/EXPORT, or a block device's path")]
    user: Annotated[str, says("what an iSCSI target asks for (CHAP)")] = ""
    secret: Annotated[FilePath | None, says("the file that holds the password for it, a line of its own")] = None

    def spec(self) -> VolumeSpec:
        return VolumeSpec(self.name, self.at, self.user, self.secret)


def faults(vms: dict[str, tuple[tuple[Volume, ...], tuple[Disk, ...]]]) -> Iterator[Fault]:
    """Everything about the volumes of all VMs, by the VM's name, that cannot work whatever answers there."""
    places: dict[str, str] = {}
    for vm, (volumes, disks) in vms.items():
        names = {disk.name for disk in disks}
        if volumes and len(volumes) + len(disks) > MOST_DISKS:
            yield (vm, "volume"), f"{len(volumes) + len(disks)} disks", f"a VM has {MOST_DISKS} at most"
        for number, volume in enumerate(volumes):
            at = (vm, "volume", number)
            try:
                volume.spec().check()
            except VmError as error:
                yield (*at, "at"), str(error), error.hint
            if volume.name in names:
                yield (*at, "name"), f"{volume.name!r} is another disk's name too", "each disk of a VM needs its own"
            names.add(volume.name)
            if volume.at in places:
                yield (*at, "at"), f"{volume.at} is {places[volume.at]} already", "each VM needs its own volume"
            places[volume.at] = f"volume {volume.name} of VM {vm}"
