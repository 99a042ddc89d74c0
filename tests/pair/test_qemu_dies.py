# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU is killed at every step of the protocol while its service lives: the pair mends itself without help."""

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


@pytest.mark.parametrize("point", PRIMARY)
def test_the_vm_dies(pair: Pair, point: str) -> None:
    """The backup takes over; the host that lost the VM becomes the backup by itself."""
    primary, backup = pair.protected()
    [service, qemu] = [pair.lab.service(primary), *pair.qemus(primary)]
    pair.arm(primary, f"{point}:kill-vm")
    until(f"{backup} takes over", lambda: pair.vm(backup).get("role") == "primary")
    pair.client.goes_on()
    assert pair.protected() == (backup, primary)
    _one_qemu_each(pair)
    assert pair.lab.service(primary) == service and qemu not in pair.qemus(primary)
    pair.sound(primary, backup)


@pytest.mark.parametrize("point", BACKUP)
def test_the_replicas_qemu_dies(pair: Pair, point: str) -> None:
    primary, backup = pair.protected()
    [qemu] = pair.qemus(backup)
    pair.arm(backup, f"{point}:kill-vm")
    until("the QEMU dies", lambda: qemu not in pair.qemus(backup))
    pair.client.goes_on()
    until("it begins anew", lambda: pair.qemus(backup))
    assert pair.protected() == (primary, backup)
    _one_qemu_each(pair)
    pair.sound(primary)


@pytest.mark.parametrize("point", TAKEOVER)
def test_the_replicas_qemu_dies_while_it_takes_over(pair: Pair, point: str) -> None:
    """The primary only stood still: it still holds the state, and goes on."""
    primary, backup = pair.protected()
    [qemu] = pair.qemus(backup)
    pair.arm(backup, f"{point}:kill-vm")
    pair.lab.fault("service-pause", primary)
    until("the QEMU dies", lambda: qemu not in pair.qemus(backup))
    pair.heal(primary)
    pair.client.goes_on()
    assert pair.protected() == (primary, backup)
    _one_qemu_each(pair)
    # A host that has taken over announces itself even if its QEMU dies that very moment; in its turn.
    assert pair.sound() in ([primary], [primary, backup, primary])


def _one_qemu_each(pair: Pair) -> None:
    assert [len(pair.qemus(host)) for host in ("alpha", "beta")] == [1, 1]
