# SPDX-License-Identifier: GPL-2.0-or-later
"""Fault injection: named points in the protocol where a test may make this process die, stall or fail.

`HOLDFAST_INJECT="POINT:ACTION[:NTH]"` arms one point; ACTION is one of `ACTIONS`; NTH counts passages from 1.
`HOLDFAST_INJECT="@FILE"` arms whenever FILE appears with such a text in it: it is taken away as soon as it is
seen. Unarmed, a point costs one look-up. An unknown name is refused at once, so that a test cannot wait for a
point that does not exist.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal

POINTS = (
    "checkpoint.stopped",  # the VM is paused, output marked
    "checkpoint.saved",  # device state and dirty pages are copied
    "checkpoint.resumed",  # the VM runs on, nothing sent
    "epoch.sending",  # half of the epoch is queued for the link
    "epoch.sent",  # all of it is
    "link.sending",  # a long message is on the link (most of an epoch), what follows it is not
    "epoch.acked",  # the acknowledgement arrived, nothing released
    "epoch.released",
    "handover.released",  # output is out
    "sync.round",  # within the first copy
    "replica.received",  # backup: the whole epoch is here, not acknowledged
    "replica.acked",  # backup: acknowledged, not applied
    "replica.applied",  # backup: applied
    "drive.writing",  # primary: the VM writes to a disk, nothing of it is recorded
    "drive.recorded",  # primary: it is recorded, QEMU has not been answered
    "disk.journaled",  # backup: what the epoch wrote to disks is in the journal, no image is touched
    "disk.applying",  # backup: half of it is in the images
    "disk.applied",  # backup: all of it is, not flushed
    "disk.flushed",  # backup: flushed, the journal not emptied
    "disk.resize.noted",  # the size that an image will have is on disk, the VM's disk has the old one
    "disk.resize.done",  # the VM has a larger disk, that it has is not on disk
    "disk.plug.noted",  # the disk that the VM will have is on disk, it has none yet
    "disk.plug.done",  # it has it
    "disk.unplug.done",  # it has it no longer
    "disk.follow.noted",  # backup: the size that its image will have is on disk
    "disk.follow.done",  # backup: it has that size
    "volume.writing",  # what is due is to be written to the shared volumes, nothing of it is
    "volume.half",  # half of it is
    "volume.written",  # all of it is, flushed, and not yet counted as stored
    "redo.saved",  # after a takeover: what the volumes may lack is in a file, nothing of it written
    "redo.written",  # they have all of it, the file is still there
    "takeover.persisted",  # the new term is on disk, nothing done yet
    "takeover.loaded",  # the VM runs here, still silent
)

ACTIONS = (
    "kill",  # SIGKILL to this process
    "pause",  # SIGSTOP to this process
    "raise",  # an Injected comes out of the point
    "kill-vm",  # SIGKILL to every QEMU of this process
)


class Injected(Exception):
    """The fault that `raise` injects."""


def parse(text: str) -> dict[str, tuple[str, int]]:
    """What `text` arms: action and passage by point. Raises ValueError."""
    point, _, rest = text.strip().partition(":")
    action, _, nth = rest.partition(":")
    if point not in POINTS or action not in ACTIONS or not re.fullmatch("[1-9][0-9]*", nth or "1"):
        raise ValueError(f"{text!r}: use POINT:{'|'.join(ACTIONS)}[:NTH], POINT one of {', '.join(POINTS)}")
    return {point: (action, int(nth or 1))}


def _from_environment(text: str) -> tuple[dict[str, tuple[str, int]], str]:
    """What is armed, and the file to look for."""
    if not text or text.startswith("@"):
        return {}, text[1:]
    try:
        return parse(text), ""
    except ValueError as error:
        raise SystemExit(f"HOLDFAST_INJECT={error}") from None


_armed, _file = _from_environment(os.environ.get("HOLDFAST_INJECT", ""))


def _take_file() -> None:
    with contextlib.suppress(FileNotFoundError):
        with open(_file, encoding="utf-8") as file:
            text = file.read()
        os.unlink(_file)
        _armed.update(parse(text))


def point(name: str) -> None:
    """Pass the injection point `name`. Raises Injected when it is armed with `raise`."""
    if _file:
        _take_file()
    if name not in _armed:
        return
    action, nth = _armed[name]
    if nth > 1:
        _armed[name] = (action, nth - 1)
        return
    del _armed[name]
    if action == "raise":
        raise Injected(name)
    if action == "kill-vm":
        _kill_children()
    else:
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


def _kill_children() -> None:
    import psutil  # armed processes alone pay for it

    for child in psutil.Process().children():  # a service has no children but its QEMUs
        child.kill()
