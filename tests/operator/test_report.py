# SPDX-License-Identifier: GPL-2.0-or-later
"""The tarball for a bug report: what is in it, that no secret is, and that it can be had from a host that is broken."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from appliance import report
from appliance.cli import main
from appliance.exits import Exit
from tests.operator.pretender import Pretender
from tests.operator.test_golden import GOLDEN

SECRETS = ("hunter2", "s3cr3t", "MIIEvQIBADAN", "operator:pw")
CONFIG = """\
[host]
name = "alpha"
[arbiter]
kind = "etcd"
endpoints = ["https://operator:pw@192.0.2.7:2379"]
key_file = "witness.key"
[vm.web1]
append = "console=ttyS0 root_password=hunter2 api-token=s3cr3t quiet"
# -----BEGIN PRIVATE KEY-----
# MIIEvQIBADAN
# -----END PRIVATE KEY-----
"""


@pytest.fixture
def config(home: Path) -> Path:
    directory = home / "etc"
    directory.mkdir()
    (directory / "holdfast.toml").write_text(CONFIG)
    (directory / "witness.key").write_text("hunter2 " * 8)
    return directory


def contents(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        found = {member.name.removeprefix("holdfast-report/"): tar.extractfile(member) for member in tar}
        return {name: data.read().decode() for name, data in found.items() if data is not None}


def test_what_is_in_it(host: Pretender, home: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("status-protected", "health"):
        host.replies[name.split("-")[0]] = json.loads((GOLDEN / f"{name}.json").read_text())
    file = home / "r.tar.gz"
    assert main(["report", "-o", str(file), "--config", str(config), "--control", str(host.path), "-j"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = contents(file)
    assert said["schema"] == "holdfast.report/1" and file.stat().st_mode & 0o777 == 0o600
    assert json.loads(found["service/status.json"])["host"] == "alpha"
    assert json.loads(found["service/state.json"])[-1]["event"] == "end-of-state"
    assert "MemTotal" in found["host/meminfo.txt"] and "console=ttyS0" in found["config/holdfast.toml"]
    assert set(said["members"]) | {"manifest.json"} == set(found)
    assert "nothing to say" in said["missing"]["service/history.json"]
    assert "msgspec " in found["host/packages.txt"] and "host/filters.txt" in found
    assert ("log-tail", {"lines": 1000}) in host.asked and ("history", {"limit": 200}) in host.asked


def test_no_secret_is_in_it(host: Pretender, home: Path, config: Path) -> None:
    host.replies["log"] = {"schema": "holdfast.log/1", "line": "tried with password: hunter2", "token": "s3cr3t"}
    file = home / "r.tar.gz"
    assert main(["report", "-o", str(file), "--config", str(config), "--control", str(host.path)]) == 0
    everything = "\n".join(contents(file).values())
    assert [secret for secret in SECRETS if secret in everything] == []
    assert "192.0.2.7:2379" in everything and report.REMOVED in everything


def test_a_host_without_a_service_reports_too(home: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "r.tar.gz"
    assert main(["report", "-o", str(file), "--config", str(config), "--control", str(home / "none")]) == 0
    said = capsys.readouterr().out
    assert "without service/status.json: no service answers" in said
    assert "config/holdfast.toml" in contents(file)
    assert main(["report", "-o", f"{file}2", "--config", str(home / "nowhere"), "--control", str(home / "none")]) == 0
    assert "without config/*.toml: " in capsys.readouterr().out


def test_it_ends_in_time_and_names_what_it_left_out(
        home: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "BUDGET", 0.0)
    file = home / "r.tar.gz"
    assert main(["report", "-o", str(file), "--config", str(config), "--control", str(home / "none"), "-j"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["members"] == {} and "took 0 s" in said["missing"]["config/holdfast.toml"]


def test_it_is_not_written_over_another_file(home: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "precious"
    file.write_text("precious")
    words = ["report", "--config", str(config), "--control", str(home / "none"), "-o"]
    assert main([*words, str(file)]) == main([*words, str(home / "no" / "such")]) == Exit.DEGRADED
    assert file.read_text() == "precious" and "-o" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "rest"), [
    ('password = "x y", n = 1', 'password = "<removed>", n = 1'), ("PASSWD=abc", "PASSWD=<removed>"),
    ('{"auth_token": "abc", "n": 0}', '{"auth_token": "<removed>", "n": 0}'),
    ("http://u:p@h/", "http://<removed>@h/"), ("key_file = \"/etc/k\"", 'key_file = "/etc/k"'),
    ("tokens 3", "tokens 3"),
    (r'{"line": "password=\"a b\" n"}', r'{"line": "password=\"<removed>\" n"}'),
    ("secret: 'a b' c", "secret: '<removed>' c"), ("Authorization: Basic", "Authorization: <removed>"),
    ("-----BEGIN RSA PRIVATE KEY-----\nabc", "<removed>")])
def test_what_is_removed(text: str, rest: str) -> None:
    assert report.scrubbed(text) == rest
