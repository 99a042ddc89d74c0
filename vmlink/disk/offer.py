# SPDX-License-Identifier: GPL-2.0-or-later
"""What a backup says of its images before a copy, and what it is told then.

DISK_STATE payload: u32 length (little-endian) | that much JSON | the lists of written blocks, one after the other.
DISK_BEGIN payload: JSON.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from vmlink.disk.dirty import DirtyBlocks
from vmlink.disk.state import Point
from vmlink.errors import VmError
from vmlink.wire import Buffer, WireError

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_LENGTH = struct.Struct("<I")
_LIMIT = 64 << 10
"""Bytes of JSON."""


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    generation: Natural = 0
    epoch: Natural = 0
    lists: tuple[Natural, ...] | None = None
    beyond: tuple[Natural, ...] = ()


@dataclass(frozen=True)
class Offer:
    """DISK_STATE: the last moment that the backup's images had in common with the primary's, if any; and by disk where
    a VM there wrote since then, None when none did, and how many bytes at its end the image got later (() for none)."""

    point: Point | None
    lists: Sequence[DirtyBlocks] | None = None
    beyond: tuple[int, ...] = ()

    def encode(self) -> tuple[Buffer, ...]:
        parts = [blocks.encode() for blocks in self.lists or ()]
        point = self.point or Point(0, 0)
        told = msgspec.json.encode(_Told(point.generation, point.epoch,
                                         None if self.lists is None else tuple(map(len, parts)), self.beyond))
        return _LENGTH.pack(len(told)), told, *parts

    @classmethod
    def decode(cls, payload: Buffer, sizes: Sequence[int]) -> Offer:
        """Raises WireError for what is not said of these disks."""
        view = memoryview(payload).cast("B")
        if len(view) < _LENGTH.size:
            raise WireError("a state of disks without a length")
        [length] = _LENGTH.unpack_from(view)
        told = _understood(view[_LENGTH.size:_LENGTH.size + length], _Told)
        point = Point(told.generation, told.epoch) if told.generation else None
        at = _LENGTH.size + length
        if told.beyond and (len(told.beyond) != len(sizes) or any(map(operator.gt, told.beyond, sizes))):
            raise WireError("more of a disk came later than there is of it")
        if told.lists is None:
            if at != len(view):
                raise WireError("a state of disks with something behind it")
            return cls(point, None, told.beyond)
        if len(told.lists) != len(sizes) or at + sum(told.lists) != len(view):
            raise WireError(f"{len(told.lists)} lists of written blocks for {len(sizes)} disks")
        lists = []
        for size, each in zip(sizes, told.lists, strict=True):
            try:
                lists.append(DirtyBlocks.decode(size, bytes(view[at:at + each])))
            except VmError as error:
                raise WireError(error.message) from None
            at += each
        return cls(point, lists, told.beyond)


class Begin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """DISK_BEGIN: a copy begins, and after it the epochs of `generation`. Nothing will come of what was not written
    since the point that is told; without one everything is compared."""

    generation: Natural
    since: Point | None = None

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, payload: Buffer) -> Begin:
        """Raises WireError."""
        return _understood(payload, cls)


T = TypeVar("T")


def _understood(payload: Buffer, kind: type[T]) -> T:
    if len(payload) > _LIMIT:
        raise WireError(f"{len(payload)} bytes said of disks; at most {_LIMIT} are legal")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"what is said of disks cannot be understood: {error}") from None
