# SPDX-License-Identifier: GPL-2.0-or-later
"""The history on disk: one line an entry, appended, each with a checksum; whatever is torn or rotten is skipped and
counted. Blocking.

    1a2b3c4d {"id": "web1-1795426210.830358", "vm": "web1", ...}

The checksum is the CRC-32 of the rest of the line, without the space and the newline. An entry that comes again
replaces the earlier one. When the file outgrows `limit` bytes it is written anew with the newest entries alone.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from appliance import durable
from appliance.history.entry import Entry

ENTRIES = 1000
"""That are kept."""
LIMIT = 2 << 20
"""Bytes."""
LINE = 16 << 10
"""Bytes of one line; a longer one is none of ours."""


class Ledger:
    """One file. Not to be used by two threads at once."""

    def __init__(self, path: Path, limit: int = LIMIT, entries: int = ENTRIES) -> None:
        self.path, self._limit, self._entries = path, limit, entries
        self.damaged = 0
        """Lines that could not be read."""

    def load(self) -> list[Entry]:
        """What is remembered, oldest first. Raises OSError."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 2 * self._limit))  # more was never written by us
                content = file.read(2 * self._limit)
        except FileNotFoundError:
            return []
        found: dict[str, Entry] = {}
        self.damaged = 0
        for line in content.split(b"\n"):
            entry = _read(line)
            if entry is not None:
                found.pop(entry.id, None)
                found[entry.id] = entry
            elif line:
                self.damaged += 1
        return sorted(found.values(), key=lambda entry: entry.detected_at)[-self._entries:]

    def append(self, entries: Iterable[Entry]) -> None:
        """Have them on disk when this returns. Raises OSError; what was there before is there still."""
        content = b"".join(map(_line, entries))
        if not self.path.exists():
            durable.replace(self.path, content)
            return
        with self.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size + len(content) <= self._limit:
                file.seek(max(0, size - 1))
                torn = size > 0 and file.read(1) != b"\n"  # a write that a crash cut off
                file.seek(0, os.SEEK_END)
                file.write(b"\n" + content if torn else content)
                file.flush()
                os.fsync(file.fileno())
                return
        self._rewrite(content)

    def _rewrite(self, more: bytes) -> None:
        """The newest entries, half of what there is room for: the next time is long after."""
        kept: list[bytes] = [line + b"\n" for line in more.split(b"\n") if line]
        size = len(more)
        for entry in reversed(self.load()):
            line = _line(entry)
            size += len(line)
            if size > self._limit // 2:
                break
            kept.insert(0, line)
        durable.replace(self.path, b"".join(kept))


def _line(entry: Entry) -> bytes:
    text = msgspec.json.encode(entry)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read(line: bytes) -> Entry | None:
    checksum, _, text = line.partition(b" ")
    try:
        if len(line) > LINE or len(checksum) != 8 or int(checksum, 16) != zlib.crc32(text):
            return None
        return msgspec.json.decode(text, type=Entry)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None
