# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of a witness on its disk: one small file for each VM of each pair. Blocking."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from appliance import durable
from appliance.arbiter.datagram import Name, Version
from appliance.arbiter.grants import Record
from appliance.errors import HoldfastError, NoPermission, Unavailable

MOST = 4096
"""Records that a witness keeps; beyond it new VMs are refused."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds."""

    pair: Name
    vm: Name
    version: Version
    record: Record


EMPTY = (0, Record())


class Shelf:
    """Everything in memory, and on disk before it is in memory. One witness at a time uses `directory`."""

    def __init__(self, directory: Path) -> None:
        """Read what is there. Raises HoldfastError for what cannot be used or trusted."""
        self._directory = directory
        self._records: dict[tuple[str, str], tuple[int, Record]] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in sorted(directory.glob("*/*.json")):
                self._load(path)
        except BlockingIOError:
            hint = "stop it, or give this one another --state-dir"
            raise Unavailable(f"another witness uses {directory}", hint) from None
        except PermissionError as error:
            raise NoPermission(f"{directory}: {error.strerror}", "run as the owner of the directory") from None
        except OSError as error:
            raise Unavailable(f"{directory}: {error.strerror}", "choose another --state-dir") from None

    def _load(self, path: Path) -> None:
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=Kept)
            if self._path(kept.pair, kept.vm) != path:
                raise ValueError(f"it is about VM {kept.vm} of {kept.pair}")
        except (ValueError, RecursionError) as error:
            raise HoldfastError(f"{path}: the grant cannot be read: {error}",
                                "a forgotten grant could make two hosts speak: restore the file, or remove it while "
                                "both hosts of the pair see each other") from None
        self._records[kept.pair, kept.vm] = kept.version, kept.record

    def _path(self, pair: str, vm: str) -> Path:
        return self._directory / pair / f"{vm}.json"

    def __len__(self) -> int:
        return len(self._records)

    def get(self, pair: str, vm: str) -> tuple[int, Record]:
        return self._records.get((pair, vm), EMPTY)

    def put(self, pair: str, vm: str, version: int, record: Record) -> str:
        """Replace the record of this version; returns when it is on disk. Returns why not, or nothing."""
        present, before = self.get(pair, vm)
        if version != present:
            return "it is another version by now"
        if record.term < before.term:
            return f"term {record.term} is below {before.term}"
        if not present and len(self) >= MOST:
            return f"this witness keeps {MOST} records already"
        try:
            durable.replace(self._path(pair, vm), msgspec.json.encode(Kept(pair, vm, version + 1, record)))
        except OSError as error:
            return f"the grant cannot be written: {error.strerror}"
        self._records[pair, vm] = version + 1, record
        return ""

    def close(self) -> None:
        os.close(self._lock)
