# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel ends a process that writes when its lease does, and its connections deliver nothing more."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmlink.errors import VmError
from vmlink.volume.lease import Lease

IDLE = "import time\nprint('up', flush=True)\ntime.sleep(60)"
SENDS = """
import socket, sys, time
made = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
made.setblocking(False)
print("up", flush=True)
try:
    while True:
        made.send(bytes(1 << 16))  # until nothing more goes into the buffer
except BlockingIOError:
    pass
print("full", flush=True)
time.sleep(60)
"""


class Leased:
    """A process that has the library."""

    def __init__(self, program: str, *words: str) -> None:
        self.lease = Lease()
        self.child = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE,
                                      env={**os.environ, **self.lease.environment()},
                                      pass_fds=[self.lease.theirs.fileno()])
        self.lease.theirs.close()
        self.hears("up")

    def hears(self, line: str) -> None:
        assert self.child.stdout is not None and self.child.stdout.readline() == line.encode() + b"\n"

    def close(self) -> None:
        self.child.kill()
        self.child.wait(10)
        assert self.child.stdout is not None
        self.child.stdout.close()
        self.lease.close()


@pytest.fixture
def leased() -> Iterator[Leased]:
    made = Leased(IDLE)
    yield made
    made.close()


def test_with_a_write_under_way_it_ends_with_the_lease(leased: Leased) -> None:
    until = time.monotonic() + 0.3
    leased.lease.renew(until)
    with pytest.raises(VmError, match="gone"), leased.lease.writing():
        assert leased.child.wait(10) == -signal.SIGKILL
        assert until <= time.monotonic()


def test_it_ends_even_when_it_stands_still(leased: Leased) -> None:
    leased.lease.renew(time.monotonic() + 0.3)
    with pytest.raises(VmError), leased.lease.writing():
        leased.child.send_signal(signal.SIGSTOP)
        assert leased.child.wait(10) == -signal.SIGKILL


def test_a_lease_that_is_renewed_goes_on(leased: Leased) -> None:
    leased.lease.renew(time.monotonic() + 0.2)
    with leased.lease.writing():
        for _ in range(4):
            with pytest.raises(subprocess.TimeoutExpired):
                leased.child.wait(0.1)
            leased.lease.renew(time.monotonic() + 0.5)


def test_without_a_write_nothing_happens(leased: Leased) -> None:
    leased.lease.renew(time.monotonic() + 0.1)
    with leased.lease.writing():
        pass
    with pytest.raises(subprocess.TimeoutExpired):
        leased.child.wait(0.3)
    with pytest.raises(VmError, match="over"), leased.lease.writing():
        pass


def test_a_lease_that_is_taken_away_ends_it_at_once(leased: Leased) -> None:
    leased.lease.renew(time.monotonic() + 60)
    with pytest.raises(VmError), leased.lease.writing():
        leased.lease.renew(0.0)
        assert leased.child.wait(10) == -signal.SIGKILL


def test_who_renews_does_not_wait_for_a_qemu_that_does_not_answer(leased: Leased) -> None:
    """The event loop renews; a worker waits for the answer meanwhile."""
    leased.lease.renew(time.monotonic() + 60)
    leased.child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, leased.child.pid, os.WSTOPPED | os.WNOWAIT)
    with ThreadPoolExecutor(1) as worker:
        def ask() -> None:
            with leased.lease.writing():
                pass

        asking = worker.submit(ask)
        while not leased.lease._under_way:
            assert not asking.done()
        for _ in range(2000):  # more than the socket takes
            leased.lease.renew(time.monotonic() + 60)
        assert not asking.done()
        with pytest.raises(VmError, match="did not answer within"):
            asking.result(10)


def test_what_is_in_the_buffer_of_a_connection_is_not_delivered() -> None:
    """As by a reset: the other side reads an error instead of the rest."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        leased = Leased(SENDS, str(server.getsockname()[1]))
        try:
            connection, _ = server.accept()
            leased.hears("full")
            leased.child.kill()
            leased.child.wait(10)
            with connection, pytest.raises(ConnectionResetError):
                while connection.recv(1 << 16):
                    pass
        finally:
            leased.close()
