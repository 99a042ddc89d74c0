# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM is made of, checked, and the QEMU command line that makes it.

Both hosts must start QEMU with the same machine: `fingerprint` is what they compare.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from vmlink.disk import spec as disk_spec
from vmlink.disk.spec import DiskSpec
from vmlink.errors import VmError
from vmlink.volume import spec as volume_spec
from vmlink.volume.spec import VolumeSpec

_MIB = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.IGNORECASE)


@dataclass(frozen=True)
class VmSpec:
    """One VM. `accel` is auto, kvm or tcg; `extra_args` go to QEMU as they are; the guest sees `disks`, then `volumes`,
    in their order.

    Everything but the paths has to be equal on both hosts.
    """

    name: str
    memory_bytes: int
    vcpus: int
    mac: str
    kernel: Path | None
    initrd: Path | None
    append: str
    qemu: str = "qemu-system-x86_64"
    accel: str = "auto"
    extra_args: tuple[str, ...] = ()
    disks: tuple[DiskSpec, ...] = ()
    volumes: tuple[VolumeSpec, ...] = ()

    def check(self) -> None:
        """Raises VmError for the first thing that cannot work."""
        if not _NAME.fullmatch(self.name):
            raise VmError(f"VM name {self.name!r} is not usable", "use letters, digits, . _ and -")
        if self.memory_bytes < 8 * _MIB or self.memory_bytes % _MIB:
            raise VmError(f"VM {self.name}: memory of {self.memory_bytes} bytes",
                          "use a multiple of 1 MiB, at least 8 MiB")
        if self.vcpus < 1:
            raise VmError(f"VM {self.name}: {self.vcpus} virtual CPUs", "use at least 1")
        if not _MAC.fullmatch(self.mac):
            raise VmError(f"VM {self.name}: {self.mac!r} is not a unicast MAC address",
                          "write it as 52:54:00:12:34:56")
        if self.accel not in ("auto", "kvm", "tcg"):
            raise VmError(f"VM {self.name}: unknown accelerator {self.accel!r}", "use auto, kvm or tcg")
        for what, path in (("kernel", self.kernel), ("initrd", self.initrd)):
            if path is not None:
                _check_file(self.name, what, path)
        for disk in self.disks:
            disk.check()
        for volume in self.volumes:
            volume.check()

    def binary(self) -> str:
        """The path of the QEMU to run. Raises VmError when there is none."""
        found = shutil.which(self.qemu)
        if found is None:
            raise VmError(f"VM {self.name}: QEMU not found: {self.qemu}",
                          "install qemu-system-x86, or set the path of the program with qemu=")
        return found


@dataclass(frozen=True)
class Inherited:
    """Descriptors that QEMU finds open under these numbers."""

    ram: int
    tap: int
    qmp: int
    console: int


def arguments(spec: VmSpec, accel: str, fds: Inherited, *, incoming: bool, disk_server: str = "",
              volume_server: str = "") -> list[str]:
    """QEMU's arguments, without the program's own name. `disk_server`: where it finds its disks' other half;
    `volume_server`: where its volumes."""
    words = [
        "-name", f"guest={spec.name},debug-threads=on",
        "-nodefaults", "-no-user-config", "-vga", "none", "-display", "none", "-parallel", "none",
        "-msg", "timestamp=off",
        "-accel", "tcg,thread=multi" if accel == "tcg" else accel,
        # All that the emulation can do: it boots the guest 40 % faster than the default model.
        *(("-cpu", "max") if accel == "tcg" else ()),
        # Without the description section: a device state has to be loadable as it was saved.
        # Devices that no guest of ours uses only make the device state longer.
        "-machine", "q35,memory-backend=ram,suppress-vmdesc=on,sata=off,smbus=off,vmport=off,i8042=off",
        "-m", f"{spec.memory_bytes // _MIB}M",
        "-smp", processors(spec.vcpus, accel),
        "-object", f"memory-backend-file,id=ram,size={spec.memory_bytes},share=on,"
                   f"mem-path=/proc/self/fd/{fds.ram}",
        # The saved stream has no configuration section. We announce the VM ourselves after a takeover.
        "-global", "migration.send-configuration=off",
        "-global", "migration.announce-rounds=0",
        # Without the tables of the modern interface the device state is 25 KB instead of 125 KB and is taken
        # in half the time. A guest that needs them: extra_args -global virtio-pci.disable-modern=off
        "-global", "virtio-pci.disable-modern=on",
        "-global", "virtio-pci.disable-legacy=off",
        "-chardev", f"socket,id=console,fd={fds.console}", "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,fd={fds.qmp}", "-mon", "chardev=qmp,mode=control",
        "-netdev", f"tap,id=net0,fd={fds.tap},vhost=off",
        # No option ROM: nobody boots from this network.
        "-device", f"virtio-net-pci,netdev=net0,mac={spec.mac},romfile=",
        "-device", "virtio-rng-pci",
    ]
    if spec.disks:
        words += disk_spec.bridge()
    for disk in disk_spec.placed(spec.disks):
        words += disk_spec.arguments(disk, disk_server)
    for volume in spec.volumes:
        words += volume_spec.arguments(volume, volume_server)
    if spec.kernel is not None:
        words += ["-kernel", str(spec.kernel), "-append", spec.append]
        if spec.initrd is not None:
            words += ["-initrd", str(spec.initrd)]
    # A VM that nobody watches must not run: it starts paused, the service lets it go.
    words += ["-incoming", "defer"] if incoming else ["-S"]
    return [*words, *spec.extra_args]


def processors(vcpus: int, accel: str) -> str:
    """The value of -smp.

    An emulated VM could always have a second processor, whether it has one or not: QEMU 7.2 translates a guest that
    cannot without its memory barriers, although its devices are served by another thread. Now and then an interrupt of
    a virtio queue is lost then, and the guest waits for its disk for ever.
    """
    return f"{vcpus},maxcpus={max(vcpus, 2)}" if accel == "tcg" else str(vcpus)


def fingerprint(spec: VmSpec, accel: str, version: str) -> str:
    """Hex digest of what must be equal on both hosts: QEMU version, machine, content of kernel and initrd, and what
    the disks are called. Where their images are is each host's own affair.

    Blocks while it reads the files (about 0.1 s): call it in a worker thread.
    """
    nowhere = tuple(replace(disk, path=Path("/")) for disk in spec.disks)
    same = arguments(replace(spec, disks=nowhere), accel, Inherited(3, 4, 5, 6), incoming=True)
    digest = hashlib.sha256(version.encode())
    for word in same:
        if word not in (str(spec.kernel), str(spec.initrd)):
            digest.update(word.encode() + b"\0")
    for path in (spec.kernel, spec.initrd):
        if path is not None:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_file(vm: str, what: str, path: Path) -> None:
    if not path.is_file():
        raise VmError(f"VM {vm}: {what} {path} does not exist" if not path.exists() else
                      f"VM {vm}: {what} {path} is not a file", f"check {what}= in the VM's configuration")
    if not os.access(path, os.R_OK):
        raise VmError(f"VM {vm}: {what} {path} cannot be read", "check its permissions")
