# SPDX-License-Identifier: GPL-2.0-or-later
"""The workload must notice every broken promise, and must not cry wolf."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import HoldfastError
from appliance.lab import workload
from appliance.lab.driver import Driver
from appliance.lab.judge import WriteJudge
from appliance.lab.recording import Recording
from appliance.lab.streams import Redis, Stream, WrongAnswer
from tests.demo.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def drive(server: Server, out: Path, *, streams: str = "incr,set,download,echo,ping") -> Recording:
    """Drive every stream through at least 60 operations (3 downloads) of this server."""
    with Driver.start(out, [*server.options(), "--streams", streams]) as driver:
        driver.wait_ready(10)
        wait_for(lambda: "incr" not in streams or server.incrs >= 60)
        wait_for(lambda: "set" not in streams or server.sets >= 60)
        wait_for(lambda: "echo" not in streams or server.echoes >= 60)
        wait_for(lambda: "download" not in streams or server.downloads >= 3)
        return driver.stop(30)


def test_a_working_server_is_clean(server: Server, tmp_path: Path) -> None:
    recording = drive(server, tmp_path / "rec.json")
    verdict = recording.verdict
    assert verdict.clean, verdict.problems
    assert verdict.acked_writes > 20
    assert verdict.requests >= sum(len(stream.start_ns) for stream in recording.streams.values()) > 0
    assert set(recording.streams) == {"incr", "set", "download", "echo", "ping"}
    for stream in recording.streams.values():
        assert stream.start_ns and len(stream.start_ns) == len(stream.latency_ns)
        assert min(stream.latency_ns) > 0 and stream.start_ns == sorted(stream.start_ns)


def test_a_lost_acknowledged_set_is_caught(server: Server, tmp_path: Path) -> None:
    server.lose_key_after = 5
    verdict = drive(server, tmp_path / "rec.json", streams="set").verdict
    assert verdict.lost_acked_writes == 1 and not verdict.clean
    assert "is missing" in verdict.problems[0]


def test_a_wrong_value_is_caught(server: Server, tmp_path: Path) -> None:
    server.wrong_value = True
    verdict = drive(server, tmp_path / "rec.json", streams="set").verdict
    assert verdict.lost_acked_writes >= 1 and "something else" in verdict.problems[0]


@pytest.mark.parametrize("keys", [1, workload.BATCH, workload.BATCH + 1])
def test_keys_are_read_back_batch_by_batch(server: Server, keys: int) -> None:
    server.wrong_value = True
    judge = WriteJudge("run")
    judge.acknowledged = list(range(keys))
    server.data = {judge.key(index): judge.value(index) for index in range(keys)}
    redis = Redis(("127.0.0.1", server.redis_port))
    found = workload.read_back(redis, judge)
    redis.close()
    right = [(index, judge.value(index)) for index in range(keys)]
    assert found == right[:1] + [(1, "something else")][: keys - 1] + right[2:]


def test_a_counter_that_falls_back_is_caught(server: Server, tmp_path: Path) -> None:
    server.lose_counter_at = 10
    verdict = drive(server, tmp_path / "rec.json", streams="incr").verdict
    assert verdict.lost_acked_writes == 1 and "INCR answered 9, at least 10" in verdict.problems[0]


def test_an_incr_carried_out_twice_is_caught(server: Server, tmp_path: Path) -> None:
    server.twice_at = 10
    verdict = drive(server, tmp_path / "rec.json", streams="incr").verdict
    assert verdict.lost_acked_writes == 0 and "twice" in verdict.problems[0]


@pytest.mark.parametrize("carried_out", [True, False])
def test_an_eof_is_a_reset_and_the_lost_answer_may_count_or_not(
    server: Server, tmp_path: Path, carried_out: bool
) -> None:
    server.end_redis_at, server.carry_out_lost = 10, carried_out
    verdict = drive(server, tmp_path / "rec.json", streams="incr").verdict
    assert verdict.resets == 1 and verdict.lost_acked_writes == 0
    assert len(verdict.problems) == 1 and "EOF" in verdict.problems[0]


def test_a_rst_is_a_reset_and_the_stall_lasts_until_the_next_answer(server: Server, tmp_path: Path) -> None:
    server.reset_echo_at = 20
    recording = drive(server, tmp_path / "rec.json", streams="echo")
    assert recording.verdict.resets == 1 and not recording.verdict.clean
    echo = recording.streams["echo"]
    assert "reset" in echo.broken[0].cause.lower() or "eof" in echo.broken[0].cause.lower()
    assert echo.start_ns[-1] > echo.broken[0].at_ns, "it goes on after the reset"


def test_a_corrupt_download_is_caught(server: Server, tmp_path: Path) -> None:
    with Driver.start(tmp_path / "rec.json", [*server.options(), "--streams", "download"]) as driver:
        driver.wait_ready(10)
        server.corrupt_download = True
        wait_for(lambda: server.downloads >= 3)
        verdict = driver.stop(30).verdict
    assert verdict.corrupt_downloads >= 1 and verdict.resets == 0 and not verdict.clean


def test_a_truncated_download_is_a_reset(server: Server, tmp_path: Path) -> None:
    with Driver.start(tmp_path / "rec.json", [*server.options(), "--streams", "download"]) as driver:
        driver.wait_ready(10)
        server.truncate_download = True
        wait_for(lambda: server.downloads >= 3)
        verdict = driver.stop(30).verdict
    assert verdict.resets >= 1 and verdict.corrupt_downloads == 0


def test_a_changed_echo_is_caught(server: Server, tmp_path: Path) -> None:
    server.change_echo_at = 7
    verdict = drive(server, tmp_path / "rec.json", streams="echo").verdict
    assert verdict.wrong_answers == 1 and not verdict.clean


def test_slow_is_not_broken_and_shows_as_the_longest_stall(server: Server, tmp_path: Path) -> None:
    server.stall_echo = (30, 0.25)
    recording = drive(server, tmp_path / "rec.json", streams="echo")
    assert recording.verdict.clean, recording.verdict.problems
    echo = recording.streams["echo"]
    worst = max(range(len(echo.start_ns)), key=lambda i: echo.latency_ns[i])
    inside = echo.start_ns[worst] + 100_000_000
    assert echo.longest_stall_ms(inside, inside + 1) >= 250


def test_a_silent_server_is_an_error_that_says_which_stream(tmp_path: Path) -> None:
    options = ["--host", "127.0.0.1", "--echo-port", "1", "--streams", "echo", "--ready-timeout", "0.3"]
    with Driver.start(tmp_path / "rec.json", options) as driver:
        with pytest.raises(HoldfastError, match="echo"):
            driver.wait_ready(10)


class _Starting(Stream):
    """Of a server that answers at once and serves later."""

    name = "starting"
    pace_s = 1.0
    refused = 0

    def connect(self) -> None:
        if self.refused < 3:
            self.refused += 1
            raise WrongAnswer("the database system is starting up")

    def operate(self) -> None: ...

    def close(self) -> None: ...


def test_a_server_that_does_not_serve_yet_is_asked_again() -> None:
    stream = _Starting(("127.0.0.1", 1))
    stream.thread.start()
    assert stream.answered.wait(10)
    stream.stop.set()
    stream.thread.join(10)
    assert len(stream.record.faults) == 3 and not stream.record.broken


def wait_for(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
