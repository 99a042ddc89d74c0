# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a lab that can fail: I/O errors and a full file system as the kernel gives them, made when wanted.

A host's images lie in a file system in memory, `backing`, which can be made full. Each is served by nbdkit, whose error
filter fails every read and write while the file `failing` is there, and appears as an ordinary file through FUSE
(nbdfuse): that is what the host's QEMU opens. Nothing of Holdfast knows of it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from appliance.errors import Unavailable

PATIENCE = 10.0  # seconds; for what takes a fraction of one
ROOM = 2 << 30  # bytes that the images of a host may grow to


def prepare(home: Path) -> Path:
    """Make the place for the images of one host; returns the directory where they are to be. Raises Unavailable."""
    backing = home / "backing"
    backing.mkdir(parents=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=700", "holdfast-lab", str(backing))
    return backing


def behind(home: Path, shown: Path) -> Path:
    """The image that appears as `shown`, where it really lies."""
    return home / "backing" / shown.name


def serve(home: Path, image: Path, shown: Path) -> None:
    """Let the image in `backing` appear as the file `shown`. Raises Unavailable."""
    shown.touch()
    empty = shown.stat().st_dev
    with (home / f"{shown.name}.log").open("ab") as log:
        try:
            subprocess.Popen(
                ["nbdfuse", str(shown), "[", "nbdkit", "--exit-with-parent", "--filter=error", "file", str(image),
                 "error=EIO", "error-rate=100%", f"error-file={home / 'failing'}", "]"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise Unavailable("there is no program nbdfuse", "install libnbd-bin, nbdkit and fuse3") from None
    _until(f"{shown} is served", lambda: shown.stat().st_dev != empty)


def fail(home: Path) -> None:
    """From now on every read and every write fails."""
    (home / "failing").touch()


def fill(home: Path) -> None:
    """From now on there is room for nothing new: what lies in a hole of an image cannot be written. Raises
    Unavailable."""
    backing = home / "backing"

    def shrink() -> bool:
        facts = os.statvfs(backing)
        used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        # Refused when more has been written meanwhile.
        return _try("mount", "-o", f"remount,size={max(used, facts.f_frsize)}", str(backing)).returncode == 0

    _until(f"{backing} is full", shrink)


def faults(home: Path) -> list[str]:
    """What is wrong with the disks at the moment."""
    facts = os.statvfs(home / "backing")
    found = ["failing"] if (home / "failing").exists() else []
    return found + (["full"] if facts.f_blocks * facts.f_frsize < ROOM else [])


def mend(home: Path) -> list[str]:
    """Undo both; says what was undone. Raises Unavailable."""
    found = faults(home)
    (home / "failing").unlink(missing_ok=True)
    if "full" in found:
        _run("mount", "-o", f"remount,size={ROOM}", str(home / "backing"))
    return found


def remove(home: Path) -> None:
    """Take away whatever `prepare` and `serve` made; the processes end with what they serve. Raises Unavailable."""
    for place in sorted(_mounted(home), key=len, reverse=True):
        # A QEMU that was killed a moment ago may still hold it.
        _until(f"{place} is unmounted", partial(_unmounted, place))


def _unmounted(place: str) -> bool:
    return _try("umount", place).returncode == 0


def _mounted(home: Path) -> list[str]:
    with open("/proc/self/mounts") as mounts:
        places = [line.split(" ")[1] for line in mounts]
    return [place for place in places if place.startswith(f"{home}/")]


def _until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() >= deadline:
            raise Unavailable(f"not within {PATIENCE:g} s: {what}", "are nbdkit, libnbd-bin and fuse3 installed?")
        time.sleep(0.01)


def _try(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)


def _run(*words: str) -> None:
    done = _try(*words)
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {done.stderr.strip()}", "run this as root, where FUSE is to be had")
