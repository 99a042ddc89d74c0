# SPDX-License-Identifier: GPL-2.0-or-later
"""One protected VM on this host: performs what the decision core orders and tells it what came of it.

Everything that starts or ends a QEMU runs in one worker, in the order it was ordered; what shuts or holds
output happens at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from appliance import config as cfg
from appliance import core
from appliance.arbiter import Arbiter
from appliance.backup import Backup
from appliance.core import Peer as PeerView
from appliance.decide import step
from appliance.errors import HoldfastError
from appliance.front import Front, FrontSpec
from appliance.journal import Journal
from appliance.peer import Peer
from appliance.primary import Primary
from appliance.spoken import Term, understood
from appliance.term import Reign, TermStore
from appliance.watched import watched
from ebpf.errors import BpfError
from vmlink import inject
from vmlink.errors import VmError
from vmlink.qemu import Qemu, VmSpec
from vmlink.ram import GuestRam
from vmlink.wire import Message, Type, decode_pieces, vm_id

log = logging.getLogger("holdfast.protection")

ARBITER_TIMEOUT = 2.0
ANNOUNCEMENTS = (0.0, 0.05, 0.2, 0.6, 1.5)
"""Seconds after the gate opened at which the VM is announced again."""
FAULTS = (VmError, HoldfastError, BpfError, OSError, inject.Injected)


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A STATE message."""

    phase: core.Phase
    term: Term
    last: core.Role
    role: core.Role
    home: bool
    settled: bool


