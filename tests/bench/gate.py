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
_CONTROL = "cubic"  # what Debian's kernels use
_WINDOW = 64 << 20  # bytes; some epochs of 10 ms at the bridge's rate


def run(
    *, epoch_ms: float = 10.0, seconds: float = 2.0, rounds: int = 5, window: int = _WINDOW, **_: Any
) -> list[dict[str, Any]]:
    """Needs root and iperf3. Bridge and gate take turns, `rounds` times; the figures are medians.

    The ratio is the median over the rounds, each gate measured against the bridge just before it: other work on
    the machine comes and goes, and hits both alike.
    """
    return asyncio.run(_run(epoch_ms, seconds, rounds, window))


async def _run(epoch_ms: float, seconds: float, rounds: int, window: int) -> list[dict[str, Any]]:
    with _stage(window) as prefix:
        bare, gated = [], []
        for _ in range(rounds):
            with _bridged():
                bare.append(await _iperf(prefix, seconds))
            gated.append(await _through_the_gate(prefix, seconds, epoch_ms))
    held = [one[1] for one in gated]
    rates = [one[0] for one in gated]
    conditions = {
        "epoch_ms": epoch_ms,
        "seconds": seconds,
        "rounds": rounds,
        "streams": 1,
        "window_bytes": window,
        "congestion_control": _CONTROL,
        "cpus": os.cpu_count(),
        "bridge_gbit_s": [round(rate, 2) for rate in bare],
        "gate_gbit_s": [round(rate, 2) for rate in rates],
        **{key: sum(one[key] for one in held) for key in held[0]},
    }
    ratio = statistics.median(gate / bridge for gate, bridge in zip(rates, bare, strict=True))
    return [
        _result("gate.bulk.ratio", round(ratio, 3), "1", 0.5, conditions),
        _result("gate.bulk.gate", round(statistics.median(rates), 2), "Gbit/s", None, conditions),
        _result("gate.bulk.bridge", round(statistics.median(bare), 2), "Gbit/s", None, conditions),
    ]


def _result(name: str, value: float, unit: str, goal: float | None, conditions: dict[str, Any]) -> dict[str, Any]:
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
            "early_frames": guard.early_frames,
            "overflow_frames": gate.overflow_frames,
            "lost_frames": gate.lost_frames,
            "moved_frames": gate.released_frames,
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
    server = await asyncio.create_subprocess_exec(
        *_inside(prefix, "client", "iperf3", "-s", "-p", _PORT), stdout=subprocess.DEVNULL
    )
    try:
        await _until_listening(prefix)
        command = ("iperf3", "-c", _CLIENT, "-p", _PORT, "-t", str(seconds), "-O", "1", "-C", _CONTROL, "-J")
        sender = await asyncio.create_subprocess_exec(*_inside(prefix, "guest", *command), stdout=subprocess.PIPE)
        out, _ = await asyncio.wait_for(sender.communicate(), seconds + 20)
    finally:
        server.kill()
        await server.wait()
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
            for knob in ("tcp_rmem", "tcp_wmem"):  # large windows from the start
                setting = f"net.ipv4.{knob}=4096 {window} {window}"
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
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=_WINDOW, help="bytes")
    print(json.dumps(run(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
