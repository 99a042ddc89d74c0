# SPDX-License-Identifier: GPL-2.0-or-later
"""What every arbiter must do, asked of a real witness and a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from appliance.arbiter import key
from appliance.arbiter.arbiter import SPARE, Keeper, make
from appliance.arbiter.grants import Answer, Record
from appliance.arbiter.settings import Arbiter as Settings
from tests.arbiter.conftest import WitnessProcess

T = TypeVar("T")
Two = tuple[Keeper, Keeper]


@pytest.fixture(params=["witness", "etcd"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    if request.param == "witness":
        witness: WitnessProcess = request.getfixturevalue("witness")
        return Settings(kind="witness", address=f"127.0.0.1:{witness.port}", key_file=witness.key)
    url = request.getfixturevalue("etcd")
    return Settings(kind="etcd", endpoints=(url,), pair=f"pair-{time.monotonic_ns()}")


def play(settings: Settings, scene: Callable[[Keeper, Keeper], Awaitable[T]]) -> T:
    """Both hosts of a pair with this arbiter."""

    async def run() -> T:
        alpha, beta = (make(settings, *names) for names in (("alpha", "beta"), ("beta", "alpha")))
        assert isinstance(alpha, Keeper) and isinstance(beta, Keeper)
        try:
            return await scene(alpha, beta)
        finally:
            await alpha.close()
            await beta.close()

    return asyncio.run(run())


def test_a_term_goes_to_one_host(settings: Settings) -> None:
    async def scene(alpha: Keeper, beta: Keeper) -> None:
        assert (await alpha.ask("web1", 2)).granted
        assert (await alpha.ask("web1", 2)).granted
        refused = await beta.ask("web1", 2)
        assert not refused.granted and "alpha" in refused.reason
        assert (await beta.ask("web2", 2)).granted, "each VM by itself"
        assert (await beta.ask("web1", 3)).granted
        over = await alpha.renew("web1", 2)
        assert over is not None and not over.granted and "beta" in over.reason
        stands = await beta.renew("web1", 3)
        assert stands is not None and stands.granted

    play(settings, scene)


def test_both_ask_at_once(settings: Settings) -> None:
    async def scene(alpha: Keeper, beta: Keeper) -> None:
        for term in range(1, 30):
            answers = await asyncio.gather(alpha.ask("web1", term), beta.ask("web1", term))
            assert sum(answer.granted for answer in answers) == 1, answers

    play(settings, scene)


def test_what_was_not_used_goes_back(settings: Settings) -> None:
    async def scene(alpha: Keeper, beta: Keeper) -> None:
        assert (await alpha.ask("web1", 5)).granted
        assert not await alpha.withdraw("web1", lambda: None)
        assert not (await beta.ask("web1", 5)).granted
        assert await alpha.withdraw("web1", lambda: 5)
        assert not (await beta.ask("web1", 5)).granted, "it is used"
        assert await alpha.withdraw("web1", lambda: 4)
        assert (await beta.ask("web1", 5)).granted
        assert not (await alpha.ask("web1", 5)).granted

    play(settings, scene)


def test_a_late_request_does_nothing(settings: Settings) -> None:
    async def scene(alpha: Keeper, beta: Keeper) -> None:
        register = alpha._register
        version, _ = await register.read("web1")
        assert await alpha.withdraw("web1", lambda: 0), "written although nothing changes"
        assert not await register.swap("web1", version, Record(7, "alpha"))
        assert (await beta.ask("web1", 1)).granted

    play(settings, scene)


def test_the_operator_stands_above_it(settings: Settings) -> None:
    async def scene(alpha: Keeper, beta: Keeper) -> None:
        assert (await alpha.ask("web1", 5)).granted
        assert await beta.force("web1", 3) == Answer(True, "term 6 by the operator's word", 6)
        over = await alpha.renew("web1", 5)
        assert over is not None and not over.granted

    play(settings, scene)


def test_it_can_be_looked_at(settings: Settings) -> None:
    async def scene(alpha: Keeper, beta: Keeper) -> None:
        assert (await alpha.look()).granted

    play(settings, scene)


@pytest.mark.parametrize("kind", ["witness", "etcd"])
def test_nobody_answers(witness: WitnessProcess, kind: str) -> None:
    """No is said, in time; nothing raises."""
    witness.kill()
    nowhere = f"127.0.0.1:{witness.port}"
    settings = (Settings(kind="witness", address=nowhere, key_file=witness.key, timeout=0.3) if kind == "witness"
                else Settings(kind="etcd", endpoints=(f"http://{nowhere}", f"http://{nowhere}"), timeout=0.3))

    async def scene(alpha: Keeper, beta: Keeper) -> None:
        begun = time.monotonic()
        refused = await alpha.ask("web1", 2)
        assert not refused.granted and "answer" in refused.reason, refused
        assert await alpha.renew("web1", 2) is None
        assert not await alpha.withdraw("web1", lambda: 1)
        assert not (await alpha.look()).granted
        assert time.monotonic() - begun < 5

    play(settings, scene)


@pytest.mark.parametrize("kind", ["witness", "etcd"])
def test_who_takes_too_long_says_no(tmp_path: Path, kind: str) -> None:
    """A machine that takes everything and says nothing costs no more than the time that is configured."""
    key.make(tmp_path / "key")
    with contextlib.closing(deaf(kind)) as sock:
        nowhere = f"127.0.0.1:{sock.getsockname()[1]}"
        settings = (Settings(kind="witness", address=nowhere, key_file=tmp_path / "key", timeout=0.3)
                    if kind == "witness" else Settings(kind="etcd", endpoints=(f"http://{nowhere}",), timeout=0.3))

        async def scene(alpha: Keeper, beta: Keeper) -> None:
            begun = time.monotonic()
            at_once = await asyncio.gather(*(alpha.ask("web1", 2) for _ in range(5)))
            assert time.monotonic() - begun < 0.3 + SPARE + 0.5
            assert not any(answer.granted for answer in at_once)
            assert "0.3 s" in at_once[0].reason, at_once

        play(settings, scene)


def deaf(kind: str) -> socket.socket:
    """Takes datagrams or connections on loopback, and never answers."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "witness" else socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    if kind == "etcd":
        sock.listen(64)
    return sock


