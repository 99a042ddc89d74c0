# SPDX-License-Identifier: GPL-2.0-or-later
"""The admin shell in a real terminal: what its user sees, key by key."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.exits import Exit
from tests.operator.conftest import NewTerminal
from tests.operator.pretender import Pretender, vm
from tests.operator.terminal import Terminal

BAR = " web1  alpha primary protected  beta backup standby  term 7  | links 2/2 up"


def opened(terminal: NewTerminal, host: Pretender, *words: str, **options: object) -> Terminal:
    shell = terminal("shell", "--control", str(host.path), *words, **options)
    shell.shows("alpha primary protected>")
    return shell


def ready(shell: Terminal) -> None:
    """Wait for a prompt that nothing is typed at: keys that come earlier are not its."""
    shell.shows(lambda lines: [line for line in lines if line.startswith("alpha ")][-1].endswith(">"))


def test_the_first_screen(terminal: NewTerminal, host: Pretender) -> None:
    shell = opened(terminal, host)
    screen = shell.shows(BAR)
    assert [line for line in screen if line] == [
        "holdfast 0.1.0: help names the verbs, Tab completes, Ctrl-D leaves", "alpha primary protected>", BAR]
    assert screen[-1] == BAR


def test_events_come_above_the_prompt_and_prompt_and_bar_follow(terminal: NewTerminal, host: Pretender) -> None:
    shell = opened(terminal, host)
    shell.type("stat")
    shell.shows("protected> stat")
    host.move("web1", "primary", "solo", "the backup lost its replica (failed)")
    told = ["holdfast 0.1.0: help names the verbs, Tab completes, Ctrl-D leaves",
            "TIME  web1      primary solo, was protected  term 7  the backup lost its replica (failed)",
            "alpha primary solo> stat"]
    shell.shows(lambda lines: lines[:3] == told)  # what was typed stays as it is
    host.tell("peer-phase", "web1", was="standby", phase="failed", role="none", term=7)
    shell.shows("TIME  web1      there none failed, was standby  term 7")
    screen = shell.shows("beta none failed")
    assert screen[-1] == " web1  alpha primary solo  beta none failed  term 7  | links 2/2 up"


@pytest.mark.parametrize(("environment", "words", "coloured"), [
    ({}, [], True), ({"NO_COLOR": "1"}, [], False), ({}, ["--color", "never"], False),
    ({"NO_COLOR": "1"}, ["--color", "always"], True)])
def test_colour_means_something_and_can_be_had_without(
    terminal: NewTerminal, host: Pretender, environment: dict[str, str], words: list[str], coloured: bool
) -> None:
    shell = opened(terminal, host, *words, environment=environment)
    host.move("web1", "none", "failed", "QEMU is gone")
    shell.shows("alpha none failed>")
    shell.shows("TIME  web1")
    prompt = next(line for line in shell.screen(colours=True) if "alpha none" in line and ">" in line)
    told = next(line for line in shell.screen(colours=True) if "was protected" in line)
    for line in (prompt, told):
        assert ("\033[31mfailed" in line or "\033[1m\033[31mfailed" in line) is coloured, repr(line)


def test_tab_completes_verbs_options_vms_and_hosts(terminal: NewTerminal, host: Pretender) -> None:
    host.vms["web2"] = vm("backup", "standby")
    shell = terminal("shell", "--control", str(host.path))
    shell.shows("alpha backup+primary protected>")
    for keys, completed in (("swi", "> switchover"), ("switchover web", "> switchover web"),
                            ("drain be", "> drain beta"), ("drain beta --u", "> drain beta --undo"),
                            ("wait pro", "> wait protected"), ("status -w 2 --pr", "> status -w 2 --pretty"),
                            ("help exit", "> help exit-codes")):
        shell.type(keys)
        shell.press("Tab")
        shell.shows(completed)
        if keys == "switchover web":
            shell.press("Tab")
            shell.shows(lambda lines: any("web1" in line and "primary protected" in line for line in lines[:-1]))
        shell.press("C-c")
        ready(shell)


def test_a_verb_that_moves_and_one_that_is_unsafe(terminal: NewTerminal, host: Pretender) -> None:
    host.replies["switchover"] = {"schema": "holdfast.switchover/1", "vm": "web1", "from": "alpha", "to": "beta",
                                  "ms": 9}
    host.replies["fence"] = {"schema": "holdfast.fence/1", "host": "beta", "result": "fenced",
                             "vms": {"web1": {"phase": "fenced", "term": 7}}}
    shell = opened(terminal, host)
    shell.enter("switchover web1")
    shell.shows("web1: moved from alpha to beta in 9 ms")
    ready(shell)
    shell.enter("fence beta")
    shell.shows("goes on only if the other host has a replica. Do it? [y/N]")
    shell.enter("n")
    shell.shows("holdfast: fence was not confirmed")
    ready(shell)
    assert [verb for verb, _ in host.asked].count("fence") == 0
    shell.enter("fence beta")
    shell.shows(lambda lines: sum("[y/N]" in line for line in lines) == 2)
    shell.enter("yes")
    shell.shows("  web1: fenced, term 7")
    assert ("fence", {"host": "beta", "lift": False, "off": False}) in host.asked


def test_a_mistake_is_told_and_the_shell_goes_on(terminal: NewTerminal, host: Pretender) -> None:
    shell = opened(terminal, host)
    shell.enter("swichover web1")
    shell.shows("did you mean switchover?")
    ready(shell)
    shell.enter('status "')
    shell.shows("close the quotes")
    ready(shell)
    shell.enter("service")
    shell.shows("service is not for the shell")
    ready(shell)
    shell.enter("help fence")
    shell.shows("-j prints holdfast.fence/1.")


def test_events_that_come_while_a_verb_runs_come_when_it_has_ended(terminal: NewTerminal, host: Pretender) -> None:
    shell = opened(terminal, host)
    readers = host.readers
    shell.enter("wait gone --timeout 60")
    deadline = time.monotonic() + 20
    while host.readers == readers:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    host.move("web1", "none", "waiting", "the peer has the VM")
    shell.shows("web1: none waiting")
    shell.shows("TIME  web1      none waiting, was protected  term 7  the peer has the VM")
    shell.shows("alpha none waiting>")


def test_interrupt_ends_a_verb_and_not_the_shell(terminal: NewTerminal, host: Pretender) -> None:
    shell = opened(terminal, host)
    shell.enter("events")
    shell.shows("so it is now; what follows happens")
    shell.press("C-c")
    shell.shows(lambda lines: sum("alpha primary protected>" in line for line in lines) == 2)
    ready(shell)
    shell.enter("exit")
    shell.shows("ended with 130")


def test_a_service_that_ends_and_comes_back(terminal: NewTerminal, host: Pretender) -> None:
    shell = opened(terminal, host)
    host.stop()
    shell.shows("alpha no service>")
    shell.shows(" the service does not answer ")
    shell.enter("status")
    shell.shows("holdfast: no service answers")
    host.start()
    shell.shows("alpha primary protected>")
    shell.shows(BAR)


def test_lines_are_remembered(terminal: NewTerminal, host: Pretender, home: Path) -> None:
    shell = opened(terminal, host)
    shell.enter("help exit-codes")
    shell.shows("what was waited for did not happen in time")
    ready(shell)
    shell.press("C-d")
    shell.shows("ended with 0")
    file = home / ".local" / "state" / "holdfast" / "shell-history"
    assert "+help exit-codes" in file.read_text() and file.stat().st_mode & 0o077 == 0
    again = opened(terminal, host)
    again.press("Up")
    again.shows("> help exit-codes")


# --- scripts ---


def script(host: Pretender, line: str) -> int:
    return main(["shell", "--control", str(host.path), "-c", line])


def test_a_script(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    host.replies["drain"] = {"schema": "holdfast.drain/1", "host": "alpha", "drained": True, "vms": {"web1": "moved"}}
    host.vms["web1"] = vm("backup", "standby")
    assert script(host, "drain alpha; # first\nwait gone --timeout 5 && help exit-codes # and done") == 0
    said = capsys.readouterr().out
    assert said.startswith("alpha: drained\n  web1: moved\nweb1: backup standby\n  0 ")
    assert [verb for verb, _ in host.asked] == ["drain", "events"]


def test_a_script_stops_where_it_says_so(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(host, "switchover web1 && help exit-codes") == Exit.DEGRADED
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("holdfast: nothing to say to switchover")
    assert script(host, "switchover web1; help exit-codes") == 0


def test_a_script_asks_nobody(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(host, "fence beta") == Exit.UNSAFE
    assert "--yes" in capsys.readouterr().err and host.asked == []
    assert script(host, "") == 0
    assert script(host, "help 'x") == Exit.USAGE


def test_what_is_printed_goes_through_a_pipe(host: Pretender, capfd: pytest.CaptureFixture[str]) -> None:
    assert script(host, "help exit-codes | grep -c .; help | head -n 1 | tr a-z A-Z") == 0
    assert capfd.readouterr().out.splitlines()[0] == str(len(Exit))


def test_without_a_terminal_it_says_what_to_do(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shell", "--control", str(host.path)]) == Exit.USAGE
    assert "shell -c" in capsys.readouterr().err
