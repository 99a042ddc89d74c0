# SPDX-License-Identifier: GPL-2.0-or-later
"""Two VMs, each at home on another host: both hosts are primary and backup at once, and failovers cross."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance import control
from appliance.lab import blueprint
from appliance.lab.blueprint import GUESTS, Options
from appliance.lab.client import Client
from appliance.lab.lab import Lab
from appliance.lab.topology import HOSTS
from appliance.lab.wire import Wire, speakers
from tests.pair.pair import other, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


class Two:
    """A lab with two VMs, a client and an ear for each."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.clients = {guest.name: Client(lab, guest.ip) for guest in GUESTS}
        self.wires = {guest.name: Wire(lab, guest.mac) for guest in GUESTS}

    def close(self) -> None:
        for guest in GUESTS:
            self.clients[guest.name].close()
            self.wires[guest.name].close()
        self.lab.down()

    def primary(self, vm: str) -> str:
        """The host that runs it, empty if none or both do."""
        found = [host for host in HOSTS if self.vm(host, vm).get("role") == "primary"]
        return found[0] if len(found) == 1 else ""

    def vm(self, host: str, vm: str) -> dict[str, Any]:
        vms: dict[str, dict[str, Any]] = (self.lab.host_status(host) or {}).get("vms", {})
        return vms.get(vm, {})

    def goes_on(self) -> None:
        for client in self.clients.values():
            client.goes_on()

    def sound(self, **spoke: list[str]) -> None:
        self.goes_on()
        for vm, client in self.clients.items():
            assert not client.problems(), (vm, client.problems())
            assert client.lost() == 0
            assert speakers(self.wires[vm].take()) == spoke[vm], vm


@pytest.fixture(scope="module")
def two(fresh_name: Callable[[], str]) -> Iterator[Two]:
    made = Two(Lab.up(Options(name=fresh_name(), vms=2)))
    yield made
    made.close()


def test_each_is_at_home_on_its_own_host(two: Two) -> None:
    assert [two.primary(guest.name) for guest in GUESTS] == [guest.home for guest in GUESTS]
    two.sound(web1=["alpha"], web2=["beta"])


@pytest.mark.parametrize("victim", HOSTS)
def test_a_host_dies_and_the_other_carries_both(two: Two, victim: str) -> None:
    """One VM fails over; the other one loses its backup and goes on. Both are protected again, and go home."""
    two.lab.wait_protected()
    left = other(victim)
    moved = next(guest.name for guest in GUESTS if guest.home == victim)
    stayed = next(guest.name for guest in GUESTS if guest.home == left)
    two.lab.fault("crash", victim)
    until(f"{left} runs both", lambda: {two.primary(guest.name) for guest in GUESTS} == {left})
    two.goes_on()
    two.lab.heal(victim)
    two.lab.wait_protected()
    two.sound(**{moved: [victim, left], stayed: [left]})
    _move(two, left, moved)
    two.lab.wait_protected()
    assert [two.primary(guest.name) for guest in GUESTS] == [guest.home for guest in GUESTS]
    two.sound(**{moved: [left, victim], stayed: [left]})


def test_they_change_places(two: Two) -> None:
    """Two switchovers in opposite directions, ordered at the same time."""
    for _ in range(2):
        two.lab.wait_protected()
        before = {guest.name: two.primary(guest.name) for guest in GUESTS}
        two.goes_on()
        for guest in GUESTS:
            _move(two, before[guest.name], guest.name)
        two.lab.wait_protected()
        after = {guest.name: two.primary(guest.name) for guest in GUESTS}
        assert after == {vm: other(host) for vm, host in before.items()}
        two.sound(**{vm: [before[vm], after[vm]] for vm in before})


def test_both_links_are_cut(two: Two) -> None:
    """Each VM is the witness's business by itself, and each goes on at one place."""
    two.lab.wait_protected()
    two.lab.fault("both-links", "alpha")
    until("each VM speaks alone somewhere", lambda: all(
        [two.vm(host, guest.name).get("phase") for host in HOSTS].count("solo") == 1 for guest in GUESTS))
    two.goes_on()
    two.lab.heal("alpha")
    two.lab.wait_protected()
    for guest in GUESTS:
        assert len(speakers(two.wires[guest.name].take())) <= 2
        assert not two.clients[guest.name].problems()


def _move(two: Two, host: str, vm: str) -> None:
    control.call(blueprint.control_path(two.lab.name, host), "switchover", vm=vm, timeout=30)
