# SPDX-License-Identifier: GPL-2.0-or-later
"""The faults of a campaign: how each is made to happen to a protected pair, and how it is healed.

Each is survivable by any pair; what is not, and why, is said in docs/reliability.md. A play returns once all it
broke is healed, and raises HoldfastError when the pair does not do what it must while it is not.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from appliance import control
from appliance.core import Role
from appliance.errors import HoldfastError
from appliance.lab import blueprint, faults
from appliance.lab.blueprint import VM
from appliance.lab.campaign_judge import Speech
from appliance.lab.faults import Fault
from appliance.lab.stage import Stage, other, until
from appliance.lab.topology import HOSTS, LINKS
from appliance.lab.wire import Frame
from appliance.term import TermStore

AWAY_S = (0.1, 1.2)  # how long a fault lasts once the client goes on
BLIND_S = (0.3, 1.5)  # how long one lasts that nobody has to survive unaided
FRESH_S = 60.0  # for a VM that starts afresh to be protected
SWITCHOVER_S = (0.0, 0.1)  # after the order; a crash takes as long again to be prepared
ORDER_S = 10.0  # for the order to be answered
WITNESS = "witness"
PASSAGES = 20  # a fault at an injection point happens at one of so many passages


@dataclass
class Play:
    """A round under way: the pair as it was, what was done, and what was heard so far."""

    stage: Stage
    chance: Random
    speech: Speech
    primary: str
    backup: str
    story: list[str] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    begun: float = 0.0
    """Monotonic seconds of the first fault; 0 until then."""
    healed: float = 0.0
    afresh: bool = False
    """The VM's memory ended and it started afresh: what it knew is gone by nature."""
    lost: int = 0
    """Acknowledged writes of a VM before it started afresh, which its disk should have had."""
    detour: bool = False
    """The VM may have been heard through the other host's uplink without a takeover."""

    def somebody(self, primary: float = 0.75) -> str:
        """One of the two hosts: the primary with that probability."""
        return self.primary if self.chance.random() < primary else self.backup

    def tell(self, what: str) -> None:
        """A step, for people; the first is the moment of the fault."""
        self.begun = self.begun or time.monotonic()
        self.story.append(what)

    def fault(self, kind: str, host: str) -> Fault:
        done = self.stage.lab.fault(kind, host)
        self.begun = self.begun or done.monotonic
        self.tell(f"{kind} of {self._name(host)}")
        return done

    def arm(self, host: str, text: str) -> None:
        self.tell(f"{text} in {self._name(host)}")
        self.stage.arm(host, text)

    def _name(self, host: str) -> str:
        """With its role, which is known before anything happened."""
        role = {self.primary: " (primary)", self.backup: " (backup)"}.get(host, "")
        return host if self.story else f"{host}{role}"

    def wait(self, least: float, most: float) -> None:
        """Let some time pass, by chance."""
        time.sleep(self.chance.uniform(least, most))

    def goes_on(self) -> None:
        """The client must be served again without anything being healed. Raises TimedOut."""
        self.stage.goes_on()

    def heal(self, *hosts: str) -> None:
        for host in hosts:
            self.stage.heal(host)
        self.healed = time.monotonic()

    def outlives(self, *hosts: str) -> None:
        """The client goes on by itself; some time later these hosts are healed."""
        self.goes_on()
        self.wait(*AWAY_S)
        self.heal(*hosts)

    def listen(self) -> None:
        """Take down what was said on the wire since the last time."""
        heard = self.stage.wire.take()
        self.speech.hear(heard)
        self.frames += heard


# --- one fault --------------------------------------------------------------------------------------

def one(kind: str, play: Play) -> None:
    """A fault of one host, which the other one answers."""
    host = play.somebody()
    play.fault(kind, host)
    play.outlives(host)


def link_down(number: int, play: Play) -> None:
    """One link dead; the other one carries on."""
    host = play.somebody(0.5)
    play.fault(f"link-down:{number}", host)
    play.outlives(host)


