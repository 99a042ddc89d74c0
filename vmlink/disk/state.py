# SPDX-License-Identifier: GPL-2.0-or-later
"""What the images of a VM on this host hold, as it is remembered on disk. Pure.

    HALF --whole--> REPLICA --start, take over--> ACTIVE --rest--> RESTING --start--> ACTIVE
                       ^                            |
                       +--------handed over---------+           any of them --copy--> HALF

Invariant (whole images only): no VM starts from an image that is not whole: half of a copy, or left behind when the
disk below it failed. What is about to be written over is remembered as not whole first.

Invariant (common point): two copies of a disk differ at most in blocks that one side or the other lists as written
since a point that both remember. Who cannot be sure of its list has no point, and all is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from vmlink.errors import VmError


class Standing(StrEnum):
    """What this host's images are to the VM."""

    HALF = "half"  # a first copy writes over them
    REPLICA = "replica"  # exactly the state at `point`, and what the journal's log adds
    ACTIVE = "active"  # the VM here writes to them; found at a start: nobody knows what it wrote last
    RESTING = "resting"  # the VM ended here in good order; what it wrote since `point` is listed


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A moment that two copies had in common: an epoch after the SYNC of this number, which was drawn by lot."""

    generation: int
    epoch: int


class Image(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One disk's image. `identity` tells it from one that has replaced it; `size` in bytes, as the guest sees it.

    `to`: the size that it is being given, remembered before it has it; 0: none. `beyond`: bytes at its end that came
    after the point, of which nothing is known: all of an image that is new.
    """

    name: str
    size: int
    identity: str
    whole: bool = True
    to: int = 0
    beyond: int = 0


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See the module. `term`: of the reign that wrote last. `kept`: bytes of the list of written blocks of each disk,
    and `digest` of them all (RESTING)."""

    standing: Standing
    images: tuple[Image, ...]
    point: Point | None = None
    term: int = 0
    kept: tuple[int, ...] = ()
    digest: str = ""

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def decode(content: bytes) -> State:
    """What `encode` made. Raises VmError."""
    try:
        return msgspec.json.decode(content, type=State)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VmError(f"the state of the disks cannot be understood: {error}",
                      "was it written by a newer release of Holdfast?") from error


def found_again(state: State | None, images: Sequence[Image]) -> State:
    """What still holds of `state` now that these images are there.

    One that is new or was replaced is the operator's: it counts as whole. With one that was replaced they have no point
    in common with anything any more; what came later, on purpose, is told apart from what they had then.
    """
    if state is None:
        return State(Standing.ACTIVE, tuple(images))
    before = {image.name: image for image in state.images}
    now = tuple(_known(before[image.name], image) if image.name in before else late(image) for image in images)
    if now == state.images:
        return state
    keeps = state.standing in (Standing.REPLICA, Standing.HALF) and None not in now
    standing = Standing.ACTIVE if state.standing is Standing.RESTING else state.standing
    return State(standing, tuple(known or image for known, image in zip(now, images, strict=True)),
                 state.point if keeps else None, state.term)


def _known(old: Image, now: Image) -> Image | None:
    """What is known of the image that was `old`; None if another took its place."""
    if old.identity != now.identity or now.size not in (old.size, old.to):
        return None
    return msgspec.structs.replace(old, size=now.size, to=0, beyond=old.beyond + max(0, now.size - old.size))


def late(image: Image) -> Image:
    """One that came after the point."""
    return msgspec.structs.replace(image, beyond=image.size)


def growing(state: State, disk: str, size: int) -> State:
    """This disk's image is about to become `size` bytes long."""
    return _but(state, disk, to=size)


def grown(state: State, disk: str, size: int) -> State:
    """It has this size; the VM that runs on it knows what that means."""
    return _but(state, disk, to=0, size=size)


def added(state: State, image: Image, names: Sequence[str]) -> State:
    """The VM that runs here has one disk more, which makes them these, in this order."""
    images = (*removed(state, image.name).images, image)
    return msgspec.structs.replace(state, images=tuple(sorted(images, key=lambda each: names.index(each.name))))


def removed(state: State, disk: str) -> State:
    """It has this one no longer."""
    return msgspec.structs.replace(state, images=tuple(image for image in state.images if image.name != disk))


def _but(state: State, disk: str, **changes: object) -> State:
    return msgspec.structs.replace(state, images=tuple(
        msgspec.structs.replace(image, **changes) if image.name == disk else image for image in state.images))


def started(state: State, term: int) -> State:
    """The VM is about to start afresh from these images. Raises VmError when one of them is not whole."""
    torn = [image.name for image in state.images if not image.whole]
    if torn:
        raise VmError(f"the image of disk {', '.join(torn)} on this host is not whole: "
                      + ("the copy from the other host had not ended" if state.standing is Standing.HALF else
                         "the disk below it failed while the VM went on with the other host's"),
                      "let the other host start the VM: holdfast fence, with the name of this one; or restore the "
                      "image from a backup under another file name")
    return msgspec.structs.replace(_active(state), term=term)


def taken_over(state: State, term: int) -> State:
    """The VM is about to go on here from a whole replica."""
    if state.standing is not Standing.REPLICA:
        raise VmError(f"the disks here are no replica but {state.standing}", "this is a defect: please report it")
    return msgspec.structs.replace(_active(state), term=term)


def _active(state: State) -> State:
    return msgspec.structs.replace(state, standing=Standing.ACTIVE, point=None, kept=(), digest="",
                                   images=_all(state, beyond=0))


def failed(state: State, disk: str) -> State:
    """This disk's image misses what the VM writes from now on."""
    return _but(state, disk, whole=False)


def rested(state: State, point: Point | None, kept: tuple[int, ...], digest: str) -> State:
    """The VM ended here in good order; the lists of what it wrote since `point` are kept."""
    return msgspec.structs.replace(state, standing=Standing.RESTING, point=point, kept=kept, digest=digest)


def handed_over(state: State, point: Point) -> State:
    """The VM was paused for good at this point, and all of it is on the other host."""
    whole = all(image.whole for image in state.images)
    return msgspec.structs.replace(state, standing=Standing.REPLICA, point=point) if whole else state


def copied_over(state: State, point: Point | None, term: int) -> State:
    """A copy is about to write over these images. `point`: what was not written since is the same on both sides."""
    return State(Standing.HALF, _all(state, whole=False), point, term)


def made_whole(state: State, point: Point) -> State:
    """The images are exactly those of this point, flushed."""
    return State(Standing.REPLICA, _all(state, whole=True, beyond=0), point, state.term)


def replayed(state: State, point: Point) -> State:
    """They are, but for what came later."""
    return State(Standing.REPLICA, _all(state, whole=True), point, state.term)


def _all(state: State, **changes: object) -> tuple[Image, ...]:
    return tuple(msgspec.structs.replace(image, **changes) for image in state.images)


def common(state: State) -> Point | None:
    """The last moment of the other host's disks that these images are known to have had."""
    return None if state.standing is Standing.ACTIVE else state.point
