# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service says of a VM while somebody traces: where epochs end, what became of them, what it did itself.

The kernel numbers frames and knows no epochs; these notes say which numbers belong to which epoch, and what the frames
of an epoch waited for. All times are nanoseconds: CLOCK_MONOTONIC as the service says them, UNIX time in a file.
"""

from __future__ import annotations

from typing import Any

import msgspec

MONOTONIC, UNIX = "monotonic", "unix"


class _Note(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    at_ns: int
    vm: str
    host: str = ""


class Marked(_Note, frozen=True, kw_only=True, tag="marked"):
    """The VM is paused: all frames up to `number`, counted since the gate was made, belong to epochs up to `epoch`."""

    term: int
    epoch: int
    number: int


class Taken(_Note, frozen=True, kw_only=True, tag="taken"):
    """The VM runs again. The pause began at `stopped_ns` and took the three steps; the epoch is `bytes` long."""

    term: int
    epoch: int
    stopped_ns: int
    stop_ns: int
    save_ns: int
    resume_ns: int
    pages: int
    bytes: int
    frames: int


class Sent(_Note, frozen=True, kw_only=True, tag="sent"):
    """All of the epoch has been handed to the link."""

    term: int
    epoch: int


class Acked(_Note, frozen=True, kw_only=True, tag="acked"):
    """The backup has said that it has all of the epoch."""

    term: int
    epoch: int


class Released(_Note, frozen=True, kw_only=True, tag="released"):
    """All frames of epochs up to this one have been moved out."""

    term: int
    epoch: int


class Alone(_Note, frozen=True, kw_only=True, tag="alone"):
    """From frame `number` + 1 on the VM runs alone, and frames go out as they come; or no longer."""

    alone: bool
    number: int


class Dropped(_Note, frozen=True, kw_only=True, tag="dropped"):
    """The frames from number `first` to `last` that were held were thrown away."""

    first: int
    last: int
    cause: str


class Again(_Note, frozen=True, kw_only=True, tag="again"):
    """What passed the guard from `at_ns` to `until_ns` was sent by this host itself: `replayed` after a takeover, or
    `announced`. Said before it begins, with 0 for its end, and once more when it is over."""

    until_ns: int
    frames: int
    point: str


class Copied(msgspec.Struct, frozen=True):
    """The beginning of a frame, without virtio header, and its length in bytes."""

    len: int
    snap: bytes


class Copies(_Note, frozen=True, kw_only=True, tag="copies"):
    """Frames that no packet program saw: `injected` into the VM, or `discarded` at a takeover because their epoch was
    not whole."""

    point: str
    cause: str
    frames: list[Copied]
    term: int = 0
    epoch: int = 0


class Committed(_Note, frozen=True, kw_only=True, tag="committed"):
    """On the backup: the epoch is whole here, and will be part of a takeover."""

    term: int
    epoch: int


class Happened(_Note, frozen=True, kw_only=True, tag="happened"):
    """An event of the VM's journal."""

    event: str
    fields: dict[str, Any]


class End(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="kind"):
    """The last thing in a file: how many frame events there were, how many were lost, and why it ended."""

    at_ns: int
    host: str
    frames: int
    lost_frames: int
    lost_notes: int
    cause: str


Note = Marked | Taken | Sent | Acked | Released | Alone | Dropped | Again | Copies | Committed | Happened


class VmBegin(msgspec.Struct, frozen=True, kw_only=True):
    """A VM as the trace begins. `source`: what records call it. `past`: what says which frames belong to which epoch,
    in order; nothing where the VM does not run. Epochs up to `acked` are committed; up to `whole` they are part of the
    replica here."""

    vm: str
    source: int
    mac: str
    ips: list[str]
    term: int
    phase: str
    past: list[Alone | Marked]
    issued: int
    acked: int
    whole: int


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin", tag_field="kind"):
    """The first thing said. `ring`: the number of the ring of records, 0 for none. The clocks were read together;
    `boot` is the kernel's id of its boot: what shares it shares CLOCK_MONOTONIC. `netns`: inode number of the network
    namespace of the fronts."""

    schema: str
    host: str
    peer: str
    boot: str
    netns: int
    ring: int
    monotonic_ns: int
    unix_ns: int
    vms: list[VmBegin]


class Batch(msgspec.Struct, frozen=True, kw_only=True, tag="batch", tag_field="kind"):
    """Everything there is to say up to `at_ns`. `lost_frames`: records that found the ring full, since the beginning;
    `lost_notes`: notes that found the queue full."""

    at_ns: int
    notes: list[Note]
    lost_frames: int
    lost_notes: int


def offset(begin: Begin) -> int:
    """What makes UNIX time of CLOCK_MONOTONIC, in nanoseconds."""
    return begin.unix_ns - begin.monotonic_ns
