# SPDX-License-Identifier: GPL-2.0-or-later
"""Exit codes: the one table that every Holdfast command uses."""

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit code means; 64-78 are those of sysexits.h, 124 is that of timeout(1)."""

    OK = 0  # done; for `status`: every VM is protected
    DEGRADED = 1  # a VM runs without a replica, or the command failed for no better reason
    FAILED = 2  # a VM does not run, or its host is fenced
    UNREACHABLE = 3  # the service does not answer on its control socket
    USAGE = 64  # the command line is wrong
    BAD_DATA = 65  # input or a reply cannot be understood
    UNAVAILABLE = 69  # something that is needed is missing or refuses
    NO_PERMISSION = 77
    CONFIG = 78
    UNSAFE = 107  # refused: it could lose state or make two speakers
    TIMEOUT = 124
