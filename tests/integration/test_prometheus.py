"""A real Prometheus scrapes a real `runtap serve` while calls come, with the configuration of docker-compose.yml: every
panel of the dashboard has data, totals are the report's, and an alert reaches a real Alertmanager.
"""

from __future__ import annotations

import json
import math
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from partition_setting import WorkerTools
from prometheus_tools import Prometheus, installed, run_tool, running
from runtap_consumers.worker.health import Health, serve_health
from runtap_demo.kafka.ports import free_ports
from runtap_schemas import Event, RunScored, Usage
from samples import SECOND_NS, START_NS, Log, chain_end, failure, model_call, report, run_start
from worker_process import WorkerSetting, wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/runtap.json").read_text())
WORKERS = {name for name, service in SERVICES.items() if service.get("command", [""])[0] == "worker"}
TOKEN = "let-me-in"
ERROR_RATE = "sum(rate(langchain_llm_calls_total{status='error'}[5m])) / sum(rate(langchain_llm_calls_total[5m]))"
RATES = (
    "rate(langchain_llm_calls_total[5m])",
    "histogram_quantile(0.95, rate(langchain_llm_duration_seconds_bucket[5m]))",
    "rate(langchain_token_usage_sum[5m])",
    ERROR_RATE,
)


def configuration(folder: Path, figures: int, worker: int, alertmanager: int) -> dict[str, Any]:
    """That of compose with the addresses and files of this test, scraped every second."""
    text = (DEPLOY / "prometheus/prometheus.yml").read_text()
    text = text.replace("/run/secrets/serve_token", str(folder / "token")).replace(" 15s", " 1s")
    for address, port in (("serve:8484", figures), ("alertmanager:9093", alertmanager)):
        assert text.count(address) == 1
        text = text.replace(address, f"127.0.0.1:{port}")
    found: dict[str, Any] = yaml.safe_load(text)
    _, workers = found["scrape_configs"]
    (discovered,) = workers.pop("dns_sd_configs")
    assert set(discovered["names"]) == WORKERS
    assert {service["command"][-1] for name, service in SERVICES.items() if name in WORKERS} == {
        f"0.0.0.0:{discovered['port']}"
    }
    workers["static_configs"] = [{"targets": [f"127.0.0.1:{worker}"]}]
    return found


def write_configuration(folder: Path, figures: int = 1, worker: int = 2, alertmanager: int = 3) -> Path:
    """Into a folder like the one that Prometheus has in its container."""
    config = folder / "etc-prometheus"
    config.mkdir()
    (folder / "token").write_text(TOKEN)
    (config / "rules.yml").write_text((DEPLOY / "prometheus/rules.yml").read_text())
    (config / "prometheus.yml").write_text(yaml.safe_dump(configuration(folder, figures, worker, alertmanager)))
    return config


def command_of(service: str, program: str, folders: dict[str, Path], port: int) -> list[str]:
    """A service's command line, with folders of this machine in the place of the container's."""
    words = []
    for word in SERVICES[service]["command"]:
        option, path = word.split("=")
        inside = next((folder for folder in folders if (path + "/").startswith(folder + "/")), "")
        # Whatever is a path is one of a volume.
        assert bool(inside) == path.startswith("/"), word
        words.append(f"{option}={folders[inside]}{path.removeprefix(inside)}" if inside else word)
    assert {volume.split(":")[1] for volume in SERVICES[service]["volumes"]} == folders.keys()
    return [installed(program), *words, f"--web.listen-address=127.0.0.1:{port}"]


def test_prometheus_takes_its_configuration_and_rules(tmp_path: Path) -> None:
    config = write_configuration(tmp_path)
    run_tool("promtool", "check", "config", config / "prometheus.yml")
    run_tool("promtool", "check", "rules", DEPLOY / "prometheus/rules.yml")
    # As it stands, too, but for a file that is there in the container alone.
    run_tool("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml")


def test_rules_fire_when_they_should(tmp_path: Path) -> None:
    run_tool("promtool", "test", "rules", ROOT / "tests/prometheus_rules.yml")


