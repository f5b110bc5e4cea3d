"""`runtap serve`, as a process: what it answers is what the commands print, and nobody reads it who should not."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from partition_setting import WorkerTools
from runtap_consumers.errors import QueryTimeoutError
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.serve import api
from runtap_consumers.serve.api import ANSWERS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read import runs as read_runs
from runtap_demo.kafka.ports import free_ports
from samples import SECOND_NS, START_NS, Log, chain_end, failure, model_call, report
from worker_process import WorkerSetting

SPAN = "since=2026-03-02&until=2026-03-03"
RUNS = 7


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


class Server:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def get(self, path: str) -> Any:
        status, _, body = self.ask(f"/api/v1/{path}")
        assert status == 200, body
        return json.loads(body)


@contextmanager
def served(store_url: str, arguments: Sequence[str] = (), **variables: str) -> Iterator[Server]:
    (port,) = free_ports(1)
    setting = WorkerSetting("127.0.0.1:1", "runtap", store_url, variables)
    process = subprocess.Popen(setting.command("serve", "--port", str(port), *arguments), env=setting.environment())
    server = Server(port)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert server.ask("/livez")[0] == 200
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        assert process.wait(15) == 0


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
    # Nothing was left out.
    assert len(ANSWERS) == 12


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
        for path in (*(f"/api/v1/{one.replace('{id}', 'r-1')}" for one in ANSWERS), "/", "/metrics", "/api/v1/nothing"):
            assert server.ask(path)[0] == 401, path
            for wrong in ("Bearer no", "Bearer let-me-in2", "Basic let-me-in", "let-me-in", "Bearer "):
                assert server.ask(path, Authorization=wrong)[0] == 401, (path, wrong)
        assert [server.ask(path)[0] for path in ("/livez", "/readyz")] == [200, 200]
        assert server.ask("/api/v1/ledger", Authorization="Bearer let-me-in")[0] == 200


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


def test_runs_are_found_in_parts_where_time_is_up(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a part has none of those that are looked for: the next one goes on behind it."""
    looks = 0

    def look(_: object) -> None:
        nonlocal looks
        looks += 1
        if looks % 4 == 0:
            raise QueryTimeoutError("reading the store takes too long")

    monkeypatch.setattr(read_runs, "keep_limit", look)
    for name in ("_FIRST_STRETCH_NS", "_LONGEST_STRETCH_NS"):
        monkeypatch.setattr(read_runs, name, SECOND_NS)
    settings = ConsumerSettings.load()
    source = api.Source(filled, settings, PriceSource(settings))
    for parameters, wanted in (({}, RUNS + 1), ({"name": ["RunnableSequence"]}, 1), ({"user": ["nobody"]}, 0)):
        found, cursor, parts = list[str](), None, 0
        while parts == 0 or cursor is not None:
            asked = {**parameters, **({"cursor": [cursor]} if cursor else {})}
            page = api.ANSWERS["runs"](api.Query(source, asked, {}, START_NS))
            found += [run["run_id"] for run in page["runs"]]
            assert page["complete"] is (page["cursor"] is None)
            cursor, parts = page["cursor"], parts + 1
        assert parts > 1
        assert len(found) == len(set(found)) == wanted
