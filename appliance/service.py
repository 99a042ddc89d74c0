# SPDX-License-Identifier: GPL-2.0-or-later
"""The service of one host: joins peer, protected VMs and control socket, and ends them in good order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from appliance import config as cfg
from appliance import core, registry
from appliance.arbiter.arbiter import make as make_arbiter
from appliance.arbiter.watch import ArbiterWatch
from appliance.control.server import ControlServer
from appliance.detour import Detours
from appliance.disk_verbs import DiskVerbs
from appliance.events import Event, Events
from appliance.exits import Exit
from appliance.firewall import Firewall
from appliance.health.health import Health
from appliance.health.machines import Guest
from appliance.health.report import Report
from appliance.history.history import History
from appliance.logs.lines import Form
from appliance.logs.logs import Logs
from appliance.logs.logs import start as start_logs
from appliance.metrics.sight import Parts
from appliance.metrics.web import Web
from appliance.notify import Notifier
from appliance.offer import Stock
from appliance.orders import Orders
from appliance.outlook import Outlook
from appliance.peer import Peer
from appliance.protection import Protection
from appliance.trace.tracing import Tracing
from appliance.verbs import Verbs
from appliance.watched import is_defect, watched
from vmlink import heap, priority
from vmlink.wire import Message, Type, WireError, vm_id

if TYPE_CHECKING:
    from appliance.metrics.pages import Monitoring

log = logging.getLogger("holdfast")

GIVE_AWAY = 3.0
"""Seconds within which each VM must have gone to the peer when this service stops."""
STUCK = 5.0
"""Seconds without a decision about a VM, though time passes, after which this service is not alive."""
FAREWELL = 0.5
"""Seconds the peer gets to hear that this service is leaving."""


class Service:
    """Everything on one host."""

    def __init__(self, config: cfg.Config, logs: Logs) -> None:
        self._config, self._logs, self._notifier = config, logs, Notifier()
        logs.position = self._position
        window = sum(vm.limits.in_flight for vm in config.vm.values())
        self.events = Events()
        self.peer = Peer(config, self, window, self.events)
        self._arbiter = make_arbiter(config.arbiter, config.host.name, config.peer.name)
        self._arbiter_watch = ArbiterWatch(self._arbiter)
        self.vms = {name: Protection(name, vm, config, self.peer, self._arbiter, self.events)
                    for name, vm in config.vm.items()}
        self._history = History(config.host.name, config.peer.name, self.vms, config.host.state_dir, self.events)
        self._firewall = Firewall(config, self._open_fronts)
        self._by_id = {vm_id(name): vm for name, vm in self.vms.items()}
        self._outlook = Outlook(self.peer, self.vms, config.vm, lambda: self._health.fitness().condition(),
                                lambda: self._stock.here)
        self._stock = Stock(config, self._qemus, self._outlook.changed)
        self._health = Health(config, self.peer.links, self._guests, self._outlook.changed)
        self._report = Report(config.host.name, config.peer.name, self._health)
        self.events.listen(lambda event, now: self._notifier.status(self._line()))
        verbs = Verbs(config.host.name, config.peer.name, self.vms, self._outlook.drained)
        table = {**verbs.table(), "health": self._report.verb, "history": self._history.verb}
        self._detours = Detours(config, self.peer, self.vms)
        disk_verbs = DiskVerbs(config, self.vms, self.peer)
        self._orders = Orders(self.peer, {**table, **disk_verbs.asked(), "detour": self._detours.verb})
        table |= disk_verbs.table()
        disk_verbs.orders = self._orders
        verbs.orders = self._report.orders = self._detours.orders = self._history.orders = self._orders
        registry.access("status")  # reads all declarations now, and not while a VM waits
        self._web = Web(listen, self.monitoring().pages()) if (listen := config.metrics.listen) else None
        own = {"status": self._status, "epochs": self._epochs, "log": logs.levels, "log-set": logs.set,
               "log-tail": logs.tail}
        tracing = Tracing(config.host.name, config.peer.name, self.vms)
        pushed = {"trace": tracing.stream, "trace-epochs": tracing.epochs}
        self._control = ControlServer(config.control_path, {**own, **table}, {"events": self._events_verb},
                                      registry.access, config.host.group, self._ordered, pushed)

    async def run(self, ready_fd: int | None = None) -> int:
        """Run until SIGTERM or SIGINT, or until a defect shows; returns an exit code.

        Raises HoldfastError or BpfError when it cannot start.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        defects: list[str] = []

        def unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            defect = is_defect(context)  # else what a library left unread, as qemu.qmp does when QEMU dies
            log.log(logging.CRITICAL if defect else logging.DEBUG, "%s", context["message"],
                    exc_info=context.get("exception"))
            if defect:
                defects.append(context["message"])
                stop.set()

        loop.set_exception_handler(unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            await self._firewall.start()  # before there is anything to let through
            await self._history.load()
            for vm in self.vms.values():
                await vm.start()
            await self._detours.start()
            await self._control.start()
            self.peer.start()
            looking = [watched(self._outlook.run(), "outlook"), watched(self._health.run(), "health"),
                       watched(self._arbiter_watch.run(), "arbiter"), watched(self._stock.run(), "capacity"),
                       watched(self._detours.run(), "detours"),
                       watched(self._report.run(), "report"), watched(self._history.run(), "history"),
                       watched(self._notifier.watch(self._stuck), "watchdog")]
            looking += [watched(self._web.run(), "metrics")] if self._web is not None else []
            gc.freeze()  # what lives as long as the service need not be looked at by each collection
            log.info("host %s is ready, its peer is %s", self._config.host.name, self._config.peer.name)
            self.events.tell("ready", host=self._config.host.name, peer=self._config.peer.name)
            if ready_fd is not None:
                with contextlib.suppress(OSError):
                    os.write(ready_fd, b"ready\n")
                os.close(ready_fd)
            self._notifier.ready()
            await stop.wait()
            log.info("stopping")
            self._notifier.stopping()
            self.events.tell("stopping")
            for task in looking:
                task.cancel()
            await self._give_away()
            for vm in self.vms.values():
                vm.post(core.Leaving())
            await self.peer.flush(FAREWELL)
        finally:
            for vm in self.vms.values():
                await vm.close()
            await self._detours.close()
            await self._history.close()
            await self._orders.close()
            await self.peer.close()
            await self._control.close()
            await self._firewall.close()
            await self._arbiter.close()
        return Exit.FAILED if defects else Exit.OK

    def _ordered(self, verb: str, args: dict[str, Any], user: int) -> None:
        """Somebody gives an order, whatever comes of it."""
        if registry.declared_for(verb):
            told = {key[:32]: value[:64] if isinstance(value, str) else value for key, value in args.items()
                    if isinstance(value, str | bool | int | float)}
            self.events.tell("order", verb=verb, args=told, user_id=user)

    def _open_fronts(self) -> list[str]:
        fronts = {name: vm.machine.front for name, vm in self.vms.items()}
        return [name for name, front in fronts.items() if front is not None and front.is_open]

    def _qemus(self) -> Iterator[tuple[int, int]]:
        for name, vm in self.vms.items():
            if vm.machine.qemu is not None:
                yield vm.machine.qemu.pid, self._config.vm[name].memory

    def _guests(self) -> Iterator[Guest]:
        for name, vm in self.vms.items():
            last = vm.journal.epochs[-1] if vm.machine.primary is not None and vm.journal.epochs else None
            answer = (last.stopped_at + last.pause, last.resume) if last is not None else None
            yield Guest(name, vm.machine.qemu, answer, vm.machine.view.storage())

    async def _give_away(self) -> None:
        """Protected VMs go to the peer in good order; what cannot go is taken over, or ends."""
        for vm in self.vms.values():
            vm.post(core.SwitchOver("the service is stopping"))
        for vm in self.vms.values():
            with contextlib.suppress(TimeoutError):
                await vm.until(lambda state: state.phase not in (core.Phase.HANDOVER, core.Phase.HANDED), GIVE_AWAY)

    def state(self) -> Iterator[Event]:
        """What is so now, for who begins to listen to events."""
        peer = self.peer.status()
        yield {"what": "host", "host": self._config.host.name, "condition": msgspec.to_builtins(self._outlook.here)}
        yield {"what": "peer", "peer": peer["name"], "state": peer["state"]}
        for link in peer["links"]:
            yield {"what": "link", "link": link["name"], **{key: link[key] for key in ("state", "active", "reason")}}
        yield {"what": "arbiter", **self._arbiter_watch.status()}
        for vm in self.vms.values():
            yield {"what": "vm", "vm": vm.name, **vm.brief()}

    def monitoring(self) -> Monitoring:
        """What monitoring can be told."""
        from appliance.metrics.pages import Monitoring  # a tenth of a second that only who wants it pays

        parts = Parts(self._config.host.name, self.vms, self.peer, self._arbiter_watch, self._firewall, self._report,
                      self._history, self.events, self._logs, lambda: self._outlook.here.drained)
        return Monitoring(parts, self._stuck)

    def _line(self) -> str:
        """How things are, in one line."""
        vms = (f"{vm.name} {vm.state.role} {vm.state.phase} (term {vm.state.term})" for vm in self.vms.values())
        return f"{', '.join(vms)}; {self.peer.name} {'up' if self.peer.up else 'down'}"

    def _stuck(self) -> str:
        """Which core has not moved for long, if any."""
        late = [vm.name for vm in self.vms.values() if time.monotonic() - vm.ticked > STUCK]
        return f"{', '.join(late)}: no decision for {STUCK:g} s" if late else ""

    def _position(self, vm: str) -> tuple[int, int] | None:
        found = self.vms.get(vm)
        return (found.state.term, found.epoch) if found is not None else None

    # --- what the peer reports ---

    def peer_up(self) -> None:
        self._outlook.changed()
        for vm in self.vms.values():
            vm.peer_up()

    def peer_down(self, reason: str, doubtful: bool, speaks_until: float) -> None:
        self._orders.peer_down()
        self._outlook.peer_down()
        for vm in self.vms.values():
            vm.peer_down(reason, doubtful, speaks_until)

    def peer_heard(self, until: float) -> None:
        for vm in self.vms.values():
            vm.peer_heard(until)

    async def message(self, message: Message) -> None:
        if message.type in (Type.ORDER, Type.ANSWER):
            self._orders.message(message)
            return
        if message.type is Type.CONDITION:
            self._outlook.message(message)
            return
        vm = self._by_id.get(message.vm)
        if vm is None:
            raise WireError("a message about a VM that is not in this host's configuration: "
                            "both hosts need the same [vm.*] tables")
        await vm.message(message)

    # --- verbs ---

    async def _status(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"schema": "holdfast.status/1", "host": self._config.host.name, "pid": os.getpid(),
                "peer": self.peer.status(), "arbiter": self._arbiter_watch.status(),
                "condition": msgspec.to_builtins(self._outlook.here),
                "rules": await self._firewall.status(),
                "vms": {name: {**vm.status(), "capacity": msgspec.to_builtins(self._outlook.problems.get(name, [])),
                               "detour": self._detours.status(name)}
                        for name, vm in self.vms.items()}}

    async def _events_verb(self, arguments: dict[str, Any]) -> AsyncGenerator[Event, None]:
        """What is so, then what happens; with `now` only what is so; with `vm` nothing about others."""
        stream = self.events.stream(self.state, vm=str(arguments.get("vm") or ""), live=not arguments.get("now"))
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    async def _epochs(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"schema": "holdfast.epochs/1",
                "vms": {name: vm.journal.records() for name, vm in self.vms.items()}}


def main(config: cfg.Config, ready_fd: int | None = None, form: Form = Form.AUTO) -> int:
    """Run the service in the foreground; logs go to standard error. Returns an exit code."""
    heap.keep()
    logs = start_logs(config.host.log, form)
    try:
        priority.lead_alone()
        return asyncio.run(Service(config, logs).run(ready_fd))
    finally:
        logs.close()
