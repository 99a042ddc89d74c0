# SPDX-License-Identifier: GPL-2.0-or-later
"""The replica: whole epochs only, in order, bounded; and whatever arrives, no more than WireError comes out."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmlink.errors import VmError
from vmlink.replica import PIECE_COST, PIECE_PAGES, Replica
from vmlink.wire import PAGE, Commit, WireError, encode_numbers, encode_pages

PAGES = 2000
LIMIT = 64 << 20


def replica(pages: int = PAGES, limit: int = LIMIT) -> Replica:
    made = Replica(np.zeros((pages, PAGE), np.uint8), limit)
    made.begin(7)
    return made


def pages(numbers: list[int], value: int) -> bytes:
    """A PAGES payload: each page full of `value`."""
    return b"".join(encode_pages(np.array(numbers, np.int64), np.full((len(numbers), PAGE), value, np.uint8)))


def zeros(numbers: list[int]) -> bytes:
    return b"".join(encode_numbers(np.array(numbers, np.int64)))


def content(of: Replica) -> list[int]:
    """The value each page is full of."""
    assert (of._ram == of._ram[:, :1]).all()
    return of._ram[:, 0].tolist()  # type: ignore[no-any-return]


def whole_epoch(to: Replica, epoch: int, numbers: list[int], value: int, *, consumed: int = 0) -> None:
    half = len(numbers) // 2
    for piece in (numbers[:half], numbers[half:]):
        if piece:
            to.add_pages(epoch, pages(piece, value))
    to.add_device(epoch, b"device %d" % epoch)
    to.commit(epoch, Commit(len(numbers), len(b"device %d" % epoch), consumed))


# --- whole epochs only --------------------------------------------------------------------------------

def test_the_first_copy_alone_is_no_replica() -> None:
    to = replica(4)
    to.add_pages(0, pages([0, 1], 5))
    to.add_zeros(0, zeros([1]))
    assert content(to) == [5, 0, 0, 0] and to.synced_bytes == 3 * PAGE
    assert not to.whole
    with pytest.raises(VmError, match="no whole epoch"):
        to.device_state()


def test_half_an_epoch_never_counts() -> None:
    to = replica(4)
    whole_epoch(to, 1, [0], 1, consumed=11)
    asyncio.run(to.apply())
    to.add_pages(2, pages([0, 1], 2))
    to.add_device(2, b"half")
    asyncio.run(to.apply())  # finds nothing to do
    assert content(to) == [1, 0, 0, 0]
    assert (to.epoch, to.consumed, to.device_state()) == (1, 11, b"device 1")
    to.abandon()
    asyncio.run(to.apply())
    assert content(to) == [1, 0, 0, 0] and to.device_state() == b"device 1"


def test_an_abandoned_epoch_may_come_again() -> None:
    to = replica(4)
    to.add_pages(1, pages([0, 1], 9))
    to.add_device(1, b"old")
    to.abandon()
    whole_epoch(to, 1, [2], 1)
    asyncio.run(to.apply())
    assert content(to) == [0, 0, 1, 0] and to.device_state() == b"device 1"


@pytest.mark.parametrize("said", [Commit(1, 6, 0), Commit(3, 6, 0), Commit(2, 5, 0), Commit(2, 7, 0), Commit(0, 0, 0)])
def test_a_commit_that_counts_otherwise_is_refused(said: Commit) -> None:
    to = replica(4)
    to.add_pages(1, pages([0], 1))
    to.add_zeros(1, zeros([1]))
    to.add_device(1, b"dev")
    to.add_device(1, b"ice")
    with pytest.raises(WireError, match="epoch 1 is not whole: 2 of .* pages, 6 of .* bytes of device state"):
        to.commit(1, said)
    asyncio.run(to.apply())
    assert not to.whole and content(to) == [0] * 4


def test_an_epoch_without_device_state_is_refused() -> None:
    to = replica(4)
    to.add_pages(1, pages([0], 1))
    with pytest.raises(WireError, match="not whole"):
        to.commit(1, Commit(1, 0, 0))
    with pytest.raises(WireError, match="not whole"):
        replica(4).commit(1, Commit(0, 0, 0))


@pytest.mark.parametrize("epoch", [0, 1, 3, 4, 2**64 - 1])
def test_a_piece_of_another_epoch_is_refused(epoch: int) -> None:
    to = replica(4)
    whole_epoch(to, 1, [0], 1)
    with pytest.raises(WireError, match=f"a piece of epoch {epoch} after the whole epoch 1"):
        to.add_pages(epoch, pages([1], 2))
    with pytest.raises(WireError, match="after the whole epoch 1"):
        to.add_zeros(epoch, zeros([1]))
    with pytest.raises(WireError, match="after the whole epoch 1"):
        to.add_device(epoch, b"x")
    with pytest.raises(WireError, match="after the whole epoch 1"):
        to.commit(epoch, Commit(0, 0, 0))
    asyncio.run(to.apply())
    assert content(to) == [1, 0, 0, 0] and to.epoch == 1


def test_device_state_before_the_first_copy_ended_is_refused() -> None:
    with pytest.raises(WireError, match="a piece of epoch 0"):
        replica(4).add_device(0, b"x")


# --- applied in order ---------------------------------------------------------------------------------

def test_epochs_are_applied_in_order() -> None:
    to = replica(4)
    whole_epoch(to, 1, [0, 1, 2], 1)
    whole_epoch(to, 2, [1, 2], 2)
    to.add_zeros(3, zeros([2]))
    to.add_device(3, b"three")
    to.commit(3, Commit(1, 5, 33))
    assert (to.epoch, to.consumed, to.device_state()) == (3, 33, b"three")
    asyncio.run(to.apply())
    assert content(to) == [1, 2, 0, 0]


def test_a_page_sent_twice_in_an_epoch_has_the_later_content() -> None:
    to = replica(4)
    to.add_pages(1, pages([1], 1))
    to.add_pages(1, pages([1], 2))
    to.add_device(1, b"d")
    to.commit(1, Commit(2, 1, 0))
    asyncio.run(to.apply())
    assert content(to) == [0, 2, 0, 0]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 12), max_size=6))
def test_applying_goes_on_where_it_was_interrupted(turns: list[int]) -> None:
    """A service that ends a connection cancels what it was doing; the takeover then finishes the epoch."""

    async def scene() -> None:
        to = replica(PIECE_PAGES * 3)
        every = list(range(PIECE_PAGES * 3))
        whole_epoch(to, 1, every, 1)
        whole_epoch(to, 2, every[::2], 2)
        whole_epoch(to, 3, every[::3], 3)
        for count in turns:
            applying = asyncio.ensure_future(to.apply())
            for _ in range(count):
                await asyncio.sleep(0)
            applying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await applying
        await asyncio.gather(to.apply(), to.apply())
        assert content(to) == [3 if n % 3 == 0 else 2 if n % 2 == 0 else 1 for n in every]
        assert not to._unapplied

    asyncio.run(scene())


def test_others_get_their_turn_while_a_large_epoch_is_applied() -> None:
    async def scene() -> None:
        to = replica(PIECE_PAGES * 8)
        whole_epoch(to, 1, list(range(PIECE_PAGES * 8)), 1)
        applying, turns = asyncio.ensure_future(to.apply()), 0
        while not applying.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 8

    asyncio.run(scene())


# --- begin --------------------------------------------------------------------------------------------

def test_begin_forgets_everything_before() -> None:
    to = replica(4)
    whole_epoch(to, 1, [0], 1, consumed=5)
    to.add_pages(2, pages([1], 2))
    to.begin(8)
    assert (to.term, to.epoch, to.consumed, to.synced_bytes, to.whole) == (8, 0, 0, 0, False)
    with pytest.raises(VmError):
        to.device_state()
    asyncio.run(to.apply())
    assert content(to) == [0] * 4, "an epoch of the earlier copy was applied"
    whole_epoch(to, 1, [3], 4)
    asyncio.run(to.apply())
    assert content(to) == [0, 0, 0, 4]


@pytest.mark.parametrize("turns", range(1, 6))
def test_begin_ends_an_apply_that_is_under_way(turns: int) -> None:
    """Else pages of the earlier copy would come over those of the new one."""

    async def scene() -> None:
        to = replica(PIECE_PAGES * 4)
        every = list(range(PIECE_PAGES * 4))
        whole_epoch(to, 1, every, 1)
        applying = asyncio.ensure_future(to.apply())
        for _ in range(turns):
            await asyncio.sleep(0)
        to.begin(8)
        to.add_pages(0, pages(every, 9))
        whole_epoch(to, 1, [0], 8)
        await applying
        await to.apply()
        assert content(to) == [8] + [9] * (len(every) - 1)

    asyncio.run(scene())


# --- bounded ------------------------------------------------------------------------------------------

def test_what_exceeds_the_limit_is_refused() -> None:
    to = replica(100, limit=12 * (PAGE + 8) + 12 * PIECE_COST)
    for number in range(9):
        to.add_pages(1, pages([number], 1))
    with pytest.raises(WireError, match="epoch 1 exceeds the .* bytes that may wait aside"):
        for number in range(9, 99):
            to.add_pages(1, pages([number], 1))
    assert to._staged is not None and to._staged.page_count <= 12


def test_whole_epochs_that_wait_count_until_they_are_applied() -> None:
    to = replica(100, limit=12 * (PAGE + 8) + 12 * PIECE_COST)
    whole_epoch(to, 1, list(range(7)), 1)
    with pytest.raises(WireError, match="epoch 2 exceeds"):
        whole_epoch(to, 2, list(range(7)), 2)
    to.abandon()
    asyncio.run(to.apply())
    whole_epoch(to, 2, list(range(7)), 2)
    asyncio.run(to.apply())
    assert content(to)[:8] == [2] * 7 + [0]


def test_many_tiny_pieces_are_not_free() -> None:
    """Each costs this host more memory than the bytes it holds."""
    to = replica(100, limit=1 << 20)
    for add, payload in ((to.add_zeros, zeros([1])), (to.add_device, b"x"), (to.add_zeros, b""), (to.add_device, b"")):
        to.abandon()
        with pytest.raises(WireError, match="exceeds"):
            for _ in range(100_000):
                add(1, payload)


# --- whatever arrives ---------------------------------------------------------------------------------

numbers = st.lists(st.integers(0, 9), min_size=1, max_size=4)
payloads = st.one_of(st.binary(max_size=60), numbers.map(zeros),
                     st.tuples(numbers, st.integers(0, 255)).map(lambda drawn: pages(*drawn)),
                     st.binary(min_size=8, max_size=8).map(lambda number: number + bytes(PAGE)))
steps = st.lists(st.tuples(
    st.sampled_from(["add_pages", "add_zeros", "add_device", "commit", "begin", "abandon", "apply"]),
    st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1)), payloads,
    st.tuples(st.integers(0, 5), st.integers(0, 80), st.integers(0, 2**64 - 1))), max_size=25)


@settings(deadline=None, max_examples=100)
@given(steps)
def test_only_wire_errors_come_out(script: list[tuple[str, int, bytes, tuple[int, int, int]]]) -> None:
    async def scene() -> None:
        to = replica(10, limit=20 * PAGE)
        for what, epoch, payload, counts in script:
            with contextlib.suppress(WireError):
                if what == "apply":
                    await to.apply()
                elif what == "abandon":
                    to.abandon()
                elif what == "begin":
                    to.begin(epoch)
                elif what == "commit":
                    to.commit(epoch, Commit(*counts))
                else:
                    getattr(to, what)(epoch, payload)

    asyncio.run(scene())


class AgainstAModel(RuleBasedStateMachine):
    """Epochs that come whole, by half or twice, applied now and then: RAM is that of the last whole epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.to = replica(10)
        self.ram, self.coming = [0] * 10, [0] * 10
        self.pages = self.value = 0
        self.device = b""

    @rule(at=numbers)
    def some_pages(self, at: list[int]) -> None:
        self.value = self.value % 250 + 1
        self.to.add_pages(self.to.epoch + 1, pages(at, self.value))
        self._took(at, self.value)

    @rule(at=numbers)
    def some_zeros(self, at: list[int]) -> None:
        self.to.add_zeros(self.to.epoch + 1, zeros(at))
        self._took(at, 0)

    def _took(self, at: list[int], value: int) -> None:
        self.pages += len(at)
        for number in at:
            self.coming[number] = value

    @rule(piece=st.binary(min_size=1, max_size=9))
    def some_device_state(self, piece: bytes) -> None:
        self.to.add_device(self.to.epoch + 1, piece)
        self.device += piece

    @rule()
    def lost(self) -> None:
        self.to.abandon()
        self._next()

    @rule()
    def committed(self) -> None:
        if not self.device:
            self.some_device_state(b"x")
        before = self.to.epoch
        self.to.commit(before + 1, Commit(self.pages, len(self.device), before))
        assert self.to.epoch == before + 1 and self.to.device_state() == self.device
        self.ram = list(self.coming)
        self._next()

    def _next(self) -> None:
        self.coming, self.pages, self.device = list(self.ram), 0, b""

    @rule()
    def applied(self) -> None:
        asyncio.run(self.to.apply())
        assert content(self.to) == self.ram

    @invariant()
    def nothing_of_half_an_epoch(self) -> None:
        if not self.to._unapplied:
            assert content(self.to) == self.ram


AgainstAModel.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
TestAgainstAModel = AgainstAModel.TestCase
