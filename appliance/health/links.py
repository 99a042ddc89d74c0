# SPDX-License-Identifier: GPL-2.0-or-later
"""The links to the peer: carrier, whether they carry, round trip, jitter, and what had to be sent again.

A link that is down is `failed`, but no reason to move a VM: the other link is enough, and without any the peer
cannot be handed anything.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from appliance.health.judge import Rule
from appliance.health.monitor import Assessor, Counter
from appliance.health.reading import Reading, State
from appliance.health.settings import Health

_RETRANSMITTED, _SENT = 100, 136
"""Where tcpi_total_retrans and tcpi_segs_out stand in struct tcp_info."""
FEW = 20
"""Segments; of fewer in a round no share is computed."""


class Link(Protocol):
    """What is asked of a link."""

    name: str
    carrier: bool
    up: bool
    reason: str
    rtt: float | None

    def tcp_info(self) -> bytes: ...


class Links:
    """The monitor `link`."""

    name = "link"

    def __init__(self, links: Sequence[Link], health: Health) -> None:
        self.interval = health.interval
        self._links = links
        self._assess = Assessor(self.name, health.rounds, settle=0.0)  # a link is as it is
        self._counter = Counter()
        self._rtt, self._jitter, self._loss = map(Rule, (health.rtt_warn, health.jitter_warn, health.loss_warn))
        self._trips: dict[str, float] = {}

    def close(self) -> None:
        """The links are the peer's."""

    async def read(self) -> list[Reading]:
        return [reading for link in self._links for reading in self._of(link)]

    def _of(self, link: Link) -> list[Reading]:
        name = link.name
        carrier = self._assess.found(f"{name} carrier", State.OK if link.carrier else State.FAILED, rounds=1,
                                     source="ETHTOOL_GLINK", reason="" if link.carrier else "no carrier")
        state = self._assess.found(f"{name} session", State.OK if link.up else State.FAILED, rounds=1,
                                   source="heartbeats", reason="" if link.up else link.reason)
        return [carrier, state, *self._trip(link), self._lost(link)]

    def _trip(self, link: Link) -> list[Reading]:
        before, source = self._trips.pop(link.name, None), "echoed heartbeats"
        if not link.up or link.rtt is None:
            return [self._assess.unknown(f"{link.name} {what}", "the link is down", source)
                    for what in ("round trip", "jitter")]
        self._trips[link.name] = link.rtt
        change = abs(link.rtt - before) if before is not None else 0.0
        return [self._assess.value(f"{link.name} round trip", link.rtt, self._rtt, unit="s", source=source, digits=6),
                self._assess.value(f"{link.name} jitter", change, self._jitter, unit="s", source=source, digits=6)]

    def _lost(self, link: Link) -> Reading:
        info, subject, source = link.tcp_info(), f"{link.name} loss", "TCP_INFO total_retrans, segs_out"
        if len(info) < _SENT + 4:
            return self._assess.unknown(subject, "the link is down" if not link.up else "the kernel does not tell",
                                        source)
        again = self._counter.grown(f"{link.name} again", struct.unpack_from("=I", info, _RETRANSMITTED)[0])
        sent = self._counter.grown(f"{link.name} sent", struct.unpack_from("=I", info, _SENT)[0])
        share = again / sent if sent >= FEW else 0.0
        return self._assess.value(subject, share, self._loss, source=source)
