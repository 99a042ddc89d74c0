# SPDX-License-Identifier: GPL-2.0-or-later
"""The images of the VMs' disks, and their shared volumes, as those who use them on this host found them: QEMU, what
applies epochs, and what reads from each volume once a second.

Nothing is read for it: a disk that is not asked for anything fails nobody. Storage that fails makes its own VM better
off elsewhere (`DiskFaults`, `VolumeCare`), and not the others of its host, so that it is no part of that one's fitness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from appliance.health.machines import Guest
from appliance.health.monitor import Assessor
from appliance.health.reading import Reading, State
from appliance.health.settings import Health

KINDS = {"image": ("disks", "QEMU's events, the replica"), "volume": ("volumes", "reads and writes")}
"""By component: what it is of a VM, and the source of its readings."""


class Storage:
    """The monitor of the components `image` and `volume`. `guests` tells of every VM in the configuration."""

    name = "storage"

    def __init__(self, guests: Callable[[], Iterable[Guest]], health: Health) -> None:
        self.interval = health.interval
        self._guests = guests
        self._assess = {component: Assessor(component, health.rounds, health.settle) for component in KINDS}

    def close(self) -> None:
        """Nothing is open."""

    async def read(self) -> list[Reading]:
        return [self._of(guest.vm, component, trouble) for guest in self._guests()
                for component, trouble in guest.storage.items()]

    def _of(self, vm: str, component: str, trouble: str | None) -> Reading:
        (what, source), assess = KINDS[component], self._assess[component]
        if trouble is None:
            return assess.unknown(f"{vm} {what}", "it does not run here now")
        return assess.found(f"{vm} {what}", State.FAILED if trouble else State.OK, source=source, rounds=1,
                            reason=trouble)
