"""`runtap serve`, as a process: what it answers is what the commands print, and nobody reads it who should not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from partition_setting import WorkerTools
from runtap_consumers.errors import QueryTimeoutError
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.serve import api
from runtap_consumers.serve.api import ANSWERS
from runtap_consumers.serve.app import make_app
from runtap_consumers.serve.guard import Guard
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.runs import stream_runs
from samples import SECOND_NS, START_NS, Log, chain_end, failure, model_call, report
from serve_process import served
from worker_process import WorkerSetting

SPAN = "since=2026-03-02&until=2026-03-03"
RUNS = 7
_SCRIPTS = ("address", "api", "charts", "dom", "figures", "main", "parts", "waterfall", "words")
_VIEWS = ("alerts", "costs", "errors", "overview", "performance", "pipeline", "sessions", "traces")
# What is given without a token: the page, which holds no figure.
PAGE_FILES = {
    "/": "text/html",
    "/icon.svg": "image/svg+xml",
    "/style.css": "text/css",
    **{f"/{name}.js": "text/javascript" for name in (*_SCRIPTS, *(f"views/{view}" for view in _VIEWS))},
    "/vendor/uPlot.LICENSE.txt": "text/plain",
    "/vendor/uPlot.iife.min.js": "text/javascript",
    "/vendor/uPlot.min.css": "text/css",
}


@pytest.fixture
def filled(store: Store, tools: WorkerTools) -> Store:
    log = Log()
    for number in range(1, RUNS + 1):
        at_ns = START_NS + number * SECOND_NS
        log.append(model_call(at_ns, run_id=f"r-{number}", trace_id="t", session_id="s", user_id="ann"), "e", number)
    log.append(chain_end(START_NS + 9 * SECOND_NS, status="error", error=failure()), "e", RUNS + 1)
    log.append(report(START_NS + 10 * SECOND_NS), "e", RUNS + 2)
    tools.apply(log)
    return store


def test_every_route_answers_with_what_the_commands_print(filled: Store, store_url: str) -> None:
    setting = WorkerSetting("127.0.0.1:1", "runtap", store_url)

    def printed(*arguments: str) -> Any:
        done = setting.run(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def same(answer: dict[str, Any], other: dict[str, Any]) -> bool:
        return {**answer, "generated_at": None} == {**other, "generated_at": None}

    span = ("--since", "2026-03-02", "--until", "2026-03-03")
    with served(store_url) as server:
        report = printed("report", "--json", "-", *span)
        assert same(server.get(f"report?{SPAN}"), report)
        of_service = printed("report", "--json", "-", "--service", "checkout", *span)
        assert same(server.get(f"report?{SPAN}&service=checkout"), of_service)
        assert server.get(f"components?{SPAN}")["performance"] == report["performance"]
        assert server.get(f"errors?{SPAN}")["errors"] == report["errors"]
        assert server.get(f"alerts?{SPAN}")["alerts"] == report["alerts"]
        by = printed("costs", "--by", "user", "--by", "model", "--json", *span)
        assert same(server.get(f"costs?{SPAN}&by=user&by=model"), by)
        assert server.get("traces/r-3") == printed("trace", "r-3", "--json")
        assert server.get("sessions/s") == printed("session", "s", "--json")
        assert server.get("sessions?since=2026-03-01")["sessions"] == [printed("sessions", "--json")]
        assert server.get("ledger") == printed("ledger", "--json")
        runs = [json.loads(line) for line in setting.run("runs", "--json").stdout.splitlines()]
        assert server.get("runs") == {"runs": runs, "complete": True, "cursor": None}
        series = server.get(f"series?{SPAN}&metric=calls&by=model&grain=hour")["series"]
        assert [(one["value"], one["points"]) for one in series] == [
            ("gpt-4o-mini-2024-07-18", [["2026-03-02T10:00:00.000000Z", RUNS]])
        ]
        positions = server.get("workers")["positions"]
        assert {row["projection"]: row["next_offset"] for row in positions}["cost"] == RUNS + 2
        assert server.ask("/readyz")[0] == 200
        _, headers, body = server.ask("/metrics")
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        called = next(line for line in body.decode().splitlines() if 'status="success"' in line and "llm_calls" in line)
        assert float(called.rpartition(" ")[2]) == RUNS == report["cost"]["calls"]
        unpriced = [json.loads(line) for line in setting.run("prices", "unmatched", "--json").stdout.splitlines()]
        assert server.get("unpriced") == {"models": unpriced}
        letters = [json.loads(line) for line in setting.run("dead-letters", "list", "--json").stdout.splitlines()]
        assert server.get("dead-letters") == {"dead_letters": letters}
        assert_overview_is_as_the_report(server.get(f"overview?{SPAN}"), report)
        whole = [run for run in runs if run["parent_run_id"] is None]
        assert whole
        assert server.get("runs?roots=true")["runs"] == whole
    # Nothing was left out.
    assert len(ANSWERS) == 15


def assert_overview_is_as_the_report(found: dict[str, Any], report: dict[str, Any]) -> None:
    figures, calls = found["figures"], report["performance_by_run_type"]["llm"]
    for name in ("cost_usd", "calls", "unpriced_calls", "unmetered_calls", "total_tokens"):
        assert figures[name] == report["cost"][name], name
    for name in ("p50_seconds", "p95_seconds", "first_token_p95_seconds"):
        assert figures[name] == calls[name], name
    assert figures["sessions"] == len(report["sessions"])
    assert (figures["traces"], figures["failed_traces"], figures["error_rate"]) == (1, 1, 1.0)
    assert (found["range"], found["complete_to"], found["ledger"]) == (
        report["range"],
        report["complete_to"],
        report["ledger"],
    )
    # The points over time are the whole, in parts.
    assert sum(filter(None, found["series"]["calls"])) == figures["calls"]
    assert sum(map(Decimal, filter(None, found["series"]["cost_usd"]))) == Decimal(figures["cost_usd"])
    assert found["before_range"]["to"] == found["range"]["from"]
    assert found["before"]["calls"] == 0


def test_components_are_told_by_their_own_time_and_errors_over_time(filled: Store, store_url: str) -> None:
    with served(store_url) as server:
        found = server.get(f"components?{SPAN}")["self_times"]
        by_type = {row["run_type"]: row["self_seconds"] for row in found["components"]}
        # Calls of two seconds each, of other traces' parents, and a chain of three.
        assert (found["runs"], found["is_cut_off"], by_type) == (RUNS + 1, False, {"llm": 2.0 * RUNS, "chain": 3.0})
        trend = server.get(f"errors?{SPAN}")["trend"]
        assert [(group["service"], group["fingerprint"], sum(group["counts"])) for group in trend["groups"]] == [
            ("checkout", "f1", 1)
        ]
        assert len(trend["buckets"]) == len(trend["groups"][0]["counts"]) == 24
        within = server.get("overview?since=2026-03-02T10:00:00Z&until=2026-03-02T10:30:00Z")
        assert (within["grain"], len(within["buckets"]), within["figures"]["calls"]) == ("minute", 30, RUNS)


def test_runs_come_in_pages_without_a_gap_or_a_repeat(filled: Store, store_url: str) -> None:
    with served(store_url) as server:
        seen: list[str] = []
        cursor, pages = "", 0
        while True:
            page = server.get(f"runs?type=llm&limit=3{cursor}")
            seen += [run["run_id"] for run in page["runs"]]
            pages += 1
            if page["cursor"] is None:
                break
            cursor = f"&cursor={page['cursor']}"
        assert (seen, pages) == ([f"r-{number}" for number in range(RUNS, 0, -1)], 3)


def test_an_answer_that_has_not_changed_is_not_sent_again(filled: Store, store_url: str, tools: WorkerTools) -> None:
    with served(store_url) as server:
        _, headers, _ = server.ask(f"/api/v1/report?{SPAN}")
        etag = headers["etag"]
        status, again, body = server.ask(f"/api/v1/report?{SPAN}", If_None_Match=etag)
        assert (status, again["etag"], body) == (304, etag, b"")
        assert server.ask(f"/api/v1/report?{SPAN}&service=checkout", If_None_Match=etag)[0] == 200
        log = Log(first_offset=RUNS + 2)
        log.append(model_call(START_NS + 20 * SECOND_NS, run_id="late"), "e", RUNS + 3)
        tools.apply(log)
        status, changed, _ = server.ask(f"/api/v1/report?{SPAN}", If_None_Match=etag)
        assert (status, changed["etag"] == etag) == (200, False)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("report?since=yesterday", 400, "'yesterday' is no time"),
        ("report?since=1h&since=2h", 400, "given 2 times"),
        ("costs?by=colour", 400, "there are no costs by 'colour'"),
        ("report?service=shop", 400, "expected any of checkout"),
        ("costs?service=shop", 400, "expected any of checkout"),
        ("series?metric=mood", 400, "expected cost_usd"),
        ("runs?limit=0", 400, "expected 1 to 1,000"),
        ("runs?limit=x", 400, "expected 1 to 1,000"),
        ("runs?cursor=abc", 400, "none of ours"),
        ("runs?metadata=team", 400, "expected KEY=VALUE"),
        ("traces/unknown", 404, "no run or trace"),
        ("sessions/unknown", 404, "no session"),
        ("nothing", 404, ""),
    ],
)
def test_what_is_wrong_is_named(filled: Store, store_url: str, path: str, status: int, said: str) -> None:
    with served(store_url) as server:
        code, headers, body = server.ask(f"/api/v1/{path}")
        assert (code, said in body.decode()) == (status, True), body
        assert headers["content-security-policy"].startswith("default-src 'none'")


def test_every_route_wants_the_token_but_those_of_health(filled: Store, store_url: str) -> None:
    with served(store_url, RUNTAP_SERVE_TOKEN="let-me-in") as server:
        for path in (*(f"/api/v1/{one.replace('{id}', 'r-1')}" for one in ANSWERS), "/metrics", "/api/v1/nothing"):
            assert server.ask(path)[0] == 401, path
            for wrong in ("Bearer no", "Bearer let-me-in2", "Basic let-me-in", "let-me-in", "Bearer "):
                assert server.ask(path, Authorization=wrong)[0] == 401, (path, wrong)
        assert [server.ask(path)[0] for path in ("/livez", "/readyz")] == [200, 200]
        assert server.ask("/api/v1/ledger", Authorization="Bearer let-me-in")[0] == 200
        for path, opened in PAGE_FILES.items():
            assert (server.ask(path)[0], server.ask(path)[1]["content-type"].partition(";")[0]) == (200, opened), path
    # Whatever else there is wants it.
    app = make_app(api.Source(filled, ConsumerSettings.load(), PriceSource(ConsumerSettings.load())), (), "let-me-in")
    assert isinstance(app, Guard)
    assert app.open_paths == {"/livez", "/readyz", *PAGE_FILES}


def test_only_its_own_names_and_only_reading(filled: Store, store_url: str) -> None:
    with served(store_url, ("--allow-host", "Figures.example")) as server:
        for host, status in (
            *((name, 200) for name in ("127.0.0.1", "localhost:8484", "[::1]:8484", "figures.example:443")),
            *((name, 421) for name in ("evil.example", "127.0.0.1.evil.example", "", "figures.example.evil")),
        ):
            assert server.ask("/api/v1/ledger", Host=host)[0] == status, host
        assert [server.ask("/api/v1/ledger", method)[0] for method in ("POST", "PUT", "DELETE")] == [405] * 3
        assert server.ask("/api/v1/ledger", X_Long="x" * 100_000)[0] in (400, 431)


def test_nobody_serves_to_others_without_a_token(store: Store, store_url: str, tmp_path: Any) -> None:
    def refused(*arguments: str, **variables: str) -> str:
        done = WorkerSetting("127.0.0.1:1", "runtap", store_url, variables).run("serve", *arguments)
        assert done.returncode == 2, done
        return done.stderr

    assert "set RUNTAP_SERVE_TOKEN" in refused("--host", "0.0.0.0")
    assert "is empty" in refused(RUNTAP_SERVE_TOKEN="")
    assert "cannot be read" in refused(RUNTAP_SERVE_TOKEN_FILE=str(tmp_path / "none"))
    (tmp_path / "token").write_text("let-me-in\n")
    file = str(tmp_path / "token")
    assert "both set" in refused(RUNTAP_SERVE_TOKEN="x", RUNTAP_SERVE_TOKEN_FILE=file)
    with served(store_url, RUNTAP_SERVE_TOKEN_FILE=file) as server:
        assert server.ask("/api/v1/ledger", Authorization="Bearer let-me-in")[0] == 200


def test_a_query_that_takes_too_long_is_given_up(filled: Store) -> None:
    """On both databases, in the middle of a statement."""
    slow: dict[str, Callable[[], str]] = {
        "sqlite": lambda: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "postgresql": lambda: "SELECT pg_sleep(30)",
    }
    began = time.monotonic()
    with pytest.raises(QueryTimeoutError), filled.limit(0.3), filled.read() as connection:
        connection.exec_driver_sql(slow[connection.dialect.name]())
    assert time.monotonic() - began < 5
    # The connection is as before.
    with filled.read() as connection:
        connection.exec_driver_sql("SELECT 1")


def test_runs_that_were_found_before_the_time_was_up_are_shown(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream_runs

    def stream(*arguments: Any) -> Iterator[Any]:
        for number, row in enumerate(whole(*arguments)):
            if number == 2:
                raise QueryTimeoutError("reading the store takes too long")
            yield row

    monkeypatch.setattr(api, "stream_runs", stream)
    settings = ConsumerSettings.load()
    source = api.Source(filled, settings, PriceSource(settings))
    found = api.ANSWERS["runs"](api.Query(source, {}, {}, START_NS))
    assert (len(found["runs"]), found["complete"], found["cursor"] is not None) == (2, False, True)
