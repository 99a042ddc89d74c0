# SPDX-License-Identifier: GPL-2.0-or-later
"""Checkpoints of a VM that is played: what is taken, in which order, and that a replica comes to the same memory."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlink import checkpoint, inject
from vmlink.checkpoint import Checkpointer, Round, Snapshot, Steps, epoch_messages, round_messages
from vmlink.errors import VmError
from vmlink.replica import Replica
from vmlink.tracker import CompareTracker
from vmlink.wire import CHUNK_PAGES, MAX_PAYLOAD, PAGE, Commit, Message, Type, decode_pages

PAGES = CHUNK_PAGES * 3 + 17
VM_ID, TERM = 77, 5


@dataclass
class Ram:
    """Of a guest; numpy memory instead of a shared file."""

    pages: np.ndarray[Any, Any]

    def fill(self, at: Any, value: int) -> None:
        self.pages[at] = value


class Vm:
    """Plays a QEMU: notes what it is told; `does[command]` may fail or wait."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.running = True
        self.device: bytes | memoryview = b"devices"
        self.does: dict[str, Callable[[], Awaitable[None]]] = {}

    async def _do(self, command: str) -> None:
        self.told.append(command)
        await asyncio.sleep(0)
        if command in self.does:
            await self.does[command]()

    async def stop(self) -> None:
        await self._do("stop")
        self.running = False

    async def cont(self) -> None:
        await self._do("cont")
        self.running = True

    async def save_devices(self) -> bytes | memoryview:
        await self._do("save")
        return self.device


class Noting(CompareTracker):
    """The real comparing tracker; `before_collect` is called in the worker thread before each scan."""

    def __init__(self, ram: Ram) -> None:
        super().__init__(ram)  # type: ignore[arg-type]
        self.before_collect: Callable[[], None] = lambda: None
        self.threads: set[str] = set()

    def collect(self) -> Any:
        self.threads.add(threading.current_thread().name)
        self.before_collect()
        return super().collect()


class Scene:
    """A VM, its tracker, its checkpointer, and a replica on the other side."""

    def __init__(self, pages: int = PAGES) -> None:
        self.ram = Ram(np.zeros((pages, PAGE), np.uint8))
        self.vm, self.tracker = Vm(), Noting(self.ram)
        self.maker = Checkpointer(self.vm, self.tracker, self.tracker.source)
        self.copy = np.full((pages, PAGE), 0xEE, np.uint8)
        self.replica = Replica(self.copy, 64 << 20)
        self.replica.begin(TERM)
        self.epoch = 0

    async def take(self, at_stop: Callable[[], None] = lambda: None) -> Snapshot:
        return await self.maker.take(at_stop)

    async def replicate(self) -> Snapshot:
        """One epoch: taken, sent, received whole, applied."""
        snapshot = await self.take()
        self.epoch += 1
        self.receive(epoch_messages(snapshot, VM_ID, TERM, self.epoch, 0))
        await self.replica.apply()
        return snapshot

    def receive(self, messages: Iterator[Message]) -> None:
        for message in messages:
            payload = b"".join(message.payload)
            assert (message.vm, message.term) == (VM_ID, TERM) and 0 < len(payload) <= MAX_PAYLOAD
            if message.type is Type.PAGES:
                self.replica.add_pages(message.epoch, payload)
            elif message.type is Type.ZEROS:
                self.replica.add_zeros(message.epoch, payload)
            elif message.type is Type.DEVICE:
                self.replica.add_device(message.epoch, payload)
            else:
                self.replica.commit(message.epoch, Commit.decode(payload))

    async def first_copy(self, limit: int = 12, last: int = 2048,
                         between: Callable[[Round], None] = lambda piece: None) -> list[Round]:
        pieces = []
        async for piece in self.maker.rounds(limit, last):
            self.receive(round_messages(piece, VM_ID, TERM))
            pieces.append(piece)
            between(piece)
        return pieces

    def same(self) -> bool:
        return bool((self.copy == self.ram.pages).all())


def play(scene: Callable[[Scene], Awaitable[None]], pages: int = PAGES) -> None:
    async def whole() -> None:
        made = Scene(pages)
        try:
            await asyncio.wait_for(scene(made), 20)
        finally:
            made.maker.close()

    asyncio.run(whole())


# --- one checkpoint -----------------------------------------------------------------------------------

