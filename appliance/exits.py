# SPDX-License-Identifier: GPL-2.0-or-later
"""Exit codes: the one table that every Holdfast command uses."""

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit code means; 64 to 78 are sysexits.h's, 107 Pacemaker's, 124 that of timeout(1)."""

    OK = 0
    DEGRADED = 1
    FAILED = 2
    UNREACHABLE = 3
    USAGE = 64
    NO_PERMISSION = 77
    CONFIG = 78
    UNSAFE = 107
    TIMEOUT = 124


MEANING = {
    Exit.OK: "protected, or done",
    Exit.DEGRADED: "degraded: a VM has no replica now; or what was asked could not be done",
    Exit.FAILED: "failed or fenced: a VM does not run on this host and cannot be taken over by it",
    Exit.UNREACHABLE: "the service does not answer on its control socket",
    Exit.USAGE: "the command line is wrong",
    Exit.NO_PERMISSION: "the caller lacks a privilege",
    Exit.CONFIG: "the configuration is wrong",
    Exit.UNSAFE: "refused: it is unsafe, and neither a person confirmed it nor --yes was given",
    Exit.TIMEOUT: "what was waited for did not happen in time",
}
