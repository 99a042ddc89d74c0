# SPDX-License-Identifier: GPL-2.0-or-later
"""Our tables in the host's packet filter: put there in one transaction, looked at, and taken away again.

Invariant: a front whose device is not in the set `open` reaches nobody, and after `load` none is but those named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rules.errors import RulesError
from rules.libnftables import Nftables
from rules.policy import Policy
from rules.render import DROPS, FAMILIES, TABLE, removal, ruleset

Objects = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What is in force. `opened`: devices that may send. The rest was dropped since the load: `strangers` meant
    for the links, but not from the peer there; `vms` by VM and by the reason why (DROPS)."""

    opened: frozenset[str]
    strangers: int
    vms: dict[str, dict[str, int]]


class Tables:
    """The tables of this host's network namespace (that of the thread that makes this). Blocking."""

    def __init__(self, policy: Policy) -> None:
        """Raises RulesError where there is no libnftables or no packet filter."""
        self.policy = policy
        self._nft = Nftables()
        self._loaded = ""

    def load(self, opened: Iterable[str] = ()) -> None:
        """Replace whatever tables of that name are there, also those of a service that died; all or nothing.

        opened: devices that may send at once. Raises RulesError; then nothing has changed.
        """
        text = ruleset(self.policy, opened)
        self._nft.run(text, check=True)
        self._nft.run(text)
        self._loaded = _print(self._list())

    def remove(self) -> None:
        """Take our tables away, whether they are there or not. Raises RulesError."""
        self._loaded = ""
        self._nft.run(removal())

    def read(self) -> Reading | None:
        """What is in force; None when it is not what `load` put there: somebody removed or changed it."""
        try:
            objects = self._list()
        except RulesError:
            return None
        return self._reading(objects) if self._loaded and _print(objects) == self._loaded else None

    def _list(self) -> Objects:
        return [one for family in FAMILIES for one in self._nft.query(f"list table {family} {TABLE}")]

    def _reading(self, objects: Objects) -> Reading:
        sets = {one["set"]["name"]: one["set"].get("elem", []) for one in objects if "set" in one}
        dropped = {why: {elem["elem"]["val"]: elem["elem"]["counter"]["packets"] for elem in sets[f"dropped_{why}"]}
                   for why in DROPS if f"dropped_{why}" in sets}
        vms = {station.vm: {why: dropped.get(why, {}).get(station.device, 0) for why in DROPS}
               for station in self.policy.stations}
        strangers = sum(one["counter"]["packets"] for one in objects if "counter" in one)
        return Reading(frozenset(sets["open"]), strangers, vms)

    def close(self) -> None:
        """Give the library back; the tables stay."""
        self._nft.close()


def _print(objects: Objects) -> str:
    """The same for the same rules: without handles, counts, the order in a set, and what is open."""
    lines = []
    for one in objects:
        for kind, value in one.items():
            if kind == "metainfo":
                continue
            plain = {name: part for name, part in value.items() if name not in ("handle", "elem", "packets", "bytes")}
            if kind == "set" and value["name"] != "open":
                plain["elem"] = sorted(_plain(elem) for elem in value.get("elem", []))
            lines.append(json.dumps({kind: plain}, sort_keys=True))
    return "\n".join(lines)


def _plain(elem: Any) -> str:
    return json.dumps(elem["elem"]["val"] if isinstance(elem, dict) and "elem" in elem else elem)
