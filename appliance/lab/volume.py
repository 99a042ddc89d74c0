# SPDX-License-Identifier: GPL-2.0-or-later
"""The shared volume of a lab: a place of its own serves it to both hosts over cables of its own, or it is a block
device of this machine, which both see.

iSCSI is served by tgtd, whose initiators have to give a secret (CHAP), NBD by qemu-nbd.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

import msgspec

from appliance.errors import Unavailable, UsageError
from appliance.lab import disks, topology
from appliance.lab.topology import SAN_IP
from appliance.units import format_size, parse_size

PLACE = topology.SAN
NAME = "vol"
TARGET = "iqn.2026-01.holdfast:lab"
USER = "holdfast"
ISCSI_PORT, NBD_PORT = 3260, 10809
PATIENCE = 10.0  # seconds; for what takes a fraction of one
PROGRAMS = {"iscsi": ("tgtd", "tgt"), "nbd": ("qemu-nbd", "qemu-utils")}


class Volume(msgspec.Struct, frozen=True):
    """`by`: iscsi or nbd, empty and of `size` bytes, or with `guest` the disk guest's own; or device, and its path."""

    by: str
    size: int = 0
    device: str = ""
    guest: bool = False


def parse(text: str) -> Volume:
    """SIZE[:iscsi|nbd] or guest[:iscsi|nbd], iSCSI if nothing is said, or the path of a block device.

    Raises ValueError(cause, remedy).
    """
    if text.startswith("/"):
        return Volume("device", device=text)
    size, colon, by = text.partition(":")
    if by not in PROGRAMS and (colon or by):
        raise ValueError(f"a volume by {by!r}", f"choose from {', '.join(PROGRAMS)}, or name a block device")
    if size == "guest":
        return Volume(by or "iscsi", guest=True)
    whole = re.fullmatch(r"(\d+)([KMGT]?)", size)
    return Volume(by or "iscsi", size=parse_size(f"{whole[1]}{whole[2] or 'M'}iB" if whole else size))


def check(volume: Volume) -> None:
    """Refuse what cannot be made. Raises UsageError or Unavailable."""
    if volume.by == "device":
        try:
            facts = os.stat(volume.device)
        except OSError as error:
            raise Unavailable(f"{volume.device}: {error.strerror}", "correct --volume") from None
        if not stat.S_ISBLK(facts.st_mode):
            raise UsageError(f"{volume.device} is no block device", "correct --volume, or give a size")
        return
    program, package = PROGRAMS[volume.by]
    if shutil.which(program) is None:
        raise Unavailable(f"there is no program {program}", f"install {package}")
    if not volume.guest and (volume.size < 1 << 20 or volume.size % 4096):
        raise UsageError(f"a volume of {format_size(volume.size)}", "at least 1MiB, in whole 4KiB")


def image(lab: str, volume: Volume) -> Path:
    """What the volume is kept in."""
    return Path(volume.device) if volume.by == "device" else disks.directory(lab) / PLACE / "volume.img"


def prepare(lab: str, volume: Volume, home: Path, source: str = "") -> None:
    """Make the volume, empty or a copy of `source`, and what its server needs below `home`. Raises Unavailable."""
    home.mkdir(parents=True)
    if volume.by == "device":
        return
    kept = image(lab, volume)
    try:
        kept.parent.mkdir(parents=True)
        if source:
            disks.copy(source, kept)
        else:
            with kept.open("xb") as file:
                file.truncate(volume.size)
    except OSError as error:
        raise Unavailable(f"{kept}: {error.strerror}", "name another place: HOLDFAST_LAB_DISKS") from None
    secret = home / "secret"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(8))  # some initiators want 12 to 16 characters


def address(volume: Volume) -> str:
    """By what the hosts find it."""
    if volume.by == "iscsi":
        return f"iscsi://{SAN_IP}:{ISCSI_PORT}/{TARGET}/1"
    return volume.device if volume.by == "device" else f"nbd://{SAN_IP}:{NBD_PORT}/{NAME}"


def table(volume: Volume, home: Path) -> dict[str, object]:
    """The volume in the configuration of both hosts."""
    access = {"user": USER, "secret": str(home / "secret")} if volume.by == "iscsi" else {}
    return {"name": NAME, "at": address(volume), **access}


def summary(lab: str, volume: Volume) -> dict[str, str]:
    """What the status of a lab says of it."""
    return {"name": NAME, "address": address(volume), "image": str(image(lab, volume))}


def command(lab: str, volume: Volume) -> list[str]:
    """What serves it; nothing for a block device."""
    if volume.by == "iscsi":
        return ["tgtd", "-f", "-C", "0", "--iscsi", f"portal={SAN_IP}:{ISCSI_PORT}"]
    if volume.by == "nbd":
        return ["qemu-nbd", "--persistent", "--shared=0", "--bind", SAN_IP, "--port", str(NBD_PORT), "--format", "raw",
                "--export-name", NAME, str(image(lab, volume))]  # fmt: skip
    return []


def environment(home: Path) -> dict[str, str]:
    """Of that server: where tgtd is to be told what it serves, so that two of them do not meet."""
    return {"TGT_IPC_SOCKET": str(home / "tgtd")}


def configure(lab: str, volume: Volume, home: Path) -> None:
    """Tell a server that was just started what it serves; it serves when this returns. Raises Unavailable."""
    if volume.by == "nbd":
        _await_port(lab, NBD_PORT)
    if volume.by != "iscsi":
        return
    target = "--lld iscsi --mode target --tid 1"
    _tell(home, f"--op new {target} -T {TARGET}", patience=PATIENCE)
    for words in (
        f"--lld iscsi --mode logicalunit --op new --tid 1 --lun 1 -b {image(lab, volume)}",
        f"--lld iscsi --mode account --op new --user {USER} --password {(home / 'secret').read_text()}",
        f"--lld iscsi --mode account --op bind --tid 1 --user {USER}",
        f"--op bind {target} -I ALL",
    ):
        _tell(home, words)


def _await_port(lab: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    with topology.inside(topology.netns(lab, PLACE)):
        while True:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                if probe.connect_ex((SAN_IP, port)) == 0:
                    return
            if time.monotonic() >= deadline:
                raise Unavailable("the shared volume is not served", "see the log of san")
            time.sleep(0.02)


def _tell(home: Path, words: str, patience: float = 0.0) -> None:
    """One command for tgtd, which may not be there yet for `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        done = subprocess.run(["tgtadm", "-C", "0", *words.split()], env={**os.environ, **environment(home)},
                              capture_output=True, text=True, timeout=PATIENCE)
        if not done.returncode:
            return
        if time.monotonic() >= deadline:
            raise Unavailable(f"the shared volume cannot be served: {done.stderr.strip()}", "see the log of san")
        time.sleep(0.02)
