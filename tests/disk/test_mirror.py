# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts, their disks as lists of numbers, and everything that may befall them: a copy by lists misses nothing.

What is under test is all that decides it: Mirror, State, DirtyBlocks and Unconfirmed. A disk's content is exact, so one
block that no list names shows at once. Long walks of what happens by chance: rare orders of events are what counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from vmlink.disk import state as states
from vmlink.disk.dirty import SMALLEST, DirtyBlocks, Unconfirmed
from vmlink.disk.mirror import Mirror
from vmlink.disk.state import Image, Point, Standing, State

BLOCKS = 5
SIZE = BLOCKS * SMALLEST

class Host:
    """What one host has on disk: `content`, `state` and the lists of a VM that rested."""

    def __init__(self) -> None:
        self.content = [0] * BLOCKS
        self.state = State(Standing.ACTIVE, (Image("d", SIZE, "file 1"),))
        self.lists = [DirtyBlocks(SIZE)]
        self.epochs: dict[int, tuple[list[int], bool]] = {}
        """As a backup, by epoch: the content after it, and whether it wrote."""
        self.durable = 0

    def persisted(self, epoch: int, later: bool) -> int:
        """The epoch whose content is remembered under the number of this one, or of the last one before that wrote."""
        return epoch if later else max([each for each in self.epochs if each <= epoch and self.epochs[each][1]],
                                       default=1)


class Disk:
    """The lists of the one disk, on the host that runs the VM."""

    def __init__(self, dirty: DirtyBlocks) -> None:
        self.dirty, self.unconfirmed = dirty, Unconfirmed()


class TwoHosts:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.hosts = (Host(), Host())
        self.runs: int | None = None
        self.knows(DirtyBlocks(SIZE), None)
        self.record: set[int] | None = None
        self.flights: list[tuple[int, list[int], bool]] = []
        self.epoch = self.generation = self.value = 0
        self.by_list = self.by_all = 0

    @property
    def here(self) -> Host:
        return self.hosts[self.runs or 0]

    @property
    def there(self) -> Host:
        return self.hosts[1 - (self.runs or 0)]

    def step(self) -> None:
        """One of the things that can happen now."""
        happens: dict[Callable[[], None], int]
        if self.runs is None:
            happens = {self.starts: 1}
        elif self.record is None:
            happens = {self.vm_writes: 3, self.copies: 6, self.ends: 2}
        else:
            happens = {self.vm_writes: 6, self.epoch_ends: 5, self.backup_is_lost: 2}
            if self.flights:
                happens[self.epoch_arrives] = 6
            if self.there.epochs:
                happens |= {self.epochs_are_durable: 2, self.acknowledged: 3, self.backup_takes_over: 2}
        self.chance.choices(list(happens), list(happens.values()))[0]()

    def some(self) -> list[int]:
        return [self.chance.randrange(BLOCKS) for _ in range(self.chance.randrange(3))]

    def maybe(self) -> bool:
        return self.chance.random() < 0.5

    def knows(self, dirty: DirtyBlocks, point: Point | None) -> None:
        """What a host knows when the VM starts to run on it."""
        self.disk = Disk(dirty)
        self.mirror = Mirror([self.disk], point)

    # --- the VM ---

    def write(self, blocks: list[int]) -> None:
        for block in blocks:
            self.value += 1
            self.here.content[block] = self.value
            if self.record is not None:
                self.record.add(block)
            else:
                self.disk.dirty.mark(block * SMALLEST, 1)

    def vm_writes(self) -> None:
        self.write(self.some())

    def starts(self) -> None:
        """Afresh, on whichever host the operator likes, if its images are whole."""
        self.runs = self.chance.randrange(2)
        if not all(image.whole for image in self.here.state.images):
            self.runs = None
            return
        rested = self.here.state.standing is Standing.RESTING
        self.knows(self.here.lists[0] if rested else DirtyBlocks(SIZE), states.common(self.here.state))
        self.here.state = states.started(self.here.state, 1)

    # --- epochs ---

    def epoch_ends(self) -> None:
        assert self.record is not None
        self.epoch += 1
        if self.record:
            blocks = np.array(sorted(self.record), np.int64)
            self.disk.unconfirmed.note(self.epoch, blocks * SMALLEST, np.full(len(blocks), SMALLEST))
        self.flights.append((self.epoch, list(self.here.content), bool(self.record)))
        self.record = set()

    def epoch_arrives(self) -> None:
        epoch, content, wrote = self.flights.pop(0)
        there = self.there
        there.content = list(content)
        there.epochs[epoch] = list(content), wrote or epoch == 1
        if epoch == 1:
            there.state = states.made_whole(there.state, Point(self.generation, 1))
            there.durable = 1

    def epochs_are_durable(self) -> None:
        self.there.durable = max(self.there.epochs)

    def acknowledged(self) -> None:
        self.mirror.confirm(self.there.durable)

    # --- losses ---

    def stop_recording(self) -> None:
        if self.record is not None:
            for block in self.record:
                self.disk.dirty.mark(block * SMALLEST, 1)
            self.record = None
            self.flights.clear()
            self.mirror.lost()

    def backup_is_lost(self) -> None:
        """With its memory, or only the link: what was not durable may be gone with it."""
        there, lost, later, crash = self.there, self.chance.randrange(4), self.maybe(), self.maybe()
        if there.epochs:
            left = [epoch for epoch in sorted(there.epochs) if epoch >= there.durable]
            epoch = left[max(0, len(left) - 1 - lost)] if crash else left[-1]
            there.content = list(there.epochs[epoch][0])
            there.state = states.made_whole(there.state, Point(self.generation, there.persisted(epoch, later)))
        self.stop_recording()

    def backup_takes_over(self) -> None:
        how, later = self.chance.choice(["crash", "stopped", "handed over"]), self.maybe()
        if how == "handed over":
            self.epoch_ends()
            while self.flights:
                self.epoch_arrives()
        here, there = self.here, self.there
        epoch = max(there.epochs)
        there.state = states.made_whole(there.state, Point(self.generation, there.persisted(epoch, later)))
        if how == "handed over":
            here.state = states.handed_over(here.state, Point(self.generation, self.epoch))
        self.stop_recording()
        if how == "stopped":
            self.rest()
        point = there.state.point
        there.state = states.taken_over(there.state, 1)
        self.runs = 1 - (self.runs or 0)
        self.knows(DirtyBlocks(SIZE), point)

    def rest(self) -> None:
        if self.mirror.point is not None:
            self.here.state = states.rested(self.here.state, self.mirror.point, (1,), "")
            self.here.lists = [self.disk.dirty]

    def ends(self) -> None:
        """The VM ends where it runs, in good order or not."""
        if self.maybe():
            self.rest()
        self.runs = None

    # --- copies ---

    def copies(self) -> None:
        here, there, mirror = self.here, self.there, self.mirror
        meanwhile = self.some()
        lists = there.lists if there.state.standing is Standing.RESTING else None
        listed = mirror.agrees(states.common(there.state), lists)
        self.generation += 1
        mirror.begin(self.generation)
        there.state = states.copied_over(there.state, mirror.point if listed else None, 1)
        there.epochs, there.durable = {}, 0
        [taken] = mirror.take()
        blocks = taken.tolist() if listed else list(range(BLOCKS))
        if self.chance.random() < 0.3:
            for block in blocks[:self.chance.randrange(BLOCKS + 1)]:
                there.content[block] = here.content[block]
            self.write(meanwhile)
            mirror.lost()
            return
        for block in blocks:
            there.content[block] = here.content[block]
        self.write(meanwhile)
        [taken] = mirror.take()
        self.record, self.epoch, self.flights = set(), 0, []
        for block in taken.tolist():
            there.content[block] = here.content[block]
        if listed:
            self.by_list += 1
        else:
            self.by_all += 1
        assert there.content == here.content, f"missed by {'lists' if listed else 'everything'}"


