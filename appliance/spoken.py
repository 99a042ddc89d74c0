# SPDX-License-Identifier: GPL-2.0-or-later
"""What hosts tell each other in words: JSON in the payload of a message, short, and checked before it is believed."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from vmlink.wire import Buffer, WireError

LIMIT = 4096
"""Bytes; what is told in words is rarely longer."""
Term = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
T = TypeVar("T", bound=msgspec.Struct)


def understood(payload: Buffer, kind: type[T], what: str, limit: int = LIMIT) -> T:
    """The `kind` that a payload holds. Raises WireError, which calls it `what`, when it holds none."""
    if len(payload) > limit:
        raise WireError(f"{what} of {len(payload)} bytes; at most {limit} are legal")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{what} that cannot be read: {error}") from None
