# SPDX-License-Identifier: GPL-2.0-or-later
"""Completion in a real bash: what is offered where."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from appliance import registry
from appliance.cli import completion, main
from appliance.registry import CONTROL_VARIABLE
from tests.operator.pretender import Pretender
from tests.operator.test_golden import GOLDEN

STUB = """\
#!/bin/sh
# What `holdfast completion vm|host` says where a service answers.
case "$2" in vm) echo "web1 web2" ;; host) echo "alpha beta" ;; esac
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("completion")
    (directory / "holdfast").write_text(STUB)
    (directory / "holdfast").chmod(0o755)
    (directory / "script").write_text(completion.bash())
    (directory / "known.toml").touch()
    return directory / "script"


def offered(script: Path, *words: str) -> list[str]:
    """What bash would offer for the last of `words`."""
    line = f"""set -u; PATH={shlex.quote(str(script.parent))}:$PATH; cd {shlex.quote(str(script.parent))}
source {shlex.quote(str(script))}
COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}
_holdfast; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "--norc", "-c", line], capture_output=True, text=True, timeout=30)
    assert done.stderr == "" and done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(("words", "expected"), [
    (("sw",), ["switchover"]),
    (("switchover", ""), ["web1", "web2"]),
    (("switchover", "web1", ""), []),
    (("pause", "web"), ["web1", "web2"]),
    (("drain", "b"), ["beta"]),
    (("drain", "beta", "--u"), ["--undo"]),
    (("fence", "--lift", "al"), ["alpha"]),
    (("lab", "fa"), ["fault"]),
    (("lab", "fault", "crash", "w"), ["witness"]),
    (("lab", "up", "--arbiter", ""), ["witness", "etcd", "none"]),
    (("lab", "up", "--memory", "1G", "--tracker", "c"), ["compare"]),
    (("status", "--color", "a"), ["auto", "always"]),
    (("status", "--control", "kn"), ["known.toml"]),
    (("help", "fe"), ["fence"]),
    (("nonsense", ""), []),
    (("trace", "ep"), ["epochs"]),
    (("trace", "web"), ["web1", "web2"]),
    (("trace", "--min"), ["--min-hold"]),
    (("trace", "audit", "kn"), ["known.toml"]),
])
def test_what_fits(script: Path, words: tuple[str, ...], expected: list[str]) -> None:
    assert offered(script, "holdfast", *words) == expected


def test_names_come_from_the_service(host: Pretender, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONTROL_VARIABLE, str(host.path))
    host.replies["status"] = json.loads((GOLDEN / "status-solo.json").read_text())
    assert main(["completion", "vm"]) == 0 and capsys.readouterr().out == "web1 web2\n"
    assert main(["completion", "host"]) == 0 and capsys.readouterr().out == "alpha beta\n"
    monkeypatch.setenv(CONTROL_VARIABLE, "/nonexistent/socket")
    assert main(["completion", "vm"]) == 0
    said = capsys.readouterr()
    assert said.out == said.err == "", "a message would end up in somebody's command line"


def test_every_verb_and_every_option_is_offered(script: Path) -> None:
    assert set(offered(script, "holdfast", "")) == {name.split()[0] for verb in registry.every() for name in verb.names}
    for verb in registry.every():
        options = offered(script, "holdfast", *verb.name.split(), "-")
        assert set(options) >= {argument.name for argument in verb.all_arguments if argument.is_option}, verb.name
