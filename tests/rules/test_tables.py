# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables come in one transaction, replace what a dead service left, are watched, and go; nft itself is the judge."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import sys
import threading
from importlib import resources
from pathlib import Path

import pytest

from rules import libnftables
from rules.errors import RulesError
from rules.latch import Latch
from rules.libnftables import Nftables
from rules.policy import Link, Policy, Station
from rules.render import removal, ruleset
from rules.tables import Tables
from tests.net.stage import Stage, run
from tests.rules.conftest import DEVICE, LINK, nft, station
from tests.rules.frames import OWN4, OWN6

POLICY = Policy((LINK, Link("c8", "fd99::1", "fd99::2", 7780)), (station(OWN4, OWN6),))


def ours() -> list[str]:
    listed = json.loads(run("nft", "-j", "list tables"))["nftables"]
    return sorted(one["table"]["family"] for one in listed if one.get("table", {}).get("name") == "holdfast")


@pytest.fixture(autouse=True)
def _inside(stage: Stage) -> None:
    """Every test is in the stage's namespace."""
    nft("flush ruleset")


@pytest.mark.parametrize("name", ["links.nft", "fronts.nft"])
def test_the_files_are_rulesets_by_themselves(name: str) -> None:
    subprocess.run(["nft", "-c", "-f", str(resources.files("rules") / name)], check=True, timeout=20)
    assert ours() == []


def test_what_is_loaded_is_what_nft_lists(tmp_path: Path) -> None:
    text = tmp_path / "ruleset.nft"
    text.write_text(ruleset(POLICY))
    subprocess.run(["nft", "-c", "-f", str(text)], check=True, timeout=20)
    tables = Tables(POLICY)
    tables.load()
    assert ours() == ["bridge", "inet"]
    listed = nft("list ruleset")
    for part in (OWN4, OWN6, "52:54:00:aa:00:10", "169.254.9.2", "tcp . 7780", "udp . 4789", 'iifname @fronts'):
        assert part in listed
    assert "ho-web1" not in nft("list set bridge holdfast open")
    tables.remove()
    tables.remove()
    assert ours() == []
    tables.close()


def test_stale_tables_are_replaced_and_others_stay() -> None:
    nft("table bridge holdfast { set open { typeof iifname; elements = { ho-web1 }; }; chain own { drop; }; }; "
        "table inet admin { chain input { type filter hook input priority 0; }; }")
    tables = Tables(POLICY)
    tables.load()
    assert "chain own" not in nft("list ruleset") and "ho-web1" not in nft("list set bridge holdfast open")
    tables.load([DEVICE])
    assert "ho-web1" in nft("list set bridge holdfast open")
    tables.remove()
    assert "table inet admin" in nft("list ruleset")
    tables.close()


def test_a_transaction_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(POLICY)
    tables.load([DEVICE])
    before = nft("list ruleset")
    for bad in ("add rule bridge holdfast nosuch drop\n", "add element bridge holdfast own4 { nonsense }\n"):
        monkeypatch.setattr("rules.tables.ruleset", lambda policy, opened, bad=bad: ruleset(policy, opened) + bad)
        with pytest.raises(RulesError, match="nftables refused"):
            tables.load()
        assert nft("list ruleset") == before
    tables.close()


def test_the_kernel_judges_a_dry_run_and_nothing_changes() -> None:
    with Nftables() as filter_:
        filter_.run(ruleset(POLICY), check=True)
        assert ours() == []
        with pytest.raises(RulesError):
            filter_.run("add element bridge nosuch open { ho-web1 }", check=True)


@pytest.mark.parametrize("change", [
    "flush ruleset",
    "delete table inet holdfast",
    "delete table bridge holdfast",
    "flush chain bridge holdfast drop_mac",
    "insert rule bridge holdfast check accept",
    "add element bridge holdfast own4 { ho-web1 . 10.77.9.99 }",
    "delete element bridge holdfast fronts { ho-web1 }",
    "add chain bridge holdfast fronts { policy drop; }",
])
def test_a_change_by_somebody_else_is_seen(change: str) -> None:
    tables = Tables(POLICY)
    tables.load([DEVICE])
    reading = tables.read()
    assert reading is not None and reading.opened == {DEVICE}
    Latch(DEVICE).set(False)
    assert tables.read() is not None, "a front that moves is no change"
    nft(change)
    assert tables.read() is None
    tables.load([DEVICE])
    assert tables.read() is not None
    tables.close()


