# SPDX-License-Identifier: GPL-2.0-or-later
"""A service dies, fails or stands still at every step of the protocol: clients notice a pause, no more."""

from __future__ import annotations

import os

import pytest

from tests.pair.pair import Pair, until
from vmlink import inject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

PRIMARY = [point for point in inject.POINTS if point.startswith(("checkpoint.", "epoch.", "link."))]
BACKUP = [point for point in inject.POINTS if point.startswith("replica.")]
TAKEOVER = [point for point in inject.POINTS if point.startswith("takeover.")]
DISKS = [point for point in inject.POINTS if point.startswith(("disk.", "drive."))]
"""In tests/disk/test_killed.py, test_disks.py and test_disk_changes.py: this VM has none."""
VOLUMES = [point for point in inject.POINTS if point.startswith(("volume.", "redo."))]
"""In test_volumes."""
ELSEWHERE = {"sync.round", "handover.released", *DISKS, *VOLUMES}
"""In a first copy; in a switchover (test_operator)."""


def test_every_point_is_hit_here() -> None:
    assert {*PRIMARY, *BACKUP, *TAKEOVER, *ELSEWHERE} == set(inject.POINTS)


@pytest.mark.parametrize("point", PRIMARY)
def test_the_primary_is_killed(pair: Pair, point: str) -> None:
    primary, backup = pair.protected()
    term = pair.term()
    pair.arm(primary, f"{point}:kill")
    pair.dead(primary)
    until(f"{backup} takes over", lambda: pair.vm(backup).get("role") == "primary")
    pair.client.goes_on()
    pair.nothing_left(primary)
    pair.heal(primary)
    assert pair.protected() == (backup, primary)
    assert pair.term() > term
    pair.sound(primary, backup)


@pytest.mark.parametrize("point", BACKUP)
def test_the_backup_is_killed(pair: Pair, point: str) -> None:
    primary, backup = pair.protected()
    pair.arm(backup, f"{point}:kill")
    pair.dead(backup)
    pair.client.goes_on()
    pair.nothing_left(backup)
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


@pytest.mark.parametrize("action", ["kill", "raise"])
@pytest.mark.parametrize("point", TAKEOVER)
def test_the_backup_fails_to_take_over(pair: Pair, point: str, action: str) -> None:
    """The primary only stood still: it holds the state, and goes on, once it is known that the other one did not
    speak under the term that it was granted."""
    primary, backup = pair.protected()
    pair.arm(backup, f"{point}:{action}")
    pair.lab.fault("service-pause", primary)
    if action == "kill":
        pair.dead(backup)
        pair.nothing_left(backup)
    else:
        until(f"{backup} fails", lambda: pair.vm(backup).get("phase") == "failed")
    pair.heal(primary)
    pair.heal(backup)
    pair.client.goes_on()
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


@pytest.mark.parametrize("point", ["checkpoint.stopped", "checkpoint.saved", "checkpoint.resumed", "epoch.sending",
                                   "epoch.sent"])
def test_the_primary_cannot_replicate(pair: Pair, point: str) -> None:
    """The VM runs on, alone if need be, and is protected again."""
    primary, backup = pair.protected()
    syncs = _count(pair, primary, "sync-begin")
    pair.arm(primary, f"{point}:raise")
    until("replication begins anew", lambda: _count(pair, primary, "sync-begin") > syncs)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


@pytest.mark.parametrize("point", ["epoch.acked", "epoch.released"])
def test_the_primary_cannot_let_output_go(pair: Pair, point: str) -> None:
    """What the VM says does not get out here any more: the other host has all it needs to go on."""
    primary, backup = pair.protected()
    pair.arm(primary, f"{point}:raise")
    until(f"{backup} takes over", lambda: pair.vm(backup).get("role") == "primary")
    pair.client.goes_on()
    assert pair.protected() == (backup, primary)
    pair.sound(primary, backup)


