# SPDX-License-Identifier: GPL-2.0-or-later
"""The health of both hosts, for whoever asks either: this host's readings, and what the peer last told of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, NamedTuple

import msgspec

from appliance.errors import HoldfastError
from appliance.health.health import Health
from appliance.health.reading import Reading, State, worst
from appliance.orders import Orders

PATIENCE = 2.0
"""Seconds within which the peer must answer."""
FRESH = 0.2
"""Seconds for which an answer of the peer serves whoever asks."""
AGAIN = 10.0
"""Seconds after which the peer is asked again, so that something is known of one that dies."""


class Known(NamedTuple):
    """What is held of one host: its state, and the worst state of each component."""

    state: State
    components: dict[str, State]


class Report:
    """`host` and `peer` are the names of the two. `orders` is set before anything is asked."""

    def __init__(self, host: str, peer: str, health: Health) -> None:
        self._host, self._peer, self._health = host, peer, health
        self._known: tuple[float, dict[str, Any]] | None = None
        self._asking = asyncio.Lock()
        self.orders: Orders

    async def verb(self, args: dict[str, Any]) -> dict[str, Any]:
        """holdfast.health/1; with `own`, of this host alone."""
        hosts = {self._host: self._own()}
        if not args.get("own"):
            hosts[self._peer] = await self._peers()
        return {"schema": "holdfast.health/1", "hosts": hosts}

    def known(self) -> dict[str, Known]:
        """By host, without asking anybody."""
        found = {self._host: _summed(self._own())}
        at, peer = self._known or (0.0, {"state": State.UNKNOWN, "readings": []})
        stale = time.monotonic() - at > 3 * AGAIN
        found[self._peer] = Known(State.UNKNOWN, {}) if stale else _summed(peer)
        return found

    async def run(self) -> None:
        """Remember what the peer says, again and again."""
        while True:
            await asyncio.sleep(AGAIN)
            with contextlib.suppress(HoldfastError):
                await self._ask()

    def _own(self) -> dict[str, Any]:
        readings = self._health.readings()
        fitness, state = self._health.fitness(), worst(reading.state for reading in readings)
        if state is State.FAILED and fitness.whole:
            state = State.WARN  # of parts that make no host unfit
        return {"state": state, "reachable": True, "reasons": list(fitness.reasons),
                "readings": msgspec.to_builtins(readings)}

    async def _ask(self) -> dict[str, Any]:
        """Asked once for all who want to know at the same time: a host takes few orders at once.

        Raises HoldfastError when the peer does not answer, or not as it should.
        """
        async with self._asking:
            if self._known is not None and time.monotonic() - self._known[0] < FRESH:
                return self._known[1]
            hosts = (await self.orders.ask("health", PATIENCE, own=True)).get("hosts")
            found = _checked(hosts.get(self._peer) if isinstance(hosts, dict) else None)
            self._known = time.monotonic(), found
            return found

    async def _peers(self) -> dict[str, Any]:
        try:
            return await self._ask()
        except HoldfastError as error:
            reason = error.message
        if self._known is None:
            return {"state": State.UNKNOWN, "reachable": False, "reasons": [reason], "readings": []}
        at, known = self._known
        return {**known, "reachable": False, "reasons": [reason, *known["reasons"]],
                "age_s": round(time.monotonic() - at, 1), "last_state": known["state"], "state": State.UNKNOWN}


def _summed(host: dict[str, Any]) -> Known:
    components: dict[str, set[State]] = {}
    for reading in host["readings"]:
        components.setdefault(reading["component"], set()).add(State(reading["state"]))
    return Known(State(host["state"]), {name: worst(states) for name, states in components.items()})


class _Host(msgspec.Struct):
    state: State
    readings: list[Reading]
    reasons: list[str] = []


def _checked(answer: object) -> dict[str, Any]:
    """What the peer tells of itself, as far as it can be understood. Raises HoldfastError when it cannot."""
    try:
        host = msgspec.convert(answer, _Host)
    except msgspec.ValidationError as error:
        raise HoldfastError(f"the peer's health cannot be understood: {error}") from None
    return {"state": host.state, "reachable": True, "reasons": host.reasons,
            "readings": msgspec.to_builtins(host.readings)}
