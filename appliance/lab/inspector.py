# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at the database of the disk guest from outside, and at the images that it lies on."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from appliance.errors import Unavailable
from appliance.lab import guest_checks, postgres, soundness, topology
from appliance.lab import quiet as quiet_moment
from appliance.lab.disk_report import Inspection
from appliance.lab.lab import REDIS_PORT, Lab
from appliance.lab.ledger import Audit
from appliance.lab.postgres import Postgres
from appliance.lab.streams import Redis
from appliance.lab.transfers import Bank


class Inspector:
    """Looks at the database from outside, over sessions of its own, while the clients go on."""

    def __init__(self, lab: Lab, ledger: Path) -> None:
        self.lab, self.bank = lab, Bank("bank")
        self.audit = Audit(ledger)

    def session(self) -> Postgres:
        with topology.inside(self.lab.netns("client")):
            # All indexes are checked in one question.
            return Postgres((topology.VM_IP, postgres.PORT), patience=guest_checks.PATIENCE)

    def redis(self) -> Redis:
        with topology.inside(self.lab.netns("client")):
            return Redis((topology.VM_IP, REDIS_PORT))

    def inspect(self, after: str, running: str | None) -> Inspection:
        """running: the host that runs the VM, for the images to be compared; None: they are not. Raises
        HoldfastError, OSError, or WrongAnswer when the database does not let itself be asked."""
        with contextlib.closing(self.session()) as session:
            audit = self.bank.audit(session, self.audit)
            sound = soundness.check(session)
        kernel = guest_checks.run(self.lab, "filesystem")
        quiet = None if running is None else quiet_moment.judge(self.lab, running)
        return Inspection(after, audit, sound, kernel, quiet)

    def read_all_back(self) -> int:
        """Stop the database, read all of it from the disk, start it again: pages whose checksum is wrong."""
        status, said = guest_checks.run(self.lab, "checksums")
        bad = re.search(r"Bad checksums:\s*(\d+)", said)
        if bad is None or (status and not int(bad[1])):
            raise Unavailable(f"the database's checksums cannot be read: {said[-300:]}", "see the guest's console")
        return int(bad[1])

    def redis_counts(self) -> tuple[int, list[str]]:
        """How many keys redis has, and the values of the counters. Raises OSError, WrongAnswer."""
        with contextlib.closing(self.redis()) as redis:
            size, names = redis.command("DBSIZE"), redis.command("KEYS", "*:counter")
            counters = sorted(map(str, names)) if isinstance(names, list) else []
            return (size if isinstance(size, int) else -1), [str(redis.command("GET", name)) for name in counters]
