# SPDX-License-Identifier: GPL-2.0-or-later
"""How whole the two hosts are: told to each other, judged for each VM, and given to the decision cores."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from appliance import core
from appliance.peer import Peer
from appliance.placement import Condition, judge
from appliance.protection import Protection
from appliance.spoken import understood
from vmlink.wire import Message, Type

AGAIN = 1.0
"""Seconds after which a host says again how it is."""
LONGEST = 16 << 10
"""Bytes of a condition."""
log = logging.getLogger("holdfast.outlook")


class Outlook:
    """See the module. `look` gives this host's condition; `unfit(vm)` why the peer cannot carry that VM."""

    def __init__(self, peer: Peer, vms: dict[str, Protection], look: Callable[[], Condition],
                 unfit: Callable[[str], str]) -> None:
        self._peer, self._vms, self._look, self._unfit = peer, vms, look, unfit
        self.here, self.there = Condition(), None  # type: Condition, Condition | None
        self._drained = False

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
        self._peer.send(Message(Type.CONDITION, payload=(msgspec.json.encode(here),)))
        self._judge()

    def peer_down(self) -> None:
        self.there = None
        self._judge()

    def message(self, message: Message) -> None:
        """The peer says how it is. Raises WireError when that cannot be understood."""
        payload = b"".join(bytes(part) for part in message.payload)
        self.there = understood(payload, Condition, "a condition", LONGEST)
        self._judge()

    def _judge(self) -> None:
        for name, vm in self._vms.items():
            conditions = judge(self.here, self.there, self._unfit(name))
            if conditions != vm.state.conditions:
                vm.post(core.Judged(conditions))

    async def run(self) -> None:
        """Say it again and again."""
        while True:
            self.changed()
            await asyncio.sleep(AGAIN)
