# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a lab's VM: an image of its own for each host, made before the services start, gone with the lab.

They lie below /var/tmp, which is no file system in memory: HOLDFAST_LAB_DISKS names another place.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.errors import Unavailable, UsageError
from appliance.lab import fallible
from appliance.units import format_size, parse_size

ROOT = Path(os.environ.get("HOLDFAST_LAB_DISKS", "/var/tmp/holdfast-lab"))
FORMATS = ("raw", "qcow2")
COPY_S = 600.0  # for one image; a sparse one of 1 GiB takes less than a second
MOST = 8


class Disk(msgspec.Struct, frozen=True):
    """A disk that each host gets a copy of: of the image `source`, or an empty one of `size` bytes."""

    format: str
    source: str | None = None
    size: int = 0


def parse(text: str) -> Disk:
    """SIZE[:FORMAT] or PATH[:FORMAT], raw if no format is given. Raises ValueError(cause, remedy)."""
    what, colon, form = text.rpartition(":")
    if not colon or form not in FORMATS:
        what, form = text, "raw"
    if re.fullmatch(r"\d+[KMGT]?", what):
        return Disk(form, size=parse_size(f"{what}iB" if what[-1].isalpha() else f"{what}MiB"))
    if re.fullmatch(r"\d[\d.]*[A-Za-z]+", what):
        return Disk(form, size=parse_size(what))
    if not what:
        raise ValueError("no disk is named", "write SIZE, such as 8GiB, or the PATH of an image")
    return Disk(form, source=str(Path(what).absolute()))


def check(disks: Sequence[Disk]) -> None:
    """Refuse what cannot be made. Raises UsageError or Unavailable."""
    if len(disks) > MOST:
        raise UsageError(f"{len(disks)} disks", f"a lab's VM has {MOST} at most")
    for disk in disks:
        if disk.source is not None and not os.access(disk.source, os.R_OK):
            raise Unavailable(f"there is no readable file {disk.source}", "correct --disk")
        if disk.source is None and (disk.size < 1 << 20 or disk.size % 4096):
            raise UsageError(f"a disk of {format_size(disk.size)}", "at least 1MiB, in whole 4KiB")


def directory(lab: str) -> Path:
    """Where the images of a lab are."""
    return ROOT / lab


def name(number: int) -> str:
    """What the disk of this number is called, from 0."""
    return f"disk{number}"


def path(lab: str, host: str, number: int, disk: Disk) -> Path:
    """The image that `host` has."""
    return home(lab, host) / f"{name(number)}.{disk.format}"


def home(lab: str, host: str) -> Path:
    """Where the images of `host` are."""
    return directory(lab) / host


def image(lab: str, host: str, number: int, disk: Disk) -> Path:
    """What is behind `path`: the same file, or the one that the faults of a lab do not touch."""
    shown = path(lab, host, number, disk)
    behind = fallible.behind(home(lab, host), shown)
    return behind if behind.exists() else shown


def create(lab: str, host: str, disks: Sequence[Disk], *, can_fail: bool = False) -> None:
    """Make the images of `host`. Raises Unavailable; may leave some, which `remove` takes away.

    can_fail: see appliance.lab.fallible.
    """
    if not disks:
        return
    place = home(lab, host)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"{place}: {error.strerror}", "name another place: HOLDFAST_LAB_DISKS") from None
    images = fallible.prepare(place) if can_fail else place
    for number, disk in enumerate(disks):
        shown = path(lab, host, number, disk)
        own = images / shown.name
        if disk.source is not None:
            copy(disk.source, own)
        else:
            _run("qemu-img", "create", "-q", "-f", disk.format, str(own), str(disk.size))
        if can_fail:
            fallible.serve(place, own, shown)


def copy(source: str, to: Path) -> None:
    """Copy an image, holes and all. Raises Unavailable."""
    _run("cp", "--sparse=always", "--reflink=auto", source, str(to))


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COPY_S)
    except FileNotFoundError:
        raise Unavailable(f"there is no program {words[0]}", "install qemu-utils and coreutils") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(words)}: not done after {COPY_S:g} s", "is the storage well?") from None
    if done.returncode:
        raise Unavailable(f"{words[0]}: {done.stderr.strip()}", "name another place: HOLDFAST_LAB_DISKS")


def tables(lab: str, host: str, vm: str, disks: Sequence[Disk]) -> dict[str, dict[str, object]]:
    """The part of the configuration of `host`."""
    return {
        f"[[vm.{vm}.disk]] # {number}": {
            "name": name(number), "path": str(path(lab, host, number, disk)), "format": disk.format,
        }
        for number, disk in enumerate(disks)
    }  # fmt: skip


def summary(lab: str, host: str, disks: Sequence[Disk]) -> list[dict[str, str]]:
    """What the status of a lab says of them."""
    return [{"name": name(number), "path": str(path(lab, host, number, disk)), "format": disk.format}
            for number, disk in enumerate(disks)]  # fmt: skip


def remove(lab: str) -> list[str]:
    """Take away whatever images there are of that lab; says what was removed. Raises Unavailable."""
    place = directory(lab)
    if not place.exists():
        return []
    for host in place.iterdir():
        fallible.remove(host)
    shutil.rmtree(place)
    try:
        ROOT.rmdir()  # only if nothing else is in it
    except OSError:
        pass
    return [f"disks {place}"]
