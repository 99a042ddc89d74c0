# SPDX-License-Identifier: GPL-2.0-or-later
"""What a lab is made of: its options, its directory, and the configuration of its two hosts."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import msgspec

from appliance.config import Timing
from appliance.errors import Unavailable, UsageError
from appliance.lab import disks, third, topology, volume
from appliance.lab.disks import Disk
from appliance.lab.processes import Process, package_root
from appliance.lab.volume import Volume
from appliance.units import format_duration, format_size

MIB = 1 << 20
DISK_GUEST_MEMORY = 256 * MIB
VM, VM2 = "web1", "web2"
ROOT = Path(os.environ.get("HOLDFAST_LAB_ROOT", "/run/holdfast/lab"))
CONSOLE = "console=ttyS0 quiet panic=-1"


class Guest(msgspec.Struct, frozen=True):
    """A VM of a lab: its name, where it is at home, and how the network knows it."""

    name: str
    home: str
    ip: str
    ip6: str
    mac: str

    @property
    def addresses(self) -> str:
        """For the kernel of our guest image."""
        return f"hf.ip={self.ip}/24 hf.ip6={self.ip6}/64 hf.gw={topology.CLIENT_IP}"


GUESTS = (Guest(VM, "alpha", topology.VM_IP, topology.VM_IP6, topology.VM_MAC),
          Guest(VM2, "beta", topology.VM2_IP, topology.VM2_IP6, topology.VM2_MAC))
ADDRESSES = GUESTS[0].addresses


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What can be chosen about a lab. Times in seconds, sizes in bytes.

    arbiter: what runs on the third machine: witness, etcd or none. risk: with none, silence is taken for death.
    vms: 1, or 2 with a home each.
    guest: which of the images that our recipes build: memory, or disk (its disk is the first of web1).
    kernel: None for that image's. disks: what else web1 has, a copy on each host. disk_faults: they can fail and
    become full. volume: a disk of web1 of which there is only one.
    append: added to the kernel command line that gives the guest its addresses.
    epoch: None for adaptive epochs, else the length of fixed ones.
    """

    name: str = "lab"
    arbiter: str = "witness"
    risk: bool = True
    vms: int = 1
    guest: str = "memory"
    disks: tuple[Disk, ...] = ()
    disk_faults: bool = False
    volume: Volume | None = None
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    memory: int = 128 * MIB
    vcpus: int = 1
    qemu: str = "qemu-system-x86_64"
    accel: str = "auto"
    tracker: str = "auto"
    epoch: float | None = None
    epoch_min: float = 0.005
    epoch_max: float = 0.05
    pause_share: float = 0.5
    in_flight: int = 3
    hello: float = 0.02
    timeout: float = 0.3
    reconnect: float = 0.1
    backoff: float = 0.0
    held: int = 64 * MIB
    copy_rate: int = 0
    log: str = "info"

    def image(self) -> tuple[str, str | None]:
        """Kernel and initrd. Raises Unavailable when neither is given and no image is built."""
        if self.kernel is not None:
            initrd = None if self.initrd is None else str(Path(self.initrd).absolute())
            return str(Path(self.kernel).absolute()), initrd
        built = built_image(self.guest)
        kernel, initrd = built / "vmlinuz", self.initrd or str(built / "initrd.img")
        if not kernel.is_file():
            raise Unavailable(f"there is no guest image in {built}",
                              f"make {_TARGETS[self.guest]}, or give --kernel and --initrd")  # fmt: skip
        return str(kernel), str(Path(initrd).absolute())

    def command_line(self, guest: Guest) -> str:
        """What the guest kernel is told: our own image's recipe may ask for more, the caller adds the rest."""
        basis = CONSOLE
        if self.kernel is None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                basis = json.loads((built_image(self.guest) / "manifest.json").read_text())["append"]
        return f"{basis} {guest.addresses} {self.append}".rstrip()

    def all_disks(self) -> tuple[Disk, ...]:
        """Those of web1 that each host has a copy of, the guest image's own first unless that is the shared volume."""
        shared = self.volume is not None and self.volume.guest
        own = (Disk("raw", source=guest_disk()),) if self.guest == "disk" and not shared else ()
        return own + self.disks


