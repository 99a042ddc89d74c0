# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for the labs of tests, and the proof that nothing of a lab is left."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.lab import blueprint, disks
from appliance.lab.lab import down
from appliance.lab.processes import MARK

_numbers = itertools.count(1)


def traces(name: str) -> list[str]:
    """Whatever there is on this machine of the lab `name`."""
    found = [f"namespace {entry}" for entry in os.listdir("/run/netns") if entry.startswith(f"hf-{name}-")]
    found += [f"directory {blueprint.directory(name)}"] if blueprint.directory(name).exists() else []
    found += [f"disks {disks.directory(name)}"] if disks.directory(name).exists() else []
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"/{name}/" in line]
    for entry in os.listdir("/proc"):
        try:
            marked = f"{MARK}={name}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if entry.isdigit() and marked:
            found.append(f"process {entry}")
    return found


def given_out() -> Iterator[Callable[[], str]]:
    """For fixtures: gives out names of labs; then takes down what goes by them, and fails if anything is left."""
    Path("/run/netns").mkdir(exist_ok=True)
    given: list[str] = []

    def name() -> str:
        given.append(f"t{os.getpid()}-{next(_numbers)}")
        return given[-1]

    yield name
    for used in given:
        down(used)
    left = [trace for used in given for trace in traces(used)]
    assert not left, left
