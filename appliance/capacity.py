# SPDX-License-Identifier: GPL-2.0-or-later
"""Can a host carry a VM, and all VMs of the pair when it is the only one left? Pure.

Both hosts hold every VM of the pair, as itself or as replica, so what one host must be able to carry is the sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from appliance.config import Vm
from appliance.units import format_size

OVERHEAD = 96 << 20
"""Bytes that a VM takes beside its own memory: QEMU, and the service's part. Measured: 60 to 80 MiB."""
SPARE_DISK = 64 << 20
"""Bytes that must be free where terms are kept."""
Word = Annotated[str, msgspec.Meta(max_length=128)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Emulator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What would run a VM on a host. `trouble`: why nothing would."""

    version: Word = ""
    accel: Word = ""
    trouble: Annotated[str, msgspec.Meta(max_length=500)] = ""


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a host has for VMs. `memory`: bytes that all of them together may take, those that they have already
    included; `ram`: the same for guest memory alone, which has a file system of its own; `disk`: bytes free where
    terms are kept; `emulators`: by VM."""

    memory: Amount
    ram: Amount
    cores: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    machine: Word
    vendor: Word
    flags: Annotated[frozenset[Word], msgspec.Meta(max_length=1024)]
    disk: Amount
    bridges: Annotated[frozenset[Word], msgspec.Meta(max_length=256)]
    emulators: Annotated[dict[Word, Emulator], msgspec.Meta(max_length=256)]


class Problem(msgspec.Struct, frozen=True):
    """refuse: the VM cannot run there; warn: it could, but badly, or not together with all others."""

    level: Literal["refuse", "warn"]
    reason: str
    remedy: str


def problems(name: str, vms: dict[str, Vm], host: str, offer: Offer, own: Offer) -> list[Problem]:
    """What speaks against VM `name` of `vms` on `host`, which has `offer`; `own`: what the host has that runs it."""
    vm = vms[name]
    return [*_emulator(name, host, offer, own), *_memory(name, vms, host, offer), *_processors(name, vms, host, offer),
            *_rest(vm, host, offer)]


def refusal(found: Iterable[Problem]) -> str:
    """Why the VM must not go there; empty if it may."""
    return "; ".join(problem.reason for problem in found if problem.level == "refuse")


def need(vm: Vm) -> int:
    """Bytes of memory that a VM takes on a host, at most."""
    return vm.memory + vm.limits.in_flight + OVERHEAD


def _memory(name: str, vms: dict[str, Vm], host: str, offer: Offer) -> Iterable[Problem]:
    yield from _sum(name, {each: need(vm) for each, vm in vms.items()}, host, offer.memory, "of memory for VMs",
                    f"give {host} more memory, or its VMs less")
    yield from _sum(name, {each: vm.memory for each, vm in vms.items()}, host, offer.ram, "of room for guest memory",
                    f"make host.ram_dir of {host} larger, as in mount -o remount,size=...")


def _sum(name: str, needs: dict[str, int], host: str, limit: int, of_what: str, remedy: str) -> Iterable[Problem]:
    alone, together = needs[name], sum(needs.values())
    # In the order of their names VMs get what there is: so both hosts come to the same, and not all are refused.
    before = sum(size for other, size in needs.items() if other < name)
    has = f"{host} has {format_size(limit >> 20 << 20)} {of_what}"
    if alone > limit:
        yield Problem("refuse", f"{has}, {name} takes {format_size(alone)}", remedy)
    elif before + alone > limit:
        yield Problem("refuse", f"{has}, too little for {name} beside the other VMs of the pair, which take "
                                f"{format_size(before)}", remedy)
    elif together > limit:
        yield Problem("warn", f"{has}, all VMs of the pair take {format_size(together)}", remedy)


def _processors(name: str, vms: dict[str, Vm], host: str, offer: Offer) -> Iterable[Problem]:
    wanted, all_wanted = vms[name].vcpus, sum(vm.vcpus for vm in vms.values())
    if wanted > offer.cores:
        yield Problem("warn", f"{name} has {wanted} CPUs, {host} has {offer.cores} cores", "it will be slower there")
    elif all_wanted > offer.cores:
        yield Problem("warn", f"all VMs of the pair have {all_wanted} CPUs, {host} has {offer.cores} cores",
                      f"they will be slower when {host} carries all")


def _emulator(name: str, host: str, offer: Offer, own: Offer) -> Iterable[Problem]:
    there, here = offer.emulators.get(name), own.emulators.get(name)
    if there is None or here is None:
        yield Problem("refuse", f"{host} does not know {name}", "both hosts need the same [vm.*] tables")
        return
    if there.trouble:
        yield Problem("refuse", f"{host}: {there.trouble}", "install the same QEMU on both hosts")
    elif there.version != here.version:
        yield Problem("refuse", f"{host} has QEMU {there.version}, this host {here.version}",
                      "install the same QEMU on both hosts")
    elif there.accel != here.accel:
        yield Problem("refuse", f"{host} would run {name} under {there.accel}, this host under {here.accel}",
                      f"set vm.{name}.accel to what both hosts have")
    if offer.machine != own.machine:
        yield Problem("refuse", f"{host} is a {offer.machine}, this host a {own.machine}",
                      "both hosts need processors of one kind")
    elif here.accel == "kvm" and offer.vendor != own.vendor:
        yield Problem("refuse", f"{host} has processors by {offer.vendor}, this host by {own.vendor}",
                      "a running VM cannot change between them under KVM; accel = \"tcg\" can")
    elif here.accel == "kvm" and (lacking := own.flags - offer.flags):
        some = ", ".join(sorted(lacking)[:8])
        yield Problem("warn", f"the processors of {host} lack {some}{' and more' if len(lacking) > 8 else ''}",
                      "a guest that uses them would crash there")


def _rest(vm: Vm, host: str, offer: Offer) -> Iterable[Problem]:
    if vm.bridge not in offer.bridges:
        yield Problem("refuse", f"{host} has no bridge {vm.bridge}", f"make it on {host}, with the uplink in it")
    if offer.disk < SPARE_DISK:
        yield Problem("refuse", f"{host} has {format_size(offer.disk >> 20 << 20)} free where terms are kept",
                      f"make room: {format_size(SPARE_DISK)} must be free")
