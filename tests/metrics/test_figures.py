# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures: well formed, complete from the start, and the ones that dashboard, alerts and documentation speak of."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.core import Phase
from appliance.metrics.figures import FIGURES, Classes
from appliance.metrics.pages import Monitoring
from appliance.service import Service
from appliance.sums import FAST, Histogram
from tests.metrics.conftest import figures, page
from tests.metrics.promtool import program

DOCS = Path(__file__).resolve().parents[2] / "docs"
MONITORING = DOCS / "monitoring"
needs_promtool = pytest.mark.skipif(program() is None, reason="needs promtool: make promtool")
_NAME = re.compile(r"\bholdfast_[a-z_]+")


def promtool(*words: str, said: str = "", cwd: Path | None = None) -> None:
    done = subprocess.run([str(program()), *words], input=said, capture_output=True, text=True, timeout=60, cwd=cwd,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard() -> Any:
    return json.loads((MONITORING / "dashboard.json").read_text())


def expressions() -> Iterator[str]:
    """Every query of the dashboard."""
    found = dashboard()
    for panel in found["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (one["expr"] for one in found["annotations"]["list"])
    yield from (f"count({_NAME.search(one['definition']).group()})"  # type: ignore[union-attr]
                for one in found["templating"]["list"] if "definition" in one)


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def exported() -> set[str]:
    """Every name that a query may use."""
    names = {"holdfast_build_info"}
    for figure in FIGURES:
        name = f"holdfast_{figure.name}"
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if isinstance(figure, Classes) else {name}
    return names


def test_prometheus_understands_every_figure(monitoring: Monitoring) -> None:
    families = {family.name: family for family in text_string_to_metric_families(figures(monitoring))}
    for figure in FIGURES:
        family = families[f"holdfast_{figure.name}".removesuffix("_total")]
        assert family.documentation == figure.help and not figure.help.endswith(".")
        assert family.type == ("histogram" if isinstance(figure, Classes)
                               else "counter" if figure.name.endswith("_total") else "gauge")
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(figure.labels), sample
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    assert "process_resident_memory_bytes" in families


@needs_promtool
def test_promtool_finds_nothing_wrong_with_them(monitoring: Monitoring) -> None:
    promtool("check", "metrics", said=figures(monitoring))


def test_one_phase_holds_and_zeros_are_told(monitoring: Monitoring, service: Service) -> None:
    found = samples(figures(monitoring))
    assert found["holdfast_up"] == {(): 1}
    for vm in ("web1", "db1"):
        states = {dict(labels)["state"]: value for labels, value in found["holdfast_state"].items()
                  if dict(labels)["vm"] == vm}
        assert states == {**dict.fromkeys(map(str, Phase), 0), "waiting": 1}
        assert found["holdfast_epoch_total"][("outcome", "taken"), ("vm", vm)] == 0
        assert found["holdfast_failover_seconds_count"][("kind", "takeover"), ("vm", vm)] == 0
    assert found["holdfast_link_up"] == {(("link", "link0"),): 0} and "holdfast_link_rtt_seconds" not in found
    assert found["holdfast_host_state"][("host", "beta"), ("state", "unknown")] == 1


def test_no_label_grows_with_the_traffic(monitoring: Monitoring) -> None:
    assert {label for figure in FIGURES for label in figure.labels} <= {
        "vm", "state", "role", "kind", "outcome", "cause", "link", "host", "component", "level", "mode",
        "disk", "volume"}
    assert sum(map(len, samples(figures(monitoring)).values())) < 500


def test_a_rendering_serves_all_who_ask_at_once(monitoring: Monitoring, service: Service) -> None:
    first = figures(monitoring)
    service.vms["web1"].journal.sums.epochs["taken"] += 1
    assert figures(monitoring) == first
    monitoring._at -= 10
    assert 'holdfast_epoch_total{outcome="taken",vm="web1"} 1.0' in figures(monitoring)


def test_a_histogram_counts_as_prometheus_does() -> None:
    histogram = Histogram(FAST)
    for value in (0.0, 0.001, 0.0011, 0.3, 99.0):
        histogram.add(value)
    histogram.add(0.002, times=3)
    found = dict(histogram.cumulative())
    assert (found["0.001"], found["0.002"], found["0.25"], found["1.0"], found["5.0"], found["+Inf"]) == (
        2, 6, 6, 7, 7, 8)
    assert histogram.sum == pytest.approx(99.3081)


def test_every_metric_of_dashboard_and_alerts_is_exported() -> None:
    used = set(_NAME.findall((MONITORING / "alerts.yml").read_text()))
    used |= set(_NAME.findall((MONITORING / "alerts.test.yml").read_text()))
    used |= {name for expression in expressions() for name in _NAME.findall(expression)}
    assert used - exported() == set()


def test_every_figure_is_on_the_dashboard_and_in_the_documentation() -> None:
    shown = {name for expression in expressions() for name in _NAME.findall(expression)}
    told = (DOCS / "monitoring.md").read_text()
    for figure in FIGURES:
        name = f"holdfast_{figure.name}"
        assert f"`{name}`" in told, name
        assert name in shown or f"{name}_bucket" in shown, f"{name} is not on the dashboard"


def test_every_label_that_a_query_asks_for_is_there() -> None:
    labels = {f"holdfast_{figure.name}": set(figure.labels) for figure in FIGURES} | {
        "holdfast_build_info": {"version", "wire"}}
    texts = [*expressions(), (MONITORING / "alerts.yml").read_text()]
    for text in texts:
        for name, asked in re.findall(r"\b(holdfast_[a-z_]+)\{([^}]*)\}", text):
            known = labels.get(name) or labels[re.sub("_(bucket|sum|count)$", "", name)]
            asked = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", asked)) - {"pair", "job", "instance", "le"}
            assert asked <= known, (name, asked)


@needs_promtool
def test_promtool_checks_and_runs_the_alerts() -> None:
    promtool("check", "rules", "alerts.yml", cwd=MONITORING)
    promtool("test", "rules", "alerts.test.yml", cwd=MONITORING)


@needs_promtool
def test_promtool_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"q{number}", "expr": re.sub(r"\$__(rate_interval|range)", "5m", expression)}
             for number, expression in enumerate(expressions())]
    assert len(rules) > 50
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", cwd=tmp_path)


def test_the_panels_lie_side_by_side() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize(("query", "status"), [({}, 503), ({"vm": ["web1"]}, 503), ({"vm": ["nothing"]}, 404)])
def test_a_host_that_does_not_speak_says_so(monitoring: Monitoring, query: Any, status: int) -> None:
    assert page(monitoring, "/primary", query).status == status


def test_health_is_that_of_the_service(monitoring: Monitoring, service: Service) -> None:
    found = page(monitoring, "/healthz")
    assert found.status == 200 and json.loads(found.body)["vms"] == {"web1": "waiting", "db1": "waiting"}
    service.vms["db1"].ticked -= 60
    found = page(monitoring, "/healthz")
    assert found.status == 503 and "db1: no decision" in json.loads(found.body)["reason"]
