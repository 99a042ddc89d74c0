# SPDX-License-Identifier: GPL-2.0-or-later
"""Verify the model of the protocol with SPIN: `make model`. One line for each configuration; exit status 1 on an
error, and on a search that was not exhaustive.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("holdfast.pml")
MEMORY_MB = 2800
DEPTH = 10_000
"""Steps of the longest course of events: a deeper one ends the search and counts as a failure."""
KINDS = ("CRASH", "STALL", "CUT", "WITNESS", "KILL", "BREAK")
CONFIGURATIONS = {
    "no fault, three switchovers": ("FAULTS=0", "MOVES=3"),
    "one fault of any kind, two switchovers": ("FAULTS=1", "MOVES=2", *KINDS),
    "two faults of any kind, one switchover": ("FAULTS=2", "MOVES=1", *KINDS),
}


@dataclass(frozen=True)
class Result:
    """What a search found. `failure`: the first assertion that failed; `incomplete`: why it was not exhaustive."""

    states: int
    depth: int
    seconds: float
    errors: int
    failure: str
    incomplete: str

    @property
    def proven(self) -> bool:
        return not self.errors and not self.incomplete


class NotRun(Exception):
    """The model could not be compiled or searched."""


def verify(defines: tuple[str, ...], *, timeout: float = 600.0, optimise: str = "-O2", depth: int = DEPTH) -> Result:
    """Search all that the model can do. Takes at most `timeout` seconds; raises NotRun when that is not enough."""
    flags = [f"-D{define}" for define in defines]
    with tempfile.TemporaryDirectory(prefix="holdfast-model-") as place:
        _run(["spin", *flags, "-a", str(MODEL)], place, timeout)
        _run(["gcc", optimise, "-w", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB}", "-o", "pan", "pan.c"],
             place, timeout)
        begun = time.monotonic()
        said = _run(["./pan", f"-m{depth}"], place, timeout)
        return understood(said, time.monotonic() - begun)


def _run(command: list[str], place: str, timeout: float) -> str:
    try:
        done = subprocess.run(command, cwd=place, timeout=timeout, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotRun(f"{command[0]} is missing: `make setup` installs it") from error
    except subprocess.TimeoutExpired as error:
        raise NotRun(f"{command[0]} took more than {timeout:.0f} s") from error
    if done.returncode and command[0] != "./pan":
        raise NotRun(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def understood(said: str, seconds: float) -> Result:
    """What the search printed. Only what it calls complete counts as complete."""
    summary = re.search(r"depth reached (\d+), errors: (\d+)", said)
    states = re.search(r"(\d+) states, stored", said)
    if summary is None or states is None:
        raise NotRun(f"the search ended without a result: {said[-500:]}")
    failure = re.search(r"pan:\d+: (.*?) \(at depth", said)
    bounds = ("max search depth too small", "out of memory", "reached -DMEMLIM", "Search not completed",
              "Bit statespace", "hash-compact", "-w flag")
    found = [bound for bound in bounds if bound in said]
    errors = int(summary[2])
    if errors:  # it stops at the first, and says that it was not completed
        found = []
    elif "Full statespace search" not in said:
        found.append("not a full search")
    return Result(int(states[1]), int(summary[1]), seconds, errors, failure[1] if failure else "", ", ".join(found))


def main() -> int:
    """Verify all configurations."""
    failed = False
    for name, defines in CONFIGURATIONS.items():
        try:
            result = verify(defines)
        except NotRun as error:
            print(f"{name}: {error}", flush=True)
            failed = True
            continue
        print(f"{name}: {result.states} states, depth {result.depth}, {result.seconds:.1f} s, errors: {result.errors}"
              + (f", {result.failure}" if result.failure else "")
              + (f", NOT EXHAUSTIVE: {result.incomplete}" if result.incomplete else ""), flush=True)
        failed |= not result.proven
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
