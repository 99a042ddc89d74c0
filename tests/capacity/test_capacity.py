# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host can carry: each lack is named, and whether it forbids or warns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.capacity import OVERHEAD, Emulator, Offer, Problem, need, problems, refusal
from appliance.config import Limits, Vm

MIB, GIB = 1 << 20, 1 << 30
QEMU = Emulator("7.2.22", "tcg")


def vm(memory: int = 512 * MIB, vcpus: int = 1, **more: Any) -> Vm:
    return Vm(home="alpha", memory=memory, mac="52:54:00:00:00:01", bridge="br0", kernel=Path("/k"), vcpus=vcpus,
              limits=Limits(in_flight=64 * MIB), **more)


def offer(**more: Any) -> Offer:
    usual = Offer(8 * GIB, 8 * GIB, 4, "x86_64", "AuthenticAMD", frozenset({"sse4_2", "avx2"}), 10 * GIB,
                  frozenset({"br0"}), {"web1": QEMU, "web2": QEMU})
    return msgspec.structs.replace(usual, **more)


def found(there: Offer, own: Offer | None = None, **vms: Vm) -> list[Problem]:
    return problems("web1", vms or {"web1": vm()}, "beta", there, own or offer())


def test_a_host_that_has_all() -> None:
    assert found(offer()) == [] and refusal([]) == ""


@pytest.mark.parametrize(("there", "reason"), [
    (offer(memory=100 * MIB), "100MiB of memory"),
    (offer(ram=511 * MIB), "511MiB of room for guest memory"),
    (offer(bridges=frozenset({"br1"})), "no bridge br0"),
    (offer(disk=1 * MIB), "free where terms are kept"),
    (offer(emulators={}), "does not know web1"),
    (offer(emulators={"web1": Emulator(trouble="there is no program qemu")}), "no program qemu"),
    (offer(emulators={"web1": Emulator("8.0", "tcg")}), "QEMU 8.0"),
    (offer(emulators={"web1": Emulator("7.2.22", "kvm")}), "under kvm"),
    (offer(machine="aarch64"), "aarch64"),
])  # fmt: skip
def test_what_a_host_lacks_is_refused_with_reason_and_remedy(there: Offer, reason: str) -> None:
    told = found(there)
    assert [problem.level for problem in told] == ["refuse"]
    assert reason in refusal(told) and told[0].remedy and "beta" in told[0].reason


def test_processors_matter_under_kvm_alone() -> None:
    kvm = {"web1": Emulator("7.2.22", "kvm")}
    other, poor = {"vendor": "GenuineIntel"}, {"flags": frozenset({"sse4_2"})}
    assert "GenuineIntel" in refusal(found(offer(emulators=kvm, **other), offer(emulators=kvm)))
    lacking = found(offer(emulators=kvm, **poor), offer(emulators=kvm))
    assert [(problem.level, "avx2" in problem.reason) for problem in lacking] == [("warn", True)]
    assert found(offer(**other, **poor)) == []


def test_one_host_must_carry_the_vms_of_both() -> None:
    both = {"web1": vm(), "web2": vm()}
    one = need(both["web1"])
    enough, tight = offer(memory=2 * one), offer(memory=2 * one - 1)
    assert problems("web1", both, "beta", enough, offer()) == problems("web2", both, "beta", enough, offer()) == []
    assert [problem.level for problem in problems("web1", both, "beta", tight, offer())] == ["warn"]
    refused = problems("web2", both, "beta", tight, offer())
    assert [problem.level for problem in refused] == ["refuse"] and "beside the other VMs" in refused[0].reason


def test_guest_memory_has_room_of_its_own() -> None:
    both = {"web1": vm(), "web2": vm()}
    assert problems("web2", both, "beta", offer(ram=GIB), offer()) == [], "what else a VM takes lies elsewhere"
    assert [problem.level for problem in problems("web2", both, "beta", offer(ram=GIB - 1), offer())] == ["refuse"]


def test_cores_are_a_warning() -> None:
    assert [problem.level for problem in found(offer(cores=1), web1=vm(vcpus=2))] == ["warn"]
    assert [problem.level for problem in found(offer(cores=2), web1=vm(vcpus=2), web2=vm())] == ["warn"]
    assert found(offer(cores=3), web1=vm(vcpus=2), web2=vm()) == []


@given(st.lists(st.integers(16, 4096), min_size=1, max_size=5), st.integers(0, 20_000))
def test_what_is_let_in_fits(sizes: list[int], has: int) -> None:
    """However many VMs there are: those that are not refused fit into the host together."""
    vms = {f"web{number}": vm(size * MIB) for number, size in enumerate(sizes)}
    there = offer(memory=has * MIB, ram=2**62, emulators=dict.fromkeys(vms, QEMU))
    own = offer(emulators=dict.fromkeys(vms, QEMU))
    accepted = [name for name in vms if not refusal(problems(name, vms, "beta", there, own))]
    assert sum(need(vms[name]) for name in accepted) <= has * MIB or not accepted
    assert need(vm(0)) == OVERHEAD + 64 * MIB


def test_hostile_offers_are_no_offers() -> None:
    good = msgspec.json.encode(offer())
    assert msgspec.json.decode(good, type=Offer) == offer()
    for field, value in (("memory", -1), ("cores", 0), ("flags", ["x" * 200]), ("bridges", ["b"] * 3 + [7]),
                         ("emulators", {"web1": 3}), ("more", 1)):
        bad = msgspec.json.encode({**msgspec.to_builtins(offer()), field: value})
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(bad, type=Offer)
