# SPDX-License-Identifier: GPL-2.0-or-later
"""The trackers: exactly the written pages, each once, none lost, however they are spread."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vmlink.machine import SHM, frozen, machine
from vmlink.errors import VmError
from vmlink.ram import PAGE, GuestRam
from vmlink.tracker import CompareTracker, Tracker, choose
from vmlink.uffd import UffdTracker, find_mappings

PAGES = 1024

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_userfaultfd() -> Iterator[int]:
    """What the shim makes in QEMU, made in this process."""
    fd = _libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("=QQQ", 0xAA, 1 << 15 | 1 << 13 | 1 << 12, 0)))
    except OSError as error:
        os.close(fd)
        pytest.skip(f"this kernel has no asynchronous write-protection: {error}")
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def memory(pages: int = PAGES) -> Iterator[GuestRam]:
    ram = GuestRam.create(SHM, pages * PAGE)
    try:
        yield ram
    finally:
        ram.close()


@contextlib.contextmanager
def tracker_of(kind: str, ram: GuestRam, regions: int = 65536) -> Iterator[Tracker]:
    """A tracker of this process's own mapping."""
    with contextlib.ExitStack() as stack:
        tracker: Tracker
        if kind == "compare":
            tracker = CompareTracker(ram)
        else:
            tracker = UffdTracker(os.getpid(), stack.enter_context(own_userfaultfd()), ram, regions=regions)
        stack.callback(tracker.close)
        yield tracker


