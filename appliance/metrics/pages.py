# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages that are served: /metrics for Prometheus, /healthz and /primary for load balancers and watchers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from appliance.metrics.figures import families
from appliance.metrics.sight import Parts, Sight, VmSight
from appliance.metrics.web import Page, Pages, Query

FRESH = 0.5
"""Seconds for which a rendering serves whoever asks."""


class _Alone(CollectorRegistry):
    """A registry of one family, so that the library renders one at a time."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterable[Metric]:
        yield self._family


class Monitoring:
    """See the module. `stuck` says why the service is not alive, or nothing."""

    def __init__(self, parts: Parts, stuck: Callable[[], str]) -> None:
        self._parts, self._stuck = parts, stuck
        self._process = ProcessCollector(registry=None)
        self._rendering = asyncio.Lock()
        self._rendered, self._at = b"", 0.0

    def pages(self) -> Pages:
        """By path."""
        return {"/metrics": self.metrics, "/healthz": self.healthz, "/primary": self.primary}

    async def metrics(self, query: Query) -> Page:
        """All figures. Read at one moment, rendered a family at a time: others get their turn in between."""
        async with self._rendering:  # once for all who ask at the same time
            if time.monotonic() - self._at > FRESH:
                sight = Sight(self._parts)
                rendered = []
                for family in (*families(sight), *self._process.collect()):
                    rendered.append(generate_latest(_Alone(family)))
                    await asyncio.sleep(0)
                self._rendered, self._at = b"".join(rendered), time.monotonic()
            return Page(HTTPStatus.OK, self._rendered, CONTENT_TYPE_PLAIN_0_0_4)

    async def healthz(self, query: Query) -> Page:
        """200 while the service decides about its VMs, whatever they are."""
        stuck = self._stuck()
        vms = {name: vm.state.phase for name, vm in self._parts.vms.items()}
        return _json(not stuck, {"host": self._parts.host, "alive": not stuck, "reason": stuck, "vms": vms})

    async def primary(self, query: Query) -> Page:
        """200 if this host speaks for the VM named by `vm`, for all VMs where none is named; else 503. 404 for a VM
        that there is not."""
        names = query.get("vm", [])
        vms = [VmSight(vm) for name, vm in self._parts.vms.items() if not names or name in names]
        if not vms:
            return Page(HTTPStatus.NOT_FOUND, b"there is no such VM\n")
        return _json(all(vm.speaks for vm in vms), {
            "host": self._parts.host, "vms": {vm.name: {"speaks": vm.speaks, "phase": vm.phase, "term": vm.term}
                                              for vm in vms}})


def _json(good: bool, document: dict[str, Any]) -> Page:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Page(status, json.dumps(document).encode() + b"\n", "application/json")
