# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU process: what it gets, how it fails to start, how it ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.vmlink.machine import MIB, machine, spec, until
from vmlink import accel
from vmlink.errors import VmError
from vmlink.uffd import find_mappings

_TUNGETIFF = 0x800454D2
_IFF_VNET_HDR = 0x4000


def program(path: Path, text: str) -> str:
    """A stand-in for QEMU."""
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return str(path)


def test_runs_with_our_memory_tap_and_userfaultfd(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, ram):
            assert await qemu.monitor.status() == "running"
            mappings = find_mappings(qemu.pid, ram.identity)
            assert sum(mapping.end - mapping.start for mapping in mappings) == ram.size
            await until(lambda: bool(ram.pages.any()), "the firmware writes to our memory")
            assert qemu.userfaultfd is not None and qemu.no_userfaultfd == ""
            assert qemu.version.startswith(tuple("0123456789"))
            assert "-nodefaults" in qemu.command_line()
            assert len(qemu.fingerprint()) == 64

    asyncio.run(scene())


def test_an_emulated_guest_has_its_memory_barriers(tmp_path: Path) -> None:
    """Its devices are served by another thread, however many processors it has."""
    firmware, log = tmp_path / "firmware", tmp_path / "log"
    lock_add, mfence, halt = bytes.fromhex("f0668306000500"), bytes.fromhex("0faef0"), bytes.fromhex("f4ebfd")
    firmware.write_bytes((bytes(0xFFF0) + lock_add + mfence + halt).ljust(0x10000, b"\0"))  # where a processor starts
    wanted = spec(accel="tcg", extra_args=("-bios", str(firmware), "-d", "op", "-D", str(log)))
    assert wanted.vcpus == 1

    async def scene() -> None:
        async with machine(tmp_path, wanted):
            await until(lambda: "call hlt" in log.read_text(), "the processor halts")

    asyncio.run(scene())
    translated = log.read_text()
    assert "atomic_add" in translated and " mb " in translated


