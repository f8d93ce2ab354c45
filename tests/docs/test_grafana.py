"""docs/grafana/cacheproxy.json is a dashboard whose every query can have an answer."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from prometheus_client import Histogram

from cacheproxy.telemetry import Figures, Telemetry

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = msgspec.json.decode((ROOT / "docs/grafana/cacheproxy.json").read_bytes())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
WANTED = (
    "outcome", "Hit rate", "decide", "False hits", "Money", "Load", "tau_eff", "Evictions", "Entries", "passed over",
    "Vetoes", "probability", "Wrong hits", "Error budget", "Who answers", "Offload ratio", "arms", "Regret", "Examples",
    "lease", "lag", "who asks",
)  # fmt: skip
OF_PROMETHEUS = {"instance"}
"""What it adds to every series that it scrapes."""


def known() -> dict[str, set[str]]:
    """Return every series that is exported, with its labels."""
    found: dict[str, set[str]] = {}
    for hint in get_type_hints(Figures, include_extras=True).values():
        metric = hint.__metadata__[0]
        labels = metric.labels
        found[metric.name] = {labels} if isinstance(labels, str) else set(labels)
    for metric in vars(Telemetry()).values():
        if hasattr(metric, "describe"):
            name, labels = metric.describe()[0].name, set(metric._labelnames)
            if isinstance(metric, Histogram):
                found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
            else:
                found[f"{name}_total"] = labels
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_every_metric_and_label_that_a_panel_asks_for_is_exported(query: str) -> None:
    series = known()
    names = re.findall(r"\bcacheproxy_\w+", query)
    assert names
    assert set(names) <= series.keys()
    labels = set().union(OF_PROMETHEUS, *(series[name] for name in names))
    asked = set(re.findall(r"(\w+)(?:=~|!=|=)\"", query))
    for group in re.findall(r"by \(([^)]*)\)", query):
        asked |= {label.strip() for label in group.split(",")}
    assert asked <= labels


def test_legends_name_labels_that_their_query_leaves() -> None:
    series = known()
    for panel in PANELS:
        for target in panel["targets"]:
            names = re.findall(r"\bcacheproxy_\w+", target["expr"])
            groups = re.findall(r"by \(([^)]*)\)", target["expr"])
            left = (
                {label.strip() for label in ",".join(groups).split(",")} if groups else series[names[0]] | OF_PROMETHEUS
            )
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= left, panel["title"]


def test_what_an_operator_looks_for_is_there() -> None:
    titles = " | ".join(panel["title"] for panel in PANELS)
    assert [wanted for wanted in WANTED if wanted not in titles] == []
    assert all(panel["description"] for panel in PANELS)


def test_panels_have_ids_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert all(place["x"] + place["w"] <= 24 for place in places)
