# SPDX-License-Identifier: GPL-2.0-or-later
"""Levels that change while the service runs, the last lines, and what is lost."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import UsageError
from appliance.logs.lines import Form
from appliance.logs.logs import KEPT, Logs, start


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogger("holdfast").level, logging.raiseExceptions)
    logging.getLogger("holdfast.peer"), logging.getLogger("holdfast.link")
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    made = start("info", Form.TEXT, fd)
    yield made
    made.close()
    os.close(fd)
    root.handlers, logging.raiseExceptions = before[0], before[3]
    root.setLevel(before[1])
    logging.getLogger("holdfast").setLevel(before[2])
    logging.getLogger("holdfast.peer").setLevel(logging.NOTSET)


def ask(verb: Any, **args: Any) -> dict[str, Any]:
    reply: dict[str, Any] = asyncio.run(verb(args))
    return reply


def messages(logs: Logs) -> list[str]:
    return [one.split(": ", 1)[1] for one in ask(logs.tail, lines=100)["lines"]]


def test_levels_change_while_it_runs_for_all_and_for_one(logs: Logs) -> None:
    peer, link = logging.getLogger("holdfast.peer"), logging.getLogger("holdfast.link")
    peer.debug("1")
    peer.info("2")
    assert ask(logs.set, level="debug", module="peer")["modules"]["peer"] == "debug"
    peer.debug("3")
    link.debug("4")
    reply = ask(logs.set, level="warning")
    assert (reply["level"], reply["modules"]["link"], reply["own"]) == ("warning", "warning", ["peer"])
    peer.debug("5")
    link.info("6")
    ask(logs.set, level="default", module="holdfast.peer")
    peer.info("7")
    peer.warning("8")
    assert [one for one in messages(logs) if one.isdigit()] == ["2", "3", "5", "8"]


@pytest.mark.parametrize(("args", "hint"), [
    ({"level": "loud"}, "warning"), ({}, "debug"), ({"level": "default"}, "info"), ({"level": 7}, "info"),
    ({"level": "info", "module": "pear"}, "did you mean peer"), ({"level": "info", "module": "x" * 900}, "peer")])
def test_what_cannot_be_set(logs: Logs, args: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        ask(logs.set, **args)
    assert hint in caught.value.hint and len(str(caught.value)) < 500


def test_the_last_lines_are_remembered_and_bounded(logs: Logs) -> None:
    log = logging.getLogger("holdfast.peer")
    for number in range(KEPT + 10):
        log.info("%d %s", number, "x" * 5000 if number == KEPT else "")
    assert messages(logs)[-1].strip() == str(KEPT + 9)
    assert len(ask(logs.tail, lines=KEPT)["lines"]) == KEPT
    assert max(map(len, logs._kept)) <= 4000
    assert logs.counts["info"] == KEPT + 10 and logs.lost == 0
    for lines in (0, KEPT + 1, "many"):
        with pytest.raises(UsageError):
            ask(logs.tail, lines=lines)


def test_a_message_that_does_not_fit_its_arguments_is_told_as_such(logs: Logs) -> None:
    logging.getLogger("holdfast.peer").info("%d frames", "no")
    assert "cannot be told: '%d frames'" in ask(logs.tail)["lines"][-1]


def test_where_a_vm_stands_comes_with_its_lines(logs: Logs, tmp_path: Path) -> None:
    logs.position = {"web1": (3, 77)}.get
    logging.getLogger("holdfast.vm").info("%s: solo -> syncing", "web1")
    logs.close()
    assert (tmp_path / "log").read_text().endswith("holdfast.vm: web1: solo -> syncing [term 3 epoch 77]\n")
