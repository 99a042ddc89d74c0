# SPDX-License-Identifier: GPL-2.0-or-later
"""What the operator orders: a VM moves, a host is drained or fenced, protection pauses; clients lose nothing."""

from __future__ import annotations

import os
from typing import Any

import pytest

from appliance import control
from appliance.errors import TimedOut, Unavailable, Unsafe, UsageError
from appliance.lab import blueprint
from appliance.lab.blueprint import VM
from appliance.lab.topology import HOSTS
from tests.pair.pair import Pair, other, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def ask(pair: Pair, at: str, verb: str, **words: Any) -> dict[str, Any]:
    return control.call(blueprint.control_path(pair.lab.name, at), verb, timeout=60, **words)


@pytest.mark.parametrize("asked", ["the primary", "the backup"])
def test_a_switchover_loses_nothing(pair: Pair, asked: str) -> None:
    for _ in HOSTS:
        primary, backup = pair.protected()
        pair.client.goes_on()
        reply = ask(pair, primary if asked == "the primary" else backup, "switchover", vm=VM)
        assert (reply["from"], reply["to"]) == (primary, backup)
        pair.client.goes_on()
        assert pair.protected() == (backup, primary)
        pair.sound(primary, backup)


@pytest.mark.parametrize("fault", ["handover.released:kill", "takeover.loaded:kill", "takeover.persisted:kill-vm"])
def test_a_fault_in_a_switchover(pair: Pair, fault: str) -> None:
    """Whoever dies at whichever step: the VM goes on, on one of the two, from what clients saw."""
    primary, backup = pair.protected()
    pair.client.goes_on()
    victim = primary if fault.startswith("handover") else backup
    pair.arm(victim, fault)
    try:
        ask(pair, backup if victim == primary else primary, "switchover", vm=VM)
    except (Unavailable, TimedOut):
        pass
    if fault.endswith("kill"):
        pair.dead(victim)
        if victim == primary:
            pair.client.goes_on()
        pair.heal(victim)
    pair.lab.wait_protected(40)
    assert pair.sound() in ([primary], [primary, backup], [primary, backup, primary])


def test_what_cannot_move(pair: Pair) -> None:
    primary, backup = pair.protected()
    with pytest.raises(UsageError, match="there is no VM 'other'"):
        ask(pair, primary, "switchover", vm="other")
    pair.lab.fault("service-kill", backup)
    until("the loss is noticed", lambda: pair.vm(primary)["phase"] != "protected")
    with pytest.raises(Unavailable, match="is not protected now"):
        ask(pair, primary, "switchover", vm=VM)
    with pytest.raises(UsageError, match="the pair is alpha and beta"):
        ask(pair, primary, "drain", host="gamma")
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def test_a_drained_host_gives_all_away(pair: Pair) -> None:
    primary, backup = pair.protected()
    pair.client.goes_on()
    assert ask(pair, backup, "drain", host=primary)["vms"] == {VM: "moved"}
    assert pair.protected() == (backup, primary)
    assert ask(pair, backup, "drain", host=primary, undo=True)["drained"] is False
    pair.sound(primary, backup)


@pytest.mark.parametrize("role", ["primary", "backup"])
def test_a_fenced_host_stays_out_until_it_is_let_in(pair: Pair, role: str) -> None:
    primary, backup = pair.protected()
    pair.client.goes_on()
    host = primary if role == "primary" else backup
    assert ask(pair, other(host), "fence", host=host)["result"] == "fenced"
    pair.client.goes_on()
    assert pair.vm(host)["phase"] == "fenced" and not pair.qemus(host)
    pair.lab.fault("service-kill", host)
    pair.heal(host)
    until("it is back", lambda: pair.vm(host).get("phase"))
    assert pair.vm(host)["phase"] == "fenced", "remembered over a restart"
    pair.client.goes_on()
    assert pair.vm(other(host))["role"] == "primary"
    assert ask(pair, host, "fence", host=host, lift=True)["result"] == "lifted"
    assert pair.protected() == (other(host), host)
    pair.sound()


def test_an_unreachable_host_is_fenced_only_by_the_operators_word(pair: Pair) -> None:
    primary, backup = pair.protected()
    pair.lab.fault("crash", backup)
    with pytest.raises(Unsafe, match="whether it speaks cannot be known"):
        ask(pair, primary, "fence", host=backup)
    assert ask(pair, primary, "fence", host=backup, off=True)["result"] == "taken as off"
    pair.client.goes_on()
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def test_protection_pauses_and_resumes(pair: Pair) -> None:
    primary, backup = pair.protected()
    assert ask(pair, backup, "unprotect", vm=VM)["paused"] is True
    until("it runs alone", lambda: pair.vm(primary)["phase"] == "solo")
    until("the reason is told", lambda: "paused" in pair.vm(primary)["reason"])
    pair.client.goes_on()
    assert ask(pair, primary, "protect", vm=VM)["paused"] is False
    assert pair.protected() == (primary, backup)
    pair.sound(primary)
