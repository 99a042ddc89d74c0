# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks that the service needs: where it remembers, where it runs, and the files that its VMs start from.

Each place has a thread of its own while it is looked at. One that hangs in the kernel is left there: the place shows
as slow, then as failed, and gets no second thread before the first has come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from appliance import config as cfg
from appliance.health import volume
from appliance.health.judge import Rule
from appliance.health.monitor import Assessor, Counter
from appliance.health.reading import Reading, State
from appliance.health.settings import Health
from appliance.health.volume import Found

WAIT = 0.5
"""Seconds after which a round goes on without those that have not answered."""
_MIB = 1 << 20
_COUNTERS = "/sys/fs/ext4/*/errors_count, /sys/block/*/device/ioerr_cnt"
log = logging.getLogger("holdfast.health")


class Place:
    """One directory or file, looked at by `use`, which may block."""

    def __init__(self, path: Path, use: Callable[[Path], Found], *, directory: bool) -> None:
        self.path, self.directory, self._use = path, directory, use
        self.found: Found | None = None
        self._begun: float | None = None
        self._done = asyncio.Event()

    @property
    def waited(self) -> float:
        """Seconds for which the look that is under way has lasted; 0 when none is."""
        return 0.0 if self._begun is None else time.monotonic() - self._begun

    def look(self) -> None:
        """Begin, unless the last look has not come back."""
        if self._begun is None:
            self._begun, self._loop = time.monotonic(), asyncio.get_running_loop()
            self._done.clear()
            threading.Thread(target=self._run, name="disk probe", daemon=True).start()

    async def settled(self) -> None:
        """Return when no look is under way."""
        await self._done.wait()

    def _run(self) -> None:
        try:
            found = self._use(self.path)
        except Exception as error:  # nothing that a disk does may end a thread unseen
            log.exception("the look at %s failed", self.path)
            found = Found(0.0, error=str(error) or type(error).__name__)
        with contextlib.suppress(RuntimeError):  # the service has ended meanwhile
            self._loop.call_soon_threadsafe(self._back, found)

    def _back(self, found: Found) -> None:
        self.found, self._begun = found, None
        self._done.set()


def places(config: cfg.Config) -> list[Place]:
    """What a host needs."""
    directories = dict.fromkeys((config.host.state_dir, config.host.run_dir))
    files = dict.fromkeys(file for vm in config.vm.values() for file in (vm.kernel, vm.initrd) if file is not None)
    return [*(Place(path, volume.use_directory, directory=True) for path in directories),
            *(Place(path, volume.use_file, directory=False) for path in files)]


class Disks:
    """The monitor `disk`."""

    name = "disk"

    def __init__(self, places: list[Place], health: Health) -> None:
        self.interval = health.disk_interval
        self._places = places
        self._assess = Assessor(self.name, health.rounds, health.settle)
        self._counter = Counter()
        self._slow = Rule(health.disk_warn, health.disk_max, rounds=1)
        self._space = Rule(health.space_warn / _MIB, health.space_min / _MIB, above=False)
        self._errors = Rule(1.0, float(health.io_errors))

    def close(self) -> None:
        """A thread that hangs ends with the process."""

    async def read(self) -> list[Reading]:
        for place in self._places:
            place.look()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(WAIT, self.interval / 2)):
                for place in self._places:
                    await place.settled()
        return [reading for place in self._places for reading in self._of(place)]

    def _of(self, place: Place) -> list[Reading]:
        found, waited, path = place.found, place.waited, place.path
        if not place.directory:
            return [self._slowness(place, "read", "read()")]
        readings = [self._slowness(place, "write", "write() and fsync() of 4 KiB")]
        if found is None or waited:
            return [*readings, *(self._assess.unknown(f"{path} {what}", "the disk does not answer")
                                 for what in ("mode", "space", "errors"))]
        mode = State.FAILED if found.read_only else State.OK
        readings.append(self._assess.found(f"{path} mode", mode, source="statvfs() f_flag", rounds=1,
                                           reason="it is mounted read-only" if found.read_only else ""))
        if found.size:
            readings.append(self._assess.value(f"{path} space", found.free / _MIB, self._space, unit="MiB",
                                               source="statvfs() f_bavail", digits=1))
        else:
            readings.append(self._assess.unknown(f"{path} space", found.error or "the file system has no size"))
        return [*readings, self._counted(place, found)]

    def _slowness(self, place: Place, what: str, source: str) -> Reading:
        subject, found, waited = f"{place.path} {what}", place.found, place.waited
        if waited:
            return self._assess.value(subject, waited, self._slow, unit="s", source=source,
                                      reason=f"no answer for {waited:.1f} s")
        assert found is not None
        if found.error:
            return self._assess.found(subject, State.FAILED, source=source, reason=found.error, unit="s",
                                      threshold=self._slow.words("s"))
        return self._assess.value(subject, found.seconds, self._slow, unit="s", source=source, digits=6)

    def _counted(self, place: Place, found: Found) -> Reading:
        subject = f"{place.path} errors"
        if found.errors is None:
            return self._assess.unknown(subject, "no error counter for this file system and device", _COUNTERS)
        return self._assess.value(subject, self._counter.grown(subject, found.errors), self._errors, digits=0,
                                  unit="a round", source=_COUNTERS)