def test_each_host_has_its_own(stage: Stage) -> None:
    """Two namespaces, one process, tables used from other threads: each stays where it was made."""
    here = Tables(POLICY)
    with stage.inside("client"):
        there, latch = Tables(Policy((), ())), Latch("ho-web1")
    worker = threading.Thread(target=there.load)
    worker.start()
    worker.join(20)
    assert ours() == []
    here.load()
    latch.set(True)
    assert "ho-web1" not in nft("list set bridge holdfast open")
    with stage.inside("client"):
        assert ours() == ["bridge", "inet"] and "ho-web1" in nft("list set bridge holdfast open")
        assert "169.254.9.2" not in nft("list ruleset")
        there.remove()
    assert ours() == ["bridge", "inet"]
    for one in (here, there, latch):
        one.close()


@pytest.mark.parametrize("name", [
    "", "e*", "*", 'e"', "e th", "e;x", "e{", "e}", "e\n", "$e", "e,f", "e\0", "e\\", "é", "a" * 16, "e/f", "@s\t",
])
def test_hostile_device_names_get_into_no_ruleset(name: str) -> None:
    with pytest.raises(RulesError, match="packet filter rule"):
        Link(name, "10.0.0.1", "10.0.0.2", 7780)
    with pytest.raises(RulesError, match="packet filter rule"):
        Station("web1", name, "52:54:00:aa:00:10", ())


@pytest.mark.parametrize("mac", ["", "52:54:00:aa:00", "52:54:00:aa:00:10 accept", "53:54:00:aa:00:10",
                                 "52:54:00:AA:00:10", "52-54-00-aa-00-10", "52:54:00:aa:00:10\n"])
def test_hostile_macs(mac: str) -> None:
    with pytest.raises(RulesError, match="MAC"):
        Station("web1", "ho-web1", mac, ())


@pytest.mark.parametrize("ip", ["", "10.0.0.1/8", "10.0.0.1, 10.0.0.2", "fe80::1%eth0", "::1 }", "10.0.0.01", "any"])
def test_hostile_addresses(ip: str) -> None:
    with pytest.raises(RulesError):
        Station("web1", "ho-web1", "52:54:00:aa:00:10", (ip,))
    with pytest.raises(RulesError):
        Link("c0", ip, "10.0.0.2", 7780)
    with pytest.raises(RulesError):
        Link("c0", "10.0.0.2", ip, 7780)


def test_odd_but_legal_device_names_load() -> None:
    odd = ("drop", "accept", "0", "10.77.0.1", "a.b", "x@y", "-", "__", "bond0.4094")
    tables = Tables(Policy(tuple(Link(name, "10.0.0.1", "10.0.0.2", 7780) for name in odd), ()))
    tables.load()
    listed = nft("list set inet holdfast peers4")
    assert all(f'"{name}"' in listed for name in odd)
    tables.close()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    libnftables._library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(RulesError, match="libnftables") as caught:
        Nftables()
    assert "apt install libnftables1" in caught.value.hint


def test_without_a_packet_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would end the process here."""

    def unknown(*_: object) -> None:
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr(socket, "socket", unknown)
    with pytest.raises(RulesError, match="no packet filter.*not supported") as caught:
        Nftables()
    assert "CONFIG_NF_TABLES" in caught.value.hint


def test_without_the_right() -> None:
    script = ("import os; os.setgroups([]); os.setuid(65534)\n"
              "try: Nftables().run('list ruleset'); Nftables().run('add table inet x')\n"
              "except RulesError as error: print(error.message, '/', error.hint)")
    said = subprocess.run([sys.executable, "-c", "from rules.errors import RulesError\n"
                           "from rules.libnftables import Nftables\n" + script], capture_output=True, text=True,
                          timeout=20, cwd=Path(__file__).parents[2]).stdout
    assert "not permitted" in said and "run as root" in said


def test_removal_by_hand_is_what_the_handbook_says() -> None:
    tables = Tables(POLICY)
    tables.load()
    nft(removal().replace("\n", "; "))
    assert ours() == []
    tables.close()
