# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM with disks: what its guest was told is written is there after the failover, and little moves afterwards."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import control
from appliance.lab import blueprint, disks, topology
from appliance.lab.blueprint import VM, Options
from appliance.lab.disks import Disk
from appliance.lab.topology import HOSTS, VM_IP
from tests.disk.test_holders import held
from tests.pair.pair import Pair, until
from tests.pair.test_configuration_faults import says_failed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

MIB = 1 << 20
SIZES = (64 * MIB, 16 * MIB)
CONTROL = 9


@pytest.fixture
def own_pair(fresh_name: Callable[[], str]) -> Iterator[Callable[..., Pair]]:
    """Makes a pair of one's own, by lab options."""
    made: list[Pair] = []

    def up(**options: Any) -> Pair:
        made.append(Pair.up(Options(name=fresh_name(), **options)))
        return made[-1]

    yield up
    for pair in made:
        pair.down()


@pytest.fixture(scope="module")
def disk_pair(fresh_name: Callable[[], str]) -> Iterator[Pair]:
    pair = Pair.up(Options(name=fresh_name(), disks=(Disk("raw", size=SIZES[0]), Disk("qcow2", size=SIZES[1]))))
    yield pair
    pair.down()


@contextlib.contextmanager
def guest(pair: Pair) -> Iterator[socket.socket]:
    """A connection over which the guest takes one order: see images/guest/guestd.c."""
    with topology.inside(pair.lab.netns("client")):
        made = socket.create_connection((VM_IP, CONTROL), 30)
    with made:
        yield made


def ask(pair: Pair, line: str) -> str:
    """What the guest answers to an order."""
    with guest(pair) as sock:
        sock.sendall(line.encode() + b"\n")
        return sock.recv(200).decode().strip()


class Written:
    """What the guest was told is on its disks: seed by place, a chunk of CHUNK bytes each."""

    CHUNK = 64 << 10

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._seeds: dict[tuple[int, int], int] = {}
        self._seed = 0

    def write(self, disk: int, *chunks: int) -> None:
        for chunk in chunks:
            self._seed += 1
            assert ask(self._pair, f"write {disk} {chunk * self.CHUNK} {self.CHUNK} {self._seed}") == "ok"
            self._seeds[disk, chunk] = self._seed

    def forget(self, disk: int) -> None:
        """That disk will be gone."""
        self._seeds = {place: seed for place, seed in self._seeds.items() if place[0] != disk}

    def check(self) -> None:
        for (disk, chunk), seed in self._seeds.items():
            assert ask(self._pair, f"check {disk} {chunk * self.CHUNK} {self.CHUNK} {seed}") == "ok", (disk, chunk)


def applied(pair: Pair, host: str) -> dict[str, Any]:
    """What `host` says of the disks, once nothing waits there."""
    until(f"{host} has applied everything", lambda: pair.vm(host)["disks"]["unapplied_bytes"] == 0)
    found: dict[str, Any] = pair.vm(host)["disks"]
    return found


def same(pair: Pair) -> bool:
    """Do the images of both hosts hold the same?"""
    for number, disk in enumerate(pair.lab.options.all_disks()):
        files = [str(disks.path(pair.lab.name, host, number, disk)) for host in HOSTS]
        compared = subprocess.run(["qemu-img", "compare", "-U", "-f", disk.format, "-F", disk.format, *files],
                                  timeout=60, check=False, capture_output=True)
        if compared.returncode:
            return False
    return True


def quiet(pair: Pair) -> None:
    """Nothing is written, all is applied: the images are the same."""
    _, backup = pair.protected()
    applied(pair, backup)
    until("the images are the same", lambda: same(pair))


def copies(pair: Pair, host: str) -> list[dict[str, Any]]:
    """What the copies of the disks that `host` made took, the last one last."""
    return [event for event in pair.vm(host)["events"] if event["event"] == "disks-copied"]


