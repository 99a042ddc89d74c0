# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the workload in a client's namespace from outside: start, wait until it drives, stop, read its recording."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from appliance.errors import HoldfastError, Unavailable
from appliance.lab import topology
from appliance.lab.blueprint import built_image
from appliance.lab.lab import Lab
from appliance.lab.processes import package_root
from appliance.lab.recording import Recording

ALL = "incr,set,download,echo,ping"
STOP_S = 100.0  # an operation may wait 15 s for its answer, reading back may take 60 s


class Driver:
    """One running workload. It ends when stopped, and also when the process that started it dies."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        self.process = process
        self.out = out

    @classmethod
    def start(
        cls,
        out: Path,
        options: Sequence[str],
        *,
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Driver:
        """Start it; `options` are those of appliance.lab.workload without --out.

        inside: the words before the command that lead into the client's namespace. Raises HoldfastError when
        the process cannot be started.
        """
        command = [*inside, sys.executable, "-m", "appliance.lab.workload", "--out", str(out), *options]
        base = dict(os.environ if environment is None else environment)
        base["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package_root()), base.get("PYTHONPATH", "")]))
        out.unlink(missing_ok=True)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=base,
                start_new_session=True,  # Ctrl-C is for us; we stop it
            )
        except OSError as error:
            raise HoldfastError(f"the workload does not start: {error}", "is iproute2 installed?") from error
        return cls(process, out)

    @classmethod
    def in_lab(cls, lab: Lab, out: Path, *, streams: str = ALL, more: Sequence[str] = ()) -> Driver:
        """Start it as the client of `lab`, against our own guest. Raises HoldfastError."""
        options = ["--host", topology.VM_IP, "--streams", streams, *more]
        if "download" in streams:
            options += ["--sha256", blob_sha256(lab.options.guest)]
        inside, environment = lab.command("client", []), lab.environment("client")
        return cls.start(out.absolute(), options, inside=inside, environment=environment)

    def wait_ready(self, timeout: float = 35.0) -> None:
        """Return when every stream had its first answer. Raises HoldfastError if not within `timeout` seconds."""
        line = self._line(time.monotonic() + timeout)
        try:
            said = json.loads(line)
        except ValueError:
            said = {"said": line[-500:]}
        if not (isinstance(said, dict) and said.get("ready")):
            self.kill()
            raise HoldfastError(f"the workload did not get going: {said}", "does the VM answer on these ports?")

    def _line(self, deadline: float) -> str:
        assert self.process.stdout is not None
        fd, data = self.process.stdout.fileno(), b""
        while not data.endswith(b"\n"):
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(fd, 4096) if ready else b""
            if not more:
                break
            data += more
        return data.decode("utf-8", "replace").strip()

    def stop(self, timeout: float = STOP_S) -> Recording:
        """Let it finish, read back what it wrote, and return its recording. Raises HoldfastError."""
        try:
            said, _ = self.process.communicate(timeout=timeout)  # closes its stdin: the sign to stop
            return Recording.load(self.out)
        except subprocess.TimeoutExpired as error:
            raise HoldfastError(f"the workload did not stop within {timeout:g} s") from error
        except (OSError, ValueError) as error:
            words = said.decode("utf-8", "replace")[-500:]
            raise HoldfastError(f"the workload left no recording ({error}); it said: {words}") from error
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once if it still runs; idempotent."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def blob_sha256(guest: str = "memory") -> str:
    """The digest of /blob.bin in a guest image of ours. Raises Unavailable."""
    directory = built_image(guest)
    try:
        digest: str = json.loads((directory / "manifest.json").read_text())["sha256"]["/blob.bin"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"{directory / 'manifest.json'}: {error}", "make image") from error
    return digest
