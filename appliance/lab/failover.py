# SPDX-License-Identifier: GPL-2.0-or-later
"""One failover from fault to protection regained: carried out on a lab, then measured from what was seen."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from appliance.core import SPEAKING
from appliance.errors import Unavailable
from appliance.lab.figures import rounded
from appliance.lab.lab import Lab
from appliance.lab.observer import Observer, Seen
from appliance.lab.recording import Recording
from appliance.lab.topology import HOSTS

TAKEOVER_S = 20.0
RETURN_S = 60.0
UNDISTURBED_S = 0.5  # nobody asks a service anything while it takes over


@dataclass(frozen=True)
class Failover:
    """What was done and when, in unix seconds."""

    fault: str
    victim: str
    survivor: str
    fault_at: float
    healed_at: float
    protected_at: float


@dataclass(frozen=True)
class Measured:
    """A failover in ms; None where a service reported no such event.

    gap: the longest wait of the open echo connection between the fault and the healing. detect, resume: from the
    fault until the survivor noticed it, and until the VM spoke again. resync: from the return of the victim
    until the VM was protected again. resync_stall: the longest wait of the echo connection during that time.
    """

    fault: str
    victim: str
    gap_ms: float | None
    detect_ms: float | None
    resume_ms: float | None
    resync_ms: float | None
    resync_stall_ms: float | None

    def for_report(self) -> dict[str, object]:
        fields = asdict(self)
        del fields["resync_stall_ms"]
        return fields


def primary(observer: Observer) -> str:
    """The host that runs the VM. Raises Unavailable if none, or both, say so."""
    running = [host for host in HOSTS if observer.status(host).get("role") == "primary"]
    if len(running) != 1:
        raise Unavailable(f"the VM runs on {' and '.join(running) or 'no host'}", "see the logs of both hosts")
    return running[0]


def carry_out(lab: Lab, observer: Observer, victim: str, *, fault: str = "crash", away_s: float = 2.0) -> Failover:
    """Let `fault` happen to `victim`, heal it `away_s` seconds after the other took over, wait for protection.

    Raises TimedOut when the other host does not take over, or the victim does not return.
    """
    survivor = HOSTS[1 - HOSTS.index(victim)]
    observer.look()
    time.sleep(0.1)  # what looking cost the services is over
    happened = lab.fault(fault, victim)
    time.sleep(UNDISTURBED_S)
    observer.wait_phase(survivor, frozenset(SPEAKING), TAKEOVER_S)
    time.sleep(away_s)
    healed_at = time.time()
    lab.heal(victim)
    lab.wait_protected(RETURN_S)
    protected_at = time.time()
    observer.look()
    return Failover(fault, victim, survivor, happened.unix, healed_at, protected_at)


def measure(failover: Failover, seen: Seen, recording: Recording) -> Measured:
    """Judge a failover by the client's echo connection and the survivor's own events."""
    begin, healed = failover.fault_at, failover.healed_at
    echo, moment = recording.streams["echo"], recording.monotonic_ns

    def since(name: str, start: float) -> float | None:
        at = seen.first(name, failover.survivor, start)
        return None if at is None else rounded((at - start) * 1e3, 1)

    return Measured(
        failover.fault,
        failover.victim,
        rounded(echo.longest_stall_ms(moment(begin), moment(healed)), 1),
        since("peer-down", begin),
        since("gate-open", begin),
        since("protected", healed),
        rounded(echo.longest_stall_ms(moment(healed), moment(failover.protected_at)), 1),
    )
