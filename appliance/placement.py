# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a VM is better off: what the health of both hosts means for it. Pure.

A host is whole for a VM when its uplink, its disks and the rest (memory, processors, QEMU) are well. The VM moves
only to a host that is better off in everything that is wrong here, so that two half-broken hosts do not throw it
back and forth. When neither is whole because the uplink is dead here and something else is there, the traffic goes
through the other's uplink instead.
"""

from __future__ import annotations

import msgspec

from appliance.core import Conditions


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host says of itself. `reasons`: what is wrong, for people; `drained`: no VM is to come to it;
    `doubtful`: parts that are well but may not be for long, so no VM comes to it for their sake."""

    uplink: bool = True
    disk: bool = True
    rest: bool = True
    drained: bool = False
    reasons: tuple[str, ...] = ()
    doubtful: frozenset[str] = frozenset()

    @property
    def broken(self) -> frozenset[str]:
        return frozenset(name for name in ("uplink", "disk", "rest") if not getattr(self, name))


def judge(here: Condition, there: Condition | None, unfit: str) -> Conditions:
    """What follows for a VM on this host. `there` is None while the peer has not said how it is; `unfit`: why the
    peer lacks the resources for the VM, empty if it does not."""
    if there is None:
        return Conditions(unfit=unfit)
    wrong = "; ".join(here.reasons) or ", ".join(sorted(here.broken))
    doubted = there.broken | there.doubtful
    better = bool(here.broken) and doubted < here.broken and not there.drained and not unfit
    shunt = "uplink" in here.broken and "uplink" not in there.broken and not better
    return Conditions(unfit, f"{wrong}: the peer is better off" if better else "", shunt)
