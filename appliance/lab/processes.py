# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of a lab: started detached, known by pid and start time, so that no other is ever signalled.

A process is ours if it runs in a namespace of the lab and carries the lab's name in its environment, which
QEMU and whatever `lab exec` started inherit.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

import appliance
from appliance.errors import Unavailable
from appliance.lab import topology

MARK = "HOLDFAST_LAB"  # in the environment of every process of a lab: the lab's name
_started: set[int] = set()  # services that this process started and has not collected


class Process(msgspec.Struct, frozen=True):
    """`started` is the kernel's start time in clock ticks since boot; with it the pid is unambiguous."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Neither gone nor a zombie, and still the same process."""
        found = _stat(self.pid)
        return found is not None and found[1] == self.started and found[0] not in "ZX"

    @property
    def stopped(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found[1] == self.started and found[0] == "T"

    def handle(self) -> int | None:
        """A pidfd of this very process, or None if it is gone. The caller closes it."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return None
        if self.alive:  # checked after opening: the pid cannot be another's by now
            return descriptor
        os.close(descriptor)
        return None

    def signal(self, number: signal.Signals) -> bool:
        """Send `number`; False if the process is gone."""
        descriptor = self.handle()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of `pid`."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold anything
    return fields[0], int(fields[19])


def process(pid: int) -> Process | None:
    """The process of this pid, or None if there is none."""
    found = _stat(pid)
    return Process(pid, found[1]) if found else None


def ours(lab: str, *places: str) -> Iterator[Process]:
    """The living processes of the lab in the namespaces of `places`."""
    namespaces = set()
    for place in places:
        with contextlib.suppress(OSError):
            namespaces.add((topology.NETNS_DIR / topology.netns(lab, place)).stat().st_ino)
    for entry in os.listdir("/proc") if namespaces else ():
        if entry.isdigit() and int(entry) != os.getpid() and _carries_mark(entry, lab, namespaces):
            found = process(int(entry))
            if found is not None and found.alive:
                yield found


def _carries_mark(pid: str, lab: str, namespaces: set[int]) -> bool:
    try:
        if os.stat(f"/proc/{pid}/ns/net").st_ino not in namespaces:
            return False
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return f"{MARK}={lab}".encode() in environ.read().split(b"\0")
    except OSError:
        return False  # gone, a kernel thread, or not ours to look into


def is_qemu(candidate: Process) -> bool:
    """Does this process run a QEMU binary?"""
    with contextlib.suppress(OSError):
        return "qemu" in os.path.basename(os.readlink(f"/proc/{candidate.pid}/exe"))
    return False


@contextlib.contextmanager
def handles(targets: Iterable[Process]) -> Iterator[dict[int, Process]]:
    """The pidfds of those that are alive, open while the block runs."""
    found = {handle: target for target in targets if (handle := target.handle()) is not None}
    try:
        yield found
    finally:
        for handle in found:
            os.close(handle)


def kill(targets: Iterable[Process]) -> None:
    """SIGKILL, and wait until all are gone. Raises Unavailable if one does not go."""
    with handles(targets) as found:
        send_all(found, signal.SIGKILL)
        await_end(found)


def send_all(handles: Iterable[int], number: signal.Signals) -> None:
    """Send `number` to the processes of these pidfds; one that is gone is none the worse."""
    for handle in handles:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)


def await_end(handles: Mapping[int, Process], timeout: float = 10.0) -> None:
    """Wait until every process of `handles` (by pidfd) has ended, and reap those that are our children.

    Raises Unavailable if one has not after `timeout` seconds.
    """
    waiting = select.poll()
    for handle in handles:
        waiting.register(handle, select.POLLIN)
    left = set(handles)
    deadline = time.monotonic() + timeout
    while left:
        for handle, _ in waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
            waiting.unregister(handle)
            left.discard(handle)
            reap(handles[handle])
        if left and time.monotonic() >= deadline:
            pids = ", ".join(str(handles[handle].pid) for handle in left)
            raise Unavailable(f"process {pids} does not end", "it hangs in the kernel: see dmesg")


def await_stop(targets: Iterable[Process], timeout: float = 5.0) -> None:
    """Wait until all have been stopped or are gone. Raises Unavailable after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    for target in targets:
        while target.alive and not target.stopped:
            if time.monotonic() >= deadline:
                raise Unavailable(f"process {target.pid} does not stop", "it hangs in the kernel: see dmesg")
            time.sleep(0.001)


def reap(dead: Process) -> None:
    """Collect `dead` if it is a child of this process and has ended."""
    _reap(dead.pid)


def _reap(pid: int) -> bool:
    """Is nothing left of that child?"""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def reap_services() -> None:
    """Collect the services that this process started and that have ended meanwhile, of whatever cause."""
    for pid in [pid for pid in _started if _reap(pid)]:
        _started.discard(pid)


def command(lab: str, place: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in the namespace of `place`, with that namespace's own /sys."""
    return ["ip", "netns", "exec", topology.netns(lab, place), *argv]


def environment(lab: str, bin_dir: Path, control: Path | None) -> dict[str, str]:
    """The environment of a process of the lab; `control`: the service that `holdfast` talks to there."""
    result = {name: value for name, value in os.environ.items() if name != "HOLDFAST_CONTROL"}
    result[MARK] = lab
    result["PATH"] = f"{bin_dir}:{result.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
    if control is not None:
        result["HOLDFAST_CONTROL"] = str(control)
    return result


def package_root() -> Path:
    """The directory that the package `appliance` lies in."""
    return Path(appliance.__file__).resolve().parent.parent


def write_wrapper(bin_dir: Path) -> None:
    """Make `holdfast` in `bin_dir`: this very program, by this very interpreter, from any directory."""
    bin_dir.mkdir(exist_ok=True)
    wrapper = bin_dir / "holdfast"
    path = f'PYTHONPATH="{package_root()}${{PYTHONPATH:+:$PYTHONPATH}}"'
    wrapper.write_text(f'#!/bin/sh\nexec env {path} "{sys.executable}" -m appliance.cli "$@"\n')
    wrapper.chmod(0o755)


def start_service(
    lab: str, place: str, argv: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Process:
    """Start what is to run in `place`, detached, its output appended to `log`."""
    reap_services()
    paths = [str(package_root()), environment.get("PYTHONPATH", "")]
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                command(lab, place, argv),
                env={**environment, "PYTHONPATH": ":".join(filter(None, paths))},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # it outlives this command and the terminal
            )
        except OSError as exc:
            raise Unavailable(f"cannot run ip: {exc.strerror}", "install iproute2") from None
    found = process(child.pid)  # `ip` becomes the service by exec, so this is the service's pid
    _started.add(child.pid)
    child.returncode = 0  # keeps Popen from waiting for it; `reap` does
    assert found is not None  # our child: at least a zombie
    return found
