# SPDX-License-Identifier: GPL-2.0-or-later
"""The front: the VM's place in the production network. One MAC, its addresses, three taps, a bridge port.

    QEMU - VM tap -[gate]-> hold tap -(release)-> out tap -[guard]-> bridge
                  <---------------[inbound]--------------

Invariant: a front is made shut and silent, and what it is made of goes away with this process: without the
service nothing passes, in or out.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from appliance import packet
from appliance.announce import announcements
from appliance.errors import HoldfastError, NoPermission, Unavailable
from appliance.gate import RingGate
from appliance.guard import Guard
from appliance.inbound import Inbound
from appliance.outbound import Outbound
from appliance.tap import VNET_HEADER, Counters, open_tap
from ebpf import libbpf, objects_dir
from ebpf.state import STAMP_FRAMES, STAMP_PROTO, GateState, GuardState, InboundState
from ebpf.trace import Slot, Slots
from rules.errors import RulesError
from rules.latch import Latch

log = logging.getLogger("holdfast.front")

_HOLD_RING = 2 * STAMP_FRAMES  # frames; more than may be in flight, for those that the kernel cuts up
_OTHER_RING = 4096
_NETLINK_TIMEOUT = 5.0  # seconds
_NAME_TIMEOUT = 2.0  # seconds that devices of a service killed just now may take to go


@dataclass(frozen=True, slots=True)
class FrontSpec:
    """One VM's place: `limit_bytes` bounds what may be held."""

    vm: str
    mac: str
    ips: tuple[str, ...]
    bridge: str
    limit_bytes: int

    def device(self, kind: str) -> str:
        """The name of a device of this front: kind `v` is the VM tap, `h` the hold tap, `o` the out tap; `x` and `s`
        are a detour's tunnel and its bridge."""
        vm = self.vm
        if len(vm.encode()) > 12:
            vm = vm.encode()[:5].decode(errors="ignore") + hashlib.sha256(vm.encode()).hexdigest()[:6]
        return f"h{kind}-{vm}"


