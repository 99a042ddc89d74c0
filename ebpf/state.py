# SPDX-License-Identifier: GPL-2.0-or-later
"""The structs of `common.h`, as memory shared with the running programs.

Every field is 64 bits wide and aligned, so that reading or writing one is a single access. A field is written
by one side only: by the program, or (those after `reserved0`) by the service.
"""

import ctypes
from ctypes import c_uint64

STAMP_PROTO = 0x88A8
STAMP_FRAMES = 16384  # the most frames that may be in flight at once: a quarter of the stamp's numbers


def number_of(stamp: int, near: int) -> int:
    """The 64-bit frame number that a 16-bit stamp is the end of: the one nearest to `near`."""
    return near + ((stamp - near + 0x8000) & 0xFFFF) - 0x8000


class GateState(ctypes.Structure):
    """Shared with the program `gate`."""

    issued_frames: int
    issued_bytes: int
    overflow_frames: int
    overflow_bytes: int
    failed_frames: int
    released_frames: int
    released_bytes: int
    limit_frames: int
    limit_bytes: int
    hold_ifindex: int
    trace: int

    _fields_ = [
        ("issued_frames", c_uint64),
        ("issued_bytes", c_uint64),
        ("overflow_frames", c_uint64),
        ("overflow_bytes", c_uint64),
        ("failed_frames", c_uint64),
        ("reserved0", c_uint64 * 3),
        ("released_frames", c_uint64),
        ("released_bytes", c_uint64),
        ("limit_frames", c_uint64),
        ("limit_bytes", c_uint64),
        ("hold_ifindex", c_uint64),
        ("trace", c_uint64),
        ("reserved1", c_uint64 * 2),
    ]


class InboundState(ctypes.Structure):
    """Shared with the program `inbound`."""

    passed_frames: int
    passed_bytes: int
    closed_frames: int
    open: int
    vm_ifindex: int
    trace: int

    _fields_ = [
        ("passed_frames", c_uint64),
        ("passed_bytes", c_uint64),
        ("closed_frames", c_uint64),
        ("reserved0", c_uint64 * 5),
        ("open", c_uint64),
        ("vm_ifindex", c_uint64),
        ("trace", c_uint64),
        ("reserved1", c_uint64 * 5),
    ]


class GuardState(ctypes.Structure):
    """Shared with the program `guard`."""

    passed_frames: int
    passed_bytes: int
    early_frames: int
    closed_frames: int
    unstamped_frames: int
    expired_frames: int
    committed: int
    term: int
    until_ns: int
    trace: int

    _fields_ = [
        ("passed_frames", c_uint64),
        ("passed_bytes", c_uint64),
        ("early_frames", c_uint64),
        ("closed_frames", c_uint64),
        ("unstamped_frames", c_uint64),
        ("expired_frames", c_uint64),
        ("reserved0", c_uint64 * 2),
        ("committed", c_uint64),
        ("term", c_uint64),
        ("until_ns", c_uint64),
        ("trace", c_uint64),
        ("reserved1", c_uint64 * 4),
    ]