def guest_disk() -> str:
    """The disk of the disk guest, as it was built."""
    return str(built_image("disk") / "disk.img")


METRICS = "127.0.0.1:9478"
"""Where each host of a lab serves its figures, in its own namespace."""
_TARGETS = {"memory": "image", "disk": "image-disk"}


def built_image(guest: str = "memory") -> Path:
    """The directory of a guest image that our recipes make (HOLDFAST_IMAGE_DIR, or below the package)."""
    place = Path(os.environ.get("HOLDFAST_IMAGE_DIR") or package_root() / "build" / "image")
    return place if guest == "memory" else place.with_name(f"{place.name}-{guest}")


class State(msgspec.Struct):
    """What is remembered of a lab while it exists."""

    options: Options
    services: dict[str, Process]


def check(options: Options) -> None:
    """Refuse what cannot become a lab. Raises UsageError or Unavailable."""
    check_name(options.name)
    if options.arbiter not in ("witness", "etcd", "none"):
        raise UsageError(f"there is no arbiter {options.arbiter!r}", "choose witness, etcd or none")
    if not 1 <= options.vms <= len(GUESTS):
        raise UsageError(f"{options.vms} VMs", f"choose from 1 to {len(GUESTS)}")
    if options.arbiter == "etcd" and shutil.which("etcd") is None:
        raise Unavailable("there is no program etcd", "install etcd-server, or choose --arbiter witness")
    if options.guest not in _TARGETS:
        raise UsageError(f"there is no guest {options.guest!r}", f"choose from {', '.join(_TARGETS)}")
    if options.guest == "disk" and options.vms > 1:
        raise UsageError("two VMs of the disk guest", "only web1 has disks: choose --vms 1")
    if options.vcpus < 1:
        raise UsageError(f"{options.vcpus} virtual CPUs", "give at least 1")
    for file in options.image():
        if file is not None and not os.access(file, os.R_OK):
            raise Unavailable(f"there is no readable file {file}", "correct --kernel or --initrd")
    disks.check(options.all_disks())
    if options.volume is not None:
        volume.check(options.volume)
        if options.volume.guest and (options.guest != "disk" or options.disks):
            raise UsageError("the guest's disk on the volume", "it takes --guest disk, and no --disk beside it")
    if shutil.which(options.qemu) is None:
        hint = "install qemu-system-x86, or name another with --qemu"
        raise Unavailable(f"there is no program {options.qemu}", hint)


def check_name(name: str) -> None:
    """A lab's name becomes part of file and namespace names. Raises UsageError."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise UsageError(f"{name!r} is no name for a lab", "up to 32 small letters, digits and dashes")


def directory(name: str) -> Path:
    """Where the lab keeps its files."""
    check_name(name)
    return ROOT / name


def host_directory(name: str, host: str) -> Path:
    return directory(name) / host


def control_path(name: str, host: str) -> Path:
    """The control socket of the service of `host`."""
    return host_directory(name, host) / "run" / "control.sock"


def log_path(name: str, host: str) -> Path:
    """Where the service of `host` writes its log."""
    return host_directory(name, host) / "service.log"


def write_state(state: State) -> None:
    """Replace the lab's memory in one step."""
    file = directory(state.options.name) / "state.json"
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(state))
    new.replace(file)


def read_state(name: str) -> State:
    """Raises Unavailable when there is no such lab, or only half of one."""
    try:
        return msgspec.json.decode((directory(name) / "state.json").read_bytes(), type=State)
    except FileNotFoundError:
        raise Unavailable(f"there is no lab {name!r}", f"holdfast lab up --name {name}") from None
    except (OSError, msgspec.DecodeError) as exc:
        hint = f"holdfast lab down --name {name} removes it"
        raise Unavailable(f"the lab {name!r} is unreadable: {exc}", hint) from None


def write_third(options: Options) -> None:
    """Make the directory of the third machine."""
    third.prepare(options.arbiter, directory(options.name) / third.PLACE)


