# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks an arbiter on behalf of one host: what a grant is stands in `grants.py`, where it lies in `register.py`."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from appliance.arbiter import grants
from appliance.arbiter.datagram import address
from appliance.arbiter.etcd import EtcdRegister
from appliance.arbiter.grants import Answer, Record
from appliance.arbiter.register import Register
from appliance.arbiter.settings import Arbiter as Settings
from appliance.arbiter.witness_client import WitnessRegister
from appliance.errors import HoldfastError, Unavailable

ATTEMPTS = 5
"""How often a record may change under our hands before we give up for now."""
SPARE = 0.1
"""Seconds that a register which got no answer has to say so in its own words."""
log = logging.getLogger("holdfast.arbiter")


class Arbiter(Protocol):
    """Grants each term of a VM to one host. No call raises; each returns within a bounded time."""

    name: str

    async def ask(self, vm: str, term: int) -> Answer:
        """May this host hold `term` of `vm`? No answer counts as no."""

    async def force(self, vm: str, term: int) -> Answer:
        """The operator vouches for this host: which term from `term` on may it take? Not granted: no answer."""

    async def renew(self, vm: str, term: int) -> Answer | None:
        """Does this host's `term` of `vm` stand? None: no answer."""

    async def withdraw(self, vm: str, used: Callable[[], int | None]) -> bool:
        """Whatever was granted to this host above the term `used` was not used and never will be. `used` is asked at
        the last moment; None calls it off. True: the arbiter knows, or there is nothing to be known."""

    async def look(self) -> Answer:
        """Can it be asked now?"""

    async def close(self) -> None:
        """Let go of connections."""


class NoArbiter:
    """No third party. Silence of the peer is then taken for its death only if the operator accepted that two
    hosts speak when both links are cut while both hosts live."""

    name = "none"

    def __init__(self, accept_split_brain_risk: bool) -> None:
        self._accept = accept_split_brain_risk

    async def ask(self, vm: str, term: int) -> Answer:
        if self._accept:
            return Answer(True, "no arbiter; the risk of two speakers is accepted in the configuration")
        return Answer(False, "the peer is silent and no arbiter can tell a dead host from cut cables "
                             "(configure an arbiter, or arbiter.accept_split_brain_risk = true)")

    async def force(self, vm: str, term: int) -> Answer:
        return Answer(True, "no arbiter", term)

    async def renew(self, vm: str, term: int) -> Answer | None:
        return Answer(True, "no arbiter")

    async def withdraw(self, vm: str, used: Callable[[], int | None]) -> bool:
        return True

    async def look(self) -> Answer:
        risk = "the risk of two speakers is accepted" if self._accept else "silence of the peer closes this host"
        return Answer(True, f"no arbiter: {risk}")

    async def close(self) -> None:
        """There is nothing to let go of."""


class Keeper:
    """An arbiter whose records lie in `register`; `host` is the one it asks for. Each call ends within `timeout`
    seconds and SPARE, whatever it takes: a grant is two answers, and may have to wait for another call."""

    def __init__(self, name: str, host: str, register: Register, timeout: float) -> None:
        self.name, self._host, self._register, self._timeout = name, host, register, timeout
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ask(self, vm: str, term: int) -> Answer:
        return await self._asked(vm, lambda record: grants.ask(record, self._host, term))

    async def force(self, vm: str, term: int) -> Answer:
        return await self._asked(vm, lambda record: grants.force(record, self._host, term))

    async def _asked(self, vm: str, rule: Callable[[Record], tuple[Record, Answer]]) -> Answer:
        try:
            async with asyncio.timeout(self._timeout + SPARE), self._one_at_a_time[vm]:
                return await self._change(vm, rule)
        except (HoldfastError, TimeoutError, OSError) as error:
            return Answer(False, str(error) or f"{self.name} does not answer within {self._timeout:g} s")

    async def renew(self, vm: str, term: int) -> Answer | None:
        try:
            async with asyncio.timeout(self._timeout + SPARE), self._one_at_a_time[vm]:
                return await self._change(vm, lambda record: grants.renew(record, self._host, term))
        except (HoldfastError, TimeoutError, OSError) as error:
            log.debug("%s: %s", vm, error)
            return None

    async def withdraw(self, vm: str, used: Callable[[], int | None]) -> bool:
        try:
            # While the lock is held no grant reaches this host: what is not in use now will not be.
            async with asyncio.timeout(self._timeout + SPARE), self._one_at_a_time[vm]:
                version, record = await self._register.read(vm)
                term = used()
                if term is None:
                    return False
                # Written even if nothing changes: a request of ours that is still under way is void then.
                return await self._register.swap(vm, version, grants.withdraw(record, self._host, term))
        except (HoldfastError, TimeoutError, OSError) as error:
            log.debug("%s: %s", vm, error)
            return False

    async def _change(self, vm: str, rule: Callable[[Record], tuple[Record, Answer]]) -> Answer:
        for _ in range(ATTEMPTS):
            version, record = await self._register.read(vm)
            wanted, answer = rule(record)
            if wanted == record or await self._register.swap(vm, version, wanted):
                return answer
        raise Unavailable(f"the grant of {vm} changes all the time", "do more than two hosts use this pair's name?")

    async def look(self) -> Answer:
        try:
            await self._register.read("look")
        except (HoldfastError, TimeoutError, OSError) as error:
            return Answer(False, str(error) or "no answer")
        return Answer(True, "it answers")

    async def close(self) -> None:
        await self._register.close()


def make(settings: Settings, host: str, peer: str) -> Arbiter:
    """The arbiter that the configuration of `host` names. Raises HoldfastError when its key cannot be used."""
    pair = settings.pair or "-".join(sorted((host, peer)))
    if settings.kind == "witness":
        assert settings.key_file is not None
        witness = WitnessRegister(address(settings.address), pair, settings.key_file, settings.timeout)
        return Keeper("witness", host, witness, settings.timeout)
    if settings.kind == "etcd":
        etcd = EtcdRegister(settings.endpoints, pair, settings.timeout, settings.ca_file, settings.cert_file,
                            settings.cert_key_file)
        return Keeper("etcd", host, etcd, settings.timeout)
    return NoArbiter(settings.accept_split_brain_risk)
