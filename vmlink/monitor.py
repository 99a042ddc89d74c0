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
from typing import Protocol

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError, StateError
from qemu.qmp.message import Message

from vmlink.errors import VmError

Buffer = bytes | bytearray | memoryview

# Everything the library would log becomes a VmError here.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)

CALL_TIMEOUT = 5.0
"""Seconds one QMP command may take."""

_STATE_ROOM = 64 << 20
"""Bytes; a device state larger than this is refused. An ordinary VM has 0.1 to 1 MiB."""

_LOADING = "loading the device state"

_POLL = 0.001
"""Seconds between looks at the run state while device state loads."""

_DEATH_WAIT = 0.5
"""Seconds to learn why QEMU died after its connection broke."""


class Process(Protocol):
    """What is asked about the process behind the connection."""

    async def condition(self, wait: float) -> str:
        """In words: how it ended, or what it does; waits up to `wait` seconds for its end."""
        ...


@dataclass(frozen=True)
class RamBlock:
    """A memory block of QEMU's: `size` bytes, at `address` in its process. None: this QEMU does not tell."""

    name: str
    size: int
    address: int | None
    read_only: bool | None

    @property
    def carried(self) -> bool:
        """Does a checkpoint carry it? The guest memory, yes; a ROM is the same on both hosts anyway."""
        rom = self.name.startswith("/rom@") or self.name.endswith(".rom") or self.name == "pc.bios"
        return self.name == "ram" or rom or self.read_only is True