def write_volume(options: Options) -> None:
    """Make the shared volume, if there is to be one. Raises Unavailable."""
    if options.volume is not None:
        home = directory(options.name) / volume.PLACE
        volume.prepare(options.name, options.volume, home, guest_disk() if options.volume.guest else "")


def write_host(options: Options, host: str) -> None:
    """Make the directory of `host` with its configuration, and its disks."""
    home = host_directory(options.name, host)
    for part in ("config", "run", "state"):
        (home / part).mkdir(parents=True)
    disks.create(options.name, host, options.all_disks(), can_fail=options.disk_faults)
    (home / "config" / "holdfast.toml").write_text(configuration(options, host))


def configuration(options: Options, host: str) -> str:
    """The TOML text for the service of `host`."""
    home = host_directory(options.name, host)
    peer = topology.HOSTS[1 - topology.HOSTS.index(host)]
    tables: dict[str, dict[str, object]] = {
        "[host]": {"name": host, "state_dir": home / "state", "run_dir": home / "run", "log": options.log},
        "[peer]": {"name": peer},
        **{
            f"[[link]] # {number}": {
                "name": link,
                "interface": link,
                "address": topology.link_address(number, host),
                "peer": topology.link_address(number, peer),
            }
            for number, link in enumerate(topology.LINKS)
        },
        "[timing]": {name: format_duration(value) for name, value in _timing(options).items()},
        "[arbiter]": third.section(options.arbiter, directory(options.name) / third.PLACE, options.risk),
        "[health]": {"probe": [topology.CLIENT_IP]},
        "[metrics]": {"listen": METRICS},
    }
    for guest in GUESTS[: options.vms]:
        tables |= _vm_tables(options, guest)
    tables |= disks.tables(options.name, host, VM, options.all_disks())
    if options.volume is not None:
        tables[f"[[vm.{VM}.volume]]"] = volume.table(options.volume, directory(options.name) / volume.PLACE)
    return "\n".join(_table(header, keys) for header, keys in tables.items())


def _vm_tables(options: Options, guest: Guest) -> dict[str, dict[str, object]]:
    kernel, initrd = options.image()
    return {
        f"[vm.{guest.name}]": {
            "home": guest.home,
            "memory": format_size(options.memory),
            "vcpus": options.vcpus,
            "mac": guest.mac,
            "ip": [guest.ip, guest.ip6],
            "bridge": topology.BRIDGE,
            "kernel": kernel,
            **({} if initrd is None else {"initrd": initrd}),
            "append": options.command_line(guest),
            "qemu": shutil.which(options.qemu) or options.qemu,
            "accel": options.accel,
            "tracker": options.tracker,
        },
        f"[vm.{guest.name}.epoch]": _epoch(options),
        f"[vm.{guest.name}.limits]": {"held": format_size(options.held), "copy_rate": format_size(options.copy_rate)},
    }


def _timing(options: Options) -> dict[str, float]:
    chosen = {name: getattr(options, name) for name in ("hello", "timeout", "reconnect", "backoff")}
    usual = Timing()
    # What is not chosen keeps to its bounds.
    return {**chosen, "timeout_max": max(usual.timeout_max, options.timeout),
            "lease": max(usual.lease, 3 * options.hello), "lease_max": min(usual.lease_max, options.timeout)}


def _epoch(options: Options) -> dict[str, object]:
    shared = {"in_flight": options.in_flight}
    if options.epoch is not None:
        return {"mode": "fixed", "length": format_duration(options.epoch), **shared}
    bounds = {"min": format_duration(options.epoch_min), "max": format_duration(options.epoch_max)}
    return {"mode": "adaptive", **bounds, "pause_share": options.pause_share, **shared}


def _table(header: str, keys: dict[str, object]) -> str:
    # JSON's notation of text, numbers, booleans and flat lists is TOML's too.
    lines = [f"{name} = {json.dumps(value, default=str)}" for name, value in keys.items()]
    return "\n".join([header, *lines, ""])
