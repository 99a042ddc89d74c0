# SPDX-License-Identifier: GPL-2.0-or-later
"""The images of one VM on this host: what they hold, remembered before it changes, and made whole after a crash."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from vmlink.disk import state as st
from vmlink.disk.dirty import DirtyBlocks
from vmlink.disk.journal import LOG, Journal
from vmlink.disk.offer import Offer
from vmlink.disk.record import Write
from vmlink.disk.spec import DiskSpec
from vmlink.disk.state import Image, Point, Standing, State
from vmlink.disk.store import LOOK_FROM, Store
from vmlink.errors import VmError


class Images:
    """Opened once for the life of the service: until `close` no other can work with them.

    Blocking, for one thread at a time. Everything raises VmError when the journal or an image cannot be used.
    """

    def __init__(self, disks: Sequence[DiskSpec], path: Path, room: int = LOG) -> None:
        found = tuple(Image(disk.name, disk.look(), _identity(disk.path)) for disk in disks)
        self.journal = Journal(path, room)
        try:
            before = None if self.journal.state is None else st.decode(self.journal.state)
            self.state = st.found_again(before, found)
            self._places = _places(before, self.state)
            self.pending = before is not None and before.standing is Standing.REPLICA and self._has_log()
        except BaseException:
            self.journal.close()
            raise

    def close(self) -> None:
        self.journal.close()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each disk."""
        return tuple(image.size for image in self.state.images)

    def set(self, state: State) -> None:
        """Remember `state`; it is on disk when this returns, and the log is empty."""
        self.journal.set_state(state.encode())
        self.state = state

    def fail(self, disk: str) -> None:
        """Remember, before it comes about, that this disk's image will not have what the VM writes from now on."""
        self.set(st.failed(self.state, disk))

    # --- disks that come, go and grow ---

    def growing(self, disk: str, size: int) -> None:
        """Remember, before it comes about, that this disk's image is to have `size` bytes. Not while epochs are
        pending."""
        self.set(st.growing(self.state, disk, size))

    def grown(self, disk: str, size: int) -> None:
        """The VM that runs here has a disk of this size now."""
        self.set(st.grown(self.state, disk, size))

    def add(self, disk: DiskSpec, size: int, names: Sequence[str]) -> None:
        """The VM that runs here is to have this disk, and so those of these names."""
        self.set(st.added(self.state, Image(disk.name, size, _identity(disk.path)), names))

    def remove(self, disk: str) -> None:
        """The VM that runs here has lost this disk."""
        self.set(st.removed(self.state, disk))

    # --- after a crash ---

    def _has_log(self) -> bool:
        return next(self.journal.groups(), None) is not None

    def replay(self, stores: Sequence[Store]) -> None:
        """Bring what the log holds into the images: they are the last epoch that was in it then. Idempotent."""
        if not self.pending:
            return
        point = self.state.point
        for group in self.journal.groups():
            write_all(stores, [(self._places[disk], write) for disk, write in group.writes
                               if self._places.get(disk) is not None])
            point = point and Point(point.generation, group.epoch)
        for store in stores:
            store.flush()
        self.set(st.replayed(self.state, point) if point else self.state)
        self.pending = False

    # --- from role to role ---

    def start(self, term: int) -> tuple[Point | None, list[DirtyBlocks]]:
        """The VM is about to start afresh: the point since which its writes are known, and the lists of them."""
        if self.pending:
            raise VmError("epochs of the journal are not in the images yet", "this is a defect: please report it")
        lists = self.lists()
        state = st.started(self.state, term)
        point = st.common(self.state) if lists is not None else None
        self.set(state)
        return point, lists or [DirtyBlocks(size) for size in self.sizes]

    def offered(self) -> Offer:
        """What these images are to a primary that is about to copy its own over them."""
        if self.state.standing is not Standing.RESTING:
            beyond = tuple(image.beyond for image in self.state.images)
            return Offer(st.common(self.state), None, beyond if any(beyond) else ())
        lists = self.lists()
        return Offer(self.state.point if lists is not None else None, lists)

    def lists(self) -> list[DirtyBlocks] | None:
        """What the VM here wrote since the common point, by disk; None when nobody knows."""
        state = self.state
        if state.standing is not Standing.RESTING:
            lists = [DirtyBlocks(size) for size in self.sizes]
            for late, image in zip(lists, state.images, strict=True):
                late.mark(image.size - image.beyond, image.beyond)
            return lists
        content = self.journal.kept(sum(state.kept))
        if _digest(content) != state.digest:
            return None
        lists, at = list[DirtyBlocks](), 0
        for size, length in zip(self.sizes, state.kept, strict=True):
            lists.append(DirtyBlocks.decode(size, content[at:at + length]))
            at += length
        return lists

    def rest(self, point: Point | None, lists: Sequence[DirtyBlocks]) -> None:
        """The VM has ended in good order, everything drained: keep where it wrote since `point`."""
        whole = all(image.whole for image in self.state.images)
        if self.state.standing is not Standing.ACTIVE or point is None or not whole:
            return
        parts = [blocks.encode() for blocks in lists]
        content = b"".join(parts)
        self.journal.keep(content)
        self.set(st.rested(self.state, point, tuple(map(len, parts)), _digest(content)))


def write_all(stores: Sequence[Store], writes: Sequence[tuple[int, Write]],
              passing: Callable[[], None] = lambda: None, look_from: int = LOOK_FROM) -> None:
    """Perform writes that do not overlap, by disk. `passing` is called when half of them are under way.
    `look_from`: see Store.needed."""
    half = len(writes) // 2
    count = 0

    def counted(write: Write) -> Write:
        nonlocal count
        count += 1
        if count == half + 1:
            passing()
        return write

    for disk, store in enumerate(stores):
        own = store.needed((write for index, write in writes if index == disk), look_from)
        if own:
            store.write(map(counted, own))


def _places(before: State | None, now: State) -> dict[int, int]:
    """Where the disks of the log's records are now, by their number then; those that were replaced are not there."""
    if before is None:
        return {}
    at = {image.name: number for number, image in enumerate(now.images)}
    return {number: at[image.name] for number, image in enumerate(before.images)
            if image.name in at and now.images[at[image.name]].identity == image.identity
            and now.images[at[image.name]].size in (image.size, image.to)}


def _identity(path: Path) -> str:
    """Tells an image from another that took its place: a file has a number of its own."""
    facts = os.stat(path)
    return f"file {facts.st_ino}" if stat.S_ISREG(facts.st_mode) else "device"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
