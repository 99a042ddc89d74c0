# SPDX-License-Identifier: GPL-2.0-or-later
"""A service that was made and not started: what it tells before anything happens."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from appliance import config as cfg
from appliance.logs.lines import Form
from appliance.logs.logs import Logs
from appliance.metrics.pages import Monitoring
from appliance.metrics.web import Page, Query
from appliance.service import Service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "vmlinuz").touch()
    vms = {name: cfg.Vm(home="alpha", memory=128 << 20, mac=f"52:54:00:00:00:0{number}", bridge="br0",
                        kernel=tmp_path / "vmlinuz") for number, name in enumerate(("web1", "db1"))}
    link = cfg.Link(name="link0", interface="lo", address="127.0.0.1", peer="127.0.0.2")
    config = cfg.Config(host=cfg.Host(name="alpha", state_dir=tmp_path, run_dir=tmp_path), peer=cfg.Peer(name="beta"),
                        link=(link,), vm=vms)
    null = os.open(os.devnull, os.O_WRONLY)
    logs = Logs(null, Form.TEXT)

    async def make() -> Service:
        return Service(config, logs)

    yield asyncio.run(make())
    logs.close()
    logging.getLogger().removeHandler(logs)
    os.close(null)


@pytest.fixture
def monitoring(service: Service) -> Monitoring:
    return service.monitoring()


def page(monitoring: Monitoring, name: str, query: Query | None = None) -> Page:
    return asyncio.run(monitoring.pages()[name](query or {}))  # type: ignore[arg-type]


def figures(monitoring: Monitoring) -> str:
    found = page(monitoring, "/metrics")
    assert found.status is HTTPStatus.OK and found.kind.startswith("text/plain; version=0.0.4")
    return found.body.decode()
