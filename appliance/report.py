# SPDX-License-Identifier: GPL-2.0-or-later
"""A tarball for a report of a fault: what the service says, what it was told, what the host is. Secrets are removed.

Each part is tried by itself: a service that does not answer, a file that cannot be read or a program that is missing
leaves a hole that the manifest names, and no more. Key files are never read.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import socket as socket_module
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from appliance import __version__, control
from appliance.errors import HoldfastError, Unavailable

SECONDS = 10.0
"""The longest that one part may take."""
BUDGET = 60.0
"""Seconds for all parts; what would begin later is left out, and named."""
LONGEST = 16 << 20
"""Bytes of one part; what is longer is cut."""
REMOVED = "<removed>"
ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("status", {}), ("health", {}), ("history", {"limit": 200}), ("epochs", {}), ("log", {}),
    ("log-tail", {"lines": 1000}))
RUN = {
    "host/links.txt": ("ip", "-details", "-statistics", "link"),
    "host/addresses.txt": ("ip", "address"),
    "host/rules.txt": ("nft", "list", "ruleset"),
    "host/qemu.txt": ("qemu-system-x86_64", "--version"),
    "host/journal.txt": ("journalctl", "--unit", "holdfast*", "--lines", "5000", "--no-pager", "--output",
                         "short-precise"),
}
READ = ("/etc/os-release", "/proc/version", "/proc/cmdline", "/proc/meminfo", "/proc/loadavg", "/proc/pressure/memory")
_SECRET = re.compile(r"""(?ix)
    \b ([\w.-]* (?: passw (?:or)? d | passphrase | secret | token | credential | authorization ) [\w.-]*)
    (\\?["']? \s* [:=] \s*)
    (?: (\\?["']) .*? \3 | [^\s"',}\\]+ )""")
_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@\"']+@")
_PEM = re.compile(r"-----BEGIN [^-]*PRIVATE KEY-----.*?(?:-----END [^-]*PRIVATE KEY-----|\Z)", re.DOTALL)


def scrubbed(text: str) -> str:
    """`text` without what looks like a password, a token, a private key, or the user in a URL."""
    text = _PEM.sub(REMOVED, text)
    text = _USER.sub(rf"\1{REMOVED}@", text)
    return _SECRET.sub(lambda found: f"{found[1]}{found[2]}{found[3] or ''}{REMOVED}{found[3] or ''}", text)


def write(path: Path, socket: str, config: Path) -> dict[str, Any]:
    """Make the tarball, for its owner alone; returns holdfast.report/1.

    Raises Unavailable when the file is there already or cannot be written.
    """
    manifest: dict[str, Any] = {"schema": "holdfast.report/1", "version": __version__, "file": str(path),
                                "at": time.time(), "members": {}, "missing": {}}
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}", "name another file with -o") from None
    try:
        until = time.monotonic() + BUDGET
        with os.fdopen(file, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as tar:
            for name, make in _parts(socket, config):
                if time.monotonic() < until:
                    _add(tar, name, make, manifest)
                else:
                    manifest["missing"][name] = f"the parts before it took {BUDGET:g} s"
            _member(tar, "manifest.json", json.dumps(manifest, indent=1).encode())
            raw.flush()
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Unavailable(f"{path}: {error.strerror}", "is the disk full?") from None
    return manifest


def _parts(socket: str, config: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    for verb, args in ASKED:
        yield f"service/{verb}.json", lambda verb=verb, args=args: _indented(  # type: ignore[misc]
            control.call(socket, verb, timeout=SECONDS, **args))
    yield "service/state.json", lambda: _indented(list(control.stream(socket, "events", timeout=SECONDS, now=True)))
    files = sorted(config.glob("*.toml")) or [config / "*.toml"]  # which is told to be missing
    for file in files:
        yield f"config/{file.name}", lambda file=file: _text(file)  # type: ignore[misc]
    for name in READ:
        yield f"host/{Path(name).name}.txt", lambda name=name: _text(Path(name))  # type: ignore[misc]
    yield "host/filters.txt", _filters
    yield "host/packages.txt", _packages
    for name, command in RUN.items():
        yield name, lambda command=command: _output(command)  # type: ignore[misc]


def _add(tar: tarfile.TarFile, name: str, make: Callable[[], str], manifest: dict[str, Any]) -> None:
    try:
        text = scrubbed(make())
    except (HoldfastError, OSError, subprocess.SubprocessError, TimeoutError) as error:
        manifest["missing"][name] = scrubbed(str(error))
        return
    data = text.encode(errors="replace")[:LONGEST]
    _member(tar, name, data)
    manifest["members"][name] = len(data)


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(f"holdfast-report/{name}")
    about.size, about.mode, about.mtime = len(data), 0o600, int(time.time())
    tar.addfile(about, io.BytesIO(data))


def _filters() -> str:
    """The TC filters of every device of a front: `h`, its kind, a dash, the VM."""
    fronts = sorted(name for _, name in socket_module.if_nameindex() if re.match(r"h[vhoxs]-", name))
    return "\n".join(f"# {name} {side}\n{_output(('tc', '-s', 'filter', 'show', 'dev', name, side))}"
                     for name in fronts for side in ("ingress", "egress"))


def _packages() -> str:
    """What Python has."""
    found = sorted({f"{one.name} {one.version}" for one in metadata.distributions()})
    return f"python {platform.python_version()}\n" + "\n".join(found) + "\n"


def _indented(document: object) -> str:
    return json.dumps(document, indent=1)


def _text(file: Path) -> str:
    with file.open(errors="replace") as stream:
        return stream.read(LONGEST)


def _output(command: tuple[str, ...]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS,
                          stdin=subprocess.DEVNULL)
    return done.stdout + (f"\n[ended with {done.returncode}]\n{done.stderr}" if done.returncode else "")