class Protection:
    """See the module."""

    def __init__(self, name: str, vm: cfg.Vm, config: cfg.Config, peer: Peer, arbiter: Arbiter) -> None:
        self.name, self.id, self._vm, self._config = name, vm_id(name), vm, config
        self._peer, self._arbiter = peer, arbiter
        self._store = TermStore(config.host.state_dir, name)
        reign = self._store.load()
        self.state = core.State(config.host.name, vm.home == config.host.name, reign.term, reign.role)
        self.journal = Journal(name)
        self._events: deque[core.Event] = deque()
        self._stepping = False
        self._persisting = asyncio.Lock()
        self._front: Front | None = None
        self._qemu: Qemu | None = None
        self._ram: GuestRam | None = None
        self._primary: Primary | None = None
        self._backup: Backup | None = None
        self._life = 0
        self._work: asyncio.Queue[tuple[int, Callable[[], Awaitable[None]]]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._announcer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Prepare the front, silent. Raises HoldfastError or BpfError."""
        spec = FrontSpec(self.name, self._vm.mac, self._vm.ip, self._vm.bridge, self._vm.limits.held)
        self._front = await Front.create(spec)
        self._spawn(self._worker())
        self._spawn(self._tick())

    async def close(self) -> None:
        """End the VM here and take everything away."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end_vm()
        if self._front is not None:
            await self._front.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = watched(work, f"{self.name}: {getattr(work, '__name__', 'task')}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- decisions ---

    def post(self, event: core.Event) -> None:
        """Let the core decide about `event` and perform what it orders."""
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._events:
                before, now = self.state, time.monotonic()
                self.state, effects = step(before, self._events.popleft(), now)
                if self.state.phase is not before.phase:
                    self.journal.event(self.state.phase, was=before.phase, term=self.state.term,
                                       reason=self.state.reason)
                for effect in effects:
                    self._perform(effect)
        finally:
            self._stepping = False

    def _perform(self, effect: core.Effect) -> None:
        match effect:
            case core.Persist(term, role):
                self._spawn(self._persist(term, role))
            case core.Ask(term):
                self._spawn(self._ask(term))
            case core.StartVm():
                self._order(self._start_vm)
            case core.StartReplica():
                self._order(self._start_replica)
            case core.TakeOver():
                self._order(self._take_over)
            case core.Speak(term):
                self._speak(term)
            case core.Hold():
                if self._primary is not None:
                    self._primary.hold()
            case core.StartSync():
                if self._primary is not None:
                    self._primary.start_sync(self.state.term)
            case core.StopSync():
                if self._primary is not None:
                    self._primary.stop_sync()
            case core.StopVm(reason):
                self._stop_vm(reason)
            case core.Tell():
                self._tell()

    def _tell(self) -> None:
        state = self.state
        told = Told(state.phase, state.term, state.last, state.role, state.home, not state.writing)
        self._peer.send(Message(Type.STATE, self.id, state.term, 0, (msgspec.json.encode(told),)))

    async def _persist(self, term: int, role: core.Role) -> None:
        async with self._persisting:  # in the order of the decisions
            while True:
                try:
                    await asyncio.get_running_loop().run_in_executor(None, self._store.store, Reign(term, role))
                    break
                except OSError as error:
                    log.error("%s: the term cannot be written to %s: %s; nothing is done under it until it can",
                              self.name, self._config.host.state_dir, error)
                    await asyncio.sleep(core.RETRY)
        self.post(core.Persisted(term, role))

    async def _ask(self, term: int) -> None:
        try:
            answer = await asyncio.wait_for(self._arbiter.ask(self.name, term), ARBITER_TIMEOUT)
        except (TimeoutError, OSError) as error:
            self.post(core.Refused(f"the arbiter does not answer: {error}"))
            return
        self.post(core.Granted(term) if answer.granted else core.Refused(answer.reason))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(core.RETRY / 4)
            self.post(core.Tick())

    # --- what the peer says ---

    def peer_up(self) -> None:
        self.journal.event("peer-up")
        self.post(core.PeerUp())

    def peer_down(self, reason: str, doubtful: bool) -> None:
        self.journal.event("peer-down", reason=reason, doubtful=doubtful)
        self.post(core.PeerDown(reason, doubtful))

    def peer_heard(self, moment: float) -> None:
        if self._primary is not None:
            self._primary.peer_heard(moment)

    async def message(self, message: Message) -> None:
        """A message about this VM, in order. Raises WireError when it makes no sense."""
        if message.type is Type.STATE:
            told = understood(decode_pieces(message), Told, "a state")
            self.post(core.PeerSays(PeerView(told.phase, told.term, told.last, told.role, told.home, told.settled)))
        elif message.term != self.state.term:
            return  # the older term is refused; of a newer one STATE tells first
        elif message.type is Type.ACK:
            if self._primary is not None:
                self._primary.acknowledged(message.epoch)
        elif self._backup is not None:
            try:
                await self._backup.message(message)
            except FAULTS as error:  # of this host, not of the stream: the replica cannot be trusted any more
                log.error("%s: the replica failed: %s", self.name, error)
                self.post(core.VmLost(str(error)))

    # --- the VM's life on this host ---

    def _order(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work.put_nowait((self._life, work))

    async def _worker(self) -> None:
        while True:
            life, work = await self._work.get()
            if life != self._life:
                continue  # ordered before the VM was stopped
            try:
                await work()
            except FAULTS as error:
                hint = getattr(error, "hint", "")
                cause = getattr(error, "message", str(error)) + (f" ({hint})" if hint else "")
                log.error("%s: %s", self.name, cause)
                if life == self._life:
                    self.post(core.VmLost(cause))

    async def _launch(self, *, incoming: bool) -> tuple[Qemu, GuestRam]:
        assert self._front is not None
        vm, host = self._vm, self._config.host
        life = self._life
        spec = VmSpec(name=self.name, memory_bytes=vm.memory, vcpus=vm.vcpus, mac=vm.mac, kernel=vm.kernel,
                      initrd=vm.initrd, append=vm.append, qemu=vm.qemu, accel=vm.accel)
        loop = asyncio.get_running_loop()
        self._ram = await loop.run_in_executor(None, GuestRam.create, host.ram_dir, vm.memory)
        tap = await self._front.attach_vm()
        self._qemu = await Qemu.start(spec, self._ram, tap_fd=tap, incoming=incoming, run_dir=host.run_dir)
        self._spawn(self._watch(self._qemu, life))
        return self._qemu, self._ram

    async def _watch(self, qemu: Qemu, life: int) -> None:
        cause = await qemu.died()
        if life == self._life:
            self.journal.event("qemu-died", cause=cause)
            self.post(core.VmLost(cause))

    async def _start_vm(self) -> None:
        life = self._life
        qemu, ram = await self._launch(incoming=False)
        if life == self._life:
            self._become_primary(qemu, ram)
            self.post(core.VmRunning())

    async def _start_replica(self) -> None:
        life = self._life
        qemu, ram = await self._launch(incoming=True)
        if life == self._life:
            self._backup = Backup(self.name, self._vm, self.id, qemu, ram, self._peer, self.journal,
                                  self.post)
            self.post(core.ReplicaReady())

    async def _take_over(self) -> None:
        life, backup, qemu, ram, front = self._life, self._backup, self._qemu, self._ram, self._front
        if backup is None or qemu is None or ram is None or front is None:
            raise VmError("there is no replica to take over from", "this is a defect: please report it")
        inject.point("takeover.persisted")
        self.journal.event("takeover-begin", term=self.state.term, epoch=backup.replica.epoch)
        await backup.take_over()
        if life != self._life:
            return
        self.journal.event("takeover-done", term=self.state.term)
        self._backup = None
        self._become_primary(qemu, ram)
        replayed, again = backup.replay.take(), backup.unreleased()
        front.inbound.inject(replayed)
        self.post(core.VmRunning())  # the gate is open when this returns
        front.send_again(again)
        self.journal.event("replayed", frames=len(replayed), sent_again=len(again))

    def _become_primary(self, qemu: Qemu, ram: GuestRam) -> None:
        assert self._front is not None
        self._primary = Primary(self.name, self._vm, self.id, self._front, qemu, ram, self._peer, self.journal,
                                self._config.timing.timeout, self.post)

    def _speak(self, term: int) -> None:
        if self._primary is None or self._front is None:
            return
        announced = self._front.guard.stats().term == term
        self._front.open(term)
        if not announced:
            self.journal.event("gate-open", term=term)
            self._announcer = self._spawn(self._announce())
        self._primary.speak()

    async def _announce(self) -> None:
        begun = time.monotonic()
        for moment in ANNOUNCEMENTS:
            delay = begun + moment - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            if self._front is None or not self._front.guard.is_open:
                return
            self._front.announce()

    def _stop_vm(self, reason: str) -> None:
        """Silence at once; the rest follows in the worker."""
        self._life += 1
        if self._front is not None:
            self._front.shut()
            self._front.gate.drop()
        if self._announcer is not None:
            self._announcer.cancel()
        if self._qemu is not None:
            self.journal.event("vm-stopped", reason=reason)
            self._spawn(self._qemu.kill())  # a load under way fails now instead of at its timeout
        self._order(self._end_vm)

    async def _end_vm(self) -> None:
        primary, qemu, ram = self._primary, self._qemu, self._ram
        self._primary = self._backup = self._qemu = self._ram = None
        if primary is not None:
            await primary.close()
        if qemu is not None:
            await qemu.kill()
        if ram is not None:
            with contextlib.suppress(BufferError):
                ram.close()
        if self._front is not None:
            self._front.gate.drop()

    # --- status ---

    def status(self) -> dict[str, Any]:
        """One VM of the status reply; see docs for the fields."""
        primary, backup, front = self._primary, self._backup, self._front
        epoch = primary.epoch if primary else backup.replica.epoch if backup else 0
        return {
            "role": self.state.role, "phase": self.state.phase, "reason": self.state.reason,
            "term": self.state.term, "epoch": epoch, "committed": primary.committed if primary else epoch,
            "qemu_pid": self._qemu.pid if self._qemu else None,
            "qemu": {"version": self._qemu.version, "accel": self._qemu.accel.name,
                     "accel_reason": self._qemu.accel.reason} if self._qemu else None,
            "tracker": primary.tracker.name if primary and primary.tracker else None,
            "tracker_reason": primary.tracker.reason if primary and primary.tracker else None,
            "gate": msgspec.to_builtins(front.gate.stats()) if front else None,
            "guard": msgspec.to_builtins(front.guard.stats()) if front else None,
            **self.journal.summary(),
            "in_flight": primary.in_flight if primary else 0,
            "throttled": primary.throttled if primary else 0,
            "replay_log": {"bytes": backup.replay.bytes if backup else 0,
                           "dropped": backup.replay.dropped if backup else 0,
                           "unlogged": primary.unlogged_frames if primary else 0},
            "sync": primary.sync if primary else None,
            "events": list(self.journal.events),
        }