def test_a_checkpoint_pauses_marks_copies_and_resumes() -> None:
    async def scene(it: Scene) -> None:
        it.tracker.arm()
        it.ram.fill([3, 700], 9)
        marked: list[tuple[bool, int]] = []
        snapshot = await it.take(lambda: marked.append((it.vm.running, len(it.tracker.threads))))
        assert marked == [(False, 0)], "marked once, paused, before the scan"
        assert it.vm.told == ["stop", "save", "cont"] and it.vm.running
        assert snapshot.numbers.tolist() == [3, 700] and (snapshot.data == 9).all()
        assert snapshot.data.shape == (2, PAGE) and snapshot.device == b"devices"
        assert snapshot.size == 2 * PAGE + 16 + 7
        assert snapshot.stopped < snapshot.resumed
        assert snapshot.steps.pause == pytest.approx(snapshot.resumed - snapshot.stopped)
        assert it.tracker.threads == {"copy_0"}, "scanned in the worker"
        it.ram.fill(3, 10)
        assert (snapshot.data == 9).all(), "the VM runs on: what was taken is a private copy"
        assert (await it.take()).numbers.tolist() == [3]
        assert (await it.take()).numbers.tolist() == []

    play(scene)


def test_the_device_state_is_a_private_copy() -> None:
    async def scene(it: Scene) -> None:
        buffer = bytearray(b"state 1")
        it.vm.device = memoryview(buffer)
        snapshot = await it.take()
        buffer[:] = b"state 2"
        assert snapshot.device == b"state 1"

    play(scene)


def fails(with_what: BaseException) -> Callable[[], Awaitable[None]]:
    async def failing() -> None:
        raise with_what

    return failing


