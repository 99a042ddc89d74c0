# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that fail below a VM: it does not see it while there is another copy, and waits where there is none."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance import control
from appliance.errors import Unsafe
from appliance.lab import blueprint, disks
from appliance.lab.blueprint import VM, Options
from appliance.lab.disks import Disk
from tests.pair.pair import Pair, until
from tests.pair.test_disks import MIB, Written, guest, quiet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK), reason="needs root and FUSE"),
]


@pytest.fixture(scope="module")
def pair(fresh_name: Callable[[], str]) -> Iterator[Pair]:
    pair = Pair.up(Options(name=fresh_name(), disks=(Disk("raw", size=64 * MIB),), disk_faults=True))
    yield pair
    pair.down()


def tell(pair: Pair, at: str, verb: str, **words: Any) -> dict[str, Any]:
    return control.call(blueprint.control_path(pair.lab.name, at), verb, timeout=60, **words)


def disk(pair: Pair, host: str) -> dict[str, Any]:
    """What `host` says of the disk."""
    found: dict[str, Any] = ((pair.vm(host).get("disks") or {}).get("disks") or [{}])[0]
    return found


def in_a_hole(number: int) -> range:
    """Chunks that nobody else writes: too many for what the kernel lets pass beyond the limit of a full tmpfs."""
    return range(100 + 40 * number, 140 + 40 * number)


@pytest.mark.parametrize(("fault", "hole"), [("disk-fail", 0), ("disk-full", 1)])
def test_the_vm_goes_on_with_the_other_copy_until_it_moves(pair: Pair, fault: str, hole: int) -> None:
    written = Written(pair)
    primary, backup = pair.protected()
    written.write(0, 1, 2, 3)
    tell(pair, primary, "drain", host=backup)  # so that it stays here
    try:
        pair.lab.fault(fault, primary)
        written.write(0, 2, *in_a_hole(hole))
        assert disk(pair, primary)["left"] and "write failed" in disk(pair, primary)["trouble"]
        assert not disk(pair, primary)["vm_waits"]
        written.check()
        written.write(0, 3, 60)
        written.check()
        assert pair.vm(primary)["role"] == "primary"
        with pytest.raises(Unsafe, match="the other host's copy"):
            tell(pair, primary, "unprotect", vm=VM)
    finally:
        tell(pair, primary, "drain", host=backup, undo=True)
    pair.takes_over(backup)
    written.check()
    written.write(0, 4, 5)
    pair.heal(primary)
    assert pair.protected(60) == (backup, primary)
    written.check()
    pair.sound(primary, backup)


def test_a_disk_that_cannot_be_read(pair: Pair) -> None:
    """Nothing is written: the VM reads from the other copy, and moves there."""
    written = Written(pair)
    primary, backup = pair.protected()
    written.write(0, *range(10))
    pair.lab.fault("disk-fail", primary)
    written.check()
    pair.takes_over(backup)
    written.check()
    pair.heal(primary)
    assert pair.protected(60) == (backup, primary)
    pair.sound(primary, backup)


@pytest.mark.parametrize(("fault", "hole"), [("disk-fail", 2), ("disk-full", 3)])
def test_alone_the_vm_waits_for_its_disk(pair: Pair, fault: str, hole: int) -> None:
    written = Written(pair)
    primary, backup = pair.protected()
    pair.lab.fault("service-kill", backup)
    until("the VM is alone", lambda: pair.vm(primary)["phase"] == "solo")
    pair.lab.fault(fault, primary)
    with ThreadPoolExecutor(1) as other_thread:
        writing = other_thread.submit(written.write, 0, *in_a_hole(hole))
        until("the VM waits", lambda: disk(pair, primary).get("trouble"))
        until("it is tried again", lambda: disk(pair, primary)["vm_waits"])
        assert not disk(pair, primary)["left"] and not writing.done()
        pair.heal(primary)
        writing.result(30)
    until("the disk is well again", lambda: not disk(pair, primary)["trouble"], 30)
    pair.heal(backup)
    assert pair.protected(60) == (primary, backup)
    written.check()
    pair.client.goes_on()


def runs_a_guest(pid: int) -> bool:
    """Is it a VM's QEMU, and not one that reads a journal for a moment?"""
    try:
        return b"guest=" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@contextlib.contextmanager
def hanging(pair: Pair, host: str) -> Iterator[None]:
    """The storage below the images of `host` does not answer while the block runs."""
    home = str(disks.home(pair.lab.name, host))
    servers = [one for one in psutil.process_iter(["name", "cmdline"])
               if one.info["name"] == "nbdkit" and any(home in word for word in one.info["cmdline"] or ())]
    assert servers
    for one in servers:
        one.suspend()
    try:
        yield
    finally:
        for one in servers:
            one.resume()


def unapplied(pair: Pair, host: str) -> int:
    return int((pair.vm(host).get("disks") or {}).get("unapplied_bytes", 0))


def holdfast(pair: Pair, at: str, *words: str) -> str:
    """What the command prints there."""
    command = pair.lab.command(at, ["holdfast", *words])
    return subprocess.run(command, env=pair.lab.environment(at), check=False, capture_output=True, text=True,
                          timeout=60).stdout


def test_an_image_that_was_left_is_never_started_from(pair: Pair) -> None:
    """Who lived on the backup's copy and loses it cannot go on, nor start the VM from what it left. Fenced, it lets
    the other host start it, with all that clients were told: also while the storage there was slow."""
    written = Written(pair)
    primary, backup = pair.protected()
    tell(pair, primary, "drain", host=backup)
    written.write(0, 1)
    pair.lab.fault("disk-full", primary)
    written.write(0, *in_a_hole(4), 1)
    assert disk(pair, primary)["left"]
    with guest(pair) as one, guest(pair) as other, hanging(pair, backup):
        for chunk, connection in ((5, one), (6, other)):  # the second is in nothing but memory there
            waiting = unapplied(pair, backup)
            connection.sendall(f"write 0 {chunk * written.CHUNK} {written.CHUNK} 1\n".encode())
            until("it has arrived", lambda waiting=waiting: unapplied(pair, backup) >= waiting + written.CHUNK)
        committed = pair.vm(primary)["committed"]
        until("that is known here", lambda: pair.vm(primary)["committed"] > committed + 5)
        for connection in (one, other):
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):  # nobody was told that it is written
                connection.recv(100)
        pair.lab.fault("service-kill", backup)
    until("the VM ends here", lambda: pair.vm(primary).get("role") == "none" and not pair.qemus(primary))
    pair.lab.fault("service-kill", primary)
    for host in (primary, backup):
        pair.heal(host)
    until("the image is refused", lambda: "not whole" in pair.vm(primary).get("reason", ""))
    assert not [pid for host in (primary, backup) for pid in pair.qemus(host) if runs_a_guest(pid)]
    assert "let the other host start the VM: holdfast fence" in holdfast(pair, primary, "status")
    assert holdfast(pair, primary, "fence", primary, "--yes").startswith(f"{primary}: fenced\n")
    pair.takes_over(backup)
    pair.new_client()
    written.check()
    assert holdfast(pair, backup, "fence", primary, "--lift").startswith(f"{primary}: lifted\n")
    assert pair.protected(60) == (backup, primary)
    written.write(0, 7)
    written.check()
    assert not disk(pair, backup).get("left") and disk(pair, primary)["whole"]
    quiet(pair)
