# SPDX-License-Identifier: GPL-2.0-or-later
"""The third machine of a lab, and the arbiter on it: a witness of ours, an etcd, or nobody."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.arbiter import key
from appliance.arbiter.datagram import PORT
from appliance.lab.topology import HOSTS, THIRD, WITNESS_IP

PLACE = THIRD
ETCD_PORT, ETCD_PEER_PORT = 2379, 2380
PAIR = "-".join(HOSTS)


def prepare(kind: str, home: Path) -> None:
    """Make what the arbiter needs below `home`."""
    home.mkdir(parents=True)
    if kind == "witness":
        key.make(_key(home))


def _key(home: Path) -> Path:
    return home / "keys" / f"{PAIR}.key"


def section(kind: str, home: Path, risk: bool) -> dict[str, object]:
    """[arbiter] for the hosts. `risk`: without an arbiter, silence is taken for death."""
    if kind == "witness":
        return {"kind": kind, "address": f"{WITNESS_IP}:{PORT}", "key_file": _key(home)}
    if kind == "etcd":
        return {"kind": kind, "endpoints": [f"http://{WITNESS_IP}:{ETCD_PORT}"]}
    return {"kind": "none", "accept_split_brain_risk": risk}


def command(kind: str, home: Path) -> list[str]:
    """What runs on the third machine; nothing for no arbiter."""
    if kind == "witness":
        return [sys.executable, "-m", "appliance.cli", "witness", "--listen", f"{WITNESS_IP}:{PORT}",
                "--state-dir", str(home / "state"), "--keys", str(home / "keys")]  # fmt: skip
    if kind == "etcd":
        client, peer = (f"http://{WITNESS_IP}:{port}" for port in (ETCD_PORT, ETCD_PEER_PORT))
        return ["etcd", "--name", PLACE, "--data-dir", str(home / "state"), "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", f"{PLACE}={peer}"]  # fmt: skip
    return []
