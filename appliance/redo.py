# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host that took over writes to the shared volumes first, in a file until they have it. Blocking.

The volumes may have a part of it, and of what came later, from the host that is gone: while it is written they are
like no moment of the VM. A host that dies in it finds the file when it starts again, and begins anew.

Invariant: a file of another term than the last one is not written: another host may have run the VM since.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance import durable
from vmlink.disk.record import DiskWrites, decode_writes, encode_writes
from vmlink.errors import VmError
from vmlink.wire import WireError

_LENGTH = struct.Struct("<Q")
_MAGIC = b"HFREDO1\n"
_DIGEST = 32


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    term: int
    volumes: list[str]
    """Their identities."""
    sizes: list[int]
    """Bytes of each."""


class Redo:
    """The file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, term: int, volumes: Sequence[str], sizes: Sequence[int], writes: DiskWrites) -> None:
        """It is on disk when this returns. Raises VmError."""
        parts = [msgspec.json.encode(_Head(term, list(volumes), list(sizes)))]
        for number in range(len(sizes)):
            own = [write for volume, write in writes if volume == number]
            parts += [b"".join(payload) for _, payload in encode_writes(number, own)]
        content = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
        try:
            durable.replace(self.path, _MAGIC + hashlib.sha256(content).digest() + content)
        except OSError as error:
            raise VmError(f"{self.path}: {error.strerror}", "look at the disk that holds host.state_dir") from None

    def remove(self) -> None:
        """The volumes have it, or another host has gone on. Raises VmError."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise VmError(f"{self.path}: {error.strerror}", "look at the disk that holds host.state_dir") from None

    def load(self, term: int, volumes: Sequence[str]) -> DiskWrites:
        """What has to be written before the VM starts afresh under `term`; mostly nothing. Raises VmError when that is
        not certain."""
        found = self._found()
        if found is None:
            return []
        head, writes = found
        if head.volumes != list(volumes):
            raise VmError(f"{self.path} is about other volumes: {', '.join(head.volumes)}", _REMEDY)
        self._require(head, term)
        return writes

    def keep(self, term: int) -> None:
        """The VM is about to start here under `term`, and may fail to, as often as it is tried: the file is of that
        term from now on. Raises VmError as `load`."""
        found = self._found()
        if found is not None:
            head, writes = found
            self._require(head, term)
            self.save(term, head.volumes, head.sizes, writes)

    def _found(self) -> tuple[_Head, DiskWrites] | None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise VmError(f"{self.path}: {error.strerror}", "look at the disk that holds host.state_dir") from None
        try:
            return _understood(content)
        except (WireError, msgspec.MsgspecError, struct.error) as error:
            raise VmError(f"{self.path} is damaged: {error}", _REMEDY) from None

    def _require(self, head: _Head, term: int) -> None:
        if head.term < term - 1:
            raise VmError(f"{self.path} is of term {head.term}, this is {term}: another host may have run the VM since",
                          _REMEDY)


_REMEDY = "the volumes may miss what it holds; if the VM ran on the other host since, they do not: remove the file then"


def _understood(content: bytes) -> tuple[_Head, DiskWrites]:
    digest, body = content[len(_MAGIC):len(_MAGIC) + _DIGEST], content[len(_MAGIC) + _DIGEST:]
    if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        raise WireError("its checksum is wrong")
    parts, at = [], 0
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        parts.append(body[at:at + length])
        at += length
    head = msgspec.json.decode(parts[0], type=_Head)
    writes: DiskWrites = []
    for part in parts[1:]:
        number, some = decode_writes(part, head.sizes)
        writes += [(number, write) for write in some]
    return head, writes