def test_alertmanager_takes_its_configuration() -> None:
    run_tool("amtool", "check-config", DEPLOY / "alertmanager/alertmanager.yml")


class Traffic:
    """Calls of all kinds, round after round, and what a worker says of itself."""

    def __init__(self, tools: WorkerTools) -> None:
        self.health = Health(("cost",), waiting_for=None)
        self._tools = tools
        self._log = Log()
        self._round = 0
        self._number = 0

    def come(self, lost: int = 0) -> None:
        """One more round, applied. `lost`: how many events before it never come."""
        self._round += 1
        self._number += lost
        start_ns = START_NS + self._round * SECOND_NS
        for number, event in enumerate(self._events(start_ns), start=1):
            self._number += 1
            self._log.append(event, "e", self._number, start_ns + number)
        self._tools.apply(self._log)
        self.health.lags = {0: {"cost": self._round}}
        self.health.committed(records=10, events=10, dead_letters=0, seconds=0.01)

    def _events(self, start_ns: int) -> list[Event]:
        own = {"provider": "own", "request_model": "own", "model": "own"}
        failed = {"status": "error", "usage": None, "usage_source": "none", "error": failure(fingerprint="model")}
        tool = {"run_type": "tool", "name": "search", "is_root": False}
        made = [
            model_call(start_ns + 1),
            model_call(start_ns + 2, duration_ns=7 * SECOND_NS, usage=Usage(input_tokens=1_337, output_tokens=71)),
            model_call(start_ns + 3, **failed),
            model_call(start_ns + 4, usage=None, usage_source="none"),
            model_call(start_ns + 5, **own),
            RunScored(at_ns=start_ns, run_id="run-1", key="helpful", score=0.5, service="checkout", environment="test"),
            chain_end(start_ns + 6),
            chain_end(start_ns + 7, status="error", error=failure(origin=False)),
            chain_end(start_ns + 8, **tool),
            chain_end(start_ns + 9, status="error", error=failure(), **tool),
            run_start(start_ns + 10, run_id=f"open-{start_ns}", run_type="llm", is_root=False, request_model="own"),
        ]
        return [*made, report(start_ns + 11, dropped={"buffer_full": {"run.ended": self._round}})]


@contextmanager
def scraped(store_url: str, folder: Path, health: Health) -> Iterator[tuple[Prometheus, int, int]]:
    """Prometheus beside what it scrapes and tells; with the ports of the figures and of Alertmanager."""
    figures, worker, alertmanager, port = free_ports(4)
    config = write_configuration(folder, figures, worker, alertmanager)
    setting = WorkerSetting("127.0.0.1:1", "runtap", store_url, {"RUNTAP_SERVE_TOKEN_FILE": str(folder / "token")})
    serve = setting.command("serve", "--port", str(figures))
    alerts = command_of(
        "alertmanager",
        "prometheus-alertmanager",
        {"/etc/alertmanager": DEPLOY / "alertmanager", "/alertmanager": folder / "alertmanager"},
        alertmanager,
    )
    mounts = {"/etc/prometheus": config, "/prometheus": folder / "prometheus"}
    prometheus = command_of("prometheus", "prometheus", mounts, port)
    server = serve_health(health, "127.0.0.1", worker)
    try:
        with (
            running(serve, f"http://127.0.0.1:{figures}/readyz", folder / "serve.log", setting.environment()),
            running(alerts, f"http://127.0.0.1:{alertmanager}/-/ready", folder / "alertmanager.log"),
            running(prometheus, f"http://127.0.0.1:{port}/-/ready", folder / "prometheus.log"),
        ):
            yield Prometheus(port), figures, alertmanager
    finally:
        server.should_exit = True