@pytest.mark.parametrize("seed", range(8))
def test_a_copy_by_lists_misses_nothing(seed: int) -> None:
    chance = random.Random(seed)
    by_list = 0
    for _ in range(300):
        hosts = TwoHosts(chance)
        for _ in range(100):
            hosts.step()
            for host in hosts.hosts:
                assert host.state.standing is not Standing.HALF or not any(image.whole for image in host.state.images)
        by_list += hosts.by_list
    assert by_list > 100, "the lists are used"


@pytest.mark.parametrize(("here", "theirs", "ran", "agreed"), [
    (Point(1, 5), Point(1, 5), False, True),
    (Point(1, 5), Point(1, 7), False, True),  # it has more, from here: that is listed here
    (Point(1, 5), Point(1, 4), False, False),  # it lost what it had called durable
    (Point(1, 5), Point(1, 4), True, True),  # what it wrote since is in its own lists
    (Point(1, 5), Point(1, 6), True, False),
    (Point(1, 5), Point(2, 5), False, False),
    (Point(1, 5), Point(2, 5), True, False),
    (None, Point(1, 5), False, False),
    (Point(1, 5), None, False, False),
    (None, None, True, False),
])
def test_which_may_be_compared_by_lists(here: Point | None, theirs: Point | None, ran: bool, agreed: bool) -> None:
    own, other = Disk(DirtyBlocks(SIZE)), DirtyBlocks(SIZE)
    own.dirty.mark(0, 1)
    other.mark(SMALLEST, 1)
    assert Mirror([own], here).agrees(theirs, [other] if ran else None) is agreed
    assert own.dirty.take().tolist() == ([0, 1] if agreed and ran else [0])
