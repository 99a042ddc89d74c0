# SPDX-License-Identifier: GPL-2.0-or-later
"""What is withheld from volumes: a walk over everything a VM, its backup and its storage can do, with all that dies."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmlink.disk.record import SECTOR, DiskWrites, Kind, Write
from vmlink.volume.withheld import NOT_CUT, Batch, Pending, Withheld

SECTORS = 6
VOLUMES = 2


class Volumes:
    """What the storage holds: a byte for each sector, which number of write it is from."""

    def __init__(self) -> None:
        self.content = [bytearray(SECTORS) for _ in range(VOLUMES)]

    def write(self, volume: int, write: Write) -> None:
        for sector in range(write.offset // SECTOR, (write.offset + write.length) // SECTOR):
            self.content[volume][sector] = bytes(write.data)[0] if write.kind is Kind.WRITE else 0

    def copy(self) -> list[bytes]:
        return [bytes(content) for content in self.content]


class Walk(RuleBasedStateMachine):
    """Reads are what the VM wrote; nothing uncommitted is on the volumes, everything of a stored epoch is; a takeover
    at any moment finds what the last committed epoch had."""

    nothing = Bundle("nothing")

    @initialize()
    def begin(self) -> None:
        self.volumes, self.withheld, self.pending = Volumes(), Withheld(VOLUMES), Pending(1 << 30)
        self.vm = Volumes()
        self.epochs: dict[int, list[bytes]] = {}
        """What the VM had at the end of each epoch."""
        self.in_flight: list[tuple[int, DiskWrites, int]] = []
        self.committed = 0
        self.number = 0
        self.withheld.begin()
        self.epochs[0] = self.vm.copy()

    @rule(volume=st.integers(0, VOLUMES - 1), first=st.integers(0, SECTORS - 1), length=st.integers(1, 3),
          zero=st.booleans())
    def write(self, volume: int, first: int, length: int, zero: bool) -> None:
        length = min(length, SECTORS - first)
        self.number = self.number % 255 + 1
        data = b"" if zero else bytes([self.number]) * (length * SECTOR)
        one = Write(Kind.ZERO if zero else Kind.WRITE, first * SECTOR, length * SECTOR, data)
        self.withheld.write(volume, one)
        self.vm.write(volume, one)

    @rule()
    def flush(self) -> None:
        self.withheld.flush()

    @rule()
    def cut(self) -> None:
        epoch = self.withheld.epoch + 1
        records = self.withheld.cut(epoch)
        writes = [(volume, write) for volume, record in enumerate(records) for write in record.writes]
        self.in_flight.append((epoch, writes, self.withheld.stored))
        self.epochs[epoch] = self.vm.copy()

    @precondition(lambda self: self.in_flight)
    @rule()
    def commit(self) -> None:
        epoch, writes, stored = self.in_flight.pop(0)
        assert self.pending.add(epoch, writes, stored)
        self.withheld.allow(epoch)
        self.committed = epoch

    @rule(whole=st.booleans(), parts=st.integers(0, 3))
    def store(self, whole: bool, parts: int) -> None:
        """The storage gets a batch, or a part of it and later all."""
        batch: Batch | None = self.withheld.due()
        if batch is None:
            return
        merged = [(volume, one) for volume, some in enumerate(batch.merged(VOLUMES)) for one in some]
        for volume, one in merged if whole else merged[:parts]:
            self.volumes.write(volume, one)
        if whole:
            self.withheld.done(batch)

    @invariant()
    def reads_are_what_was_written(self) -> None:
        for volume in range(VOLUMES):
            seen = bytearray(b"".join(bytes([byte]) * SECTOR for byte in self.volumes.content[volume]))
            self.withheld.overlay(volume).lay(0, seen)
            assert seen[::SECTOR] == self.vm.content[volume]

    @invariant()
    def what_it_takes_is_counted(self) -> None:
        batches = self.withheld._batches
        assert self.withheld.size == sum(batch.size for batch in batches)
        assert self.withheld.ended == sum(batch.size for batch in batches if batch.epoch != NOT_CUT)

    @invariant()
    def a_takeover_finds_the_last_committed_epoch(self) -> None:
        """From whatever the volumes are, and what the backup keeps; the other host writes nothing any more."""
        found = Volumes()
        found.content = [bytearray(content) for content in self.volumes.copy()]
        other = Withheld(VOLUMES)
        other.redo([write for _, _, some in self.pending._epochs for write in some])
        expected = self.epochs[self.committed]
        for volume in range(VOLUMES):  # the VM reads before anything is written
            seen = bytearray(b"".join(bytes([byte]) * SECTOR for byte in found.content[volume]))
            other.overlay(volume).lay(0, seen)
            assert bytes(seen[::SECTOR]) == expected[volume]
        assert other.due() is None, "nothing is written before this host may"
        other.allow_all()
        while (batch := other.due()) is not None:
            for volume, some in enumerate(batch.merged(VOLUMES)):
                for one in some:
                    found.write(volume, one)
            other.done(batch)
        assert found.copy() == expected

    @invariant()
    def a_stored_epoch_is_on_the_volumes(self) -> None:
        """Its output may be out: should both hosts die now, the volumes lack nothing of it."""
        assert all(batch.epoch > self.withheld.stored for batch in self.withheld._batches)
        assert self.withheld.stored <= self.withheld.epoch


TestWalk = Walk.TestCase
TestWalk.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


def written(withheld: Withheld, number: int) -> None:
    withheld.write(0, Write(Kind.WRITE, 0, SECTOR, bytes([number]) * SECTOR))


def test_what_follows_a_flush_is_written_after_it() -> None:
    withheld = Withheld(1)
    withheld.allow_all()
    written(withheld, 1)
    serial = withheld.flush()
    written(withheld, 2)
    first = withheld.due()
    assert first is not None and [bytes(write.data)[0] for _, write in first.writes] == [1]
    assert not withheld.has(serial)
    withheld.done(first)
    assert withheld.has(serial)
    second = withheld.due()
    assert second is not None and second.writes[0][1].data[:1] == b"\2"


def test_an_epoch_is_stored_when_its_last_batch_is() -> None:
    withheld = Withheld(1)
    withheld.begin()
    for number in (1, 2):
        written(withheld, number)
        withheld.flush()
    withheld.cut(1)
    withheld.cut(2)
    withheld.allow(2)
    for stored in (0, 0, 2):
        assert withheld.stored == stored
        if (batch := withheld.due()) is not None:
            withheld.done(batch)


def test_a_backup_keeps_to_its_limit() -> None:
    pending = Pending(3 * SECTOR)
    assert pending.add(1, [(0, Write(Kind.WRITE, 0, SECTOR, bytes(SECTOR)))], 0)
    assert pending.add(2, [(0, Write(Kind.WRITE, 0, SECTOR, bytes(SECTOR)))], 0)
    assert not pending.add(3, [(0, Write(Kind.WRITE, 0, 2 * SECTOR, bytes(2 * SECTOR)))], 0)
    assert pending.add(4, [], 3) and pending.size == 0
