# SPDX-License-Identifier: GPL-2.0-or-later
"""Term and role on disk: whole whenever the writer dies, on disk before it is acted on, never a guess."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.arbiter.arbiter import NoArbiter
from appliance.core import Role
from appliance.errors import HoldfastError
from appliance.term import Reign, TermStore

ROOT = Path(__file__).resolve().parents[2]
WRITE = """
import itertools, os, sys
from pathlib import Path
from appliance.core import Role
from appliance.term import Reign, TermStore
store = TermStore(Path(sys.argv[1]), "web1")
first = store.load().term + 1
for term in itertools.count(first) if len(sys.argv) < 3 else range(first, first + int(sys.argv[2])):
    store.store(Reign(term, Role.PRIMARY if term % 2 else Role.BACKUP))
    os.write(1, b"%d\\n" % term)
"""


def test_nothing_stored_is_a_fresh_reign(tmp_path: Path) -> None:
    assert TermStore(tmp_path, "web1").load() == Reign(0, Role.NONE)
    assert TermStore(tmp_path / "not" / "there", "web1").load() == Reign(0, Role.NONE)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.sampled_from(Role)), min_size=1, max_size=3))
def test_what_was_stored_is_loaded(tmp_path_factory: pytest.TempPathFactory, reigns: list[tuple[int, Role]]) -> None:
    directory = tmp_path_factory.mktemp("state") / "made" / "when needed"
    for term, role in reigns:
        TermStore(directory, "web1").store(Reign(term, role))
        assert TermStore(directory, "web1").load() == Reign(term, role)
    assert [path.name for path in directory.iterdir()] == ["web1.term.json"]


def test_each_vm_has_its_own(tmp_path: Path) -> None:
    names = ("web1", "web2", "web-1")
    for term, vm in enumerate(names, 1):
        TermStore(tmp_path, vm).store(Reign(term, Role.PRIMARY))
    assert [TermStore(tmp_path, vm).load().term for vm in names] == [1, 2, 3]


@pytest.mark.parametrize("content", [
    b"", b"{", b"null", b"7", b"[]", b'{"term": "7"}', b'{"term": 7, "role": "king"}', b'{"term": 1.5}',
    b'{"term": 7, "role": "primary", "more": 1}', b'{"term": -1, "role": "none"}',
    b'{"term": 18446744073709551616, "role": "none"}',
    b"{}", b'{"term": 7}', b'{"role": "primary"}', b'{"role": "\xff"}', b"[" * 100_000,
    b'{"term": 7, "role": "primary"}{', b"\0" * 40, b"\xff\xfe\xfd"], ids=lambda value: repr(value[:40]))
def test_a_file_that_cannot_be_trusted_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Never term 0: that would be a term which somebody else may hold."""
    (tmp_path / "web1.term.json").write_bytes(content)
    with pytest.raises(HoldfastError, match=r"web1\.term\.json: the term cannot be read") as caught:
        TermStore(tmp_path, "web1").load()
    assert "two hosts speak" in caught.value.hint and "other host runs the VM" in caught.value.hint


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=80))
def test_whatever_the_file_holds(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.getbasetemp()
    (directory / "fuzz.term.json").write_bytes(content)
    with pytest.raises(HoldfastError):
        TermStore(directory, "fuzz").load()


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "web1.term.json").mkdir()
    with pytest.raises(HoldfastError, match="cannot be read"):
        TermStore(tmp_path, "web1").load()
    with pytest.raises(OSError):
        TermStore(tmp_path, "web1").store(Reign(1, Role.PRIMARY))


def test_a_half_written_successor_does_not_count(tmp_path: Path) -> None:
    store = TermStore(tmp_path, "web1")
    store.store(Reign(7, Role.PRIMARY))
    (tmp_path / "web1.term.json.new").write_bytes(b'{"term": 8, "ro')
    assert store.load() == Reign(7, Role.PRIMARY)
    store.store(Reign(9, Role.BACKUP))
    assert store.load() == Reign(9, Role.BACKUP)


# --- durable ------------------------------------------------------------------------------------------

@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    """A file system of 64 KiB that is full."""
    if os.geteuid():
        pytest.skip("needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], check=True, timeout=20)
    try:
        yield place  # type: ignore[misc]
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=20)


