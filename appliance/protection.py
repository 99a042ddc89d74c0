# SPDX-License-Identifier: GPL-2.0-or-later
"""One protected VM on this host: performs what the decision core orders and tells it what came of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from appliance import config as cfg
from appliance import core
from appliance.arbiter.arbiter import Arbiter
from appliance.arbiter.grants import Answer
from appliance.core import Peer as PeerView
from appliance.core import Phase, Role
from appliance.decide import step
from appliance.events import Events
from appliance.history.course import cause
from appliance.journal import Journal
from appliance.machine import Machine
from appliance.moves import asks
from appliance.peer import Peer
from appliance.spoken import Term, understood
from appliance.term import Reign, TermStore
from appliance.watched import watched
from vmlink.wire import Message, Type, decode_pieces, vm_id

log = logging.getLogger("holdfast.protection")

TO_PRIMARY = (Type.ACK, Type.DISK_STATE, Type.DISK_HASHES, Type.DISK_DATA)
RENEW = 1.0
"""Seconds between two questions whether the arbiter's grant still stands, while this host is alone."""


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A STATE message."""

    phase: core.Phase
    term: Term
    last: core.Role
    role: core.Role
    home: bool
    settled: bool
    copy: Term = 0
    lifts: Term = 0
    heard: Term = 0


class Protection:
    """See the module."""

    def __init__(self, name: str, vm: cfg.Vm, config: cfg.Config, peer: Peer, arbiter: Arbiter,
                 events: Events | None = None) -> None:
        self.name, self.id, self._config = name, vm_id(name), config
        self._peer, self._arbiter = peer, arbiter
        self._store = TermStore(config.host.state_dir, name)
        reign = self._store.load()
        fenced = reign.role is Role.FENCED
        self.state = core.State(config.host.name, vm.home == config.host.name, reign.term, reign.role,
                                Phase.FENCED if fenced else Phase.WAITING, highest=reign.term,
                                backoff=config.timing.backoff)
        self.journal = Journal(name, events)
        self.machine = Machine(name, vm, config, peer, self.journal, self.post)
        self._events: deque[core.Event] = deque()
        self._stepping = False
        self._changed = asyncio.Event()
        self._persisting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.arbiter_answer: Answer | None = None
        """The last one to a renewal; None when there was none."""
        self._refusal = ""
        self.ticked = time.monotonic()
        """When the core last heard that time passes."""
        self._unsettled = True
        """The arbiter may have granted this host what it did not use: an answer was lost, or a former life's was."""

    async def start(self) -> None:
        """Prepare the front, silent. Raises HoldfastError or BpfError."""
        await self.machine.start()
        self._spawn(self._tick())
        self._spawn(self._renew())

    async def close(self) -> None:
        """End the VM here and take everything away."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.machine.close()

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
                    self.journal.phase(self.state.phase, before.phase, self.state.reason, cause(self.state, effects),
                                       role=self.state.role, term=self.state.term, planned=self.state.needs_word)
                for effect in effects:
                    self._perform(effect)
        finally:
            self._stepping = False
            self._changed.set()

    async def until(self, holds: Callable[[core.State], bool], timeout: float) -> None:
        """Wait until `holds` is true of the state. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while not holds(self.state):
                self._changed.clear()
                await self._changed.wait()

    def _perform(self, effect: core.Effect) -> None:
        machine, primary = self.machine, self.machine.primary
        match effect:
            case core.Persist(term, role):
                self._spawn(self._persist(term, role))
            case core.Ask(term):
                self._spawn(self._ask(term))
            case core.Force(term):
                self._spawn(self._force(term))
            case core.StartVm():
                machine.start_vm(self.state.term)
            case core.StartReplica(copy):
                machine.start_replica(copy)
            case core.TakeOver():
                machine.take_over(self.state.term)
            case core.HandOver():
                machine.hand_over()
            case core.Speak(term):
                machine.speak(term)
            case core.Hold() if primary is not None:
                primary.hold()
            case core.StartSync(copy) if primary is not None:
                primary.start_sync(self.state.term, copy)
            case core.StopSync() if primary is not None:
                primary.stop_sync()
            case core.StopVm(reason):
                machine.stop(reason)
            case core.Wake(at):
                asyncio.get_running_loop().call_at(at, self.post, core.Tick())
            case core.Tell():
                self._tell()

    def _tell(self) -> None:
        state = self.state
        told = Told(state.phase, state.term, state.last, state.role, state.home, not state.writing, state.copy,
                    state.lifts, state.heard)
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
        self._unsettled = True
        answer = await self._arbiter.ask(self.name, term)
        if answer.granted or answer.reason != self._refusal:  # refused every RETRY seconds, told once
            self.journal.event("granted" if answer.granted else "refused", term=term, reason=answer.reason)
        self._refusal = "" if answer.granted else answer.reason
        self.post(core.Granted(term) if answer.granted else core.Refused(answer.reason))

    async def _force(self, term: int) -> None:
        """The operator decided. An arbiter that does not answer now hears of it from `_renew`."""
        answer = await self._arbiter.force(self.name, term)
        if not answer.granted:
            log.warning("%s: the arbiter does not know of the operator's word: %s", self.name, answer.reason)
        self.post(core.Forced(max(term, answer.term)))

    async def _renew(self) -> None:
        """Who speaks asks whether its grant stands, and so tells the arbiter of terms taken without it. Who was
        granted what it did not use lets the arbiter know, so that the other host can have it."""
        while True:
            await asyncio.sleep(RENEW)
            if self._unsettled and self._used() is not None:
                self._unsettled = False
                self._unsettled = not await self._arbiter.withdraw(self.name, self._used) or self._unsettled
            term = self.state.term
            if self.state.phase not in core.SPEAKING:
                continue
            self.arbiter_answer = answer = await self._arbiter.renew(self.name, term)
            if answer is not None and not answer.granted and self.state.term == term:
                self.post(core.Revoked(answer.reason))

    def _used(self) -> int | None:
        """The highest term that this host uses; None while it may still use another."""
        state = self.state
        return None if asks(state) or state.wanted is not None or state.writing else state.term

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(core.RETRY / 4)
            self.post(core.Tick())
            self.ticked = time.monotonic()

    # --- what the peer says ---

    def peer_up(self) -> None:
        self.journal.event("peer-up")
        self.post(core.PeerUp())

    def peer_down(self, reason: str, doubtful: bool, speaks_until: float) -> None:
        silent = round((time.monotonic() - self._peer.last_heard) * 1e3, 1)
        self.journal.event("peer-down", reason=reason, doubtful=doubtful, silent_ms=silent)
        if (view := self.machine.view).away:  # without the other host's copy the VM cannot go on here, but there it can
            self.post(core.VmLost(f"the other host has the only whole copy of its disks ({view.trouble}), and is lost: "
                                  f"{reason}"))
        self.post(core.PeerDown(reason, doubtful, speaks_until))

    def peer_heard(self, until: float) -> None:
        if self.machine.primary is not None:
            self.machine.primary.peer_heard(until)

    async def message(self, message: Message) -> None:
        """A message about this VM, in order. Raises WireError when it makes no sense."""
        if message.type is Type.STATE:
            told = understood(decode_pieces(message), Told, "a state")
            was = self.state.peer.phase if self.state.peer is not None else None
            if told.phase is not was:
                self.journal.event("peer-phase", phase=told.phase, was=was, role=told.role, term=told.term)
            self.post(core.PeerSays(PeerView(told.phase, told.term, told.last, told.role, told.home, told.settled,
                                             told.copy, told.lifts, told.heard)))
        elif message.type is Type.INBOUND:
            await self.machine.message(message)  # of the VM's last term too, while that one's host forwards
        elif message.term != self.state.term:
            return  # the older term is refused; of a newer one STATE tells first
        elif message.type in TO_PRIMARY:
            if self.machine.primary is not None:
                self.machine.primary.message(message)
        else:
            await self.machine.message(message)

    # --- status ---

    def brief(self) -> dict[str, Any]:
        """Where this VM stands, in few words."""
        state, peer = self.state, self.state.peer
        there = {"phase": peer.phase, "role": peer.role, "term": peer.term} if peer is not None else None
        return {"role": state.role, "phase": state.phase, "reason": state.reason, "term": state.term,
                "epoch": self.epoch, "paused": core.BY_OPERATOR in state.paused, "peer": there}

    @property
    def epoch(self) -> int:
        """The last one taken here, or received whole."""
        primary, backup = self.machine.primary, self.machine.backup
        return primary.epoch if primary else backup.replica.epoch if backup else 0

    def status(self) -> dict[str, Any]:
        """One VM of the status reply; see docs for the fields."""
        machine = self.machine
        primary, backup, front, qemu = machine.primary, machine.backup, machine.front, machine.qemu
        return {
            **self.brief(), "committed": primary.committed if primary else self.epoch,
            "grant": msgspec.to_builtins(self.arbiter_answer), "conditions": msgspec.to_builtins(self.state.conditions),
            "qemu_pid": qemu.pid if qemu else None,
            "qemu": {"version": qemu.version, "accel": qemu.accel.name,
                     "accel_reason": qemu.accel.reason} if qemu else None,
            "tracker": primary.tracker.name if primary and primary.tracker else None,
            "tracker_reason": primary.tracker.reason if primary and primary.tracker else None,
            "gate": msgspec.to_builtins(front.gate.stats()) if front else None,
            "guard": msgspec.to_builtins(front.guard.stats()) if front else None,
            **self.journal.summary(),
            "in_flight": primary.in_flight if primary else 0,
            "throttled": primary.throttled if primary else 0,
            "replay_log": {"bytes": backup.replay.bytes if backup else 0,
                           "dropped": backup.replay.dropped if backup else 0,
                           "unlogged": primary.replay.unlogged if primary else 0},
            "disks": machine.view.disks(),
            "volumes": machine.view.volumes(),
            "sync": primary.copy.progress if primary and primary.copy else None,
            "events": list(self.journal.events),
        }
