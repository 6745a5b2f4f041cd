"""Alert rules, dashboard and runbook speak of metrics that a gateway really exports, and of each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import GatewayConfig
from gateway.telemetry.build import build_telemetry
from gateway.telemetry.instruments import InstrumentSet
from gateway.telemetry.metrics import GatewayMetrics

DOCS = Path(__file__).parents[2] / "docs"
#: Words of PromQL that look like metrics.
WORDS = {
    *("sum", "rate", "increase", "by", "le", "max", "min", "absent", "and", "offset", "histogram_quantile"),
    *("on", "avg", "count"),
}


def alerts() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((DOCS / "operations/alerts.yml").read_text("utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads((DOCS / "operations/dashboard.json").read_text("utf-8"))["panels"])


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return shown + [rule["expr"] for rule in alerts()]


def exported() -> dict[str, set[str]]:
    """Label names by metric name, histogram parts included."""
    metrics = GatewayMetrics(InstrumentSet(Resource({}), "test", lambda: 0))
    found: dict[str, set[str]] = {}
    for instrument in vars(metrics).values():
        names = {instrument.name}
        if instrument.name.endswith("_seconds") and hasattr(instrument, "observe"):
            names |= {f"{instrument.name}_{part}" for part in ("bucket", "sum", "count")}
        for name in names:
            found[name] = {*instrument.labels, "le"}
    return found


def metrics_of(expression: str) -> dict[str, set[str]]:
    """Metric names in an expression, each with the labels it is filtered or grouped by."""
    bare = re.sub(r'"[^"]*"', "", expression)
    groups = {label.strip() for group in re.findall(r"by \(([^)]*)\)", bare) for label in group.split(",")}
    bare = re.sub(r"by \([^)]*\)", "", bare)
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"([a-z_]+)(?:\{([^}]*)\})?", re.sub(r"\[[^]]*\]|\b\d+\w*", "", bare)):
        if name not in WORDS and "_" in name:
            found[name] = {part.split("=")[0].rstrip("!~ ") for part in labels.split(",") if part} | groups
    return found


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_names_exported_metrics_and_labels(expression: str) -> None:
    """Every metric exists, with every label that it is filtered or grouped by."""
    named = metrics_of(expression)
    assert named
    known = exported()
    assert set(named) <= set(known)
    for name, labels in named.items():
        assert labels <= known[name], name


def test_the_checker_would_notice_a_wrong_name() -> None:
    """A metric or a label that does not exist is found in an expression."""
    assert metrics_of('sum by (tenant) (rate(jobz_total{state="x"}[5m]))') == {
        "jobz_total": {"state", "tenant"}
    }


def test_each_alert_has_its_entry_in_the_runbook() -> None:
    """Alert rules and headings of the runbook are the same, each with a severity and a summary."""
    headings = re.findall(r"^### (\w+)$", (DOCS / "operations.md").read_text("utf-8"), re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Panels have ids and places of their own, within Grafana's 24 columns, and a title."""
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in panels()]
    assert len({panel["id"] for panel in panels()}) == len(places) == len({place[:2] for place in places})
    assert all(x + w <= 24 for x, _y, w, _h in places)
    assert all(panel["title"] for panel in panels())


def test_every_metric_is_on_the_page_and_in_the_docs() -> None:
    """The page of a fresh gateway parses, and docs/telemetry.md knows every instrument."""
    telemetry = build_telemetry(GatewayConfig().telemetry)
    body, _content_type = telemetry.exposition()
    families = {family.name for family in text_string_to_metric_families(body.decode())}
    telemetry.shutdown()
    documented = (DOCS / "telemetry.md").read_text("utf-8")
    names = {name for name in exported() if not name.endswith(("_bucket", "_sum", "_count"))}
    assert families <= {name.removesuffix("_total") for name in names}
    assert [name for name in sorted(names) if f"`{name}`" not in documented] == []
