# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks QMP with one QEMU: pause, resume, take and load device state.

Every call ends: with its answer, or with VmError when QEMU refuses, dies or does not answer in time. The
error names the command and what is known of QEMU. Built on qemu.qmp, with its traps closed: its event
history grows without bound, a listener outlives a dead QEMU, and it formats every message for a debug log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError
from qemu.qmp.message import Message

from vmlink.errors import VmError

Buffer = bytes | bytearray | memoryview

# Everything the library would log becomes a VmError here.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

CALL_TIMEOUT = 5.0
"""Seconds one QMP command may take."""

_STATE_ROOM = 64 << 20
"""Bytes; a device state larger than this is refused. An ordinary VM has 0.1 to 1 MiB."""

_POLL = 0.001
"""Seconds between looks at the run state while device state loads, in case the event is missed."""

_DONE_LOADING = frozenset({"running", "paused", "postmigrate", "prelaunch"})


@dataclass(frozen=True)
class RamBlock:
    """A memory block of QEMU's: `size` bytes, at `address` in its process. None: this QEMU does not tell."""

    name: str
    size: int
    address: int | None
    read_only: bool | None


class _Client(QMPClient):
    """QMPClient without history: events go to one callback, messages are not formatted for logs."""

    def __init__(self, name: str, on_event: Callable[[str, Mapping[str, object]], None]) -> None:
        super().__init__(name)
        self._on_event = on_event

    async def _event_dispatch(self, msg: Message) -> None:
        data = msg.get("data")
        self._on_event(str(msg["event"]), data if isinstance(data, dict) else {})

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """The QMP connection of one QEMU. Use `connect`; `close` ends it, QEMU runs on."""

    def __init__(self, name: str, state_fd: int, describe: Callable[[], str]) -> None:
        self._client = _Client(name, self._event)
        self._state_fd = state_fd
        self._describe = describe
        self._running = asyncio.Event()
        self._saving = False
        self._shutdown = ""
        self.version = ""

    @classmethod
    async def connect(cls, sock: socket.socket, *, name: str, state_fd: int, describe: Callable[[], str],
                      timeout: float = CALL_TIMEOUT) -> Monitor:
        """Greet the QEMU at the other end of `sock` (which is ours from now on).

        `state_fd` is a memfd that QEMU has inherited under the same number: device state is saved into it.
        `describe()` says what is known of the process ("" as long as it lives). Raises VmError.
        """
        self = cls(name, state_fd, describe)
        try:
            await asyncio.wait_for(self._client.connect(sock), timeout)
        except TimeoutError:
            raise self._error("the QMP greeting", f"no answer for {timeout:g} s") from None
        except (ConnectError, QMPError, OSError, EOFError) as error:
            raise self._error("the QMP greeting", _cause(error)) from error
        greeting = self._client.greeting
        if greeting is not None:
            self.version = _version(greeting._asdict())
        return self

    async def call(self, command: str, arguments: Mapping[str, object] | None = None, *,
                   timeout: float = CALL_TIMEOUT) -> object:
        """Run one QMP command and return its answer.

        Raises VmError; after a time-out the command may still run, or run later.
        """
        try:
            return await asyncio.wait_for(self._client.execute(command, arguments), timeout)
        except TimeoutError:
            raise self._error(command, f"no answer for {timeout:g} s",
                              "QEMU hangs or the host is overloaded; it has to be killed") from None
        except ExecuteError as error:
            raise self._error(command, f"QEMU says: {error}") from error
        except ExecInterruptedError as error:
            raise self._error(command, "QEMU closed the connection") from error
        except (QMPError, OSError, EOFError, AssertionError) as error:
            raise self._error(command, _cause(error)) from error

    async def stop(self) -> None:
        """Pause the VM; its disks are flushed when this returns."""
        await self.call("stop")

    async def cont(self) -> None:
        """Let the VM run."""
        await self.call("cont")

    async def status(self) -> str:
        """QEMU's run state: "running", "paused", "inmigrate", "prelaunch", "shutdown", ..."""
        answer = await self.call("query-status")
        return str(answer.get("status")) if isinstance(answer, dict) else "unknown"

    async def save_devices(self) -> bytes:
        """The state of all devices and CPUs (no RAM) of a paused VM, about 0.1 MiB.

        Raises VmError, also when one is being saved already.
        """
        if self._saving:
            raise self._error("xen-save-devices-state", "the last one has not finished")
        self._saving = True
        try:
            await self.call("xen-save-devices-state",
                            {"filename": f"/proc/self/fd/{self._state_fd}", "live": False})
            size = os.fstat(self._state_fd).st_size
            if not 0 < size <= _STATE_ROOM:
                raise self._error("xen-save-devices-state", f"it wrote {size} bytes")
            return os.pread(self._state_fd, size, 0)
        finally:
            self._saving = False

    async def load_devices(self, state: Buffer, *, timeout: float = CALL_TIMEOUT) -> None:
        """Load a saved device state into a QEMU that waits with `-incoming defer`; returns when the VM runs.

        Raises VmError: the state does not fit this QEMU, QEMU died, or it took longer than `timeout` seconds.
        A QEMU that refused a state is of no more use.
        """
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            self._running.clear()
            with theirs:
                await self._hand_fd("device-state", theirs.fileno())
            await asyncio.wait_for(self._load(ours, state), timeout)
        except TimeoutError:
            raise self._error("migrate-incoming", f"the VM did not run after {timeout:g} s") from None
        finally:
            ours.close()

    async def _load(self, sock: socket.socket, state: Buffer) -> None:
        incoming = asyncio.ensure_future(self.call("migrate-incoming", {"uri": "fd:device-state"}))
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A QEMU that stops reading says why below.
                await asyncio.get_running_loop().sock_sendall(sock, state)
                sock.shutdown(socket.SHUT_WR)
            await incoming
        finally:
            incoming.cancel()
        while not self._running.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._running.wait(), _POLL)
                return
            state_now = await self.status()
            if state_now == "running":
                return
            if state_now in _DONE_LOADING:
                raise self._error("migrate-incoming", f"the VM is {state_now} after loading")

    async def _hand_fd(self, name: str, fd: int) -> None:
        """Give QEMU a descriptor under a name."""
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError, AssertionError) as error:
            raise self._error("getfd", _cause(error)) from error
        await self.call("getfd", {"fdname": name})

    async def ramblocks(self) -> list[RamBlock]:
        """QEMU's memory blocks: the guest RAM, ROMs, video memory, flash."""
        text = await self.call("human-monitor-command", {"command-line": "info ramblock"})
        return _parse_ramblocks(str(text))

    @property
    def shutdown(self) -> str:
        """Why the VM shut down ("guest-shutdown", "host-qmp-quit", ...), "" as long as it did not."""
        return self._shutdown

    async def close(self) -> None:
        """End the connection. Idempotent; never raises for a QEMU that is gone."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.disconnect(), CALL_TIMEOUT)

    def _event(self, name: str, data: Mapping[str, object]) -> None:
        if name == "RESUME":
            self._running.set()
        elif name == "SHUTDOWN":
            self._shutdown = str(data.get("reason", "unknown"))

    def _error(self, command: str, cause: str, hint: str = "") -> VmError:
        known = self._describe()
        return VmError(f"{command}: {cause}" + (f" ({known})" if known else ""), hint)


def _cause(error: BaseException) -> str:
    inner = error.exc if isinstance(error, ConnectError) else error
    if isinstance(inner, EOFError):
        return "QEMU closed the connection"
    return str(inner) or type(inner).__name__


def _version(greeting: Mapping[str, object]) -> str:
    """"7.2.22 (Debian ...)" from a QMP greeting, "" when it has another shape."""
    node: object = greeting
    for key in ("QMP", "version"):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return ""
    number = node.get("qemu")
    if not isinstance(number, dict):
        return ""
    digits = ".".join(str(number.get(part)) for part in ("major", "minor", "micro"))
    return f"{digits} {str(node.get('package', '')).strip('() ')}".strip()


_BLOCK = re.compile(r"^\s*(\S.*?)\s+(\d+ [KMG]iB|\d+ B)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)"
                    r"(?:\s+0x([0-9a-f]+))?(?:\s+(ro|rw))?\s*$")


def _parse_ramblocks(text: str) -> list[RamBlock]:
    """The table of `info ramblock`; newer QEMU adds columns at the end."""
    blocks = []
    for line in text.splitlines():
        match = _BLOCK.match(line)
        if match:
            address = int(match[6], 16) if match[6] else None
            read_only = match[7] == "ro" if match[7] else None
            blocks.append(RamBlock(match[1], int(match[5], 16), address, read_only))
    return blocks
