# SPDX-License-Identifier: GPL-2.0-or-later
"""What there is to say of the disks and volumes of one VM on this host, whatever it does here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.disk_faults import WELL, DiskFaults

if TYPE_CHECKING:
    from appliance.machine import Machine


class DiskView:
    """Of `machine`. `unusable`: why its images could not be used last; empty since they could."""

    def __init__(self, machine: Machine, limit: int) -> None:
        self._machine, self._limit = machine, limit
        self.unusable = ""

    @property
    def _faults(self) -> DiskFaults | None:
        primary = self._machine.primary
        return primary.disks.faults if primary is not None and primary.disks is not None else None

    @property
    def away(self) -> bool:
        """Does the VM run here, and on the other host's copy of one of its disks?"""
        return self._faults is not None and self._faults.away

    @property
    def trouble(self) -> str:
        """What is wrong with the disks of the VM that runs here; empty if nothing is."""
        return self._faults.reason() if self._faults is not None else ""

    @property
    def image_trouble(self) -> str | None:
        """What is wrong with the images on this host; None of a VM without disks, or one that this host has nothing to
        do with now."""
        machine = self._machine
        if machine.disks is None or machine.qemu is None and not self.unusable:
            return None
        if machine.backup is not None and machine.backup.replica.epoch:
            self.unusable = ""  # they have taken an epoch
        return self.trouble or self.unusable

    def disks(self) -> dict[str, Any] | None:
        """For the status reply; None of a VM without disks."""
        machine, faults = self._machine, self._faults
        if machine.disks is None:
            return None
        backup = machine.backup.disks if machine.backup is not None else None
        status = machine.disks.status(machine.drives, backup.applier if backup is not None else None)
        disks = [{**disk, **(faults.status(disk["name"]) if faults is not None else WELL)} for disk in status["disks"]]
        return {**status, "unapplied_limit_bytes": self._limit, "disks": disks}

    def volumes(self) -> list[dict[str, Any]]:
        """For the status reply."""
        return self._machine.volumes.status() if self._machine.volumes is not None else []
