# SPDX-License-Identifier: GPL-2.0-or-later
"""A quiet moment: the disk guest writes nothing, so the images of both hosts must be the same, and a clean file system;
or the volume that they share, once all that was withheld is on it.

Judged from outside, on the images themselves.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import Unavailable
from appliance.lab import disks, guest_checks, volume
from appliance.lab.blueprint import VM
from appliance.lab.lab import Lab
from appliance.lab.topology import HOSTS

SAME_S = 60.0  # for the last epoch to be in both images
TOOL_S = 120.0
_CLEAN, _MENDED = 0, 1  # of e2fsck
_SHOWN = 300


@dataclass
class Quiet:
    """What was found. `same_after_ms`: from the freeze until the images were equal, None if they never were."""

    same_after_ms: float | None = None
    clean: bool = False
    problems: list[str] = field(default_factory=list)


def judge(lab: Lab, running: str) -> Quiet:
    """Freeze the guest that runs on host `running`, compare the images, check the file system on disk0, thaw.

    Raises OSError or Unavailable when the guest or the tools cannot be had.
    """
    found = Quiet()
    with tempfile.TemporaryDirectory(dir=disks.directory(lab.name), prefix="quiet-") as place:
        copy = Path(place) / "disk0.raw"
        with guest_checks.frozen(lab):
            _compare(lab, found)
            image, form = _root(lab, running, found)
            _tool("qemu-img", "convert", "-U", "-f", form, "-O", "raw", str(image), str(copy))
        _check_file_system(copy, found)
    return found


def _root(lab: Lab, running: str, found: Quiet) -> tuple[Path, str]:
    """What the guest's root file system is kept in, whole, and its format."""
    shared = lab.options.volume
    if shared is None or not shared.guest:
        disk = lab.options.all_disks()[0]
        return disks.image(lab.name, running, 0, disk), disk.format
    deadline = time.monotonic() + SAME_S
    while not _stored(lab, running):
        if time.monotonic() > deadline:
            found.problems.append(f"{SAME_S:g} s after the last write the volume does not have all of it")
            break
        time.sleep(0.01)
    return volume.image(lab.name, shared), "raw"


def _stored(lab: Lab, running: str) -> bool:
    """Have the volumes all that the VM wrote? A host that does not answer has not said so."""
    volumes = (lab.host_status(running) or {}).get("vms", {}).get(VM, {}).get("volumes", ())
    return bool(volumes) and not any(one["withheld_bytes"] for one in volumes)


def _compare(lab: Lab, found: Quiet) -> None:
    begun = time.monotonic()
    while differences := differing(lab):
        if time.monotonic() - begun > SAME_S:
            found.problems += [f"{SAME_S:g} s after the last write {one}" for one in differences]
            return
    found.same_after_ms = round((time.monotonic() - begun) * 1e3, 1)


def differing(lab: Lab) -> list[str]:
    """Where the images of the two hosts differ, in words; empty when they are the same, block by block."""
    found = []
    for number, disk in enumerate(lab.options.all_disks()):
        one, other = (str(disks.image(lab.name, host, number, disk)) for host in HOSTS)
        status, said = _tool("qemu-img", "compare", "-U", "-f", disk.format, "-F", disk.format, one, other, ok=(0, 1))
        if status:
            found.append(f"{disks.name(number)} differs: {said}")
    return found


def _check_file_system(copy: Path, found: Quiet) -> None:
    """The first run clears the list of files that were deleted while open, which is no fault."""
    for options, fine in ((("-p",), (_CLEAN, _MENDED)), (("-f", "-n"), (_CLEAN,))):
        status, said = _tool("e2fsck", *options, str(copy), ok=tuple(range(32)))
        if status not in fine:
            found.problems.append(f"e2fsck {' '.join(options)} finds: {said}")
            return
    found.clean = True


def _tool(*words: str, ok: tuple[int, ...] = (0,)) -> tuple[int, str]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TOOL_S)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{words[0]}: {error}", "install qemu-utils and e2fsprogs") from error
    said = " ".join((done.stdout + done.stderr).split())[-_SHOWN:]
    if done.returncode not in ok:
        raise Unavailable(f"{words[0]}: {said}", "see the disks of the lab")
    return done.returncode, said
