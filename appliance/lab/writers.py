# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients of the bank in this process, for what breaks their sessions."""

from __future__ import annotations

from appliance.lab import postgres, topology
from appliance.lab.lab import Lab
from appliance.lab.ledger import Audit, Ledger
from appliance.lab.transfers import Bank, Transfer


class _Inside(Transfer):
    """A client of the bank over a socket made in the client's namespace."""

    namespace = ""

    def connect(self) -> None:
        with topology.inside(self.namespace):
            super().connect()


class Writers:
    """Clients of the bank in this process, numbered beyond those before. Their sessions may break."""

    def __init__(self, lab: Lab, bank: Bank, audit: Audit, count: int) -> None:
        audit.read()
        first = max(audit.expected(), default=-1) + 1
        self._ledger = Ledger(audit.path)
        address = (topology.VM_IP, postgres.PORT)
        self._clients = [_Inside(address, bank, first + number, self._ledger) for number in range(count)]
        for client in self._clients:
            client.namespace = lab.netns("client")
            client.thread.start()

    def stop(self) -> None:
        """Ask them to stop, and end what waits for an answer that never comes."""
        for client in self._clients:
            client.stop.set()
        for client in self._clients:
            client.thread.join(20)
