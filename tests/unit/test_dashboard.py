"""The dashboard that is checked in is the one that its script makes, and Grafana finds it where compose puts it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtap_consumers.serve.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "runtap.json").read_text())
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2")
def test_made_again_it_is_the_same() -> None:
    """Else: `python deploy/grafana/make_dashboard.py`."""
    spec = importlib.util.spec_from_file_location("make_dashboard", GRAFANA / "make_dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.make_dashboard() == script.FILE.read_text()


def test_panels_lie_side_by_side_and_have_queries() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"], panel["title"]


def test_every_family_that_names_a_service_is_shown_and_cut_by_the_variables() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    whole = " ".join(expressions)
    for family in FAMILIES:
        if "service" in family.labels:
            assert family.name in whole, family.name
    for expression in expressions:
        for selector in re.findall(r"(?:langchain_|runtap_(?:cost|un|errors|time_to))\w+\{(.*?)\}", expression):
            assert selector.startswith('service=~"$service",environment=~"$environment"'), expression


def test_grafana_finds_its_source_and_the_dashboard() -> None:
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in SERVICES["grafana"]["volumes"])
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/runtap.yml").read_text())["providers"]
    assert provider["options"]["path"] == mounts["./deploy/grafana/dashboards"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables.keys() == {"datasource", "service", "environment", "model"}
    assert variables["datasource"]["query"] == source["type"] == "prometheus"
