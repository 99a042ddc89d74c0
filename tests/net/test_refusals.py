# SPDX-License-Identifier: GPL-2.0-or-later
"""What is missing is named, with its remedy: the tun driver, privilege, compiled programs, kernel support."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebpf import BpfError, libbpf, objects_dir
from ebpf.state import GateState, GuardState, InboundState

TRY = """
import asyncio, os, sys
{before}
from appliance.errors import HoldfastError
from ebpf.errors import BpfError
try:
    {body}
except (HoldfastError, BpfError) as error:
    print(type(error).__name__, "|", error.message, "|", error.hint)
"""
TAP = "from appliance.tap import open_tap; open_tap('hfnet-refused')"
NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"


def attempt(body: str, before: str = "", *wrapper: str) -> str:
    code = TRY.format(before=before, body=body)
    command = [*wrapper, sys.executable, "-c", code]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=root)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_no_tun_driver() -> None:
    hide = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")
    said = attempt(TAP, "", *hide)
    assert "Unavailable" in said and "/dev/net/tun" in said and "modprobe tun" in said


def test_no_privilege_for_a_tap() -> None:
    # The modules are read before the privilege goes: a checkout may be readable for root only.
    said = attempt(TAP, "import appliance.tap\n" + NOBODY)
    assert "NoPermission" in said and "CAP_NET_ADMIN" in said


def test_no_privilege_for_a_program() -> None:
    path = str(objects_dir() / "gate.bpf.o")
    before = f"import ebpf.libbpf, pathlib\nfd = os.open({path!r}, os.O_RDONLY)\n" + NOBODY
    said = attempt("ebpf.libbpf.Object.load(pathlib.Path(f'/proc/self/fd/{fd}'))", before)
    assert "BpfError" in said and "not permitted" in said and "run as root" in said


def test_no_compiled_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOLDFAST_BPF_DIR", str(tmp_path))
    with pytest.raises(BpfError, match="missing") as caught:
        objects_dir()
    assert "make bpf" in caught.value.hint


def test_an_object_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "gate.bpf.o").write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(BpfError, match="cannot be opened"):
        libbpf.Object.load(tmp_path / "gate.bpf.o")
    with pytest.raises(BpfError, match="No such file"):
        libbpf.Object.load(tmp_path / "nothing.o")


def test_a_program_or_map_of_another_version() -> None:
    loaded = libbpf.Object.load(objects_dir() / "gate.bpf.o")

    class Longer(ctypes.Structure):
        _fields_ = [("first", ctypes.c_uint64 * 17)]

    for wrong in (
        lambda: loaded.program("nosuch"),
        lambda: loaded.state("nosuch", GateState),
        lambda: loaded.state("gate_state", Longer),
    ):
        with pytest.raises(BpfError) as caught:
            wrong()
        assert "make bpf" in caught.value.hint
    with pytest.raises(BpfError, match="interface 99999"):
        libbpf.attach(99999, "ingress", loaded.program("gate"))
    loaded.close()


def test_the_verifiers_words_are_in_the_error(tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text(
        '#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nchar l[] SEC("license") = "GPL";\n'
        'SEC("tc") int bad(struct __sk_buff *skb) { return *(int *)(long)skb->data; }\n'
    )
    machine = os.uname().machine
    clang = ["clang", "-O2", "-g", "-target", "bpf", f"-I/usr/include/{machine}-linux-gnu"]
    subprocess.run([*clang, "-c", str(source), "-o", str(tmp_path / "bad.o")], check=True, timeout=30)
    with pytest.raises(BpfError, match="invalid access to packet"):
        libbpf.Object.load(tmp_path / "bad.o")


def test_both_sides_agree_on_what_they_share() -> None:
    assert {ctypes.sizeof(layout) for layout in (GateState, InboundState, GuardState)} == {128}
    assert GateState.released_frames.offset == InboundState.open.offset == GuardState.committed.offset == 64
