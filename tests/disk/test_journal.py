# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal: what was synced is found again, in order; what was torn is not; two never write one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlink.disk.journal import BLOCK, SLOT, Group, Journal
from vmlink.disk.record import Kind, Write
from vmlink.errors import VmError

ROOM = 1 << 20

writes = st.builds(
    lambda kind, offset, data, length: Write(kind, 512 * offset, len(data), data) if kind is Kind.WRITE
    else Write(kind, 512 * offset, length),
    st.sampled_from(Kind), st.integers(0, 1 << 50), st.binary(min_size=1, max_size=3000), st.integers(1, 1 << 62))
groups = st.lists(st.lists(st.tuples(st.integers(0, 25), writes), min_size=1, max_size=8), max_size=6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.disks"


def fresh() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "journal"


def found(path: Path) -> tuple[bytes | None, list[tuple[int, list[tuple[int, Write]]]]]:
    journal = Journal(path, ROOM)
    try:
        return journal.state, [(group.epoch, plain(group.writes)) for group in journal.groups()]
    finally:
        journal.close()


def plain(some: list[tuple[int, Write]]) -> list[tuple[int, Write]]:
    return [(disk, write._replace(data=bytes(write.data))) for disk, write in some]


def write_all(path: Path, some: list[list[tuple[int, Write]]], state: bytes = b"a state") -> list[int]:
    """Returns where each record ends."""
    journal = Journal(path, ROOM)
    journal.set_state(state)
    ends = []
    for number, group in enumerate(some, 1):
        journal.append(Group(number, group))
        ends.append(journal.used + 2 * SLOT)
    journal.sync()
    journal.close()
    return ends


@given(groups)
@settings(max_examples=50)
def test_what_was_written_is_found_again_in_order(some: list[list[tuple[int, Write]]]) -> None:
    for path in fresh():
        write_all(path, some)
        assert found(path) == (b"a state", list(enumerate(some, 1)))
        assert found(path) == found(path)


@given(groups.filter(bool), st.data())
@settings(max_examples=50)
def test_a_record_that_was_torn_ends_the_log(some: list[list[tuple[int, Write]]], data: st.DataObject) -> None:
    """Any byte of any record is damaged: the groups before it are found, and none that is not right."""
    for path in fresh():
        ends = write_all(path, some)
        at = data.draw(st.integers(2 * SLOT, ends[-1] - 1))
        content = bytearray(path.read_bytes())
        content[at] ^= 0xFF
        path.write_bytes(content)
        state, left = found(path)
        torn = sum(end <= at for end in ends)
        assert state == b"a state"
        # What fills a record up to its block says nothing.
        assert left in (list(enumerate(some[:torn], 1)), list(enumerate(some, 1)))
        if at < ends[torn] - BLOCK:
            assert len(left) == torn


def test_a_new_state_empties_the_log(path: Path) -> None:
    write_all(path, [[(0, Write(Kind.ZERO, 0, 512))]] * 3)
    journal = Journal(path, ROOM)
    assert len(list(journal.groups())) == 3 and journal.used == 3 * BLOCK
    journal.set_state(b"another")
    assert journal.used == 0
    journal.append(Group(9, [(1, Write(Kind.TRIM, 512, 512))]))
    journal.close()
    assert found(path) == (b"another", [(9, [(1, Write(Kind.TRIM, 512, 512))])])


@pytest.mark.parametrize("at", [0, 8, 24, 40, 60])
@pytest.mark.parametrize("states", [1, 2, 3])
def test_a_state_that_was_torn_leaves_the_one_before(path: Path, states: int, at: int) -> None:
    journal = Journal(path, ROOM)
    for number in range(1, states + 1):
        journal.set_state(b"a state of some length: %d" % number)
    journal.close()
    content = bytearray(path.read_bytes())
    content[states % 2 * SLOT + at] ^= 0xFF
    path.write_bytes(content)
    if states == 1:
        with pytest.raises(VmError, match="the state of the disks is damaged") as told:
            Journal(path, ROOM)
        assert "remove the file" in told.value.hint
    else:
        assert found(path)[0] == b"a state of some length: %d" % (states - 1)


def test_a_new_file_has_no_state(path: Path) -> None:
    assert found(path) == (None, [])
    assert path.stat().st_size == path.stat().st_blocks * 512 == 2 * SLOT + ROOM
    assert path.stat().st_mode & 0o777 == 0o600


def test_more_than_there_was_room_for(path: Path) -> None:
    """One group that is larger than the log, of more parts than one call takes."""
    some = [(index % 3, Write(Kind.WRITE, 4096 * index, 4096, os.urandom(4096))) for index in range(1500)]
    write_all(path, [some, some[:1]])
    assert found(path)[1] == [(1, some), (2, some[:1])]


def test_nobody_else_may_use_it(path: Path) -> None:
    journal = Journal(path, ROOM)
    with pytest.raises(VmError, match="web.disks could not be locked: it is in use") as told:
        Journal(path, ROOM)
    assert "another service, or another VM" in told.value.hint
    journal.close()
    journal.close()
    Journal(path, ROOM).close()


def test_what_is_kept_comes_back_until_something_is_appended(path: Path) -> None:
    journal = Journal(path, ROOM)
    journal.set_state(b"one")
    kept = os.urandom(70000)
    journal.keep(kept)
    journal.set_state(b"two")
    journal.close()
    journal = Journal(path, ROOM)
    assert journal.kept(len(kept)) == kept and list(journal.groups()) == []
    journal.append(Group(1, [(0, Write(Kind.ZERO, 0, 512))]))
    assert journal.kept(len(kept)) != kept
    journal.close()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="could not be opened: No such file") as told:
        Journal(tmp_path / "missing" / "web.disks", ROOM)
    assert "make the directory" in told.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_file_system_is_told_at_the_start(small_tmpfs: Path) -> None:
    with pytest.raises(VmError, match="could not be made: No space left") as told:
        Journal(small_tmpfs / "web.disks", 4 << 20)
    assert "make room in" in told.value.hint