def write_within(pid: int, address: int) -> None:
    """As if the process itself had written there."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory_of_it:
        memory_of_it.seek(address)
        memory_of_it.write(b"changed from within")


both = pytest.mark.parametrize("kind", ["uffd-wp", "compare"])


@both
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, 40)), max_size=30), max_size=4),
       regions=st.integers(1, 7))
def test_exactly_the_written_pages(kind: str, rounds: list[list[tuple[int, int]]], regions: int) -> None:
    with memory() as ram, tracker_of(kind, ram, regions) as tracker:
        ram.pages[3] = 1  # before arm: does not count
        tracker.arm()
        copy = tracker.source.copy()
        for writes in rounds:
            written: set[int] = set()
            for first, count in writes:
                pages = range(first, min(first + count, PAGES))
                ram.pages[pages.start:pages.stop, first] += 1  # fewer than 256 times: always a change
                written.update(pages)
            found = tracker.collect()
            assert found.dtype == np.int64
            assert found.tolist() == sorted(written)
            copy[found] = tracker.source[found]
            assert np.array_equal(copy, ram.pages)
        assert tracker.collect().tolist() == []


@both
@pytest.mark.parametrize("regions", [3, 512, 1000, 4096, 65536])
def test_every_page_at_once_and_every_other_one(kind: str, regions: int) -> None:
    """Room for fewer runs than there are, for exactly as many, and for more than the kernel buffers (512)."""
    pages = 8192
    with memory(pages) as ram, tracker_of(kind, ram, regions) as tracker:
        tracker.arm()
        ram.pages[:] = 1
        assert tracker.collect().tolist() == list(range(pages))
        ram.pages[::2] = 2
        assert tracker.collect().tolist() == list(range(0, pages, 2))
        assert tracker.collect().tolist() == []


@both
def test_reading_is_not_writing_and_arm_forgets(kind: str) -> None:
    with memory() as ram, tracker_of(kind, ram) as tracker:
        tracker.arm()
        assert not ram.pages.any()
        assert tracker.collect().tolist() == []
        ram.pages[5] = 1
        tracker.arm()
        assert tracker.collect().tolist() == []


@both
def test_nothing_is_lost_while_the_vm_runs(kind: str) -> None:
    """Bytes flip between two values all the time, so that a page is often as it was: the copy ends up equal."""
    with memory(64) as ram, tracker_of(kind, ram) as tracker:
        stop = threading.Event()

        def write() -> None:
            address, turn = ram.pages.ctypes.data, 0
            while not stop.is_set():
                turn += 1
                page = turn % 61
                # memset lets go of the interpreter lock: it runs while a scan does.
                _libc.memset(ctypes.c_void_p(address + page * PAGE), turn & 1, PAGE)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            tracker.arm()
            copy = tracker.source.copy()
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                found = tracker.collect()
                copy[found] = tracker.source[found]
        finally:
            stop.set()
            writer.join()
        found = tracker.collect()
        copy[found] = tracker.source[found]
        assert np.array_equal(copy, ram.pages)


@both
def test_a_page_that_changes_back(kind: str) -> None:
    """Between a scan and the copying the VM runs on; what was copied must not pass for what was compared."""
    with memory() as ram, tracker_of(kind, ram) as tracker:
        tracker.arm()
        copy = tracker.source.copy()
        ram.pages[5] = 1
        found = tracker.collect()
        ram.pages[5] = 2
        copy[found] = tracker.source[found]
        ram.pages[5] = 1
        found = tracker.collect()
        copy[found] = tracker.source[found]
        assert np.array_equal(copy, ram.pages)


def test_a_mapping_in_pieces() -> None:
    """A kernel splits a mapping when a part of it is treated in another way; the numbers stay right."""
    with memory() as ram, own_userfaultfd() as fd:
        address = ram.pages.ctypes.data
        assert _libc.madvise(ctypes.c_void_p(address + 100 * PAGE), 50 * PAGE, mmap.MADV_DONTDUMP) == 0
        pieces = find_mappings(os.getpid(), ram.identity)
        assert [piece.offset // PAGE for piece in pieces] == [0, 100, 150]
        tracker = UffdTracker(os.getpid(), fd, ram)
        try:
            tracker.arm()
            ram.pages[[0, 99, 100, 149, 150, PAGES - 1]] = 1
            assert tracker.collect().tolist() == [0, 99, 100, 149, 150, PAGES - 1]
        finally:
            tracker.close()


def test_a_second_tracker_after_the_first() -> None:
    with memory() as ram, own_userfaultfd() as fd:
        for _ in range(3):
            tracker = UffdTracker(os.getpid(), fd, ram)
            tracker.arm()
            ram.pages[9] += 1
            assert tracker.collect().tolist() == [9]
            tracker.close()
            tracker.close()
            ram.pages[10] += 1


def test_a_descriptor_of_another_process() -> None:
    """As when a wrapper script stands between us and QEMU."""
    with memory() as ram, own_userfaultfd() as fd:
        with pytest.raises(VmError, match="does not map"):
            UffdTracker(os.getppid(), fd, ram)


def test_a_descriptor_without_the_handshake() -> None:
    fd = _libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with memory() as ram, pytest.raises(VmError, match="guest memory cannot be watched"):
            UffdTracker(os.getpid(), fd, ram)
    finally:
        os.close(fd)


@dataclass
class Stranger:
    """What a tracker is told of a QEMU."""

    pid: int
    userfaultfd: int | None
    no_userfaultfd: str = ""


def test_choice_by_what_works() -> None:
    with memory() as ram, own_userfaultfd() as fd:
        lacking = Stranger(os.getpid(), None, "the userfaultfd shim is not built")
        good = Stranger(os.getpid(), fd)
        wrong = Stranger(os.getppid(), fd)
        names = {}
        for label, qemu in (("good", good), ("lacking", lacking), ("wrong", wrong)):
            tracker = choose(qemu, ram)
            names[label] = f"{tracker.name}: {tracker.reason}"
            tracker.close()
        assert names["good"] == "uffd-wp: the kernel tracks writes"
        assert names["lacking"] == "compare: no uffd-wp: the userfaultfd shim is not built"
        assert names["wrong"].startswith("compare: no uffd-wp: process")
        tracker = choose(good, ram, "compare")
        assert (tracker.name, tracker.reason) == ("compare", "configured")
        tracker.close()
        with pytest.raises(VmError, match="uffd-wp does not work here: the userfaultfd shim is not built") as caught:
            choose(lacking, ram, "uffd-wp")
        assert "make shim" in caught.value.hint
        with pytest.raises(VmError, match="unknown tracker 'best'"):
            choose(good, ram, "best")


@both
def test_tracks_a_real_vm(tmp_path: Path, kind: str) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, ram):
            tracker = choose(qemu, ram, kind)
            try:
                tracker.arm()
                copy = tracker.source.copy()
                loop = asyncio.get_running_loop()
                for _ in range(20):
                    found = await loop.run_in_executor(None, tracker.collect)
                    copy[found] = tracker.source[found]
                await qemu.monitor.stop()
                found = tracker.collect()
                copy[found] = tracker.source[found]
                assert np.array_equal(copy, ram.pages)
                assert tracker.collect().tolist() == []
                write_within(qemu.pid, find_mappings(qemu.pid, ram.identity)[0].start + 77 * PAGE)
                assert tracker.collect().tolist() == [77]
            finally:
                tracker.close()

    asyncio.run(scene())


def test_qemu_dies_under_the_tracker(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, ram):
            tracker = choose(qemu, ram, "uffd-wp")
            with frozen(qemu.pid):
                tracker.collect()
            await qemu.kill()
            with pytest.raises(VmError, match="written pages cannot be read"):
                tracker.collect()
            with pytest.raises(VmError):
                tracker.arm()
            tracker.close()

    asyncio.run(scene())
