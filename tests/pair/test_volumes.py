# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM with a shared volume: what its guest was told is written is there after each failover, and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from appliance import control
from appliance.lab import blueprint, faults, processes, volume
from appliance.lab.blueprint import VM, Options
from appliance.lab.topology import HOSTS, THIRD
from appliance.lab.volume import Volume
from tests.pair.pair import Pair, until
from tests.pair.test_disks import Written, ask, guest
from tests.pair.test_monitoring import Figures
from tests.pair.test_uplink import failed, health
from vmlink import inject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

MIB = 1 << 20
CHUNK = Written.CHUNK
SHARED = Volume("iscsi", size=64 * MIB)
WRITING = [point for point in inject.POINTS if point.startswith("volume.")]
REDO = [point for point in inject.POINTS if point.startswith("redo.")]


@pytest.fixture(scope="module")
def sharing(fresh_name: Callable[[], str]) -> Iterator[Pair]:
    pair = Pair.up(Options(name=fresh_name(), volume=SHARED))
    yield pair
    pair.down()


@pytest.fixture(scope="module")
def written(sharing: Pair) -> Written:
    return Written(sharing)


def on_the_volume(pair: Pair, chunk: int) -> bytes:
    """What the storage has there, whatever the hosts think."""
    with volume.image(pair.lab.name, SHARED).open("rb") as file:
        file.seek(chunk * CHUNK)
        return file.read(CHUNK)


def write(chunk: int, seed: int) -> bytes:
    return f"write 0 {chunk * CHUNK} {CHUNK} {seed}\n".encode()


def unwell(pair: Pair, host: str) -> list[str]:
    """Whose volumes do not answer `host`, by its health."""
    return failed(health(pair, host)[host]["readings"], "volume")


def writer(pair: Pair, host: str) -> psutil.Process:
    """The QEMU by which `host` reaches its volumes."""
    service = pair.lab.service(host)
    assert service is not None
    children = psutil.Process(service.pid).children()
    [found] = [child for child in children if "-machine none" in " ".join(child.cmdline())]
    return found


def test_a_crash_loses_nothing(sharing: Pair, written: Written) -> None:
    """Each host in turn."""
    for _ in HOSTS:
        primary, backup = sharing.protected()
        written.write(0, *range(8), 500)
        sharing.lab.fault("crash", primary)
        sharing.takes_over(backup)
        written.check()
        written.write(0, 3)
        sharing.heal(primary)
        assert sharing.protected() == (backup, primary)
    sharing.sound()


def test_a_switchover_loses_nothing(sharing: Pair, written: Written) -> None:
    primary, backup = sharing.protected()
    written.write(0, 20, 21)
    control.call(blueprint.control_path(sharing.lab.name, primary), "switchover", timeout=60, vm=VM)
    assert sharing.protected() == (backup, primary)
    written.check()
    sharing.sound()


@pytest.mark.parametrize("point", WRITING)
def test_the_writing_host_is_killed(sharing: Pair, written: Written, point: str) -> None:
    """The backup has the epoch: it writes what the other one may not have, and the client gets its answer."""
    primary, backup = sharing.protected()
    sharing.arm(primary, f"{point}:kill")
    written.write(0, 30, 31)
    sharing.dead(primary)
    assert sharing.vm(backup)["role"] == "primary"
    written.check()
    sharing.nothing_left(primary)
    sharing.heal(primary)
    assert sharing.protected() == (backup, primary)
    sharing.sound(primary, backup)


def test_a_host_that_stands_still_writes_no_more(sharing: Pair, written: Written) -> None:
    """It stopped in the middle of a write: its QEMU ends with its lease, before the other host writes."""
    primary, backup = sharing.protected()
    found = writer(sharing, primary)
    sharing.arm(primary, "volume.half:pause")
    written.write(0, 40, 41)  # answered by the other one
    assert not found.is_running() or found.status() == psutil.STATUS_ZOMBIE
    assert sharing.lab.service(primary) is not None, "the service itself stands still"
    before = on_the_volume(sharing, 40)
    sharing.heal(primary)
    assert sharing.protected() == (backup, primary)
    assert on_the_volume(sharing, 40) == before
    written.check()
    sharing.sound(primary, backup)


def test_a_host_that_stands_still_for_a_moment_goes_on(sharing: Pair, written: Written) -> None:
    """Its lease ends, and with it the QEMU that writes; the host comes back before it is missed, or after."""
    primary, _ = sharing.protected()
    found = writer(sharing, primary)
    with guest(sharing) as connection:
        sharing.arm(primary, "volume.half:pause")
        connection.sendall(write(45, 45))
        sharing.paused(primary)
        until("its QEMU is gone", lambda: found.status() == psutil.STATUS_ZOMBIE)
        sharing.heal(primary)
        assert connection.recv(100) == b"ok\n"
    sharing.protected()
    assert ask(sharing, f"check 0 {45 * CHUNK} {CHUNK} 45") == "ok"
    written.check()
    sharing.sound()