class _Client(QMPClient):
    """QMPClient without history, made fast: the checkpoint waits for three calls.

    Events go to one callback, messages are not formatted for logs, and a command is written at once instead
    of by a task of its own.
    """

    def __init__(self, name: str, on_event: Callable[[str, Mapping[str, object]], None]) -> None:
        super().__init__(name)
        self._on_event = on_event

    async def _event_dispatch(self, msg: Message) -> None:
        data = msg.get("data")
        self._on_event(str(msg["event"]), data if isinstance(data, dict) else {})

    async def _issue(self, msg: Message) -> str | None:
        number = msg.get("id")
        assert isinstance(number, str)
        self._pending[number] = asyncio.Queue(maxsize=1)
        try:
            self._do_send(msg)
        except BaseException:
            del self._pending[number]
            raise
        return number

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """The QMP connection of one QEMU. Use `connect`; `close` ends it, QEMU runs on."""

    def __init__(self, name: str, state_fd: int, process: Process) -> None:
        self._client = _Client(name, self._event)
        self._state_fd = state_fd
        self._process = process
        self._feed: socket.socket | None = None
        self._running = asyncio.Event()
        self._saving = False
        self._shutdown = ""
        self.version = ""
        self.timeout = CALL_TIMEOUT
        self.listener: Callable[[str, Mapping[str, object]], None] | None = None
        """Hears each event of QEMU's, by name and data; must not raise."""

    @classmethod
    async def connect(cls, sock: socket.socket, *, name: str, state_fd: int, process: Process,
                      timeout: float = CALL_TIMEOUT) -> Monitor:
        """Greet the QEMU at the other end of `sock` (which is ours from now on).

        `state_fd` is a memfd that QEMU has inherited under the same number: device state is saved into it.
        Raises VmError.
        """
        self = cls(name, state_fd, process)
        try:
            await asyncio.wait_for(self._client.connect(sock), timeout)
        except TimeoutError:
            raise await self._error("the QMP greeting", f"no answer for {timeout:g} s") from None
        except (QMPError, OSError, EOFError) as error:
            raise await self._error("the QMP greeting", _cause(error), gone=True) from error
        greeting = self._client.greeting
        if greeting is not None:
            self.version = _version(greeting._asdict())
        return self

    async def call(self, command: str, arguments: Mapping[str, object] | None = None, *,
                   within: str = "") -> object:
        """Run one QMP command and return its answer; it may take `self.timeout` seconds.

        Raises VmError, which names the command, or `within` where it is a part of something larger. After a
        time-out the command may still run, or run later.
        """
        name = within or command
        try:
            async with asyncio.timeout(self.timeout):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise await self._error(name, f"no answer for {self.timeout:g} s",
                                    "QEMU hangs or the host is overloaded; it has to be killed") from None
        except ExecuteError as error:
            raise await self._error(name, f"QEMU says: {error}") from error
        except (QMPError, OSError, EOFError, AssertionError) as error:
            raise await self._error(name, _cause(error), gone=True) from error

    async def stop(self) -> None:
        """Pause the VM; its disks are flushed when this returns."""
        await self.call("stop")

    async def cont(self) -> None:
        """Let the VM run."""
        await self.call("cont")

    async def status(self) -> str:
        """QEMU's run state: "running", "paused", "inmigrate", "prelaunch", "shutdown", ..."""
        return await self._status()

    async def _status(self, within: str = "") -> str:
        answer = await self.call("query-status", within=within)
        return str(answer.get("status")) if isinstance(answer, dict) else "unknown"

    async def save_devices(self) -> bytes:
        """The state of all devices and CPUs (no RAM) of a paused VM, about 0.1 MiB.

        Raises VmError, also when one is being saved already.
        """
        if self._saving:
            raise await self._error("xen-save-devices-state", "the last one has not finished")
        self._saving = True
        try:
            await self.call("xen-save-devices-state",
                            {"filename": f"/proc/self/fd/{self._state_fd}", "live": False})
            size = os.fstat(self._state_fd).st_size
            if not 0 < size <= _STATE_ROOM:
                raise await self._error("xen-save-devices-state", f"it wrote {size} bytes")
            return os.pread(self._state_fd, size, 0)
        finally:
            self._saving = False

    async def expect_devices(self) -> None:
        """Have a QEMU that waits with `-incoming defer` ready to read a device state, which saves a takeover 1 ms.

        Idempotent. Raises VmError.
        """
        if self._feed is not None:
            return
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            with theirs:
                await self._hand_fd("device-state", theirs.fileno())
            await self.call("migrate-incoming", {"uri": "fd:device-state"}, within=_LOADING)
        except BaseException:
            ours.close()
            raise
        self._feed = ours

    async def load_devices(self, state: Buffer, *, timeout: float = CALL_TIMEOUT) -> None:
        """Load a saved device state into a QEMU that waits with `-incoming defer`; returns when the VM runs.

        Raises VmError: the state does not fit this QEMU, QEMU died, or it took longer than `timeout` seconds.
        A QEMU that refused a state is of no more use.
        """
        self._running.clear()
        try:
            async with asyncio.timeout(timeout):
                await self.expect_devices()
                assert self._feed is not None
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    # A QEMU that stops reading says why when it is asked for its status.
                    await asyncio.get_running_loop().sock_sendall(self._feed, state)
                    self._feed.shutdown(socket.SHUT_WR)
                await self._until_running()
        except TimeoutError:
            raise await self._error(_LOADING, f"the VM does not run after {timeout:g} s") from None
        finally:
            self._close_feed()

    async def _until_running(self) -> None:
        """Returns with the RESUME event, or when QEMU says so: an event alone could be missed."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL):
                    await self._running.wait()
                    return
            state = await self._status(_LOADING)
            if state == "running":
                return
            if state != "inmigrate":
                raise await self._error(_LOADING, f"the VM is {state} afterwards")

    async def _hand_fd(self, name: str, fd: int) -> None:
        """Give QEMU a descriptor under a name."""
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError, AssertionError) as error:
            raise await self._error(_LOADING, _cause(error), gone=True) from error
        await self.call("getfd", {"fdname": name}, within=_LOADING)

    def _close_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None

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
        self._close_feed()
        # disconnect() raises what ended the reader, EOFError for instance.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.disconnect(), CALL_TIMEOUT)

    def _event(self, name: str, data: Mapping[str, object]) -> None:
        if name == "RESUME":
            self._running.set()
        elif name == "SHUTDOWN":
            self._shutdown = str(data.get("reason", "unknown"))
        if self.listener is not None:
            self.listener(name, data)

    async def _error(self, command: str, cause: str, hint: str = "", *, gone: bool = False) -> VmError:
        """With what is known of QEMU. `gone`: the connection broke, so its death is waited for a moment."""
        known = await self._process.condition(wait=_DEATH_WAIT if gone else 0.0)
        return VmError(f"{command}: {cause} ({known})", hint)


def _cause(error: BaseException) -> str:
    inner = error.exc if isinstance(error, ConnectError) else error
    if isinstance(inner, EOFError | ExecInterruptedError | StateError):
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