def test_a_crash_loses_nothing_and_the_copy_moves_what_differs(disk_pair: Pair) -> None:
    """Both hosts in turn; the one that returns holds writes of epochs that never were, and lacks others."""
    pair, written = disk_pair, Written(disk_pair)
    for _ in HOSTS:
        primary, backup = pair.protected()
        written.write(0, *range(8))
        written.write(1, 0, 100)
        quiet(pair)
        written.write(0, 3, 500)
        pair.lab.fault("crash", primary)
        pair.takes_over(backup)
        written.check()
        written.write(0, 4)
        pair.heal(primary)
        assert pair.protected() == (backup, primary)
        [*_, copy] = copies(pair, backup)
        assert copy["by"] == "checksums"
        assert Written.CHUNK <= copy["moved"] < sum(SIZES) / 10
        quiet(pair)
        written.check()
    pair.sound()


def test_a_switchover_needs_no_comparison(disk_pair: Pair) -> None:
    """Who hands over has a point in common: what is written afterwards is listed, and moves alone."""
    pair, written = disk_pair, Written(disk_pair)
    primary, backup = pair.protected()
    written.write(0, 20)
    control.call(blueprint.control_path(pair.lab.name, primary), "switchover", timeout=60, vm=VM)
    written.write(1, 20)
    assert pair.protected() == (backup, primary)
    [*_, copy] = copies(pair, backup)
    assert copy["by"] == "lists" and copy["looked_at"] < 4 * MIB
    written.check()
    quiet(pair)
    pair.sound(primary, backup)


def test_a_backup_that_was_away_gets_what_was_written_meanwhile(disk_pair: Pair) -> None:
    pair, written = disk_pair, Written(disk_pair)
    primary, backup = pair.protected()
    written.write(0, 30)
    pair.lab.fault("service-kill", backup)
    written.write(0, 31, 700)
    until("what is to be copied is told", lambda: pair.vm(primary)["disks"]["disks"][0]["to_copy_bytes"] >= 131072)
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    [*_, copy] = copies(pair, primary)
    assert copy["by"] == "lists" and copy["moved"] < MIB
    written.check()
    quiet(pair)
    pair.sound(primary)


@pytest.mark.parametrize("point", ["disk.journaled", "disk.applying", "disk.applied", "disk.flushed"])
def test_a_backup_that_dies_while_it_applies(disk_pair: Pair, point: str) -> None:
    pair, written = disk_pair, Written(disk_pair)
    primary, backup = pair.protected()
    pair.arm(backup, f"{point}:kill")
    written.write(0, 40, 41)
    pair.dead(backup)
    written.write(0, 42)
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    assert copies(pair, primary)[-1]["by"] == "lists"
    written.check()
    quiet(pair)
    pair.sound(primary)


@pytest.mark.parametrize("armed", ["drive.writing:kill:2", "drive.recorded:kill:2", "drive.recorded:kill-vm:2",
                                   "drive.writing:pause:2"])
def test_a_primary_that_dies_in_a_write(disk_pair: Pair, armed: str) -> None:
    """The service, which is QEMU's NBD server, dies or stands still with a request under way; or QEMU does. The guest
    has its answer all the same, on the other host."""
    pair, written = disk_pair, Written(disk_pair)
    primary, backup = pair.protected()
    written.write(0, 70)
    pair.arm(primary, armed)
    written.write(0, *range(71, 75))
    pair.takes_over(backup)
    written.check()
    pair.heal(primary)
    assert pair.protected(60) == (backup, primary)
    written.check()
    quiet(pair)
    pair.sound(primary, backup)


def test_who_was_active_last_has_all_that_was_acknowledged(disk_pair: Pair) -> None:
    """Both hosts lose power, the one that took over last: it starts the VM, afresh, from its own images."""
    pair, written = disk_pair, Written(disk_pair)
    first, second = pair.protected()
    written.write(0, 50)
    pair.lab.fault("crash", first)
    pair.takes_over(second)
    written.write(0, 51)
    written.write(1, 50)
    pair.lab.fault("crash", second)
    for host in (first, second):
        pair.heal(host)
    assert pair.protected() == (second, first)
    pair.new_client()
    written.check()
    quiet(pair)


# --- images that cannot be used -------------------------------------------------------------------------

@contextlib.contextmanager
def another(image: Path, form: str, size: int) -> Iterator[None]:
    """Another image in the place of `image` while the block runs; none if its size is 0."""
    aside = image.with_suffix(".aside")
    image.rename(aside)
    if size:
        subprocess.run(["qemu-img", "create", "-q", "-f", form, image, str(size)], check=True, timeout=20)
    yield
    aside.replace(image)


