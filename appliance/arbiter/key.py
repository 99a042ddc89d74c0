# SPDX-License-Identifier: GPL-2.0-or-later
"""The key that a pair and its witness share: a file of at least 16 bytes that only its owner can read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from appliance.errors import NoPermission, Unavailable

SHORTEST, LONGEST = 16, 4096
"""Bytes of a key."""
HOW = "holdfast witness --make-key FILE makes one; both hosts and the witness need the same"


def load(path: Path) -> bytes:
    """The key in `path`, without white space around it. Raises Unavailable or NoPermission."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(LONGEST + 1).strip()
    except PermissionError:
        raise NoPermission(f"the key {path} is not readable", "run as its owner") from None
    except OSError as error:
        raise Unavailable(f"the key {path} cannot be read: {error.strerror}", HOW) from None
    if mode & (stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH):
        raise Unavailable(f"the key {path} is readable for others", f"chmod 600 {path}")
    if not SHORTEST <= len(key) <= LONGEST:
        raise Unavailable(f"the key {path} has {len(key)} bytes, not {SHORTEST} to {LONGEST}", HOW)
    return key


def make(path: Path) -> None:
    """Write a new key. Raises Unavailable, also when there is a file already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise Unavailable(f"there is a file {path} already", "an existing key is not overwritten") from None
    except OSError as error:
        raise Unavailable(f"the key {path} cannot be written: {error.strerror}", "choose another place") from None
