# SPDX-License-Identifier: GPL-2.0-or-later
"""A pair on its way and a few faults, at random: what lies between two faults is gone through at leisure.

The state machine of test_core.py does anything at any time and so seldom gets deep into a course of events; a walk
begins in the middle of one. A seed is one walk.
"""

from __future__ import annotations

import random

from appliance import core
from appliance.core import Phase
from tests.core.simulation import Host, Pair

STEPS = 40
FAULTS = 3
LINGER = (0.001, 0.02, 0.02, 0.02, 0.1, 2.1)


def walk(seed: int) -> None:
    """One walk; raises AssertionError when an invariant breaks."""
    chance = random.Random(seed)
    pair = begun(chance)
    left = chance.randint(0, FAULTS)
    for _ in range(STEPS):
        host = chance.choice(list(pair.hosts.values()))
        if left and chance.random() < 0.15:
            fault(pair, host, chance)
            left -= 1
        else:
            goes_on(pair, host, chance)
        pair.check()
    pair.finds_together()


def begun(chance: random.Random) -> Pair:
    """A pair during its first copy or at its end, protected, or handing the VM over."""
    pair = Pair()
    pair.relink()
    alpha = pair.hosts["alpha"]
    for _ in range(100):
        for host in pair.hosts.values():
            pair.work(host)
            pair.deliver(host)
        if alpha.state is not None and alpha.state.phase is Phase.SYNCING:
            break
    else:
        raise AssertionError("the first copy never begins")
    begin = chance.choice(("syncing", "copied", "protected", "handing over"))
    if begin == "copied":
        pair.first_epoch(alpha)
    elif begin != "syncing":
        pair.settle()
    if begin == "handing over":
        pair.feed(alpha, core.SwitchOver("ordered"))
    return pair


def goes_on(pair: Pair, host: Host, chance: random.Random) -> None:
    match chance.randrange(12):
        case 0 | 1 | 2:
            pair.work(host, fails=chance.random() < 0.05)
        case 3 | 4 | 5:
            pair.deliver(host)
        case 6:
            pair.first_epoch(host)
        case 7:
            pair.first_ack(host)
        case 8 | 9:
            pair.tick(chance.choice(LINGER))
        case 10:
            repair(pair, host)
        case 11:
            pair.feed(host, core.SwitchOver("ordered"))


def fault(pair: Pair, host: Host, chance: random.Random) -> None:
    match chance.randrange(8):
        case 0:
            pair.crash(host)
        case 1:
            pair.sleep(host)
            if chance.random() < 0.5:
                pair.unlink()  # the other takes it for dead
        case 2 | 3:
            pair.unlink()
        case 4:
            pair.kill_vm(host)
        case 5:
            pair.feed(host, core.SyncFailed("fault"))
            if chance.random() < 0.5:
                pair.feed(host, core.Refused("a late answer"))
                pair.tick()
        case 6:
            pair.arbiter = False
        case 7:
            pair.feed(host, core.Refused("a late answer"))


def repair(pair: Pair, host: Host) -> None:
    pair.arbiter = True
    if host.state is None:
        pair.boot(host)
    elif host.asleep:
        pair.wake(host)
    elif not pair.linked:
        pair.relink()