class Front:
    """The front of one VM on this host; lives as long as the service protects the VM, on either side."""

    gate: RingGate
    guard: Guard
    inbound: Inbound
    outbound: Outbound
    slots: Slots

    def __init__(self, spec: FrontSpec) -> None:
        """Use `create`."""
        self.spec = spec
        self._undo = contextlib.ExitStack()
        self._hold = self._out = -1
        self._vm_tap = ""
        self._gate_program = -1
        self._latch: Latch | None = None
        self._latched = ""
        self._announcements = announcements(spec.mac, spec.ips)
        self.sends_itself: Callable[[int, int, str, bool], None] = lambda since_ns, frames, point, over: None
        """Hears of frames that this host sends by itself: since when (monotonic ns), how many, what they are, and
        whether they are sent; before and after it."""

    @classmethod
    async def create(cls, spec: FrontSpec) -> Self:
        """Make hold and out tap, load the programs, join the bridge; everything shut.

        Raises `HoldfastError` (no tun driver, no privilege, no such bridge, a name in use) or `BpfError`.
        Nothing is left behind then.
        """
        front = cls(spec)
        try:
            await front._make()
        except BaseException:
            front._undo.close()
            raise
        return front

    async def _make(self) -> None:
        hold_name, out_name = self.spec.device("h"), self.spec.device("o")
        with contextlib.suppress(RulesError):  # without a packet filter there are no rules to open
            self._latch = Latch(out_name)
            self._undo.callback(self._close_latch)
        self._hold = await _open_tap(hold_name)
        self._undo.callback(self._close_hold)
        self._out = await _open_tap(out_name)
        self._undo.callback(os.close, self._out)

        loaded = await asyncio.to_thread(self._load)
        gate_programs, guard_programs = loaded
        self._gate_program = gate_programs.program("gate")
        state = gate_programs.state("gate_state", GateState)
        state.hold_ifindex = socket.if_nametoindex(hold_name)
        out_index = socket.if_nametoindex(out_name)
        guard = guard_programs.state("guard_state", GuardState)
        inbound = gate_programs.state("inbound_state", InboundState)
        self.guard, self.inbound = Guard(guard), Inbound(inbound)
        self._undo.callback(self.inbound.unbind)
        slots, rings = gate_programs.states("trace_slots", Slot), gate_programs.map("trace_rings")
        self.slots = Slots(slots, rings, [state, guard, inbound])
        self._undo.callback(self.slots.close)
        self.outbound = Outbound(hold_name)
        self._undo.callback(self.outbound.close)
        self.gate = RingGate(
            self._hold, self._out, state, self.guard, Counters(state.hold_ifindex), self.spec.limit_bytes
        )
        self._undo.callback(self.gate.close)

        # The guard is there before the device is up and before it is a port.
        libbpf.attach(out_index, "ingress", guard_programs.program("guard"))
        libbpf.attach(out_index, "egress", gate_programs.program("inbound"))
        guard_programs.close()
        async with netlink() as connection:
            bridge = device_index(self.spec.bridge)
            await _fix_mac(connection, bridge)
            await _prepare(connection, hold_name, _HOLD_RING)
            await _prepare(connection, out_name, _OTHER_RING)
            await connection.link("set", index=state.hold_ifindex, state="up")
            await connection.link("set", index=out_index, master=bridge, state="up")

    def _load(self) -> tuple[libbpf.Object, libbpf.Object]:
        where = objects_dir()
        gate = libbpf.Object.load(where / "gate.bpf.o")
        self._undo.callback(gate.close)
        shared = {name: gate.map(name) for name in ("trace_slots", "trace_rings")}
        guard = libbpf.Object.load(where / "guard.bpf.o", shared)
        self._undo.callback(guard.close)
        return gate, guard

    def _close_latch(self) -> None:
        if self._latch is not None:
            self._latch.close()
            self._latch = None

    def _close_hold(self) -> None:
        if not hasattr(self, "gate"):
            os.close(self._hold)  # otherwise the gate has closed it

    async def attach_vm(self) -> int:
        """Make a new VM tap, in the place of the last one, and return its descriptor, for QEMU.

        The caller closes its copy once QEMU has been started. Raises like `create`.
        """
        name = self.spec.device("v")
        await self._detach()
        fd = await _open_tap(name)
        try:
            await self.attach_device(name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def attach_device(self, name: str) -> None:
        """Put the gate behind a device that is there and down; what comes in there is what the VM sends."""
        async with netlink() as connection:
            index = device_index(name)
            libbpf.attach(index, "ingress", self._gate_program)
            await _prepare(connection, name, _OTHER_RING)
            self.inbound.bind(name, index)
            await connection.link("set", index=index, state="up")
        self._vm_tap = name

    async def _detach(self) -> None:
        """Take the last VM tap away, even from a QEMU that is still ending."""
        self.inbound.unbind()
        name, self._vm_tap = self._vm_tap, ""
        if name and name == self.spec.device("v"):
            async with netlink() as connection:
                with contextlib.suppress(HoldfastError):
                    await connection.link("del", index=device_index(name))

    @property
    def is_open(self) -> bool:
        return self.guard.is_open

    def open(self, term: int) -> None:
        """Let committed frames out and frames in, under `term`. Raises `Unsafe` for a term that is over."""
        self.guard.open(term)
        self._set_latch(True)
        self.inbound.open()

    def shut(self) -> None:
        """Nothing out, nothing in, from now on."""
        self.guard.close()
        self.inbound.shut()
        self._set_latch(False)

    def _set_latch(self, opened: bool) -> None:
        """The packet filter's word on this front, beside the guard's: where it cannot be changed it stays, and the
        firewall puts it right."""
        if self._latch is None:
            return
        try:
            self._latch.set(opened)
            self._latched = ""
        except RulesError as error:
            if error.message != self._latched:
                log.error("%s", error)
            self._latched = error.message

    async def plug(self, bridge: str) -> None:
        """Move the out tap into this bridge. Raises HoldfastError."""
        async with netlink() as connection:
            await connection.link("set", index=device_index(self.spec.device("o")), master=device_index(bridge))

    def announce(self) -> None:
        """Tell the network that the MAC is here now, once. Only an open guard lets it pass."""
        self._send([bytes(packet.VNET_HEADER) + frame for frame in self._announcements], "announced")

    def send_again(self, frames: list[bytes]) -> None:
        """Send frames of committed epochs (as `outbound` took them) under the stamp of what is committed here.
        Only an open guard lets them pass."""
        self._send(frames, "replayed")

    def _send(self, frames: list[bytes], point: str) -> None:
        if not frames:
            return
        since = time.monotonic_ns()
        self.sends_itself(since, len(frames), point, False)
        for frame in frames:
            stamped = packet.with_tag(frame, STAMP_PROTO, self.guard.committed & 0xFFFF)
            header, rest = stamped[:packet.VNET_HEADER], stamped[packet.VNET_HEADER:]
            with contextlib.suppress(OSError):  # the device is down: there is nobody to tell
                os.write(self._out, header.ljust(VNET_HEADER, b"\0") + rest)
        self.sends_itself(since, len(frames), point, True)

    async def close(self) -> None:
        """Shut, and take every device of this front away. Idempotent."""
        self.shut()
        try:
            await self._detach()
        finally:
            self._undo.close()


async def _open_tap(name: str) -> int:
    """`open_tap`, with patience for a name that a dying process still holds."""
    deadline = asyncio.get_running_loop().time() + _NAME_TIMEOUT
    while True:
        try:
            return open_tap(name)
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline or not _exists(name):
                raise
        await asyncio.sleep(0.01)


def _exists(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


@contextlib.asynccontextmanager
async def netlink() -> AsyncIterator[Any]:
    """A netlink connection of the calling thread's namespace; errors come out as `HoldfastError`."""
    from pyroute2 import AsyncIPRoute, NetlinkError  # 0.3 s to import: only a service that has a front pays

    try:
        async with asyncio.timeout(_NETLINK_TIMEOUT), AsyncIPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        text = f"the network set-up was refused: {os.strerror(abs(error.code))}"
        if abs(error.code) in (1, 13):
            raise NoPermission(text, "run as root, or with CAP_NET_ADMIN") from None
        raise Unavailable(text, "does the kernel have bridges and taps?") from None
    except TimeoutError:
        raise Unavailable(f"the kernel did not answer a network request in {_NETLINK_TIMEOUT:g} s") from None


def device_index(name: str) -> int:
    """The index of a network device of the calling thread's namespace. Raises Unavailable."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise Unavailable(f"there is no network device {name}", "create it first") from None


async def _fix_mac(connection: Any, bridge: int) -> None:
    """A bridge without a MAC of its own takes another one whenever a port leaves: give it the one it has."""
    for link in await connection.link("get", index=bridge):
        if link.get(("linkinfo", "kind")) != "bridge":
            raise Unavailable(f"{link.get('ifname')} is no bridge", "name a bridge in the VM's configuration")
        await connection.link("set", index=bridge, address=link.get("address"))


def silence_ipv6(name: str) -> None:
    """No router solicitations and such of the host's own on a device of the front."""
    with contextlib.suppress(OSError):  # without IPv6 in the kernel
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


async def _prepare(connection: Any, name: str, ring: int) -> None:
    """Before it is up: a ring of `ring` frames, no queue before it, and no frames of the kernel's own."""
    silence_ipv6(name)
    index = device_index(name)
    await connection.link("set", index=index, txqlen=ring)
    await connection.tc("replace", "noqueue", index=index, parent=0xFFFFFFFF)
