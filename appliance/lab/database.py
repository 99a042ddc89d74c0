# SPDX-License-Identifier: GPL-2.0-or-later
"""The database of the disk guest while things happen to its hosts: clients that never rest, and who judges them."""

from __future__ import annotations

import contextlib
import time

from appliance.errors import TimedOut
from appliance.lab import quiet, soundness
from appliance.lab.inspector import Inspector
from appliance.lab.lab import Lab
from appliance.lab.ledger import Findings, Ledger
from appliance.lab.writers import Writers

CLIENTS = 2


class Database:
    """Starts at once, ends with `close`. Raises OSError or WrongAnswer when there is no database to be had."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        ledger = lab.directory / "ledger.txt"
        self._ledger = Ledger(ledger)
        self._inspector = Inspector(lab, ledger)
        with contextlib.closing(self._inspector.session()) as session:
            self._inspector.bank.create(session)
        self._clients = 0
        self._writers = self._more()

    def _more(self) -> Writers:
        first, self._clients = self._clients, self._clients + CLIENTS
        return Writers(self._lab, self._inspector.bank, self._ledger, first, CLIENTS)

    def goes_on(self, seconds: float) -> None:
        """Wait until every client has had a transaction acknowledged that began after now. Raises TimedOut."""
        now, deadline = time.monotonic_ns(), time.monotonic() + seconds
        while waiting := self._writers.without_answer_since(now):
            if time.monotonic() >= deadline:
                raise TimedOut(f"{', '.join(waiting)}: no transaction is acknowledged for {seconds:g} s; "
                               f"{self.problems()}", "see the logs of both hosts, and the guest's console")  # fmt: skip
            time.sleep(0.005)

    def problems(self) -> list[str]:
        """Everything that its clients saw and should not have."""
        return self._writers.problems()

    def resets(self) -> int:
        """Sessions that the VM, or whoever stood in for it, ended."""
        return self._writers.resets()

    def audit(self) -> Findings:
        """Is what was acknowledged there, exactly once, and are its tables sound? Raises OSError or WrongAnswer."""
        with contextlib.closing(self._inspector.session()) as session:
            found = self._inspector.bank.audit(session, self._inspector.audit)
            found.problems += soundness.check(session, self._inspector.bank.name).problems
        return found

    def compare(self, running: str) -> list[str]:
        """What is wrong with the images of both hosts at a quiet moment. Raises OSError or Unavailable."""
        return quiet.judge(self._lab, running).problems

    def started_afresh(self) -> None:
        """The VM was started anew from its disk: other clients, to whom nobody owes an answer."""
        self._writers.close()
        self._writers = self._more()

    def close(self) -> None:
        """Stop; a client that waits for an answer gives up later."""
        self._writers.close()
