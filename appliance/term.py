# SPDX-License-Identifier: GPL-2.0-or-later
"""Term and role of each VM on disk: written whole, fsynced, before they are acted on."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from appliance.core import Role
from appliance.errors import HoldfastError


class Reign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host remembers of one VM."""

    term: int = 0
    role: Role = Role.NONE


class TermStore:
    """One small JSON file per VM in `directory`."""

    def __init__(self, directory: Path, vm: str) -> None:
        self._path = directory / f"{vm}.term.json"

    def load(self) -> Reign:
        """What was stored last; a fresh Reign when nothing was. Raises HoldfastError for a file it cannot trust."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Reign)
        except FileNotFoundError:
            return Reign()
        except (OSError, msgspec.DecodeError) as error:
            raise HoldfastError(f"{self._path}: the term cannot be read: {error}",
                                "starting with a forgotten term could make two hosts speak; restore the file, or "
                                "remove it on this host only while the other host runs the VM") from error

    def store(self, reign: Reign) -> None:
        """Replace the file atomically; returns when file and directory are on disk. Blocking. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(reign))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
