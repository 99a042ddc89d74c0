# SPDX-License-Identifier: GPL-2.0-or-later
"""The faults of disks in a campaign. The lab's disks fail as the kernel lets them fail (appliance.lab.fallible)."""

from __future__ import annotations

from appliance.lab.campaign_faults import AWAY_S, BLIND_S, Play, a_link, backup_again

IN_COPY_S = (0.0, 0.6)  # from the moment that a returned host is a backup: about as long as its copy takes
BEFORE_CRASH_S = (0.0, 1.0)
FLUSHES = 2  # in a copy, at least, of a VM whose clients write


def storage_breaks(kind: str, play: Play) -> None:
    """The VM does not see it, or waits. A primary's is moved to the other host, which has it."""
    host = play.somebody(0.6)
    play.fault(kind, host)
    play.goes_on()
    if host == play.primary:
        play.stage.takes_over(play.backup)
    play.wait(*AWAY_S)
    play.heal(host)


def disk_fails_then_crash(play: Play) -> None:
    """The host whose disk failed dies as well, before or after the VM has left it."""
    play.fault("disk-fail", play.primary)
    play.goes_on()
    play.wait(*BEFORE_CRASH_S)
    play.fault("crash", play.primary)
    play.outlives(play.primary)


def at_a_flush(play: Play) -> None:
    """The backup dies when it has flushed its images. While clients write without a pause that is rare, but it does so
    at the end of a copy."""
    play.fault("service-kill", play.backup)
    play.goes_on()
    play.arm(play.backup, f"disk.flushed:kill:{play.chance.randint(1, FLUSHES)}")
    play.heal(play.backup)
    play.stage.dead(play.backup)
    play.outlives(play.backup)


def link_in_copy(kind: str, play: Play) -> None:
    """One link, or both, die while a returned host gets its copy."""
    victim = play.backup
    play.fault("crash", victim)
    play.goes_on()
    play.heal(victim)
    backup_again(play, victim)
    play.wait(*IN_COPY_S)
    play.fault(a_link(play) if kind == "link-down" else kind, victim)
    play.goes_on()
    play.wait(*BLIND_S)
    play.heal(victim)