def test_a_full_disk_is_an_error_and_the_old_term_stays(full_disk: Path) -> None:
    store = TermStore(full_disk, "web1")
    store.store(Reign(7, Role.PRIMARY))
    with open(full_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(OSError, match="No space left"):
        store.store(Reign(8, Role.PRIMARY))
    assert store.load() == Reign(7, Role.PRIMARY)
    (full_disk / "filler").unlink()
    store.store(Reign(8, Role.PRIMARY))
    assert store.load().term == 8


def test_a_writer_killed_at_any_moment_leaves_a_whole_term(tmp_path: Path) -> None:
    """The file is readable at every moment, never goes back, and holds at least what the writer was told is there."""
    rng, store, last, rounds = random.Random(5), TermStore(tmp_path, "web1"), 0, 4
    for _ in range(rounds):
        process = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        seen = int(process.stdout.readline())
        end = time.monotonic() + rng.uniform(0, 0.05)
        while time.monotonic() < end:
            now = store.load().term
            assert now >= last, "the term went back"
            last = now
        process.kill()
        told = [int(line) for line in process.stdout.read().splitlines() if line]
        process.wait(10)
        process.stdout.close()
        reign = store.load()
        assert reign.term >= max([seen, last, *told]), "a term that was stored is forgotten"
        assert reign.term <= max([seen, *told]) + 1
        assert reign.role is (Role.PRIMARY if reign.term % 2 else Role.BACKUP), "of two different reigns"
        last = reign.term
    assert last > rounds


SYSTEM_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += +(-?\d+)")


def traced(directory: Path, count: int, log: Path) -> list[tuple[str, str, int]]:
    """System calls of a process that stores `count` terms: name, arguments, result."""
    calls = "openat,write,fsync,fdatasync,rename,renameat,renameat2,mkdir,close"
    subprocess.run(["strace", "-f", "-y", "-e", f"trace={calls}", "-o", str(log), sys.executable, "-c", WRITE,
                    str(directory), str(count)], cwd=ROOT, check=True, capture_output=True, timeout=60)
    found = [SYSTEM_CALL.match(line) for line in log.read_text().splitlines()]
    return [(match[1], match[2], int(match[3])) for match in found if match]


def strace_works() -> bool:
    if not shutil.which("strace"):
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, timeout=20).returncode == 0


def test_the_kernel_is_asked_in_the_right_order(tmp_path: Path) -> None:
    """File written, file synced, renamed, directory synced; only then is the caller told."""
    if not strace_works():
        pytest.skip("strace does not work here")
    directory = tmp_path / "a" / "state"
    calls = traced(directory, 2, tmp_path / "trace")
    steps = []
    for name, arguments, result in calls:
        if name == "mkdir" and str(tmp_path) in arguments and result == 0:
            steps.append(f"mkdir {Path(arguments.split(chr(34))[1]).name}")
        elif name == "write" and "web1.term.json.new" in arguments:
            steps.append("write")
        elif name == "write" and arguments.startswith("1<"):
            steps.append("told")
        elif name.startswith("rename") and "web1.term.json" in arguments:
            steps.append("rename")
        elif name in ("fsync", "fdatasync"):
            steps.append("sync " + Path(re.findall("<(.*?)>", arguments)[0]).name)
    made = [step for step in steps if step.startswith("mkdir ")]
    assert made[-1] == "mkdir state"
    stored = ["write", "sync web1.term.json.new", "rename", "sync state", "told"]
    begin = steps.index("write")
    assert steps[begin:] == stored * 2
    first = set(steps[:begin])
    assert {f"sync {tmp_path.name}", "sync a"} <= first, "the directories that were made are not on disk"


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_what_is_not_on_disk_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    store = TermStore(tmp_path, "web1")
    store.store(Reign(1, Role.BACKUP))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="Input/output error"):
        store.store(Reign(2, Role.PRIMARY))
    monkeypatch.undo()
    assert store.load() == Reign(1, Role.BACKUP)


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, before = TermStore(tmp_path, "web1"), len(os.listdir("/proc/self/fd"))
    sync: Callable[[int], None] = os.fsync
    for number in range(1, 10):
        calls = 0

        def fails_second(fd: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise OSError(5, "Input/output error")
            sync(fd)

        monkeypatch.setattr(os, "fsync", fails_second if number % 2 else sync)
        try:
            store.store(Reign(number, Role.PRIMARY))
        except OSError:
            assert number % 2
    assert len(os.listdir("/proc/self/fd")) == before


# --- the arbiter that is none -------------------------------------------------------------------------

def test_without_an_arbiter_silence_is_no_death_unless_the_operator_says_so() -> None:
    refused = asyncio.run(NoArbiter(False).ask("web1", 5))
    assert not refused.granted and "arbiter.accept_split_brain_risk = true" in refused.reason
    granted = asyncio.run(NoArbiter(True).ask("web1", 5))
    assert granted.granted and "risk of two speakers is accepted" in granted.reason
