# SPDX-License-Identifier: GPL-2.0-or-later
"""The images of the VMs' disks on this host, as those who use them found them: QEMU, and what applies epochs to them.

Nothing is read for it: a disk that is not asked for anything fails nobody. An image that fails makes its own VM better
off elsewhere (`DiskFaults`), and not the others of its host, so that it is no part of that one's fitness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from appliance.health.machines import Guest
from appliance.health.monitor import Assessor
from appliance.health.reading import Reading, State
from appliance.health.settings import Health


class Images:
    """The monitor `image`. `guests` tells of every VM in the configuration."""

    name = "image"

    def __init__(self, guests: Callable[[], Iterable[Guest]], health: Health) -> None:
        self.interval = health.interval
        self._guests = guests
        self._assess = Assessor(self.name, health.rounds, health.settle)

    def close(self) -> None:
        """Nothing is open."""

    async def read(self) -> list[Reading]:
        return [self._of(guest) for guest in self._guests() if guest.has_disks]

    def _of(self, guest: Guest) -> Reading:
        subject, trouble = f"{guest.vm} disks", guest.image_trouble
        if trouble is None:
            return self._assess.unknown(subject, "it does not run here now")
        return self._assess.found(subject, State.FAILED if trouble else State.OK, source="QEMU's events, the replica",
                                  rounds=1, reason=trouble)
