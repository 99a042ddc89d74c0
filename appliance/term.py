# SPDX-License-Identifier: GPL-2.0-or-later
"""Term and role of each VM on disk: written whole, fsynced, before they are acted on."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from appliance.core import Role
from appliance.errors import HoldfastError
from appliance.spoken import Term


class Reign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host remembers of one VM."""

    term: Term
    role: Role


class TermStore:
    """One small JSON file per VM in `directory`."""

    def __init__(self, directory: Path, vm: str) -> None:
        self._path = directory / f"{vm}.term.json"

    def load(self) -> Reign:
        """What was stored last; term 0 and no role when nothing was.

        Raises HoldfastError for a file that cannot be trusted.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Reign)
        except FileNotFoundError:
            return Reign(0, Role.NONE)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HoldfastError(f"{self._path}: the term cannot be read: {error}",
                                "starting with a forgotten term could make two hosts speak; restore the file, or "
                                "remove it on this host only while the other host runs the VM") from error

    def store(self, reign: Reign) -> None:
        """Replace the file atomically; returns when file and directory are on disk. Blocking. Raises OSError."""
        self._make_directory(self._path.parent)
        temporary = self._path.with_suffix(".new")
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(reign))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        self._sync(self._path.parent)

    def _make_directory(self, directory: Path) -> None:
        if directory.is_dir():
            return
        self._make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        self._sync(directory.parent)

    def _sync(self, directory: Path) -> None:
        """Have the names in `directory` on disk."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
