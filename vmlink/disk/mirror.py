# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host that runs a VM knows of the other's copies of its disks: since when, and where, they may differ. Pure.

Invariant (common point): outside of the lists `dirty`, and of what is under way, the other host's images, whenever they
are again offered as those of `point` or later, hold what those here hold.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmlink.disk.dirty import DirtyBlocks, Numbers, Unconfirmed
from vmlink.disk.state import Point


class Mirror:
    """`dirty`: by disk; the VM's writes are marked there as long as no record is kept of them. `point`: since when;
    None: nothing is known, everything may differ."""

    def __init__(self, dirty: Sequence[DirtyBlocks], point: Point | None) -> None:
        self.dirty, self.point = dirty, point
        self._generation = 0
        self._unconfirmed = [Unconfirmed() for _ in dirty]
        self._moving = [DirtyBlocks(blocks.size) for blocks in dirty]

    # --- a copy ---

    def agrees(self, theirs: Point | None, lists: Sequence[DirtyBlocks] | None) -> bool:
        """Do the lists say where the images that are offered differ? If so they may be compared by them alone.

        `theirs`: what those images had in common with the ones here. `lists`: where a VM there wrote since then; None
        when none did.
        """
        here = self.point
        if here is None or theirs is None or here.generation != theirs.generation:
            return False
        if lists is None:
            return theirs.epoch >= here.epoch  # what they have beyond, they have from here: it is listed here
        if theirs.epoch > here.epoch:
            return False
        for own, other in zip(self.dirty, lists, strict=True):
            own.add(other.take())
        return True

    def begin(self, generation: int) -> None:
        """A copy begins, and after it the epochs 1, 2, ... of this generation."""
        self._generation = generation
        self._unconfirmed = [Unconfirmed() for _ in self.dirty]

    def take(self) -> list[Numbers]:
        """The listed blocks of each disk, to be sent now. At a moment at which the VM has no write under way."""
        taken = [blocks.take() for blocks in self.dirty]
        for moving, numbers in zip(self._moving, taken, strict=True):
            moving.add(numbers)
        return taken

    # --- epochs ---

    def wrote(self, disk: int, epoch: int, offsets: Numbers, lengths: Numbers) -> None:
        """What the VM wrote in this epoch, which is sent."""
        self._unconfirmed[disk].note(epoch, offsets, lengths)

    def confirm(self, epoch: int) -> None:
        """The other host has all up to this epoch on disk."""
        for unconfirmed in self._unconfirmed:
            unconfirmed.confirm(epoch)
        if epoch:
            for moving in self._moving:
                moving.take()  # it has arrived

    def lost(self) -> None:
        """The other host's replica is lost, or the copy of it broke off. What the VM has written and no epoch carries
        must be in `dirty` already."""
        since = max((unconfirmed.since for unconfirmed in self._unconfirmed), default=0)
        if since:
            self.point = Point(self._generation, since)
        for blocks, moving, unconfirmed in zip(self.dirty, self._moving, self._unconfirmed, strict=True):
            unconfirmed.spill(blocks)
            blocks.add(moving.take())
        self._unconfirmed = [Unconfirmed() for _ in self.dirty]
