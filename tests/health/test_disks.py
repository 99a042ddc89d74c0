# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks: read-only, full, hanging and broken ones are told apart, and none of them holds up whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.health import volume
from appliance.health.disks import Disks, Place, places
from appliance.health.reading import Reading, State
from appliance.health.settings import Health
from appliance.health.volume import Found
from tests.health.conftest import until

OK, WARN, FAILED, UNKNOWN = State.OK, State.WARN, State.FAILED, State.UNKNOWN
MIB = 1 << 20


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Mounts a tmpfs of 1 MiB."""
    if os.geteuid():
        pytest.skip("needs root")
    made: list[Path] = []

    def mount() -> Path:
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "hltest", str(place)], check=True, timeout=10)
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", str(place)], check=True, timeout=10)


def probes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "disk probe"]


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, timeout=10)


def directory(path: Path, use: Callable[[Path], Found] = volume.use_directory) -> Place:
    return Place(path, use, directory=True)


async def read(disks: Disks) -> dict[str, Reading]:
    """The readings by the last word of their subject, of a monitor with one place."""
    return {one.subject.split()[-1]: one for one in await disks.read()}


SMALL = Health(space_warn=MIB, space_min=MIB // 2, settle=0.0, disk_interval=0.2)


def test_a_disk_that_is_well(mounted: Callable[[], Path]) -> None:
    place = mounted()
    found = asyncio.run(read(Disks([directory(place)], Health(space_warn=0, space_min=0))))
    assert {what: one.state for what, one in found.items()} == {"write": OK, "mode": OK, "space": OK, "errors": UNKNOWN}
    assert found["space"].value == 1.0 and found["space"].unit == "MiB"
    assert found["errors"].reason.startswith("no error counter")
    assert not list(place.iterdir()), "nothing is left behind"


def test_a_file_system_that_turns_read_only(mounted: Callable[[], Path]) -> None:
    place = mounted()

    async def scene() -> None:
        disks = Disks([directory(place)], SMALL)
        assert (await read(disks))["mode"].state is OK
        remount(place, "ro")
        seen = await read(disks)
        assert (seen["mode"].state, seen["mode"].reason) == (FAILED, "it is mounted read-only")
        assert seen["write"].state is OK, "nobody tried"
        remount(place, "rw")
        assert (await read(disks))["mode"].state is OK

    asyncio.run(scene())


def test_a_disk_that_fills(mounted: Callable[[], Path]) -> None:
    place = mounted()

    async def scene() -> None:
        disks = Disks([directory(place)], Health(space_warn=MIB // 2, space_min=MIB // 8, rounds=2, settle=0.0))
        assert (await read(disks))["space"].state is OK
        (place / "half").write_bytes(bytes(MIB * 5 // 8))
        seen = (await read(disks))["space"]
        assert seen.state is WARN and "warn <= 0.5 MiB" in seen.reason
        with contextlib.suppress(OSError):
            (place / "rest").write_bytes(bytes(MIB))
        assert [(await read(disks))["space"].state for _ in range(2)] == [WARN, FAILED]
        seen = (await read(disks))["write"]
        assert (seen.state, seen.reason) == (FAILED, "No space left on device")
        (place / "rest").unlink()
        (place / "half").unlink()
        found = await read(disks)
        assert (found["space"].state, found["write"].state) == (OK, OK)

    asyncio.run(scene())


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    async def scene() -> None:
        disks = Disks([directory(tmp_path / "gone")], Health(rounds=1))
        seen = await read(disks)
        assert (seen["write"].state, seen["write"].reason) == (FAILED, "No such file or directory")
        assert seen["space"].state is UNKNOWN

    asyncio.run(scene())


def test_a_disk_that_hangs(tmp_path: Path) -> None:
    """A FIFO without a writer: open() does not return. The rest of the service does not notice."""
    fifo, well = tmp_path / "fifo", tmp_path / "well"
    os.mkfifo(fifo)
    well.write_bytes(b"x")
    until("other looks are over", lambda: not probes())

    async def scene() -> None:
        disks = Disks([Place(fifo, volume.use_file, directory=False), Place(well, volume.use_file, directory=False)],
                      Health(disk_warn=0.1, disk_max=0.3, disk_interval=0.1, settle=0.0))
        states: list[State] = []
        while FAILED not in states:
            gaps = asyncio.ensure_future(longest_gap())
            begun = time.monotonic()
            hung, other = await disks.read()
            assert time.monotonic() - begun < 1.0, "one that hangs holds nobody up"
            gaps.cancel()
            states.append(hung.state)
            assert other.state is OK and len(states) < 50
            assert len(probes()) <= 1, "one thread hangs, not one for each round"
        assert WARN in states and "no answer for" in hung.reason
        writer = os.open(fifo, os.O_WRONLY)
        os.close(writer)
        await until_async("it is back", lambda: disks._places[0].waited == 0.0)
        assert [one.state for one in await disks.read()][1] is OK
        writer = os.open(fifo, os.O_RDWR)  # for the look that is under way
        os.write(writer, b"x")
        await until_async("it is back", lambda: disks._places[0].waited == 0.0)
        os.close(writer)

    async def longest_gap() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            assert time.monotonic() - before < 0.3, "the event loop stood still"

    async def until_async(what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.005)

    asyncio.run(scene())
    until("no thread is left", lambda: not probes())


def test_a_directory_that_hangs_says_nothing_old(tmp_path: Path) -> None:
    hang = threading.Event()
    hung: list[bool] = [False]

    def use(path: Path) -> Found:
        if hung[0]:
            hang.wait(30)
        return volume.use_directory(path)

    async def scene() -> None:
        disks = Disks([directory(tmp_path, use)], Health(disk_warn=0.01, disk_max=60.0, disk_interval=0.1))
        assert (await read(disks))["space"].state is not UNKNOWN
        hung[0] = True
        seen = await read(disks)
        assert seen["write"].state is WARN and {seen[what].state for what in ("mode", "space", "errors")} == {UNKNOWN}
        hang.set()

    asyncio.run(scene())


def test_errors_that_the_kernel_counted(tmp_path: Path) -> None:
    """In a tree as /sys is one, with the numbers of the disk that this test is on."""
    number = os.stat(tmp_path).st_dev
    sys = tmp_path / "sys"
    device = sys / "devices" / "virtual" / "block" / "hd7"
    (device / "device").mkdir(parents=True)
    (sys / "dev" / "block").mkdir(parents=True)
    (sys / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}").symlink_to(device)
    (sys / "fs" / "ext4" / "hd7").mkdir(parents=True)
    assert volume.device_errors(tmp_path, sys=sys) is None
    (device / "device" / "ioerr_cnt").write_text("0x10\n")
    assert volume.device_errors(tmp_path, sys=sys) == 16
    counter = sys / "fs" / "ext4" / "hd7" / "errors_count"
    counter.write_text("1\n")

    async def scene() -> None:
        disks = Disks([directory(tmp_path, lambda path: volume.use_directory(path, sys=sys))], Health(rounds=2))
        assert (await read(disks))["errors"].state is OK, "what was before the start does not count"
        counter.write_text("3\n")
        assert (await read(disks))["errors"].state is WARN
        assert (await read(disks))["errors"].state is OK
        counter.write_text("30\n")
        assert (await read(disks))["errors"].state is WARN
        counter.write_text("60\n")
        assert (await read(disks))["errors"].state is FAILED

    asyncio.run(scene())


def test_a_defect_of_the_look_is_a_reading(tmp_path: Path) -> None:
    def use(path: Path) -> Found:
        raise RuntimeError("a defect")

    seen = asyncio.run(read(Disks([directory(tmp_path, use)], Health(rounds=1))))
    assert (seen["write"].state, seen["write"].reason) == (FAILED, "a defect")


def test_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # as a file system without them answers: EISDIR
    found = volume.use_directory(tmp_path)
    assert (found.error, list(tmp_path.iterdir())) == ("", [])


def test_what_a_host_needs(tmp_path: Path) -> None:
    from appliance import config as cfg

    vm = cfg.Vm(home="a", memory=MIB, mac="52:54:00:00:00:01", bridge="br0", kernel=Path("/k"), initrd=Path("/i"))
    config = cfg.Config(host=cfg.Host(name="a", state_dir=Path("/s"), run_dir=Path("/r")), peer=cfg.Peer(name="b"),
                        link=(), vm={"one": vm, "two": vm})
    assert [(str(place.path), place.directory) for place in places(config)] == [
        ("/s", True), ("/r", True), ("/k", False), ("/i", False)]