@pytest.mark.parametrize("point", REDO)
def test_a_host_dies_while_it_takes_over(sharing: Pair, written: Written, point: str) -> None:
    """Both are dead then, and the volume may be like no moment of the VM. Who had begun goes on where it was."""
    primary, backup = sharing.protected()
    sharing.arm(backup, f"{point}:kill")
    sharing.arm(primary, "volume.half:kill")
    with guest(sharing) as connection:
        connection.sendall(write(60, 60 + REDO.index(point)))
        for host in (primary, backup):
            sharing.dead(host)
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):  # nobody may have heard of it
            connection.recv(100)
    for host in (backup, primary):
        sharing.heal(host)
    sharing.lab.wait_guest(60.0)
    assert ask(sharing, f"check 0 {60 * CHUNK} {CHUNK} {60 + REDO.index(point)}") == "ok", "it was committed"
    written.check()
    assert sharing.protected() == (backup, primary)


def test_both_hosts_lose_power(sharing: Pair, written: Written) -> None:
    sharing.protected()
    written.write(0, 70, 71)
    faults.power_loss(sharing.lab.name)
    for host in HOSTS:
        sharing.heal(host)
    sharing.lab.wait_guest(60.0)
    written.check()
    sharing.protected()


def test_a_volume_that_one_host_does_not_reach(sharing: Pair, written: Written) -> None:
    """The VM goes where it is to be had; and runs alone while the other host does not reach it."""
    primary, backup = sharing.protected()
    written.write(0, 80)
    sharing.lab.fault("san-down", primary)
    sharing.takes_over(backup)
    written.write(0, 81)
    written.check()
    until("the cause is told", lambda: "volume vol" in sharing.vm(primary).get("reason", ""))
    until("its health says so", lambda: unwell(sharing, primary) == [f"{VM} volumes"])
    assert unwell(sharing, backup) == []
    sharing.heal(primary)
    assert sharing.protected() == (backup, primary)
    until("it is well", lambda: unwell(sharing, primary) == [])
    written.check()


def test_what_is_not_committed_is_not_on_the_volume(sharing: Pair, written: Written) -> None:
    """Neither the peer nor the arbiter answers: the VM runs on, nobody hears it, and the volume does not change."""
    primary, _ = sharing.protected()
    before = on_the_volume(sharing, 50)
    with guest(sharing) as connection:
        sharing.lab.fault("witness-down", THIRD)
        sharing.lab.fault("both-links", primary)
        connection.sendall(write(50, 4711))
        until("the guest has written it", lambda: sharing.vm(primary)["volumes"][0]["withheld_bytes"] > CHUNK)
        assert on_the_volume(sharing, 50) == before
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        sharing.lab.heal(THIRD)
        sharing.heal(primary)
        connection.settimeout(30)
        assert connection.recv(100) == b"ok\n"
    sharing.protected()
    assert ask(sharing, f"check 0 {50 * CHUNK} {CHUNK} 4711") == "ok"
    written.check()


def test_a_volume_that_nobody_reaches(sharing: Pair, written: Written) -> None:
    """The VM waits for it, on the host where it is."""
    primary, backup = sharing.protected()
    written.write(0, 90)
    qemu = sharing.vm(primary)["qemu_pid"]
    server = blueprint.read_state(sharing.lab.name).services[volume.PLACE]
    processes.kill([server])
    for host, reason in ((backup, "volume vol"), (primary, "no backup")):
        until(f"{host} says so", lambda host=host, reason=reason: reason in sharing.vm(host).get("reason", ""))
    until("the VM waits", lambda: sharing.vm(primary)["volumes"][0]["trouble"])
    until("monitoring says so", lambda: Figures(sharing, primary)("volume_failed", vm=VM, volume="vol") == 1)
    sharing.lab.start_volume()
    written.write(0, 91)
    assert sharing.protected() == (primary, backup)
    seen = Figures(sharing, primary)
    assert (seen("volume_failed"), seen("volume_size_bytes")) == (0, SHARED.size)
    assert seen("volume_withheld_bytes") < seen("volume_withheld_limit_bytes")
    assert sharing.vm(primary)["qemu_pid"] == qemu
    written.check()


@pytest.mark.parametrize("by", ["nbd", "device"])
def test_other_ways_to_a_volume(fresh_name: Callable[[], str], by: str, tmp_path: Path) -> None:
    shared = Volume("nbd", size=16 * MIB)
    if by == "device":
        image = tmp_path / "volume"
        image.touch()
        os.truncate(image, 16 * MIB)
        made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, timeout=10)
        if made.returncode:
            pytest.skip("loop devices")
        shared = Volume("device", device=made.stdout.strip())
    pair = None
    try:
        pair = Pair.up(Options(name=fresh_name(), volume=shared))
        written = Written(pair)
        primary, backup = pair.protected()
        written.write(0, *range(4))
        pair.lab.fault("crash", primary)
        pair.takes_over(backup)
        written.check()
        pair.heal(primary)
        assert pair.protected() == (backup, primary)
        pair.sound()
    finally:
        if pair is not None:
            pair.down()
        if shared.device:
            subprocess.run(["losetup", "--detach", shared.device], check=True, timeout=10)
