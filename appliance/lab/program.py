# SPDX-License-Identifier: GPL-2.0-or-later
"""What demos and the campaign have in common as programs: progress, results, a lab that goes in the end, exit codes."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from appliance.errors import HoldfastError
from appliance.lab.lab import Lab
from appliance.lab.topology import HOSTS

INTERRUPTED = 130
FAILURES = (HoldfastError, OSError)


class Teller:
    """One line for each step, with the time since the beginning."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._begun:6.1f} s  {line}", flush=True)


def write_json(path: Path, document: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


def prepare(out: Path, results: Sequence[str]) -> None:
    """Make the directory `out`; nothing of an older run may pass for this one's."""
    out.mkdir(parents=True, exist_ok=True)
    for name in results:
        (out / name).unlink(missing_ok=True)


@contextlib.contextmanager
def taken_down(lab: Lab, out: Path, tell: Callable[[str], None]) -> Iterator[Lab]:
    """The lab is gone afterwards, whatever happens; the logs of its hosts are in `out`."""
    try:
        yield lab
    finally:
        heed(signal.SIG_IGN)  # a late Ctrl-C must not leave half a lab behind
        with contextlib.suppress(OSError):
            _keep_logs(lab, out)
        lab.down()
        tell("the lab is gone")


def _keep_logs(lab: Lab, out: Path) -> None:
    for host in HOSTS:
        log = lab.directory / host / "service.log"
        if log.exists():
            shutil.copyfile(log, out / f"{host}.log")


def tell_logs(lab: Lab, what: str, tell: Callable[[str], None]) -> None:
    """What went wrong, and how the logs of the hosts end."""
    tell(f"{what}; the logs end with:")
    for host in HOSTS:
        for line in lab.log_tail(host):
            tell(f"  {host}| {line}")


def heed(handler: signal.Handlers | Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    heed(signal.SIG_IGN)  # once is enough: what follows is the tearing down
    raise KeyboardInterrupt


def run(name: str, work: Callable[[], int]) -> int:
    """The exit code of `work`, or that of what ended it, which is told in the program's `name`."""
    heed(_interrupt)
    try:
        return work()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except FAILURES as error:
        print(f"{name}: {error}", file=sys.stderr)
        return int(error.exit_code) if isinstance(error, HoldfastError) else 1


def outcome(broken: Sequence[str]) -> int:
    """Tell which promises were broken; the exit code that says so."""
    for line in broken:
        print(f"BROKEN       {line}")
    print("\nevery promise kept" if not broken else f"\n{len(broken)} promises broken")
    return 1 if broken else 0
