"""`runtap serve`, as a process: what it answers is what the commands print, and nobody reads it who should not."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from faces import Faces, check_answer
from partition_setting import WorkerTools
from runtap_consumers.errors import QueryTimeoutError
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.serve import api
from runtap_consumers.serve.api import ANSWERS
from runtap_consumers.serve.app import make_app
from runtap_consumers.serve.guard import Guard
from runtap_consumers.serve.openapi import make_document
from runtap_consumers.serve.query import Query, Source
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read import runs as read_runs
from runtap_schemas import Event, Usage
from samples import SECOND_NS, START_NS, Log, chain_end, failure, model_call, report, run_start, session_start
from serve_process import served
from worker_process import WorkerSetting

OTHERS = ("/metrics", "/api/v1/openapi.json", "/api/v1/nothing")
SPAN = "since=2026-03-02&until=2026-03-03"
RUNS = 7
SESSIONS = 20
EVENTS = RUNS + 5 + SESSIONS - 1
COMPLETE_TO = "2026-03-02T10:00:10.000000Z"
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
    events: list[Event] = [
        chain_end(START_NS + 9 * SECOND_NS, status="error", error=failure()),
        chain_end(START_NS + 9 * SECOND_NS, run_type="tool", name="search", run_id="tool-1", is_root=False),
        model_call(START_NS + 9 * SECOND_NS, model="own", provider="own", usage=Usage(input_tokens=7, output_tokens=3)),
        run_start(START_NS + 9 * SECOND_NS, run_type="llm", is_root=False, request_model="gpt-4o-mini"),
        *(session_start(START_NS + 9 * SECOND_NS, session_id=f"s-{n}") for n in range(1, SESSIONS)),
        report(START_NS + 10 * SECOND_NS, dropped={"buffer_full": {"run.ended": 4}}),
    ]
    for number, event in enumerate(events, start=RUNS + 1):
        log.append(event, "e", number)
    tools.apply(log)
    return store


def test_every_face_shows_the_same_figures(filled: Store, store_url: str) -> None:
    setting = WorkerSetting("127.0.0.1:1", "runtap", store_url)
    with served(store_url) as server:
        faces = Faces(server.ask, setting.run, since="2026-03-02", until="2026-03-03")
        report = faces.compare()
        assert report["cost"]["calls"] == RUNS + 1
        assert report["session_count"] == SESSIONS
        assert faces.get("report", since="2026-03-02", until="2026-03-03")["complete_to"] == COMPLETE_TO
        assert ("runtap_complete_to_timestamp_seconds", {}, START_NS / SECOND_NS + 10) in faces.scrape()
        positions = faces.get("workers")["positions"]
        assert {row["projection"]: row["next_offset"] for row in positions}["cost"] == EVENTS
        assert json.loads(server.ask("/api/v1/openapi.json")[2]) == make_document()
        assert server.ask("/readyz")[0] == 200
    # Nothing was left out.
    assert faces.routes == {f"/api/v1/{path}" for path in ANSWERS}


def test_components_are_told_by_their_own_time_and_errors_over_time(filled: Store, store_url: str) -> None:
    with served(store_url) as server:
        found = server.get(f"components?{SPAN}")["self_times"]
        by_type = Counter[str]()
        for row in found["components"]:
            by_type[row["run_type"]] += row["self_seconds"]
        # Calls of two seconds each, of other traces' parents, and a chain of three; one is still open.
        assert by_type == {"llm": 2.0 * (RUNS + 1), "chain": 3.0, "tool": 3.0}
        assert (found["runs"], found["is_cut_off"]) == (RUNS + 3, False)
        trend = server.get(f"errors?{SPAN}")["trend"]
        assert [(group["service"], group["fingerprint"], sum(group["counts"])) for group in trend["groups"]] == [
            ("checkout", "f1", 1)
        ]
        assert len(trend["buckets"]) == len(trend["groups"][0]["counts"]) == 24
        within = server.get("overview?since=2026-03-02T10:00:00Z&until=2026-03-02T10:30:00Z")
        assert (within["grain"], len(within["buckets"]), within["figures"]["calls"]) == ("minute", 30, RUNS + 1)


def test_runs_come_in_pages_without_a_gap_or_a_repeat(filled: Store, store_url: str) -> None:
    with served(store_url) as server:
        seen: list[str] = []
        cursor, pages = "", 0
        while True:
            page = server.get(f"runs?type=llm&trace=t&limit=3{cursor}")
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
        log = Log(first_offset=EVENTS)
        log.append(model_call(START_NS + 20 * SECOND_NS, run_id="late"), "e", EVENTS + 1)
        tools.apply(log)
        status, changed, _ = server.ask(f"/api/v1/report?{SPAN}", If_None_Match=etag)
        assert (status, changed["etag"] == etag) == (200, False)


def test_what_is_wrong_is_named(filled: Store, store_url: str) -> None:
    with served(store_url) as server:
        for path, status, said in (
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
            ("report?sinse=1h", 400, "no parameter is called 'sinse' here: expected since, until, service"),
            ("ledger?since=1h", 400, "expected none"),
            ("report?since=1h&until=2h", 400, "ends before it begins"),
            ("runs?name=a%00", 400, "zero byte"),
            ("traces/%00", 400, "zero byte"),
            ("sessions?cursor=WzkyMjMzNzIwMzY4NTQ3NzU4MDgsICJ4Il0=", 400, "none of ours"),
            ("series?grain=week", 400, "expected hour, day"),
            ("runs?status=fine", 400, "expected ok, error"),
        ):
            code, headers, body = server.ask(f"/api/v1/{path}")
            assert (code, said in body.decode()) == (status, True), (path, body)
            check_answer(f"/api/v1/{path}", code, body)
            assert headers["content-security-policy"].startswith("default-src 'none'")
        assert server.ask("/api/v1/nothing")[0] == 404


def test_every_route_wants_the_token_but_those_of_health(filled: Store, store_url: str) -> None:
    with served(store_url, RUNTAP_SERVE_TOKEN="let-me-in") as server:
        for path in (*(f"/api/v1/{one.replace('{id}', 'r-1')}" for one in ANSWERS), *OTHERS):
            assert server.ask(path)[0] == 401, path
            for wrong in ("Bearer no", "Bearer let-me-in2", "Basic let-me-in", "let-me-in", "Bearer "):
                assert server.ask(path, Authorization=wrong)[0] == 401, (path, wrong)
        assert [server.ask(path)[0] for path in ("/livez", "/readyz")] == [200, 200]
        assert server.ask("/api/v1/ledger", Authorization="Bearer let-me-in")[0] == 200
        for path, opened in PAGE_FILES.items():
            assert (server.ask(path)[0], server.ask(path)[1]["content-type"].partition(";")[0]) == (200, opened), path
    # Whatever else there is wants it.
    app = make_app(Source(filled, ConsumerSettings.load(), PriceSource(ConsumerSettings.load())), (), "let-me-in")
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
    source = Source(filled, settings, PriceSource(settings))
    for parameters, wanted in (({}, RUNS + 3), ({"name": ["RunnableSequence"]}, 1), ({"user": ["nobody"]}, 0)):
        found, cursor, parts = list[str](), None, 0
        while parts == 0 or cursor is not None:
            asked = {**parameters, **({"cursor": [cursor]} if cursor else {})}
            page = api.ANSWERS["runs"].answer(Query(source, asked, {}, START_NS))
            found += [run["run_id"] for run in page["runs"]]
            assert page["complete"] is (page["cursor"] is None)
            cursor, parts = page["cursor"], parts + 1
        assert parts > 1
        assert len(found) == len(set(found)) == wanted