def test_the_tap_keeps_its_vnet_header(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            tap = next(int(word.split("fd=")[1].split(",")[0]) for word in qemu.command_line()
                       if word.startswith("tap,"))
            copy = _descriptor_of(qemu.pid, tap)
            flags = bytearray(40)
            fcntl.ioctl(copy, _TUNGETIFF, flags)
            os.close(copy)
            assert struct.unpack_from("H", flags, 16)[0] & _IFF_VNET_HDR

    asyncio.run(scene())


def _descriptor_of(pid: int, number: int) -> int:
    import ctypes

    pidfd_getfd = 438
    watch = os.pidfd_open(pid)
    try:
        return ctypes.CDLL(None).syscall(pidfd_getfd, watch, number, 0)
    finally:
        os.close(watch)


def test_what_it_runs_is_not_shimmed_again(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            # Its own environment as of now is not visible; what matters is that the socket is gone.
            await asyncio.sleep(0)
            sockets = [name for name in os.listdir(f"/proc/{qemu.pid}/fd")
                       if os.readlink(f"/proc/{qemu.pid}/fd/{name}").startswith("socket:")]
            assert len(sockets) == 2, "QMP and console"

    asyncio.run(scene())


def test_death_is_told_at_once_with_its_cause(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            waiting = [asyncio.create_task(qemu.died()) for _ in range(2)]
            await asyncio.sleep(0)
            os.kill(qemu.pid, signal.SIGKILL)
            assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == ["killed by signal 9"] * 2
            assert await qemu.died() == "killed by signal 9"

    asyncio.run(scene())


def test_kill_while_stopped_and_twice(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            os.kill(qemu.pid, signal.SIGSTOP)
            await qemu.kill()
            await qemu.kill()
            assert await qemu.died() == "killed by signal 9"

    asyncio.run(scene())


@pytest.mark.parametrize(("changes", "cause"), [
    ({"qemu": "/nonexistent/qemu"}, "QEMU not found"),
    ({"kernel": Path("/nonexistent/vmlinuz")}, "kernel /nonexistent/vmlinuz does not exist"),
    ({"extra_args": ("-no-such-option",)}, "exited with 1: .*-no-such-option"),
    ({"extra_args": ("-device", "no-such-device")}, "no-such-device"),
    ({"kernel": Path("/etc/hostname")}, "exited with 1: .*kernel"),
])
def test_start_fails_with_the_cause(tmp_path: Path, changes: dict[str, object], cause: str) -> None:
    async def scene() -> None:
        with pytest.raises(VmError, match=f"(?s){cause}") as caught:
            async with machine(tmp_path, spec(**changes)):
                pass
        assert caught.value.hint

    asyncio.run(scene())


def test_memory_that_no_checkpoint_carries(tmp_path: Path) -> None:
    async def scene() -> None:
        with pytest.raises(VmError, match="does not carry this memory: .*vga.vram") as caught:
            async with machine(tmp_path, spec(extra_args=("-device", "VGA"))):
                pass
        assert "extra_args" in caught.value.hint

    asyncio.run(scene())


def test_memory_of_the_wrong_size(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, ram):
            with pytest.raises(VmError, match="guest memory"):
                await type(qemu).start(spec(memory_bytes=64 * MIB), ram, tap_fd=0, incoming=False, run_dir=tmp_path)

    asyncio.run(scene())


def test_missing_run_directory(tmp_path: Path) -> None:
    async def scene() -> None:
        with pytest.raises(VmError, match="console log") as caught:
            async with machine(tmp_path / "none"):
                pass
        assert "run_dir" in caught.value.hint

    asyncio.run(scene())


def test_a_program_that_says_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        silent = spec(qemu=program(tmp_path / "silent", "exec sleep 60\n"))
        from tests.vmlink.machine import SHM, open_tap, tap_name
        from vmlink.qemu import Qemu
        from vmlink.ram import GuestRam

        ram, tap = GuestRam.create(SHM, silent.memory_bytes), open_tap(tap_name())
        try:
            with pytest.raises(VmError, match=r"greeting: no answer for 0.3 s \(process \d+ is waiting\)"):
                await Qemu.start(silent, ram, tap_fd=tap, incoming=False, run_dir=tmp_path, timeout=0.3)
        finally:
            os.close(tap)
            ram.close()

    asyncio.run(scene())


def test_a_program_that_talks_nonsense(tmp_path: Path) -> None:
    async def scene() -> None:
        text = """for word; do case $word in socket,id=qmp,fd=*) fd=${word##*=};; esac; done
                  echo nonsense >&$fd; exec sleep 60\n"""
        with pytest.raises(VmError, match="greeting"):
            async with machine(tmp_path, spec(qemu=program(tmp_path / "nonsense", text))):
                pass

    asyncio.run(scene())


def test_a_wrapper_script_still_starts(tmp_path: Path) -> None:
    async def scene() -> None:
        wrapped = spec(qemu=program(tmp_path / "wrapper", 'exec qemu-system-x86_64 "$@"\n'))
        async with machine(tmp_path, wrapped) as (qemu, _):
            assert await qemu.monitor.status() == "running"

    asyncio.run(scene())


def test_without_the_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SHIM", "/nonexistent/shim.so")

    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            assert qemu.userfaultfd is None and "not built" in qemu.no_userfaultfd

    asyncio.run(scene())


def test_with_a_shim_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setenv("HOLDFAST_SHIM", str(broken))

    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            assert qemu.userfaultfd is None and "not loaded" in qemu.no_userfaultfd

    asyncio.run(scene())


def test_console_goes_to_a_bounded_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmlink import console

    monkeypatch.setattr(console, "LOG_LIMIT", 1000)

    async def scene() -> None:
        log, theirs = console.Console.open(tmp_path / "c.log")
        with theirs:
            for number in range(100):
                theirs.sendall(b"%04d %s\n" % (number, b"." * 94))
                await asyncio.sleep(0)
            await until(lambda: b"0099" in _all(tmp_path), "the last line is in the log")
        log.close()
        log.close()
        assert len(_all(tmp_path)) <= 2 * (1000 + 65536)

    asyncio.run(scene())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.log", "c.log.1"]


def _all(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in place.iterdir())


def test_service_death_takes_qemu_along(tmp_path: Path) -> None:
    text = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from tests.vmlink.machine import machine
        async def main():
            async with machine(Path(sys.argv[1])) as (qemu, ram):
                print(qemu.pid, flush=True)
                await qemu.died()
        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", text, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                          cwd=Path(__file__).parents[2]) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        service.kill()
    deadline = time.monotonic() + 5
    while _runs(pid):
        assert time.monotonic() < deadline, "QEMU outlived the service"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_start_leaves_the_loop_alone(tmp_path: Path) -> None:
    """Nothing in the start holds the event loop for long (a generous bound, to catch a blocking wait)."""

    async def scene() -> None:
        longest = 0.0
        done = False

        async def heart() -> None:
            nonlocal longest
            last = time.monotonic()
            while not done:
                await asyncio.sleep(0)
                now = time.monotonic()
                longest, last = max(longest, now - last), now

        beating = asyncio.create_task(heart())
        async with machine(tmp_path):
            pass
        done = True
        await beating
        print(f"longest hold of the loop: {longest * 1e3:.1f} ms")
        assert longest < 0.5

    asyncio.run(scene())


def test_kvm_only_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        chosen = await accel.choose("auto", "qemu-system-x86_64")
        assert chosen.name in ("kvm", "tcg") and chosen.reason
        assert (await accel.choose("tcg", "qemu-system-x86_64")).reason == "configured"
        monkeypatch.setattr(accel, "_lacking", lambda: "")
        monkeypatch.setattr(accel, "PROBE_TIMEOUT", 0.01)
        monkeypatch.setattr(accel, "_probed", {})
        assert "did not get through" in (await accel.choose("auto", "qemu-system-x86_64")).reason

    asyncio.run(scene())