@pytest.mark.parametrize("point", BACKUP)
def test_the_backup_cannot_go_on(pair: Pair, point: str) -> None:
    primary, backup = pair.protected()
    syncs = _count(pair, primary, "sync-begin")
    pair.arm(backup, f"{point}:raise")
    until("replication begins anew", lambda: _count(pair, primary, "sync-begin") > syncs)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def _count(pair: Pair, host: str, event: str) -> int:
    """How often `event` happened on `host`."""
    return pair.log(host).count(f": {event} ")


@pytest.mark.parametrize("point", PRIMARY)
def test_the_primary_stands_still(pair: Pair, point: str) -> None:
    """It wakes up when the other one speaks, and says nothing."""
    primary, backup = pair.protected()
    pair.arm(primary, f"{point}:pause")
    pair.paused(primary)
    until(f"{backup} takes over", lambda: pair.vm(backup).get("role") == "primary")
    pair.client.goes_on()
    pair.heal(primary)
    assert pair.protected() == (backup, primary)
    pair.sound(primary, backup)


def test_a_link_breaks_in_the_middle_of_an_epoch(pair: Pair) -> None:
    """The rest goes over the other one: nobody notices."""
    primary, backup = pair.protected()
    syncs, term = _count(pair, primary, "sync-begin"), pair.term()
    pair.arm(primary, "link.sending:raise")
    until("the link breaks", lambda: "is down: link.sending" in pair.log(primary))
    pair.client.goes_on()
    assert (pair.protected(), pair.term()) == ((primary, backup), term)
    assert _count(pair, primary, "sync-begin") == syncs
    pair.sound(primary)


@pytest.mark.parametrize("point", BACKUP)
def test_the_backup_stands_still(pair: Pair, point: str) -> None:
    """The primary goes on alone; the backup wakes up with a replica that is out of date, and does not use it."""
    primary, backup = pair.protected()
    pair.arm(backup, f"{point}:pause")
    pair.paused(backup)
    pair.client.goes_on()
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def test_the_backup_stands_still_when_it_has_taken_over(pair: Pair) -> None:
    """There is nobody else: it goes on when it wakes up."""
    primary, backup = pair.protected()
    pair.arm(backup, "takeover.loaded:pause")
    pair.lab.fault("crash", primary)
    pair.paused(backup)
    pair.heal(backup)
    pair.client.goes_on()
    pair.heal(primary)
    assert pair.protected() == (backup, primary)
    pair.sound(primary, backup)


@pytest.mark.parametrize("action", ["raise", "pause"])
def test_the_first_copy_breaks_off(pair: Pair, action: str) -> None:
    primary, backup = pair.protected()
    pair.lab.fault("service-kill", backup)
    pair.nothing_left(backup)
    pair.client.goes_on()
    pair.arm(primary, f"sync.round:{action}")
    pair.heal(backup)
    if action == "pause":
        pair.paused(primary)
        until(f"{backup} gives up", lambda: pair.vm(backup).get("phase") == "waiting")
        pair.heal(primary)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def test_the_backup_is_killed_at_its_first_epoch(pair: Pair) -> None:
    primary, backup = pair.protected()
    pair.lab.fault("service-kill", backup)
    pair.arm(backup, "replica.received:kill")
    pair.heal(backup)
    pair.dead(backup)
    pair.client.goes_on()
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


@pytest.mark.parametrize("action", ["kill", "kill-vm"])
def test_the_only_copy_dies(pair: Pair, action: str) -> None:
    """The backup has no whole replica yet: the VM starts afresh, once, and is protected again."""
    primary, backup = pair.protected()
    pair.lab.fault("service-kill", backup)
    pair.nothing_left(backup)
    pair.client.goes_on()
    pair.client.close()
    term = pair.term()
    pair.arm(primary, f"sync.round:{action}")
    pair.heal(backup)
    if action == "kill":
        pair.dead(primary)
        pair.nothing_left(primary)
        pair.heal(primary)
    until("the VM starts afresh", lambda: pair.term() > term)
    assert set(pair.protected()) == {primary, backup}
    pair.new_client()
    assert len(pair.sound()) <= 2
