# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of what a host that took over writes first: whole, about these volumes, of the last term, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.redo import Redo
from vmlink.disk.record import SECTOR, Kind, Write
from vmlink.errors import VmError

SIZES = [1 << 20, 1 << 16]
NAMES = ["one", "two"]
WRITES = [(0, Write(Kind.WRITE, 0, SECTOR, b"a" * SECTOR)), (1, Write(Kind.ZERO, SECTOR, SECTOR)),
          (0, Write(Kind.WRITE, 0, SECTOR, b"b" * SECTOR))]


@pytest.fixture
def redo(tmp_path: Path) -> Redo:
    made = Redo(tmp_path / "vm.redo")
    made.save(7, NAMES, SIZES, WRITES)
    return made


@pytest.mark.parametrize("term", [7, 8])
def test_what_was_saved_is_found(redo: Redo, term: int) -> None:
    """In the order of each volume."""
    found = redo.load(term, NAMES)
    for volume in (0, 1):
        assert [(write.kind, write.offset, bytes(write.data)) for number, write in found if number == volume] == \
            [(write.kind, write.offset, bytes(write.data)) for number, write in WRITES if number == volume]
    redo.remove()
    assert redo.load(term, NAMES) == []
    redo.remove()


def test_of_an_older_term_it_is_not_written(redo: Redo) -> None:
    with pytest.raises(VmError, match="another host may have run the VM since"):
        redo.load(9, NAMES)


def test_about_other_volumes_it_is_not_written(redo: Redo) -> None:
    with pytest.raises(VmError, match="other volumes"):
        redo.load(7, ["one", "three"])


def test_damaged_it_is_not_written(redo: Redo) -> None:
    content = redo.path.read_bytes()
    for at in range(0, len(content), 97):
        redo.path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
        with pytest.raises(VmError, match="damaged"):
            redo.load(7, NAMES)
    redo.path.write_bytes(content[:-1])
    with pytest.raises(VmError, match="damaged"):
        redo.load(7, NAMES)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(VmError, match="state_dir|file"):
        Redo(tmp_path / "file" / "vm.redo").save(1, NAMES, SIZES, WRITES)


def test_a_start_that_fails_again_and_again_does_not_make_it_too_old(redo: Redo) -> None:
    """Each attempt has a term of its own; the storage may come back later than the hosts."""
    for term in (8, 9, 10):
        redo.keep(term)
    assert len(redo.load(11, NAMES)) == len(WRITES)
    with pytest.raises(VmError, match="another host may have run the VM since"):
        redo.keep(12)


def test_where_there_is_none_none_is_kept(tmp_path: Path) -> None:
    Redo(tmp_path / "vm.redo").keep(3)
    assert not list(tmp_path.iterdir())
