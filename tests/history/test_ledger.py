# SPDX-License-Identifier: GPL-2.0-or-later
"""The history's file: whole lines or none, whatever is cut off, rots or does not fit."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from appliance import durable
from appliance.history import ledger as module
from appliance.history.entry import Entry, Kind, Result
from appliance.history.ledger import Ledger


def entry(number: int, **more: object) -> Entry:
    made = Entry(id=f"web1-{number}", vm="web1", host="alpha", kind=Kind.TAKEOVER, detected_at=float(number),
                 cause=f"cause {number}")
    return msgspec.structs.replace(made, **more)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "history.jsonl")


def test_nothing_is_there_at_first(ledger: Ledger) -> None:
    assert ledger.load() == [] and ledger.damaged == 0


def test_what_is_appended_is_read_back_newest_version_of_each(ledger: Ledger) -> None:
    ledger.append([entry(1), entry(2)])
    ledger.append([entry(1, result=Result.PROTECTED)])
    assert ledger.load() == [entry(1, result=Result.PROTECTED), entry(2)]
    assert Ledger(ledger.path).load() == ledger.load()


def test_a_write_that_was_cut_off_anywhere_costs_that_write_alone(ledger: Ledger) -> None:
    ledger.append([entry(1)])
    first = ledger.path.read_bytes()
    ledger.append([entry(2)])
    whole = ledger.path.read_bytes()
    for cut in (*range(len(first), len(whole), 5), len(whole) - 1):
        ledger.path.write_bytes(whole[:cut])
        known = Ledger(ledger.path)
        ends = cut == len(whole) - 1  # only the newline is missing
        assert known.load() == ([entry(1), entry(2)] if ends else [entry(1)])
        assert known.damaged == (0 if ends or cut == len(first) else 1)
        known.append([entry(3)])
        assert known.load()[-1] == entry(3), cut
        assert known.load()[0] == entry(1)


def test_a_flipped_bit_costs_its_line(ledger: Ledger) -> None:
    ledger.append([entry(1), entry(2), entry(3)])
    whole = bytearray(ledger.path.read_bytes())
    middle = whole.index(b"\n") + 1
    for at in range(middle, whole.index(b"\n", middle), 3):
        for bit in (1, 128):
            damaged = bytearray(whole)
            damaged[at] ^= bit
            ledger.path.write_bytes(damaged)
            found = ledger.load()
            assert found == [entry(1), entry(3)] and ledger.damaged >= 1, (at, bit, found)


def test_what_is_none_of_ours_is_skipped(ledger: Ledger) -> None:
    ledger.append([entry(1)])
    other = msgspec.json.encode({"id": "x", "vm": "web1", "host": "a", "kind": "party", "detected_at": 1.0})
    with ledger.path.open("ab") as file:
        for line in (b"\n\n", b"\xff\xfe\n", b"0 {}\n", b"00000000 {}\n",
                     b"%08x %s\n" % (module.zlib.crc32(other), other),
                     b"%08x [%s\n" % (module.zlib.crc32(b"[" * 9000), b"[" * 8999), b"x" * (64 << 10) + b"\n"):
            file.write(line)
    assert ledger.load() == [entry(1)]
    assert ledger.damaged == 6


def test_a_file_of_a_later_version_is_read(ledger: Ledger) -> None:
    ledger.append([entry(1)])
    text = msgspec.json.encode({**msgspec.to_builtins(entry(2)), "weather": "rain"})
    with ledger.path.open("ab") as file:
        file.write(b"%08x %s\n" % (module.zlib.crc32(text), text))
    assert ledger.load() == [entry(1), entry(2)]


def test_the_file_stays_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    limit = 20_000
    ledger = Ledger(tmp_path / "history.jsonl", limit=limit, entries=40)
    for number in range(300):
        ledger.append([entry(number), entry(number, result=Result.PROTECTED)])
        assert ledger.path.stat().st_size <= limit
        newest = ledger.load()
        assert newest[-1] == entry(number, result=Result.PROTECTED) and len(newest) <= 40
    assert len(newest) > 5 and ledger.damaged == 0
    assert [one.id for one in newest] == [f"web1-{number}" for number in range(300 - len(newest), 300)]


def test_a_file_that_is_far_too_long_is_not_read_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "history.jsonl", limit=20_000)
    with ledger.path.open("wb") as file:
        file.truncate(10 << 30)  # a hole
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + module._line(entry(7)))
    assert ledger.load() == [entry(7)]
    ledger.append([entry(8)])
    assert ledger.load() == [entry(7), entry(8)] and ledger.path.stat().st_size <= 20_000


def test_a_crash_while_it_is_written_anew_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "history.jsonl", limit=3000)
    ledger.append([entry(1)])
    before = ledger.load()

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "replace", crash)
    with pytest.raises(OSError, match="No space"):
        for number in range(2, 100):
            ledger.append([entry(number)])
            before = ledger.load()
    assert ledger.load() == before
