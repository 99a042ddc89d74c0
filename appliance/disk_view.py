# SPDX-License-Identifier: GPL-2.0-or-later
"""What there is to say of the disks and volumes of one VM on this host, whatever it does here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance import config as cfg
from appliance.disk_faults import WELL, DiskFaults

if TYPE_CHECKING:
    from appliance.machine import Machine


class DiskView:
    """Of `machine`. `unusable`: why its images could not be used last; empty since they could."""

    def __init__(self, machine: Machine, vm: cfg.Vm) -> None:
        self._machine, self._vm = machine, vm
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

    def storage(self) -> dict[str, str | None]:
        """What is wrong on this host with the images (`image`) and with the shared volumes (`volume`), of those that
        the VM has; empty if nothing is, None where this host does not use them now."""
        found: dict[str, str | None] = {}
        if self._machine.disks is not None:
            found["image"] = self._image_trouble()
        if self._vm.volume:
            volumes, unreached = self._machine.volumes, self._machine.volume_care.unreached
            found["volume"] = volumes.trouble if volumes is not None else unreached or None
        return found

    def _image_trouble(self) -> str | None:
        machine = self._machine
        if machine.qemu is None and not self.unusable:
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
        return {**status, "unapplied_limit_bytes": self._vm.limits.disk, "disks": disks}

    def volumes(self) -> list[dict[str, Any]]:
        """For the status reply."""
        return self._machine.volumes.status() if self._machine.volumes is not None else []