def uplink_down(play: Play) -> None:
    """The cable to the switch dead."""
    host = play.somebody()
    play.detour = True
    play.fault("uplink-down", host)
    play.wait(*BLIND_S)
    play.heal(host)


def both_links(play: Play) -> None:
    """A partition: the witness gives the next term to one of the two."""
    host = play.somebody(0.5)
    play.fault("both-links", host)
    play.outlives(host)


def witness_down(play: Play) -> None:
    """The witness gone, and then back."""
    play.fault("witness-down", WITNESS)
    play.wait(*BLIND_S)
    play.outlives(WITNESS)


def partition_without_witness(play: Play) -> None:
    """Nobody can know who lives; whoever spoke may go on only as long as that can be nobody's but its own turn."""
    host = play.somebody(0.5)
    play.fault("witness-down", WITNESS)
    play.fault("both-links", host)
    play.wait(*BLIND_S)
    back = [host, WITNESS]
    play.chance.shuffle(back)
    play.heal(back[0])
    play.wait(*AWAY_S)
    play.goes_on()  # either is enough
    play.heal(back[1])


def power_loss_both(play: Play) -> None:
    """Both hosts lose power at the same moment."""
    play.begun = faults.power_loss(play.stage.lab.name).monotonic
    play.tell("both hosts lose power")
    both_return(play)


def both_return(play: Play) -> None:
    """Both are dead, and the VM's memory is gone; the host with the right to the VM starts it afresh, once, under a new
    term."""
    stage = play.stage
    play.listen()
    stage.client.close()
    play.afresh, play.speech = True, Speech()
    reigns = {host: _reign(stage, host) for host in HOSTS}
    play.wait(*AWAY_S)
    first = play.somebody(0.5)
    play.heal(first)
    play.wait(0.0, 0.5)
    play.heal(other(first))
    primary, _ = stage.protected(FRESH_S)
    play.lost = stage.new_client()
    play.healed = time.monotonic()
    entitled = max(reigns, key=lambda host: reigns[host])
    if primary != entitled:
        raise HoldfastError(f"{primary} started the VM, not {entitled}, which was active last: {reigns}")
    if stage.term() <= max(term for term, _ in reigns.values()):
        raise HoldfastError(f"the VM was started afresh under a term of before: {reigns}")


def _reign(stage: Stage, host: str) -> tuple[int, bool]:
    """What `host` has on disk: the term, and whether it was primary in it."""
    reign = TermStore(blueprint.host_directory(stage.lab.name, host) / "state", VM).load()
    return reign.term, reign.role is Role.PRIMARY


def crash_in_resync(play: Play) -> None:
    """The returned host crashes once more before, or just when, its replica is whole."""
    victim = play.somebody()
    play.fault("crash", victim)
    play.outlives(victim)
    backup_again(play, victim)
    play.wait(0.0, 0.6)
    play.fault("crash", victim)
    play.outlives(victim)


def crash_in_switchover(play: Play) -> None:
    """The host that gives the VM away crashes somewhere in between, or the one that is to get it just before.

    Once the VM is given away the other host is the only one that has it: see docs/reliability.md.
    """
    if play.chance.random() < 0.3:
        victim = play.backup
        play.fault("crash", victim)
        order = _order_switchover(play)
    else:
        victim = play.primary
        order = _order_switchover(play)
        play.wait(*SWITCHOVER_S)
        play.fault("crash", victim)
    play.outlives(victim)
    order.join()


def _order_switchover(play: Play) -> threading.Thread:
    """Order it, and do not wait."""

    def order() -> None:
        with contextlib.suppress(HoldfastError):  # the service that was asked may be the one that dies
            path = blueprint.control_path(play.stage.lab.name, play.primary)
            control.call(path, "switchover", vm=VM, timeout=ORDER_S)

    play.tell("a switchover is ordered")
    ordered = threading.Thread(target=order, name="switchover", daemon=True)
    ordered.start()
    return ordered


