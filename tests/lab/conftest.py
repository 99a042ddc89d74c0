# SPDX-License-Identifier: GPL-2.0-or-later
"""Labs with names of their own, and a check that nothing of them is left."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.lab import blueprint, processes, topology
from appliance.lab.blueprint import Options
from appliance.lab.lab import Lab
from appliance.lab.processes import Process
from tests.lab.naming import given_out


@pytest.fixture
def names() -> Iterator[Callable[[], str]]:
    """Gives out names of labs; takes down what goes by them, and fails if anything is left then."""
    memory = set(os.listdir("/dev/shm"))
    yield from given_out()
    assert set(os.listdir("/dev/shm")) <= memory


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file in place of a kernel, for labs whose VM never starts."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"no kernel")
    return kernel


@pytest.fixture
def lab(names: Callable[[], str], image: Path) -> Lab:
    """A lab without services: network and files."""
    return Lab.create(Options(name=names(), kernel=str(image), qemu=sys.executable))


@pytest.fixture
def sleeper() -> Iterator[Callable[..., Process]]:
    """Starts a process in a place of a lab: one of the lab's own, or a stranger without its mark."""
    started: list[subprocess.Popen[bytes]] = []

    def start(lab: Lab, place: str, *, stranger: bool = False) -> Process:
        environment = {"PATH": os.environ["PATH"]} if stranger else lab.environment(place)
        child = subprocess.Popen(lab.command(place, ["sleep", "300"]), env=environment)
        started.append(child)
        # `ip` enters the namespace, then becomes the command.
        until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n")
        found = processes.process(child.pid)
        assert found is not None
        return found

    yield start
    for child in started:
        child.kill()
        child.wait(5)


def until(holds: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def alive_with(lab: Lab, services: dict[str, Process]) -> None:
    """Let the lab take these processes for its services."""
    blueprint.write_state(blueprint.State(lab.options, services))


def inside(lab: Lab, place: str, *words: str) -> str:
    """The output of a command run in `place`."""
    command = ["ip", "netns", "exec", topology.netns(lab.name, place), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
