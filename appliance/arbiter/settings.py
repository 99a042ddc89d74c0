# SPDX-License-Identifier: GPL-2.0-or-later
"""The [arbiter] section of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from appliance.arbiter.datagram import address
from appliance.errors import BadData
from appliance.settings import FilePath, Seconds, Section, says

_PAIR = re.compile(r"[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?")
_FIELDS = {"witness": {"address", "key_file"}, "etcd": {"endpoints", "ca_file", "cert_file", "cert_key_file"},
           "none": {"accept_split_brain_risk"}}


class Arbiter(Section, frozen=True, kw_only=True):
    """[arbiter]: who decides when the hosts cannot see each other."""

    kind: Annotated[Literal["none", "witness", "etcd"], says("who is asked")] = "none"
    accept_split_brain_risk: Annotated[bool, says("none: take over on mere silence of the peer")] = False
    pair: Annotated[
        str, says("this pair's name at the arbiter; \"\" is the names of both hosts, sorted, with a dash between")] = ""
    timeout: Annotated[Seconds, says("for a grant")] = 1.0
    address: Annotated[str, says("witness: HOST:PORT")] = ""
    key_file: Annotated[FilePath | None, says("witness: the pair's key")] = None
    endpoints: Annotated[tuple[str, ...], says("etcd: URLs")] = ()
    ca_file: Annotated[FilePath | None, says("etcd: who signed its certificate")] = None
    cert_file: Annotated[FilePath | None, says("etcd: this host's certificate")] = None
    cert_key_file: Annotated[FilePath | None, says("etcd: its key")] = None


def faults(arbiter: Arbiter) -> Iterator[tuple[str, str, str]]:
    """Key, what is wrong with it, what helps."""
    if arbiter.pair and not _PAIR.fullmatch(arbiter.pair):
        yield "pair", f"{arbiter.pair!r} is no name for a pair", "use small letters, digits and dashes"
    if not 0.1 <= arbiter.timeout <= 10:
        yield "timeout", "must be from 100ms to 10s", "1s is usual"
    for kind, fields in _FIELDS.items():
        for field in sorted(fields) if kind != arbiter.kind else ():
            if getattr(arbiter, field):
                yield field, f"is for kind = \"{kind}\", and kind is \"{arbiter.kind}\"", "remove it, or change kind"
    if arbiter.kind == "witness":
        yield from _witness_faults(arbiter)
    if arbiter.kind == "etcd":
        yield from _etcd_faults(arbiter)


def _witness_faults(arbiter: Arbiter) -> Iterator[tuple[str, str, str]]:
    try:
        address(arbiter.address)
    except BadData as error:
        yield "address", error.message, error.hint
    if arbiter.key_file is None:
        yield "key_file", "is missing", "holdfast witness --make-key FILE makes one, for both hosts and the witness"
    elif not arbiter.key_file.is_file():
        yield "key_file", f"there is no file {arbiter.key_file}", "copy the pair's key to it"


def _etcd_faults(arbiter: Arbiter) -> Iterator[tuple[str, str, str]]:
    if not 1 <= len(arbiter.endpoints) <= 9:
        yield "endpoints", "must name 1 to 9 URLs", 'such as ["https://192.0.2.7:2379"]'
    for endpoint in arbiter.endpoints:
        if not re.fullmatch(r"https?://[^\s/]+/?", endpoint):
            yield "endpoints", f"{endpoint!r} is no URL of an etcd", 'such as "https://192.0.2.7:2379"'
    for field in ("ca_file", "cert_file", "cert_key_file"):
        file = getattr(arbiter, field)
        if file is not None and not file.is_file():
            yield field, f"there is no file {file}", "correct the path"
    if (arbiter.cert_file is None) != (arbiter.cert_key_file is None):
        yield "cert_file", "needs cert_key_file, and the other way round", "give both or neither"
