# SPDX-License-Identifier: GPL-2.0-or-later
"""The faults of a shared volume in a campaign; a host that does not reach it is like one whose disk broke
(appliance.lab.campaign_disks)."""

from __future__ import annotations

from appliance.lab import blueprint, processes, volume
from appliance.lab.campaign_faults import BLIND_S, Play, both_return


def nobody_reaches_it(play: Play) -> None:
    """What serves the volume dies, and comes back: the VM waits for it."""
    lab = play.stage.lab
    play.tell("what serves the volume is killed")
    processes.kill([blueprint.read_state(lab.name).services[volume.PLACE]])
    play.wait(*BLIND_S)
    lab.start_volume()
    play.heal()
    play.goes_on()


def redo_at(point: str, play: Play) -> None:
    """The primary dies in the middle of writing to the volume, and the other host at this step of writing it again."""
    play.arm(play.backup, f"{point}:kill")
    play.arm(play.primary, "volume.half:kill")
    for host in (play.primary, play.backup):
        play.stage.dead(host)
    both_return(play)
