# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab: two hosts, each with the real service, a switch and a client, on one machine.

For the command line, and for the demo, the bench and the tests, which call it directly.
"""

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance import control
from appliance.errors import HoldfastError, NoPermission, TimedOut, Unavailable, UsageError
from appliance.lab import blueprint, disks, fallible, faults, processes, third, topology, volume
from appliance.lab.blueprint import VM, Options, State
from appliance.lab.faults import Cables, Fault
from appliance.lab.processes import Process
from appliance.lab.topology import HOSTS

POLL = 0.05  # seconds between two looks at the hosts while waiting
REDIS_PORT = 6379
ECHO_PORT = 7  # the last thing that our guests do when they boot
LOG_TAIL = 15  # lines of a log to show after a failure

Progress = Callable[[str], None]


def _quiet(line: str) -> None:
    pass


class Lab:
    """A lab that exists; `up` makes one, `load` finds one."""

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def name(self) -> str:
        return self._state.options.name

    @property
    def options(self) -> Options:
        return self._state.options

    @property
    def vms(self) -> list[str]:
        """The names of its VMs."""
        return [guest.name for guest in blueprint.GUESTS[: self.options.vms]]

    @property
    def directory(self) -> Path:
        """The lab's files: for each host configuration, state, consoles and `service.log`."""
        return blueprint.directory(self.name)

    # --- making and finding ---

    @classmethod
    def load(cls, name: str = "lab") -> "Lab":
        """The lab of this name. Raises Unavailable if there is none."""
        return cls(blueprint.read_state(name))

    @classmethod
    def create(cls, options: Options) -> "Lab":
        """Network and files, nothing started. Raises Unavailable, UsageError or NoPermission; leaves nothing."""
        blueprint.check(options)
        if os.geteuid() != 0:
            raise NoPermission("a lab needs root", "run this as root")
        lab = cls(State(options, {}))
        try:
            lab.directory.mkdir(parents=True)
        except FileExistsError:
            hint = f"holdfast lab down --name {options.name}"
            raise Unavailable(f"there is a lab {options.name!r} already", hint) from None
        except OSError as exc:
            raise Unavailable(f"{lab.directory}: {exc.strerror}", "run this as root") from None
        try:
            blueprint.write_state(lab._state)
            shared = options.volume is not None and options.volume.by != "device"
            topology.create(options.name, san=shared)
            processes.write_wrapper(lab.directory / "bin")
            blueprint.write_third(options)
            blueprint.write_volume(options)
            for host in HOSTS:
                blueprint.write_host(options, host)
        except BaseException:
            down(options.name)
            raise
        return lab

    @classmethod
    def up(
        cls,
        options: Options,
        *,
        timeout: float = 120.0,
        keep: bool = False,
        progress: Progress = _quiet,
        extra_environment: Mapping[str, Mapping[str, str]] | None = None,
    ) -> "Lab":
        """Create a lab, start both services, return when the VM is protected (and our own guest serves).

        timeout in seconds; extra_environment: by host, for this first start only. On failure raises with the
        cause, tells the ends of both logs to `progress`, and takes the lab down unless `keep`.
        """
        lab = cls.create(options)
        progress(f"lab {lab.name}: network ready")
        try:
            if lab.start_third():
                progress(f"{third.PLACE}: {options.arbiter} started")
            if lab.start_volume():
                progress(f"{volume.PLACE}: a volume is served")
            for host in HOSTS:
                pid = lab.start(host, (extra_environment or {}).get(host, {})).pid
                progress(f"{host}: service started, pid {pid}")
            deadline = time.monotonic() + timeout
            lab.wait_protected(timeout, progress=progress, strict=True)
            if options.kernel is None and options.initrd is None:
                progress("the VM is protected; its guest is booting")
                lab.wait_guest(max(0.0, deadline - time.monotonic()))
        except BaseException as exc:
            if isinstance(exc, HoldfastError):
                for host in HOSTS:
                    for line in lab.log_tail(host):
                        progress(f"{host}| {line}")
            if not keep:
                lab.down()
            raise
        return lab

    def down(self) -> list[str]:
        """Remove the lab with all that belongs to it; says what was removed."""
        return down(self.name)

    # --- services ---

    def service(self, host: str) -> Process | None:
        """The service of `host`, or of the third machine, if it is alive."""
        # Read anew each time: another command may have healed the host.
        self._state = blueprint.read_state(self.name)
        found = self._state.services.get(_fallible(host))
        return found if found is not None and found.alive else None

    def start(self, host: str, extra_environment: Mapping[str, str] | None = None) -> Process:
        """Start the service of `host`, which must not be running."""
        config = blueprint.host_directory(self.name, _host(host)) / "config"
        argv = [sys.executable, "-m", "appliance.cli", "service", "--config", str(config)]
        return self._start(host, argv, extra_environment or {})

    def start_third(self) -> Process | None:
        """Start the arbiter, which must not be running; None where there is to be none."""
        argv = third.command(self.options.arbiter, self.directory / third.PLACE)
        return self._start(third.PLACE, argv, {}) if argv else None

    def start_volume(self) -> Process | None:
        """Serve the shared volume, which must not be served; None where there is none. Raises Unavailable."""
        shared, home = self.options.volume, self.directory / volume.PLACE
        argv = volume.command(self.name, shared) if shared is not None else []
        if shared is None or not argv:
            return None
        started = self._start(volume.PLACE, argv, volume.environment(home))
        volume.configure(self.name, shared, home)
        return started

    def _start(self, place: str, argv: Sequence[str], more: Mapping[str, str]) -> Process:
        log = blueprint.log_path(self.name, place)
        started = processes.start_service(self.name, place, argv, log, {**self.environment(place), **more})
        self._state.services[place] = started
        blueprint.write_state(self._state)
        return started

    def host_status(self, host: str, timeout: float = 1.0) -> dict[str, Any] | None:
        """What the service of `host` answers to `status`, or None if it does not within `timeout` seconds."""
        try:
            return control.call(blueprint.control_path(self.name, _host(host)), "status", timeout=timeout)
        except HoldfastError:
            return None

    def log_tail(self, host: str, lines: int = LOG_TAIL) -> list[str]:
        """The last lines of the service's log."""
        try:
            with blueprint.log_path(self.name, host).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 64 * 1024))
                return log.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    # --- faults ---

    def fault(self, kind: str, host: str) -> Fault:
        """Make a fault happen; see `appliance.lab.faults` for the kinds. Raises UsageError or Unavailable."""
        return faults.inject(self.name, _fallible(host), kind, self.service(host))

    def heal(self, host: str, extra_environment: Mapping[str, str] | None = None) -> list[str]:
        """Undo every fault of `host`; says what was done, nothing if there was nothing to do.

        extra_environment: of the service, if it has to be started.
        """
        done: list[str] = []
        if host == third.PLACE:
            return self._heal_third()
        with Cables(self.name, _host(host)) as cables:
            if cut := cables.down():
                cables.restore()
                done.append(f"cables back: {', '.join(cut)}")
        if self.options.disk_faults and (mended := fallible.mend(disks.home(self.name, host))):
            done.append(f"disks no longer {' and '.join(mended)}")
        service = self.service(host)
        if service is not None and service.stopped:
            service.signal(signal.SIGCONT)
            done.append("service continued")
        if service is None:
            if dead := self._state.services.get(host):
                processes.reap(dead)
            # After a crash the last of them may still be on their way out.
            processes.kill(processes.ours(self.name, host))
            done.append(f"service started, pid {self.start(host, extra_environment).pid}")
        return done

    def _heal_third(self) -> list[str]:
        if self.service(third.PLACE) is not None:
            return []
        if dead := self._state.services.get(third.PLACE):
            processes.reap(dead)
        started = self.start_third()
        return [f"{self.options.arbiter} started, pid {started.pid}"] if started else []

    # --- looking and waiting ---

    def netns(self, place: str) -> str:
        """Name of the network namespace of alpha, beta, switch or client. Raises UsageError."""
        if place not in topology.PLACES and not (place == topology.SAN and topology.exists(self.name, place)):
            raise UsageError(f"there is no {place!r} in this lab", f"choose from {', '.join(topology.PLACES)}")
        return topology.netns(self.name, place)

    def command(self, place: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in `place`; to be used with `environment(place)`."""
        self.netns(place)
        return processes.command(self.name, place, argv)

    def environment(self, place: str) -> dict[str, str]:
        """With `holdfast` on PATH, talking to the service of `place` where that is a host."""
        own = blueprint.control_path(self.name, place) if place in HOSTS else None
        return processes.environment(self.name, self.directory / "bin", own)

    def status(self) -> dict[str, Any]:
        """The lab as outside tools need it: schema holdfast.lab/1."""
        return {
            "schema": "holdfast.lab/1",
            "name": self.name,
            "directory": str(self.directory),
            "vm": {"name": VM, "ip": topology.VM_IP, "ip6": topology.VM_IP6, "mac": topology.VM_MAC},
            "client": {"netns": self.netns("client"), "ip": topology.CLIENT_IP, "ip6": topology.CLIENT_IP6},
            "switch": {"netns": self.netns("switch")},
            "witness": self._third_summary(),
            "hosts": {host: self._host_summary(host) for host in HOSTS},
            **({"volume": volume.summary(self.name, shared)} if (shared := self.options.volume) is not None else {}),
        }

    def _third_summary(self) -> dict[str, Any]:
        service = self.service(third.PLACE)
        return {"netns": self.netns(third.PLACE), "ip": topology.WITNESS_IP, "arbiter": self.options.arbiter,
                "service_pid": service.pid if service is not None else None}

    def _host_summary(self, host: str) -> dict[str, Any]:
        service = self.service(host)
        reply = self.host_status(host) if service is not None and not service.stopped else None
        vm = (reply or {}).get("vms", {}).get(VM, {})
        with contextlib.suppress(Unavailable), Cables(self.name, host) as cables:
            cut = cables.down()
            return {
                "netns": self.netns(host),
                "control": str(blueprint.control_path(self.name, host)),
                "log": str(blueprint.log_path(self.name, host)),
                "service_pid": service.pid if service is not None else None,
                "service_paused": service.stopped if service is not None else False,
                "cables_cut": cut,
                "disks": disks.summary(self.name, host, self.options.all_disks()),
                "disk_faults": fallible.faults(disks.home(self.name, host)) if self.options.disk_faults else [],
                **{key: vm.get(key) for key in ("qemu_pid", "role", "phase", "term", "epoch")},
            }
        raise Unavailable(f"the network of lab {self.name!r} is gone", f"holdfast lab down --name {self.name}")

    def wait_protected(
        self, timeout: float = 120.0, *, progress: Progress = _quiet, strict: bool = False
    ) -> dict[str, Any]:
        """Return the lab's status once one host runs the VM and the other holds a whole replica.

        Raises TimedOut after `timeout` seconds; with `strict` raises Unavailable as soon as a service has ended
        or has failed twice to bring the VM up.
        """
        deadline = time.monotonic() + timeout
        told: dict[str, str] = {}
        failures = dict.fromkeys(HOSTS, 0)
        while True:
            told_now = {host: (self.host_status(host) or {}).get("vms", {}) for host in HOSTS}
            for host, vms in told_now.items():
                line = "; ".join(filter(None, (_describe(vms.get(vm, {})) for vm in self.vms)))
                if line and told.get(host) != line:
                    told[host] = line
                    failures[host] += any(vm.get("phase") == "failed" for vm in vms.values())
                    progress(f"{host}: {line}")
            if all(is_protected({host: vms.get(vm, {}) for host, vms in told_now.items()}) for vm in self.vms):
                return self.status()
            for host in HOSTS if strict else ():
                self._require_working(host, told.get(host, ""), failures[host])
            if time.monotonic() >= deadline:
                last = "; ".join(f"{host}: {told.get(host, 'no answer')}" for host in HOSTS)
                raise TimedOut(f"the VM is not protected after {timeout:g} s ({last})", "see the logs of both hosts")
            time.sleep(POLL)


    def _require_working(self, host: str, last: str, failures: int) -> None:
        hint = "its log says more; lab up --keep leaves a failed lab to look into"
        if self.service(host) is None:
            raise Unavailable(f"the service of {host} has ended", hint)
        if failures >= 2:
            raise Unavailable(f"{host}: {last}", hint)

    def wait_guest(self, timeout: float = 60.0) -> None:
        """Return once our guest image says that all it serves is there. Raises TimedOut after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        guests = blueprint.GUESTS[: self.options.vms]
        while not all(self._answers(guest.ip) for guest in guests):
            if time.monotonic() >= deadline:
                hint = " and ".join(f"{self.directory}/{guest.home}/run/{guest.name}.console.log" for guest in guests)
                raise TimedOut(f"the guest does not serve after {timeout:g} s", f"see {hint}")
            time.sleep(POLL)

    def _answers(self, ip: str) -> bool:
        with topology.inside(self.netns("client")):
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with probe, contextlib.suppress(OSError):
            probe.settimeout(1.0)
            probe.connect((ip, ECHO_PORT))
            probe.sendall(b"ready?")
            return probe.recv(16) == b"ready?"
        return False


def is_protected(hosts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Does one host run the VM and the other hold a whole replica? `hosts`: by name, with role and phase."""
    pairs = sorted((str(host.get("role")), str(host.get("phase"))) for host in hosts.values())
    return pairs == [("backup", "standby"), ("primary", "protected")]


def _describe(vm: dict[str, Any]) -> str:
    if not vm:
        return ""
    reason = f": {vm['reason']}" if vm.get("reason") else ""
    return f"{vm.get('role')}, {vm.get('phase')}{reason}"


def _host(host: str) -> str:
    if host not in HOSTS:
        raise UsageError(f"there is no host {host!r} in a lab", f"choose from {', '.join(HOSTS)}")
    return host


def _fallible(place: str) -> str:
    """A host, or the third machine."""
    return place if place == third.PLACE else _host(place)


def down(name: str) -> list[str]:
    """Remove whatever there is of the lab `name`, whole or half-made; says what was removed.

    Only processes that carry the lab's mark, or are its recorded services, are killed.
    """
    home = blueprint.directory(name)
    targets = set(processes.ours(name, *topology.PLACES, topology.SAN))
    with contextlib.suppress(Unavailable):
        recorded = blueprint.read_state(name).services.values()
        targets |= {service for service in recorded if service.alive}
        for service in recorded:
            processes.reap(service)
    done = [f"process {target.pid}" for target in sorted(targets, key=lambda target: target.pid)]
    processes.kill(targets)
    processes.reap_services()
    done += [f"namespace {namespace}" for namespace in topology.remove(name)]
    if home.exists():
        shutil.rmtree(home)
        done.append(f"directory {home}")
    done += disks.remove(name)
    for parent in (blueprint.ROOT, blueprint.ROOT.parent):
        with contextlib.suppress(OSError):
            parent.rmdir()  # only if nothing else is in it
    return done
