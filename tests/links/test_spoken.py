# SPDX-License-Identifier: GPL-2.0-or-later
"""What hosts tell each other in words: understood as it was meant, or refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import core
from appliance.first_copy import SyncOffer
from appliance.link import Hello
from appliance.protection import Told
from appliance.spoken import LIMIT, understood
from vmlink.wire import WireError

TOLD = Told(core.Phase.WAITING, 7, core.Role.BACKUP, core.Role.NONE, True, False)
HELLO = Hello("alpha", 2**62, True)
KINDS = (Hello, Told, SyncOffer)


@pytest.mark.parametrize("said", [TOLD, HELLO])
def test_what_is_said_is_understood(said: msgspec.Struct) -> None:
    payload = msgspec.json.encode(said)
    assert understood(memoryview(payload), type(said), "it") == said


@pytest.mark.parametrize("change", [{"term": -1}, {"term": 2**63}, {"term": "7"}, {"term": 7.5}, {"role": "king"},
                                    {"phase": ""}, {"home": 1}, {"more": 1}])
def test_a_state_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    wrong = {**msgspec.to_builtins(TOLD), **change}
    with pytest.raises(WireError, match="a state that cannot be read: "):
        understood(msgspec.json.encode(wrong), Told, "a state")


@pytest.mark.parametrize("payload", [b"", b"{}", b"null", b"[" * LIMIT, b'{"host": "\xff"}', b"\xff\xfe", b"\0" * 9])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_json_is_refused(payload: bytes, kind: type[msgspec.Struct]) -> None:
    with pytest.raises(WireError, match="it that cannot be read"):
        understood(payload, kind, "it")


def test_what_is_long_is_not_even_read() -> None:
    with pytest.raises(WireError, match=f"it of {LIMIT + 1} bytes; at most {LIMIT} are legal"):
        understood(b" " * (LIMIT + 1), Hello, "it")


@settings(deadline=None, max_examples=100)
@given(st.one_of(st.binary(max_size=100), st.text(max_size=50).map(str.encode),
                 st.dictionaries(st.sampled_from([*Told.__struct_fields__, *Hello.__struct_fields__]),
                                 st.one_of(st.integers(), st.text(max_size=9), st.booleans(), st.none()))
                 .map(msgspec.json.encode)), st.sampled_from(KINDS))
def test_whatever_is_said(payload: bytes, kind: type[msgspec.Struct]) -> None:
    try:
        assert isinstance(understood(payload, kind, "it"), kind)
    except WireError:
        pass
