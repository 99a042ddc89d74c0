# SPDX-License-Identifier: GPL-2.0-or-later
"""How whole the two hosts are, and what they have: told to each other, judged for each VM, and given to the decision
cores."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from appliance import config as cfg
from appliance import core
from appliance.capacity import Offer, Problem, problems, refusal
from appliance.peer import Peer
from appliance.placement import Condition, judge
from appliance.protection import Protection
from appliance.spoken import understood
from vmlink.wire import Message, Type

AGAIN = 1.0
"""Seconds after which a host says again how it is."""
LONGEST = 64 << 10
"""Bytes of what a host tells of itself."""
UNKNOWN = "it has not said yet what it can carry"
log = logging.getLogger("holdfast.outlook")


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host tells of itself; no offer before it was measured."""

    condition: Condition
    offer: Offer | None


class Outlook:
    """See the module. `look` gives this host's condition, `offer` what it has for VMs."""

    def __init__(self, peer: Peer, vms: dict[str, Protection], configured: dict[str, cfg.Vm],
                 look: Callable[[], Condition], offer: Callable[[], Offer | None]) -> None:
        self._peer, self._vms, self._configured, self._look, self._offer = peer, vms, configured, look, offer
        self.here, self.there = Condition(), None  # type: Condition, Told | None
        self._drained = False
        self.problems: dict[str, list[Problem]] = {}
        """By VM: what speaks against it on the peer."""

    def drained(self, drained: bool) -> None:
        """This host is to be left alone, or no more."""
        self._drained = drained
        self.changed()

    def changed(self) -> None:
        """Look at this host anew, tell the peer, judge."""
        here = msgspec.structs.replace(self._look(), drained=self._drained)
        if here != self.here:
            log.log(logging.WARNING if here.broken else logging.INFO, "this host is %s%s",
                    "whole" if not here.broken else f"not whole: {', '.join(sorted(here.broken))}",
                    f" ({'; '.join(here.reasons)})" if here.reasons else "")
        self.here = here
        told = Told(here, self._offer())
        self._peer.send(Message(Type.CONDITION, payload=(msgspec.json.encode(told),)))
        self._judge()

    def peer_down(self) -> None:
        self.there = None
        self._judge()

    def message(self, message: Message) -> None:
        """The peer says how it is. Raises WireError when that cannot be understood."""
        payload = b"".join(bytes(part) for part in message.payload)
        self.there = understood(payload, Told, "a condition", LONGEST)
        self._judge()

    def _judge(self) -> None:
        for name, vm in self._vms.items():
            unfit = self._unfit(name)
            conditions = judge(self._here(vm), self.there.condition if self.there else None, unfit)
            if conditions != vm.state.conditions:
                if unfit and unfit not in (UNKNOWN, vm.state.conditions.unfit):
                    log.warning("%s: %s cannot carry it: %s", name, self._peer.name, unfit)
                vm.post(core.Judged(conditions))

    def _here(self, vm: Protection) -> Condition:
        """How this host is for that VM: its own disks may have failed, and no other's."""
        trouble = vm.machine.view.trouble
        return msgspec.structs.replace(self.here, disk=False, reasons=(trouble, *self.here.reasons)) if trouble else \
            self.here

    def _unfit(self, name: str) -> str:
        """Why the peer cannot carry that VM."""
        there, own = self.there.offer if self.there else None, self._offer()
        self.problems[name] = []
        if there is None or own is None:
            return UNKNOWN if self._peer.up else ""
        self.problems[name] = problems(name, self._configured, self._peer.name, there, own)
        return refusal(self.problems[name])

    async def run(self) -> None:
        """Say it again and again."""
        while True:
            self.changed()
            await asyncio.sleep(AGAIN)
