# SPDX-License-Identifier: GPL-2.0-or-later
"""Log lines for people, for the journal and for programs."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.logs.lines import PRIORITY, Form, chosen, line


def record(message: str, *args: Any, level: int = logging.INFO, name: str = "holdfast.primary",
           error: bool = False) -> logging.LogRecord:
    trace = None
    if error:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            trace = sys.exc_info()
    made = logging.LogRecord(name, level, "file.py", 1, message, args, trace)
    made.created, made.msecs = 1700000000.123, 123.0
    return made


def position(vm: str) -> tuple[int, int] | None:
    return (7, 0) if vm == "web1" else None


def test_people_read_when_how_bad_where_and_what(monkeypatch: pytest.MonkeyPatch) -> None:
    text = line(record("%s: replication failed: %s", "web1", "no room", level=logging.ERROR), position, Form.TEXT)
    assert text[8:] == ".123 ERROR   holdfast.primary: web1: replication failed: no room [term 7 epoch 0]"
    text = line(record("link %s is up", "web1"), position, Form.TEXT)
    assert text.endswith("holdfast.primary: link web1 is up"), "that is a link of this name, not the VM"


@pytest.mark.parametrize(("level", "priority"), [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4),
                                                 (logging.ERROR, 3), (logging.CRITICAL, 2)])
def test_the_journal_reads_a_priority_and_fields(level: int, priority: int) -> None:
    text = line(record("%s: it happened", "web1", level=level), position, Form.JOURNAL)
    assert text == f"<{priority}>primary: web1: it happened vm=web1 term=7 epoch=0"
    assert set(PRIORITY.values()) <= set(range(8))


def test_programs_read_json_with_every_field() -> None:
    found = json.loads(line(record("%s: ä %d", "web1", 0), position, Form.JSON))
    assert found == {"at": 1700000000.123, "level": "info", "module": "primary", "message": "web1: ä 0", "vm": "web1",
                     "term": 7, "epoch": 0}
    found = json.loads(line(record("%s: gone", "db1"), position, Form.JSON))
    assert "vm" not in found
    assert json.loads(line(record("plain"), position, Form.JSON))["message"] == "plain"


def test_a_traceback_is_of_the_same_priority_or_a_field() -> None:
    lines = line(record("it broke", error=True, level=logging.CRITICAL), position, Form.JOURNAL).splitlines()
    assert len(lines) > 3 and all(one.startswith("<2>") for one in lines)
    found = line(record("it broke", error=True), position, Form.JSON)
    assert "\n" not in found and "ValueError: two" in json.loads(found)["traceback"]


@pytest.mark.parametrize("evil", ["a\nb", "a\r\n<0>kernel: panic", "\x1b[2J", "a\x00b", "\x85", "a\u2028b"])
def test_what_strangers_send_cannot_look_like_a_line_of_ours(evil: str) -> None:
    for form in (Form.TEXT, Form.JOURNAL, Form.JSON):
        text = line(record("refused %s", evil), position, form)
        assert len(text.splitlines()) == 1 and not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in text)


def test_the_journal_is_known_by_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert chosen(Form.AUTO, stream.fileno()) is Form.JOURNAL
        assert chosen(Form.JSON, stream.fileno()) is Form.JSON
        assert chosen(Form.AUTO, 2 if os.fstat(2).st_ino != status.st_ino else 1) is Form.TEXT
        monkeypatch.setenv("JOURNAL_STREAM", "nonsense")
        assert chosen(Form.AUTO, stream.fileno()) is Form.TEXT


def test_a_witness_whose_log_the_journal_reads_writes_priorities(tmp_path: Path) -> None:
    """The real thing: a file as standard error, named as the journal's stream."""
    (tmp_path / "keys").mkdir()
    ready, told = os.pipe()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    with (tmp_path / "log").open("w") as log:
        status = os.fstat(log.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        words = ["witness", "--listen", listen, "--keys", str(tmp_path / "keys"), "--state-dir",
                 str(tmp_path / "state"), "--ready-fd", str(told)]
        with subprocess.Popen([sys.executable, "-m", "appliance.cli", *words], stderr=log, pass_fds=(told,),
                              env=environment) as witness:
            os.close(told)
            assert os.read(ready, 10) == b"ready\n"
            witness.terminate()
            assert witness.wait(20) == 0
    os.close(ready)
    assert (tmp_path / "log").read_text().startswith(f"<6>witness: the witness serves {listen} with 0 records")