def test_a_backup_that_cannot_use_its_image_says_why(disk_pair: Pair) -> None:
    """Missing, of another format or size, in use: the VM goes on alone, and is protected once the cause is gone."""
    pair, written = disk_pair, Written(disk_pair)
    primary, backup = pair.protected()
    written.write(0, 60)
    image = disks.image(pair.lab.name, backup, 0, pair.lab.options.all_disks()[0])
    for spoilt, *words in (
        (another(image, "raw", 0), "there is no such image", f"qemu-img create -f raw {image} SIZE"),
        (another(image, "qcow2", SIZES[0]), "it is a qcow2 image, but format= says raw", "correct format="),
        (another(image, "raw", 2 * SIZES[0]), f"{SIZES[0]}", f"{2 * SIZES[0]}", "no image becomes smaller"),
    ):
        pair.protected(60)
        with spoilt:
            pair.lab.fault("qemu-kill", backup)
            says_failed(pair.lab, backup, *words)
            written.write(0, 61)
    pair.protected(60)
    with contextlib.ExitStack() as holding:
        with another(image, "raw", 0):
            pair.lab.fault("qemu-kill", backup)
            says_failed(pair.lab, backup, "there is no such image")
            pid = holding.enter_context(held("-f", "raw", str(image.with_suffix(".aside"))))
        says_failed(pair.lab, backup, f"in use by process {pid} (qemu-io)", "end what has it open")
        assert pair.vm(primary)["phase"] == "solo"
        written.write(0, 62)
    assert pair.protected(60) == (primary, backup)
    written.check()
    quiet(pair)
    pair.sound()


# --- disks that fail, links that are cut ---------------------------------------------------------------

def test_the_backups_disk_is_full_then_fails(own_pair: Callable[..., Pair]) -> None:
    """The VM goes on alone and says why; with room again it is protected again."""
    pair = own_pair(disks=(Disk("raw", size=SIZES[0]),), disk_faults=True)
    written = Written(pair)
    primary, backup = pair.protected()
    written.write(0, 1)
    for number, (fault, cause) in enumerate((("disk-full", "No space left"), ("disk-fail", "Input/output error"))):
        pair.lab.fault(fault, backup)
        written.write(0, *range(100 * number + 10, 100 * number + 20))  # where nothing was
        until("the replica is lost", lambda: pair.vm(primary)["phase"] != "protected")
        until("the cause is told", lambda cause=cause: cause in pair.log(backup))
        written.write(0, 100 * number + 30)
        pair.client.goes_on()
        pair.heal(backup)
        assert pair.protected(60) == (primary, backup)
        written.check()
        quiet(pair)
    pair.sound(primary)


def test_the_links_are_cut_in_the_first_copy(own_pair: Callable[..., Pair], tmp_path: Path) -> None:
    """The VM runs on; the copy begins anew, and what had moved does not move again."""
    source = tmp_path / "full.img"
    source.write_bytes(os.urandom(SIZES[0]))
    pair = own_pair(disks=(Disk("raw", source=str(source)),), copy_rate=24 * MIB)
    written = Written(pair)
    primary, backup = pair.protected()
    pair.lab.fault("crash", primary)
    pair.takes_over(backup)
    written.write(0, *range(0, 1000, 10))
    pair.heal(primary)
    primary, backup = backup, primary
    until("the disks are being copied", lambda: done(pair, primary) > SIZES[0] // 4)
    assert done(pair, primary) < SIZES[0]
    pair.lab.fault("both-links", backup)
    until("the copy has ended", lambda: pair.vm(primary)["sync"] is None)
    written.write(0, 77)
    pair.heal(backup)
    assert pair.protected(40) == (primary, backup)
    written.check()
    quiet(pair)
    assert copies(pair, primary)[-1]["moved"] < 100 * Written.CHUNK


def done(pair: Pair, host: str) -> int:
    """Bytes of disks that `host` has compared in the copy it makes now."""
    sync = pair.vm(host)["sync"] or {}
    return int(sync["done_bytes"]) if sync.get("what") == "disks" else 0
