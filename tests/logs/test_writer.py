# SPDX-License-Identifier: GPL-2.0-or-later
"""Nobody waits for whoever should read the log."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from appliance.logs.writer import Writer


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for end in (reading, writing):
        try:
            os.close(end)
        except OSError:
            pass  # closed by the test


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def read_all(reading: int) -> list[bytes]:
    found = b""
    while chunk := os.read(reading, 65536):
        found += chunk
    return found.splitlines(keepends=True)


def test_lines_come_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = Writer(writing)
    for number in range(100):
        writer.put(b"line %d\n" % number)
    writer.close(10)
    os.close(writing)
    assert read_all(reading) == [b"line %d\n" % number for number in range(100)] and writer.lost == 0


def test_what_does_not_fit_is_lost_counted_and_told_in_its_place(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = Writer(writing, limit=10_000)
    begun = time.monotonic()
    for number in range(20_000):
        writer.put(b"%-99d\n" % number)
    assert time.monotonic() - begun < 10
    lost = writer.lost
    assert 19_800 < lost < 20_000 and writer._bytes <= 10_000
    got = b""
    while b"missing" not in got:
        got += os.read(reading, 65536)
    writer.put(b"after\n")
    writer.close(10)
    os.close(writing)
    lines = got.splitlines() + [line.rstrip() for line in read_all(reading)]
    notices = [line for line in lines if b"missing" in line]
    numbers = [int(line) for line in lines if line.strip().isdigit()]
    assert sum(int(notice.split()[0]) for notice in notices) == writer.lost == 20_000 - len(numbers)
    assert numbers == sorted(numbers) and lines[-1] == b"after"


def test_a_reader_that_left_is_no_reason_to_stop(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    writer = Writer(writing)
    for _ in range(10):
        writer.put(b"unheard\n")
    until(lambda: writer.lost == 10)
    begun = time.monotonic()
    writer.close(5)
    assert time.monotonic() - begun < 4


def test_a_descriptor_that_does_not_block_is_waited_for_by_the_thread(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = Writer(writing)
    for number in range(1000):
        writer.put(b"%-99d\n" % number)
    lines: list[bytes] = []
    while len(lines) < 1000:
        lines += os.read(reading, 65536).splitlines()
        lines = [line for line in b"\n".join(lines).split(b"\n") if line]
        if b"999" in lines[-1][:3]:
            break
    assert writer.lost == 0
    writer.close(5)


SERVICE = """
import asyncio, logging, sys, json, os
from appliance.logs.logs import start
logs = start("info")
log = logging.getLogger("holdfast.peer")
async def main():
    loop = asyncio.get_running_loop()
    ticks, late = 0, 0.0
    for _ in range(200):
        for _ in range(250):
            log.info("%s", "x" * 200)
        begun = loop.time()
        await asyncio.sleep(0)
        late = max(late, loop.time() - begun)
    print(json.dumps({"lost": logs.lost, "counted": logs.counts["info"], "late": late}), flush=True)
asyncio.run(main())
sys.stdin.readline()
logs.close()
"""


def test_a_service_whose_standard_error_is_stuck_goes_on(pipe: tuple[int, int]) -> None:
    """50,000 lines into a pipe that nobody reads: the loop turns on, and the gap is told once somebody reads."""
    reading, writing = pipe
    with subprocess.Popen([sys.executable, "-c", SERVICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=writing, cwd=os.getcwd()) as service:
        assert service.stdin is not None and service.stdout is not None
        os.close(writing)
        said = json.loads(service.stdout.readline())  # without anybody having read a line
        assert said["counted"] == 50_000 and said["lost"] > 40_000
        service.stdin.write(b"\n")
        service.stdin.close()
        lines = read_all(reading)
        assert service.wait(20) == 0
    told = [line for line in lines if b"missing here" in line]
    assert sum(int(line.split(b": ")[1].split()[0]) for line in told) == 50_000 - (len(lines) - len(told))


def test_a_service_that_ends_does_not_wait_for_a_stuck_pipe(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    with subprocess.Popen([sys.executable, "-c", SERVICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=writing, cwd=os.getcwd()) as service:
        assert service.stdin is not None and service.stdout is not None
        service.stdout.readline()
        service.stdin.write(b"\n")
        service.stdin.close()
        assert service.wait(20) == 0