async def nothing() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What asyncio had to say about tasks that nobody asked how they ended."""

    def said() -> list[str]:
        gc.collect()
        return [record.getMessage() for record in caplog.records if record.name == "asyncio"]

    yield said
    assert not said()


@pytest.mark.parametrize("command", ["stop", "save", "cont"])
def test_qemu_fails_in_a_step(command: str, complaints: object) -> None:
    async def scene(it: Scene) -> None:
        it.vm.does[command] = fails(VmError("QEMU is gone"))
        with pytest.raises(VmError, match="QEMU is gone"):
            await it.take()
        await asyncio.sleep(0)

    play(scene)


def test_qemu_dies_and_every_command_fails(complaints: object) -> None:
    async def scene(it: Scene) -> None:
        for command in ("stop", "save", "cont"):
            it.vm.does[command] = fails(VmError(f"{command}: QEMU is gone"))
        with pytest.raises(VmError, match="stop: QEMU is gone"):
            await it.take()
        await asyncio.sleep(0)

    play(scene)


@pytest.mark.parametrize("fault", [VmError("the scan failed"), OSError(12, "Cannot allocate memory")])
def test_the_scan_fails(fault: Exception, complaints: object) -> None:
    async def scene(it: Scene) -> None:
        def broken() -> None:
            raise fault

        it.tracker.before_collect = broken
        with pytest.raises(type(fault)):
            await it.take()
        assert "cont" not in it.vm.told, "who takes the error decides what becomes of the VM"

    play(scene)


@pytest.mark.parametrize("where", ["at_stop", "checkpoint.stopped", "checkpoint.saved"])
def test_a_fault_between_leaves_nothing_running(where: str, monkeypatch: pytest.MonkeyPatch,
                                                complaints: object) -> None:
    """What was begun beside is cancelled: the VM is resumed, its state must not be taken then."""

    async def scene(it: Scene) -> None:
        saving: list[str] = []

        async def slow_save() -> None:
            saving.append("begun")
            try:
                await nothing()
            finally:
                saving.append("ended")

        def at_stop() -> None:
            if where == "at_stop":
                raise OSError("no mark")

        if where != "checkpoint.saved":
            it.vm.does["save"] = slow_save
        monkeypatch.setitem(inject._armed, where, ("raise", 1))
        with pytest.raises((inject.Injected, OSError)):
            await it.take(at_stop)
        for _ in range(3):
            await asyncio.sleep(0)
        assert saving in ([], ["begun", "ended"])
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in left if "save_devices" in repr(task) or "stop" in repr(task)]

    play(scene)


@pytest.mark.parametrize("hangs", ["save", "scan"])
def test_a_checkpoint_does_not_take_for_ever(hangs: str, monkeypatch: pytest.MonkeyPatch, complaints: object) -> None:
    monkeypatch.setattr(checkpoint, "SCAN_TIMEOUT", 0.05)
    free = threading.Event()

    async def scene(it: Scene) -> None:
        if hangs == "save":
            it.vm.does["save"] = nothing
        else:
            it.tracker.before_collect = lambda: bool(free.wait(20)) and None
        try:
            with pytest.raises(TimeoutError, match="not taken within 0.05 s"):
                await it.take()
        finally:
            free.set()

    play(scene)


# --- the first copy -----------------------------------------------------------------------------------

def test_a_first_copy_of_an_idle_vm() -> None:
    async def scene(it: Scene) -> None:
        it.ram.fill(slice(10, 300), 1)
        pieces = await it.first_copy()
        assert [len(piece.numbers) for piece in pieces] == [CHUNK_PAGES] * 3 + [17]
        assert {(piece.number, piece.pages) for piece in pieces} == {(0, PAGES)}
        assert it.same() and it.replica.synced_bytes == PAGES * PAGE
        assert it.vm.told == [], "no pause"
        await it.replicate()
        assert it.same() and it.replica.whole

    play(scene)


@pytest.mark.parametrize("limit", [1, 2, 12])
def test_a_vm_that_never_rests_is_copied_all_the_same(limit: int) -> None:
    """Rounds are limited; what is dirtied after the last of them is left to the pause, and not forgotten."""

    async def scene(it: Scene) -> None:
        count = 0

        def busy(piece: Round) -> None:
            nonlocal count
            count += 1
            it.ram.fill(slice(count % 7, None, 3), count % 256)

        pieces = await it.first_copy(limit, 10, busy)
        assert {piece.number for piece in pieces} == set(range(limit))
        await it.replicate()
        assert it.same()

    play(scene)


def test_the_rounds_end_when_little_is_left() -> None:
    async def scene(it: Scene) -> None:
        left = [500, 100, 30, 30]

        def calmer(piece: Round) -> None:
            if not calmed or calmed[-1] != piece.number:
                calmed.append(piece.number)
                it.ram.fill(slice(0, left[piece.number]), piece.number + 1)

        calmed: list[int] = []
        pieces = await it.first_copy(12, 40, calmer)
        assert {(piece.number, piece.pages) for piece in pieces} == {(0, PAGES), (1, 500), (2, 100), (3, 30)}
        await it.replicate()
        assert it.same()

    play(scene)


def test_a_page_that_changes_there_and_back_is_not_missed() -> None:
    """Compared with its copy it looks clean afterwards; what was sent in between must not have been the other."""

    async def scene(it: Scene) -> None:
        it.ram.fill(slice(None), 1)
        last = PAGES - 1

        def there(piece: Round) -> None:
            it.ram.fill(last, 2 if piece.numbers[-1] != last else 1)

        await it.first_copy(between=there)
        await it.replicate()
        assert it.same()

    play(scene)


Writes = list[tuple[int, int, int]]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES), st.integers(0, 255)), max_size=3),
                max_size=12), st.integers(1, 4), st.sampled_from([0, 5, 2048]))
def test_a_replica_is_what_the_vm_was(bursts: list[Writes], limit: int, last: int) -> None:
    """Whatever the VM writes while it is copied and between epochs."""

    async def scene(it: Scene) -> None:
        waiting = iter(bursts)

        def burst(piece: Round | None = None) -> None:
            for first, count, value in next(waiting, []):
                it.ram.fill(slice(first, first + count), value)

        await it.first_copy(limit, last, burst)
        for _ in range(3):
            burst()
            await it.replicate()
            assert it.same()

    play(scene)


# --- messages -----------------------------------------------------------------------------------------

def snapshot_of(pages: int, device: bytes) -> Snapshot:
    numbers = np.arange(pages, dtype=np.int64)
    data = np.repeat((numbers % 251).astype(np.uint8)[:, None], PAGE, axis=1)
    return Snapshot(numbers, data, device, 0.0, 1.0, Steps(0.1, 0.2, 0.3))


@pytest.mark.parametrize("pages", [0, 1, CHUNK_PAGES, CHUNK_PAGES + 1])
@pytest.mark.parametrize("device", [b"d", bytes(MAX_PAYLOAD), bytes(MAX_PAYLOAD) + b"d"])
def test_an_epoch_in_messages(pages: int, device: bytes) -> None:
    snapshot = snapshot_of(pages, device)
    messages = list(epoch_messages(snapshot, VM_ID, TERM, 9, 1234))
    kinds = [message.type for message in messages]
    assert kinds == [Type.PAGES] * -(-pages // CHUNK_PAGES) + [Type.DEVICE] * -(-len(device) // MAX_PAYLOAD) + [
        Type.COMMIT]
    assert {(message.vm, message.term, message.epoch) for message in messages} == {(VM_ID, TERM, 9)}
    assert Commit.decode(b"".join(messages[-1].payload)) == Commit(pages, len(device), 1234)
    assert b"".join(b"".join(m.payload) for m in messages if m.type is Type.DEVICE) == device
    for message in messages[:-1]:
        if message.type is Type.PAGES:
            numbers, data = decode_pages(b"".join(message.payload), pages)
            assert len(numbers) <= CHUNK_PAGES and (data == snapshot.data[numbers]).all()


@pytest.mark.parametrize("filled, kinds", [
    ([], [Type.ZEROS]), ([0, 1, 2, 3], [Type.PAGES]), ([2], [Type.ZEROS, Type.PAGES])])
def test_zeros_travel_as_numbers(filled: list[int], kinds: list[Type]) -> None:
    data = np.zeros((4, PAGE), np.uint8)
    data[filled, PAGE - 1] = 1
    messages = list(round_messages(Round(0, 4, np.arange(4, dtype=np.int64), data), VM_ID, TERM))
    assert [message.type for message in messages] == kinds
    assert all(message.epoch == 0 for message in messages)
    assert sum(message.size for message in messages) < 200 + (PAGE + 8) * len(filled)
