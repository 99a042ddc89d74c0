# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in a real terminal: colour, repainting, questions; and completion with the Tab key in bash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import completion
from tests.operator.conftest import NewTerminal
from tests.operator.pretender import Pretender
from tests.operator.test_golden import GOLDEN


def reply(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize(("environment", "words", "coloured"), [
    ({}, [], True), ({"NO_COLOR": "1"}, [], False), ({"NO_COLOR": ""}, [], True), ({}, ["--color=never"], False),
    ({"NO_COLOR": "1"}, ["--color=always"], True)])
def test_colour_on_a_terminal(terminal: NewTerminal, host: Pretender, environment: dict[str, str], words: list[str],
                              coloured: bool) -> None:
    host.replies["status"] = reply("status-solo")
    window = terminal("status", "--control", str(host.path), *words, environment=environment)
    window.shows("ended with 1")
    assert ("\033[31mdown" in "\n".join(window.screen(colours=True))) is coloured


def test_watching_repaints_in_place(terminal: NewTerminal, host: Pretender) -> None:
    host.replies["status"] = reply("status-protected")
    window = terminal("status", "-w", "0.1", "--control", str(host.path))
    first = window.shows("vm web1         primary         protected")
    assert first[0].startswith("host alpha")
    host.replies["status"] = reply("status-fenced")
    second = window.shows("vm web1         none            fenced")
    assert second[0].startswith("host alpha") and not any("protected" in line for line in second)
    host.stop()
    window.shows("waiting for it to come back")
    host.start()
    window.shows("vm web1         none            fenced")
    window.press("C-c")
    window.shows("ended with 130")


def test_top_repaints_in_place(terminal: NewTerminal, host: Pretender) -> None:
    answers = iter(range(1, 1000))

    def moving(_: dict[str, Any]) -> dict[str, Any]:
        found = reply("status-protected")
        found["vms"]["web1"]["checkpoints"] += 10 * next(answers)
        return found

    host.replies["status"] = moving
    window = terminal("top", "-w", "0.1", "--control", str(host.path), columns=150)
    lines = window.shows(lambda lines: any(line.startswith("web1  primary  protected") for line in lines))
    assert sum(line.startswith("VM ") for line in lines) == 1
    window.press("C-c")


@pytest.mark.parametrize(("answer", "code", "asked"), [("y", 0, True), ("n", 107, False), ("", 107, False)])
def test_an_unsafe_verb_asks_the_person_there(terminal: NewTerminal, host: Pretender, answer: str, code: int,
                                              asked: bool) -> None:
    host.replies["fence"] = reply("fence")
    window = terminal("fence", "beta", "--control", str(host.path))
    window.shows("if the other host has a replica. Do it? [y/N]")
    window.enter(answer)
    window.shows(f"ended with {code}")
    assert (("fence", {"host": "beta", "lift": False, "off": False}) in host.asked) is asked


def test_the_tab_key(terminal: NewTerminal, host: Pretender, home: Path) -> None:
    """`holdfast completion bash` in an interactive bash, where a service answers."""
    host.replies["status"] = reply("status-protected")
    (home / "completion").write_text(completion.bash())
    (home / "rc").write_text("PS1='$ '; source ./completion; bind 'set bell-style none'\n")
    window = terminal(command=["bash", "--noprofile", "--rcfile", "rc", "-i"],
                      environment={"HOLDFAST_CONTROL": str(host.path), "PATH": f"{home}:{os.environ['PATH']}"})
    window.shows("$")
    window.type("holdfast swi")
    window.press("Tab")
    window.shows("$ holdfast switchover")
    window.type("w")
    window.press("Tab")
    window.shows("$ holdfast switchover web1")
    window.press("C-c")
    window.type("holdfast lab fault crash be")
    window.press("Tab")
    window.shows("$ holdfast lab fault crash beta")