@pytest.mark.parametrize("accepted", [False, True])
def test_nobody_is_the_arbiter(accepted: bool) -> None:
    """Mere silence is enough only for who accepted the risk by name."""

    async def scene() -> None:
        nobody = make(Settings(kind="none", accept_split_brain_risk=accepted), "alpha", "beta")
        answer = await nobody.ask("web1", 2)
        assert answer.granted is accepted and "risk" in answer.reason
        stands = await nobody.renew("web1", 2)
        assert stands is not None and stands.granted
        assert await nobody.withdraw("web1", lambda: 1)
        assert (await nobody.look()).granted
        await nobody.close()

    asyncio.run(scene())


def test_one_etcd_of_several_answers(etcd: str) -> None:
    settings = Settings(kind="etcd", endpoints=("http://127.0.0.1:1", etcd), pair=f"pair-{time.monotonic_ns()}")

    async def scene(alpha: Keeper, beta: Keeper) -> None:
        assert (await alpha.ask("web1", 2)).granted
        assert not (await beta.ask("web1", 2)).granted

    play(settings, scene)


def test_an_etcd_that_answered_is_asked_first(etcd: str) -> None:
    """One member that is deaf costs time once."""
    with contextlib.closing(deaf("etcd")) as sock:
        nowhere = f"http://127.0.0.1:{sock.getsockname()[1]}"
        settings = Settings(kind="etcd", endpoints=(nowhere, etcd), pair=f"pair-{time.monotonic_ns()}", timeout=4.0)

        async def scene(alpha: Keeper, beta: Keeper) -> None:
            assert (await alpha.ask("web1", 2)).granted
            begun = time.monotonic()
            assert (await alpha.ask("web1", 3)).granted
            assert time.monotonic() - begun < 1.5

        play(settings, scene)


def test_what_lies_in_etcd_is_not_ours(etcd: str) -> None:
    settings = Settings(kind="etcd", endpoints=(etcd,), pair=f"pair-{time.monotonic_ns()}")

    async def scene(alpha: Keeper, beta: Keeper) -> None:
        register = alpha._register
        body = {"key": register._key("web1"), "value": "bm9uc2Vuc2U="}  # type: ignore[attr-defined]
        await register._call("put", body, dict)  # type: ignore[attr-defined]
        refused = await alpha.ask("web1", 2)
        assert not refused.granted and "no grant" in refused.reason

    play(settings, scene)
