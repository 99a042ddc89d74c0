# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host's configuration says of a VM's disks now: read anew, since its operator changes it while VMs run."""

from __future__ import annotations

import asyncio

from appliance import config as cfg
from appliance.disk_settings import Disk
from appliance.errors import Unavailable
from appliance.units import format_size
from vmlink.disk.spec import DiskSpec
from vmlink.errors import VmError

LOOK_TIMEOUT = 10.0
"""Seconds within which the files and an image must have been looked at."""


async def sections(config: cfg.Config, vm: str) -> dict[str, Disk]:
    """The disks of a VM by name. Raises ConfigError for whatever is wrong in the files, as at the start."""
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            now = await asyncio.get_running_loop().run_in_executor(None, cfg.load, config.directory)
    except TimeoutError:
        raise Unavailable(f"{config.directory} cannot be read within {LOOK_TIMEOUT:g} s",
                          "look at the storage below it") from None
    return {disk.name: disk for disk in now.vm[vm].disk} if vm in now.vm else {}


async def look(disk: Disk) -> int:
    """The size of its image, in bytes. Raises VmError: it cannot be used."""
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            spec = DiskSpec(disk.name, disk.path, disk.format)
            return await asyncio.get_running_loop().run_in_executor(None, spec.look)
    except TimeoutError:
        raise VmError(f"disk {disk.name}, {disk.path}: the storage does not answer within {LOOK_TIMEOUT:g} s",
                      "look at the storage below it") from None


async def fits_resize(config: cfg.Config, vm: str, name: str, size: int) -> None:
    """Can the disk have this many bytes on this host? Raises ConfigError, Unavailable or VmError."""
    host, disk = config.host.name, (await sections(config, vm)).get(name)
    if disk is None:
        raise _missing(host, vm, name)
    if disk.size not in (0, size):
        raise Unavailable(f"the configuration of {host} says size={format_size(disk.size)} of disk {name}",
                          f"write size={format_size(size)} there, or leave it out")
    now = await look(disk)
    if now > size:
        raise Unavailable(f"disk {name} has {format_size(now)} on {host}: a disk does not become smaller",
                          "make a smaller one, add it, and copy in the guest")
    if now != size and disk.path.is_block_device():
        raise Unavailable(f"{disk.path} on {host} has {format_size(now)}, and not {format_size(size)}",
                          "enlarge the device first, on both hosts")


async def fits_add(config: cfg.Config, vm: str, name: str, form: str = "", size: int = 0) -> tuple[Disk, int]:
    """The disk and the size of its image, if the VM can have it on this host. `form` and `size`: what the other host
    has, if anything is known. Raises ConfigError, Unavailable or VmError."""
    host, disk = config.host.name, (await sections(config, vm)).get(name)
    if disk is None:
        raise _missing(host, vm, name)
    if form and disk.format != form:
        raise Unavailable(f"disk {name} is {disk.format} on {host}, and {form} on the other host",
                          "both need the same format")
    now = await look(disk)
    if (wanted := size or disk.size) and now != wanted or disk.size not in (0, now):
        raise Unavailable(f"the image of disk {name} has {now} bytes on {host}, and not {wanted or disk.size}",
                          "both hosts need an image of the same size, and size= in their configuration if it is there")
    return disk, now


async def fits_remove(config: cfg.Config, vm: str, name: str) -> None:
    """Has this host's configuration the disk no longer? Raises ConfigError or Unavailable."""
    if name in await sections(config, vm):
        raise Unavailable(f"the configuration of {config.host.name} still has disk {name} of VM {vm}",
                          f"take its [[vm.{vm}.disk]] out of the configuration of both hosts first")


async def followed(config: cfg.Config, vm: str, sizes: dict[str, int],
                   slots: dict[str, int]) -> tuple[DiskSpec, ...]:
    """The disks that the VM has on the other host, bytes and places by name, as this host has them.

    Raises ConfigError, Unavailable or VmError.
    """
    own, found = await sections(config, vm), []
    for name, size in sizes.items():
        if name not in own:
            raise _missing(config.host.name, vm, name)
        if own[name].size not in (0, size):
            raise Unavailable(f"disk {name} has {format_size(size)} on the other host, but size= of this one says "
                              f"{format_size(own[name].size)}", "correct size=, or leave it out")
        found.append(DiskSpec(name, own[name].path, own[name].format, slot=slots.get(name, 0)))
    for name in own:
        if name not in sizes:
            raise Unavailable(f"the VM runs without disk {name}, which the configuration of {config.host.name} has",
                              f"holdfast disk add {vm} {name}, or take it out of the configuration")
    return tuple(sorted(found, key=lambda disk: disk.slot))


def _missing(host: str, vm: str, name: str) -> Unavailable:
    return Unavailable(f"the configuration of {host} has no disk {name} of VM {vm}",
                       f"put its [[vm.{vm}.disk]] there too")
