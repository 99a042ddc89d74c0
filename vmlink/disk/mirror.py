# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host that runs a VM knows of the other's copies of its disks: since when, and where, they may differ. Pure.

Invariant (common point): outside of the lists `dirty`, and of what is under way, the other host's images, whenever they
are again offered as those of `point` or later, hold what those here hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from vmlink.disk.dirty import DirtyBlocks, Numbers, Unconfirmed
from vmlink.disk.state import Point


class Place(Protocol):
    """What is listed of one disk: `dirty` while no record is kept of the VM's writes, `unconfirmed` what was sent."""

    @property
    def dirty(self) -> DirtyBlocks: ...
    @property
    def unconfirmed(self) -> Unconfirmed: ...


class Mirror:
    """`disks` has the lists, which are filled elsewhere. `point`: since when; None: nothing is known, everything may
    differ."""

    def __init__(self, disks: Iterable[Place], point: Point | None) -> None:
        self.point = point
        self._generation = 0
        self.of(disks)

    def of(self, disks: Iterable[Place]) -> None:
        """The disks are these from now on, with their sizes. Not between a copy's begin and `lost`."""
        self._disks = list(disks)
        self._moving = [DirtyBlocks(disk.dirty.size) for disk in self._disks]

    # --- a copy ---

    def agrees(self, theirs: Point | None, lists: Sequence[DirtyBlocks] | None, beyond: Sequence[int] = ()) -> bool:
        """Do the lists say where the images that are offered differ? If so they may be compared by them alone.

        `theirs`: what those images had in common with the ones here. `lists`: where a VM there wrote since then; None
        when none did. `beyond`: how many bytes at the end of each came to those images later; none if it is empty.
        """
        here = self.point
        if here is None or theirs is None or here.generation != theirs.generation:
            return False
        # A replica may be of a later epoch: what it has more, it has from here, and it is listed here.
        if theirs.epoch < here.epoch if lists is None else theirs.epoch > here.epoch:
            return False
        for disk, other in zip(self._disks, lists or (), strict=bool(lists)):
            disk.dirty.add(other.take())
        for disk, late in zip(self._disks, beyond, strict=bool(beyond)):
            disk.dirty.mark(disk.dirty.size - late, late)
        return True

    def begin(self, generation: int) -> None:
        """A copy begins, and after it the epochs 1, 2, ... of this generation."""
        self._generation = generation
        for disk in self._disks:
            disk.unconfirmed.begin()

    def take(self) -> list[Numbers]:
        """The listed blocks of each disk, to be sent now. At a moment at which the VM has no write under way."""
        taken = [disk.dirty.take() for disk in self._disks]
        for moving, numbers in zip(self._moving, taken, strict=True):
            moving.add(numbers)
        return taken

    # --- epochs ---

    def confirm(self, epoch: int) -> None:
        """The other host has all up to this epoch on disk."""
        for disk in self._disks:
            disk.unconfirmed.confirm(epoch)
        if epoch:
            for moving in self._moving:
                moving.take()  # it has arrived

    def at(self, epoch: int) -> Point:
        """The point that the images of both hosts will have in common when this epoch is the last."""
        return Point(self._generation, epoch)

    def lost(self) -> None:
        """The other host's replica is lost, or the copy of it broke off. What the VM has written and no epoch carries
        must be in `dirty` already. Idempotent."""
        since = max((disk.unconfirmed.since for disk in self._disks), default=0)
        if since:
            self.point = self.at(since)
        for disk, moving in zip(self._disks, self._moving, strict=True):
            disk.unconfirmed.spill(disk.dirty)
            disk.unconfirmed.begin()
            disk.dirty.add(moving.take())
