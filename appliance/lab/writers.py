# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients of the bank in this process, each in a thread, over sockets made in the client's namespace."""

from __future__ import annotations

from appliance.lab import postgres, topology
from appliance.lab.lab import Lab
from appliance.lab.ledger import Ledger
from appliance.lab.transfers import Bank, Transfer

PACE = 0.003


class _Inside(Transfer):
    """A client of the bank over a socket made in a namespace."""

    namespace = ""

    def connect(self) -> None:
        with topology.inside(self.namespace):
            super().connect()


class Writers:
    """Start at once. `first`: the number of the first of them; none may have been used before."""

    def __init__(self, lab: Lab, bank: Bank, ledger: Ledger, first: int, count: int) -> None:
        address = (topology.VM_IP, postgres.PORT)
        self._clients = [_Inside(address, bank, first + number, ledger) for number in range(count)]
        for client in self._clients:
            client.namespace, client.pace_s = lab.netns("client"), PACE
            client.thread.start()

    def without_answer_since(self, moment_ns: int) -> list[str]:
        """Those without an acknowledged transaction that began after this monotonic time."""
        return [client.name for client in self._clients
                if not (client.record.start_ns and client.record.start_ns[-1] > moment_ns)]  # fmt: skip

    def problems(self) -> list[str]:
        """What they saw and should not have, in words."""
        found = [f"{client.name}: {broken.kind}: {broken.cause}" for client in self._clients
                 for broken in client.record.broken]  # fmt: skip
        return found + [f"{client.name}: {fault}" for client in self._clients if client.answered.is_set()
                        for fault in client.record.faults]  # fmt: skip

    def resets(self) -> int:
        return sum(broken.kind == "reset" for client in self._clients for broken in client.record.broken)

    def close(self) -> None:
        """Ask them to stop; one that waits for an answer gives up later."""
        for client in self._clients:
            client.stop.set()
