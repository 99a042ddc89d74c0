# SPDX-License-Identifier: GPL-2.0-or-later
"""Fault injection: named points in the protocol where a test may make this process die, stall or fail.

`HOLDFAST_INJECT="POINT:ACTION[:NTH]"` arms one point; ACTION is `kill` (SIGKILL to this process), `pause`
(SIGSTOP) or `raise`; NTH counts passages from 1. Unarmed, a point costs one dictionary look-up. The points
are listed in `POINTS`; an unknown name is refused at once, so that a test cannot wait for a point that
does not exist.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "checkpoint.stopped",  # the VM is paused, output marked
    "checkpoint.saved",  # device state and dirty pages are copied
    "checkpoint.resumed",  # the VM runs on, nothing sent
    "epoch.sending",  # half of the epoch is on the link
    "epoch.sent",  # all of it is
    "epoch.acked",  # the acknowledgement arrived, nothing released
    "epoch.released",  # output is out
    "sync.round",  # within the first copy
    "replica.received",  # backup: the whole epoch is here, not acknowledged
    "replica.acked",  # backup: acknowledged, not applied
    "replica.applied",  # backup: applied
    "takeover.persisted",  # the new term is on disk, nothing done yet
    "takeover.loaded",  # the VM runs here, still silent
)


class Injected(Exception):
    """The fault that `raise` injects."""


def _parse(text: str) -> dict[str, tuple[str, int]]:
    if not text:
        return {}
    point, _, rest = text.partition(":")
    action, _, nth = rest.partition(":")
    if point not in POINTS or action not in ("kill", "pause", "raise") or not (nth or "1").isdigit():
        raise SystemExit(f"HOLDFAST_INJECT={text!r}: use POINT:kill|pause|raise[:NTH], POINT one of {POINTS}")
    return {point: (action, int(nth or 1))}


_armed = _parse(os.environ.get("HOLDFAST_INJECT", ""))


def point(name: str) -> None:
    """Pass the injection point `name`. Raises Injected when it is armed with `raise`."""
    if name not in _armed:
        return
    action, nth = _armed[name]
    if nth > 1:
        _armed[name] = (action, nth - 1)
        return
    del _armed[name]
    if action == "raise":
        raise Injected(name)
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