def test_every_panel_has_data_and_totals_are_those_of_the_report(
    store_url: str, tools: WorkerTools, tmp_path: Path
) -> None:
    installed("prometheus")
    traffic = Traffic(tools)
    traffic.come()
    expressions = {target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])}
    missing = {re.sub(r"\$(service|environment|model)", ".*", one).replace("$__range", "5m") for one in expressions}
    assert len(missing) > 25
    missing |= set(RATES)
    assert not any("$" in one for one in missing)
    with scraped(store_url, tmp_path, traffic.health) as (prometheus, figures, alertmanager):
        deadline = time.monotonic() + 25
        rounds = 0
        while missing or rounds < 5:
            assert time.monotonic() < deadline, missing
            traffic.come()
            rounds += 1
            time.sleep(0.5)
            missing = {one for one in missing if not _has_data(prometheus, one)}
        for variable in DASHBOARD["templating"]["list"][1:]:
            assert _values_of(prometheus, variable["query"]), variable["name"]
        for expression in RATES:
            assert max(value for _, value in prometheus.query(expression) if math.isfinite(value)) > 0, expression
        assert prometheus.value(ERROR_RATE) == pytest.approx(0.2)
        assert _lost(prometheus) == 0
        traffic.come(lost=3)
        found = _report(figures)
        calls = found["cost"]["calls"]
        assert calls == 5 * (rounds + 2)
        wait_until(lambda: prometheus.value("sum(langchain_llm_calls_total)") == calls, 10, "the last scrape")
        _assert_same(prometheus, found)
        assert _lost(prometheus) == 3
        groups = prometheus.ask("rules")["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
        address = f"http://127.0.0.1:{alertmanager}"
        wait_until(lambda: "RuntapEventsLost" in run_tool("amtool", "alert", f"--alertmanager.url={address}"), 15)


def _lost(prometheus: Prometheus) -> float | None:
    return prometheus.value('runtap_ledger_events{state="lost"}')


def _has_data(prometheus: Prometheus, expression: str) -> bool:
    return any(math.isfinite(value) for _, value in prometheus.query(expression))


def _values_of(prometheus: Prometheus, query: str) -> set[str]:
    """What a variable of Grafana offers."""
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found is not None
    selector = re.sub(r"\$(service|environment)", ".*", found[1])
    return set(prometheus.ask(f"label/{found[2]}/values", **{"match[]": selector}))


def _report(figures: int) -> dict[str, Any]:
    address = f"http://127.0.0.1:{figures}/api/v1/report?since=2026-03-02&until=2026-03-03"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _assert_same(prometheus: Prometheus, found: dict[str, Any]) -> None:
    """Every total of the report is Prometheus's, to the nearest float."""
    cost = found["cost"]
    dollars = {(of["provider"], of["model"]): value for of, value in prometheus.query("runtap_cost_dollars_total")}
    priced = [row for row in cost["by_model"] if row["cost_usd"] is not None]
    assert dollars == {(row["provider"], row["model"]): float(Decimal(row["cost_usd"])) for row in priced}
    assert sum(map(Decimal, (row["cost_usd"] for row in priced))) == Decimal(cost["cost_usd"]) > 0
    calls = {of["model"]: value for of, value in prometheus.query("sum by (model) (langchain_llm_calls_total)")}
    assert calls == {row["model"]: row["calls"] for row in cost["by_model"]}
    for expression, figure in (
        ("sum(runtap_unpriced_calls_total)", cost["unpriced_calls"]),
        ("sum(runtap_unmetered_calls_total)", cost["unmetered_calls"]),
        ('sum(langchain_token_usage_sum{type="prompt"})', cost["input_tokens"]),
        ('sum(langchain_token_usage_sum{type="completion"})', cost["output_tokens"]),
        ("sum(runtap_errors_total)", found["errors"]["total"]),
        ('sum(runtap_ledger_events{state="applied"})', found["ledger"]["applied"]),
        ('sum(runtap_ledger_events{state="lost"})', found["ledger"]["lost"]),
        ("sum(runtap_ledger_dropped_events)", sum(found["ledger"]["dropped"].values())),
    ):
        assert prometheus.value(expression) == figure, expression
    lines = {line["run_type"]: line for line in found["performance"] if line["run_type"] != "llm"}
    tools = prometheus.value('sum(langchain_tool_calls_total{tool_name="search"})')
    chains = prometheus.value("sum(langchain_chain_calls_total)")
    assert (tools, chains) == (lines["tool"]["count"], lines["chain"]["count"])
    seconds = prometheus.value("sum(langchain_chain_duration_seconds_sum)")
    assert seconds == lines["chain"]["total_seconds"]
