# SPDX-License-Identifier: GPL-2.0-or-later
"""Term and role of each VM on disk: written whole, fsynced, before they are acted on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance import durable
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
        durable.replace(self._path, msgspec.json.encode(reign))
