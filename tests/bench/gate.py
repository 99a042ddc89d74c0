# SPDX-License-Identifier: GPL-2.0-or-later
"""Bulk TCP out of a namespace: through the gate with short epochs, against the bare bridge in the same run."""

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
from collections.abc import Iterator
from typing import Any

from appliance.front import Front, FrontSpec

_GUEST, _CLIENT, _PORT = "10.77.8.10", "10.77.8.1", "5201"
_WINDOW = 32 << 20  # bytes; two epochs of 10 ms at 13 Gbit/s


def run(
    *, epoch_ms: float = 10.0, seconds: float = 3.0, rounds: int = 3, window: int = _WINDOW, **_: Any
) -> list[dict[str, Any]]:
    """Needs root and iperf3. Alternates bridge and gate `rounds` times; the figures are medians."""
    return asyncio.run(_run(epoch_ms, seconds, rounds, window))


async def _run(epoch_ms: float, seconds: float, rounds: int, window: int) -> list[dict[str, Any]]:
    with _stage(window) as prefix:
        server = await asyncio.create_subprocess_exec(
            *_inside(prefix, "client", "iperf3", "-s", "-p", _PORT), stdout=subprocess.DEVNULL
        )
        try:
            await _until_listening(prefix)
            bare, gated = [], []
            for _ in range(rounds):
                with _bridged():
                    bare.append(await _iperf(prefix, seconds))
                gated.append(await _through_the_gate(prefix, seconds, epoch_ms))
        finally:
            server.kill()
            await server.wait()
    held = [one[1] for one in gated]
    rates = [one[0] for one in gated]
    conditions = {
        "epoch_ms": epoch_ms, "seconds": seconds, "rounds": rounds, "window_bytes": window, "cpus": os.cpu_count(),
        "streams": 1, "bare_all": [round(rate, 2) for rate in bare], "gate_all": [round(rate, 2) for rate in rates],
        "early_frames": sum(one["early"] for one in held), "overflow_frames": sum(one["overflow"] for one in held),
        "lost_frames": sum(one["lost"] for one in held), "frames_moved": sum(one["moved"] for one in held),
    }  # fmt: skip
    low, high = statistics.median(rates), statistics.median(bare)
    return [
        _result("gate.bulk.ratio", round(low / high, 3), "1", 0.5, conditions),
        _result("gate.bulk.gate", round(low, 2), "Gbit/s", None, conditions),
        _result("gate.bulk.bridge", round(high, 2), "Gbit/s", None, conditions),
    ]


def _result(
    name: str, value: float, unit: str, goal: float | None, conditions: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name, "value": value, "unit": unit, "goal": goal, "better": "higher", "conditions": conditions
    }  # fmt: skip


async def _through_the_gate(prefix: str, seconds: float, epoch_ms: float) -> tuple[float, dict[str, int]]:
    front = await Front.create(FrontSpec("bench", "52:54:00:aa:00:10", (_GUEST,), "br0", 256 << 20))
    try:
        await front.attach_device("vm0")
        front.open(1)

        async def epochs() -> None:
            """Each epoch is committed as soon as it ends: what is measured is the gate alone."""
            loop = asyncio.get_running_loop()
            due = loop.time()
            while True:
                due = max(due + epoch_ms / 1000, loop.time())
                await asyncio.sleep(due - loop.time())
                await front.gate.release(front.gate.mark())

        task = asyncio.create_task(epochs())
        try:
            rate = await _iperf(prefix, seconds)
        finally:
            task.cancel()
            await asyncio.wait((task,))
        gate, guard = front.gate.stats(), front.guard.stats()
        return rate, {
            "early": guard.early_frames,
            "overflow": gate.overflow_frames,
            "lost": gate.lost_frames,
            "moved": gate.released_frames,
        }
    finally:
        await front.close()
        _ungate()


def _ungate() -> None:
    _ip("link", "set", "vm0", "down")
    subprocess.run(["tc", "qdisc", "del", "dev", "vm0", "clsact"], check=True, timeout=10)


@contextlib.contextmanager
def _bridged() -> Iterator[None]:
    _ip("link", "set", "vm0", "master", "br0", "up")
    try:
        yield
    finally:
        _ip("link", "set", "vm0", "nomaster", "down")


async def _iperf(prefix: str, seconds: float) -> float:
    """Gbit/s that the client received, after one second of settling."""
    command = ("iperf3", "-c", _CLIENT, "-p", _PORT, "-t", str(seconds), "-O", "1", "-J")
    process = await asyncio.create_subprocess_exec(
        *_inside(prefix, "guest", *command), stdout=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), seconds + 20)
    report = json.loads(out)
    if "error" in report:
        raise RuntimeError(f"iperf3: {report['error']}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9


async def _until_listening(prefix: str) -> None:
    async with asyncio.timeout(10):
        while _PORT not in _ip("netns", "exec", f"{prefix}-client", "ss", "-ltnH"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def _stage(window: int) -> Iterator[str]:
    """Host with a bridge (where this thread goes), guest behind `vm0`, client behind the uplink."""
    prefix, libc = f"hfbench-{os.getpid()}", ctypes.CDLL(None, use_errno=True)
    places = [f"{prefix}-{place}" for place in ("host", "client", "guest")]
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        for place in places:
            _ip("netns", "add", place)
        host = os.open(f"/run/netns/{places[0]}", os.O_RDONLY)
        if libc.setns(host, 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(host)
        _ip("link", "add", "br0", "type", "bridge")
        _ip("link", "set", "br0", "up")
        _ip("link", "add", "up0", "type", "veth", "peer", "c0", "netns", places[1])
        _ip("link", "add", "vm0", "type", "veth", "peer", "g0", "netns", places[2])
        _ip("link", "set", "up0", "master", "br0", "up")
        for place, device, address in (("client", "c0", _CLIENT), ("guest", "g0", _GUEST)):
            _ip("-n", f"{prefix}-{place}", "addr", "add", f"{address}/24", "dev", device)
            _ip("-n", f"{prefix}-{place}", "link", "set", device, "up")
            for knob in ("tcp_rmem", "tcp_wmem"):
                setting = f"net.ipv4.{knob}=4096 {1 << 20} {window}"
                _ip("netns", "exec", f"{prefix}-{place}", "sysctl", "-qw", setting)
        yield prefix
    finally:
        libc.setns(home, 0x40000000)
        os.close(home)
        for place in places:
            subprocess.run(["ip", "netns", "del", place], check=False, timeout=10, stderr=subprocess.DEVNULL)


def _inside(prefix: str, place: str, *command: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", f"{prefix}-{place}", *command)


def _ip(*command: str) -> str:
    return subprocess.run(["ip", *command], check=True, capture_output=True, text=True, timeout=10).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epoch-ms", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=int, default=_WINDOW, help="bytes")
    print(json.dumps(run(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
