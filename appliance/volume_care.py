# SPDX-License-Identifier: GPL-2.0-or-later
"""The way to the shared volumes of one VM, and what follows for the VM when they do not answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from appliance import config as cfg
from appliance import core
from appliance.errors import told
from appliance.journal import Journal
from appliance.redo import Redo
from appliance.volumes import LOOK, Volumes
from vmlink.errors import VmError
from vmlink.spec import VmSpec

if TYPE_CHECKING:
    from appliance.machine import Machine

OTHERS_WORD = 1.5 * LOOK
"""Seconds in which a backup that does not reach the volumes either has said so: its VM must not end on both hosts."""


class VolumeCare:
    """See the module. Of the VM of `machine`. `unreached`: why they could not be reached last; empty since they
    could."""

    def __init__(self, machine: Machine, vm: cfg.Vm, host: cfg.Host, journal: Journal) -> None:
        self._machine, self._host, self._limit, self._journal = machine, host, vm.limits.disk, journal
        self._redo = Redo(host.state_dir / f"{machine.name}.redo") if vm.volume else None
        self.unreached = ""

    async def keep_redo(self, term: int) -> None:
        """The VM is about to start under this term: what the volumes may lack is still to be written if that fails.
        Raises VmError."""
        if self._redo is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._redo.keep, term)

    async def reach(self, spec: VmSpec) -> Volumes | None:
        """Those of `spec`, None if it has none. Raises VmError."""
        if self._redo is None:
            return None
        life = self._machine.life
        try:
            volumes = await Volumes.open(spec.binary(), spec.volumes, self._host.run_dir / f"{spec.name}.volumes.sock",
                                         self._redo, self._limit, lambda error: self._failed(error, life))
        except VmError as error:
            self.unreached = told(error)
            raise
        self.unreached = ""
        return volumes

    def _failed(self, error: VmError, life: int) -> None:
        """A backup is none any more. A primary's VM goes where the volume may answer, unless it answers nobody."""
        machine, cause = self._machine, told(error)
        if life != machine.life:
            return
        self._journal.event("volume-failed", cause=cause)
        if machine.backup is not None:
            machine.post(core.VmLost(cause))
        else:
            machine.spawn(self._leave(cause, life))

    async def _leave(self, cause: str, life: int) -> None:
        await asyncio.sleep(OTHERS_WORD)
        machine = self._machine
        followed = machine.primary is not None and machine.primary.followed
        if life == machine.life and followed and machine.volumes is not None and machine.volumes.trouble:
            machine.post(core.VmLost(cause))
