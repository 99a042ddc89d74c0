# SPDX-License-Identifier: GPL-2.0-or-later
"""The [metrics] section of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from appliance.arbiter.datagram import address
from appliance.errors import BadData
from appliance.settings import Section, says


class Metrics(Section, frozen=True, kw_only=True):
    """[metrics]: figures for Prometheus, answers for load balancers."""

    listen: Annotated[str, says("HOST:PORT where /metrics, /healthz and /primary are served over HTTP, to whoever can "
                                'reach it: "127.0.0.1:9478" is usual; "" serves nowhere')] = ""


def faults(metrics: Metrics) -> Iterator[tuple[str, str, str]]:
    """Key, what is wrong with it, what helps."""
    if metrics.listen:
        try:
            address(metrics.listen)
        except BadData as error:
            yield "listen", error.message, "such as 127.0.0.1:9478"