def backup_again(play: Play, host: str) -> None:
    """Wait until `host` is a backup again. Raises TimedOut."""
    until(f"{host} is a backup again", lambda: play.stage.vm(host).get("role") == "backup")


# --- a fault at a step of the protocol --------------------------------------------------------------

def primary_at(point: str, play: Play) -> None:
    """The primary dies at that step."""
    play.arm(play.primary, f"{point}:kill:{play.chance.randint(1, PASSAGES)}")
    play.stage.dead(play.primary)
    play.outlives(play.primary)


def backup_at(point: str, play: Play) -> None:
    """The backup dies at that step."""
    play.arm(play.backup, f"{point}:kill:{play.chance.randint(1, PASSAGES)}")
    play.stage.dead(play.backup)
    play.outlives(play.backup)


def takeover_at(point: str, play: Play) -> None:
    """The primary only stands still, so it still holds the state; whose term it is shows when both are back."""
    play.arm(play.backup, f"{point}:kill")
    play.fault("service-pause", play.primary)
    play.stage.dead(play.backup)
    play.wait(*BLIND_S)
    both = [play.primary, play.backup]
    play.chance.shuffle(both)
    play.heal(*both)


def handover_at(point: str, play: Play) -> None:
    """The host that gives the VM away dies at that step."""
    play.arm(play.primary, f"{point}:kill")
    order = _order_switchover(play)
    play.stage.dead(play.primary)
    play.outlives(play.primary)
    order.join()


def sync_at(point: str, play: Play) -> None:
    """The copy breaks off; the primary is the only one with the state, so nothing worse may happen to it."""
    play.fault("service-kill", play.backup)
    play.goes_on()
    play.arm(play.primary, f"{point}:raise")
    play.outlives(play.backup)


# --- a second fault ---------------------------------------------------------------------------------

def _crash_then_link(play: Play) -> None:
    victim = play.somebody()
    play.fault("crash", victim)
    play.fault(a_link(play), other(victim))
    play.outlives(victim, other(victim))


def _link_then(kind: str, play: Play) -> None:
    cut, victim = play.somebody(0.5), play.somebody()
    play.fault(a_link(play), cut)
    play.wait(0.0, 0.4)
    play.fault(kind, victim)
    play.outlives(*{cut, victim})


def _pause_then_link(play: Play) -> None:
    victim, cut = play.somebody(), play.somebody(0.5)
    play.fault("service-pause", victim)
    play.fault(a_link(play), cut)
    play.outlives(*{cut, victim})


def _crash_there_and_back(play: Play) -> None:
    """The host that took over crashes as soon as the other one can take it back."""
    play.fault("crash", play.primary)
    play.outlives(play.primary)
    play.stage.protected()
    play.fault("crash", play.backup)
    play.outlives(play.backup)


def _flap(play: Play) -> None:
    """The returned host is killed as soon as it is heard of again."""
    victim = play.somebody()
    play.fault("service-kill", victim)
    play.outlives(victim)
    until(f"{victim} answers again", lambda: play.stage.lab.host_status(victim))
    play.fault("service-kill", victim)
    play.outlives(victim)


def a_link(play: Play) -> str:
    """The fault of one link, by chance."""
    return f"link-down:{play.chance.randrange(len(LINKS))}"


SECOND: tuple[Callable[[Play], None], ...] = (
    _crash_then_link,
    partial(_link_then, "crash"),
    partial(_link_then, "qemu-kill"),
    partial(_link_then, "service-kill"),
    partial(_link_then, "service-pause"),
    _pause_then_link,
    _crash_there_and_back,
    _flap,
)


def second_fault(play: Play) -> None:
    """One of SECOND, by chance."""
    play.chance.choice(SECOND)(play)
