"""Every figure of the report, the runs and the sessions, from rows laid into the tables of both stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select, text

from partition_setting import WorkerTools
from runtap_consumers.figures.report import SESSIONS_SHOWN, build_report, read_completeness
from runtap_consumers.figures.runs import Run, abandoned_before, describe_run
from runtap_consumers.figures.sections import AlertFigures
from runtap_consumers.instants import day_start_ns, format_instant
from runtap_consumers.projections.sketch import Sketch, bucket_of
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.runs import stream_runs
from runtap_consumers.store.read.sessions import count_sessions, read_sessions
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.units import DAY_NS, HOUR_NS, MINUTE_NS
from runtap_schemas import Alert
from samples import START_NS, Log, alert_row, an_alert, model_call

UTC = ZoneInfo("UTC")
BERLIN = ZoneInfo("Europe/Berlin")
NOW_NS = 1_750_420_830 * 10**9  # 2025-06-20T12:00:30Z
NOON_NS = NOW_NS - 30 * 10**9
SECOND = 10**9
PROJECTIONS = ("cost", "performance", "errors", "sessions", "runs", "ledger")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url, "runtap.events", "Europe/Berlin")
    yield opened
    opened.close()


def fill(store: Store, table_name: str, *rows: Mapping[str, Any]) -> None:
    table = tables.metadata.tables[table_name]
    columns = {column.name for column in table.columns}
    numbers = {column.name for column in table.columns if column.type.python_type is int and "merge" in column.info}
    with store.engine.begin() as connection:
        for row in rows:
            assert row.keys() <= columns, row.keys() - columns
            connection.execute(
                table.insert().values(
                    {**dict.fromkeys(numbers, 0), "generation": 0, **row} if "generation" in columns else dict(row)
                )
            )


def cost_of(picodollars: int) -> dict[str, int]:
    """As it is stored: microdollars, and what is left below one."""
    return dict(zip(("cost_microdollars", "cost_picodollars"), divmod(picodollars, 10**6), strict=True))


def position(store: Store, partition: int, projections: tuple[str, ...] = PROJECTIONS, **other: Any) -> None:
    values = {
        "next_offset": 1,
        "epoch": 1,
        "incarnation": 0,
        "generation": 0,
        "begun_at": 0,
        "fingerprint": "",
        "log_time_ns": NOW_NS,
        **other,
    }
    fill(store, "positions", *({"projection": name, "partition": partition, **values} for name in projections))


def cost_row(bucket_ns: int, partition: int, **other: Any) -> dict[str, Any]:
    keys = {
        "provider": "openai",
        "model": "gpt-4o",
        "service": "checkout",
        "environment": "prod",
        "price_set": "v1",
        "price_class": "standard",
    }
    return {"bucket_ns": bucket_ns, "partition": partition, **keys, **other}


def sketch_of(*durations_ns: int) -> bytes:
    sketch = Sketch()
    sketch.add([bucket_of(duration_ns) for duration_ns in durations_ns])
    return sketch.to_bytes()


def test_a_store_without_figures_reports_nothing_and_claims_nothing(store: Store) -> None:
    report = build_report(store, None, None, None, UTC, NOW_NS)
    assert report["complete_to"] is None
    assert report["generated_at"] == "2025-06-20T12:00:30.000000Z"
    assert report["range"] == {"from": "2025-06-19T12:00:00.000000Z", "to": "2025-06-20T12:02:00.000000Z"}
    assert report["cost"] == {
        "calls": 0,
        "priced_calls": 0,
        "unpriced_calls": 0,
        "unmetered_calls": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "cost_usd": "0",
        "average_cost_per_call_usd": None,
        "by_model": [],
        "by_service": [],
    }
    assert list(report["performance_by_run_type"]) == ["llm", "chain", "tool", "retriever"]
    assert report["performance_by_run_type"]["llm"]["success_rate"] is None
    assert report["performance_by_run_type"]["llm"]["avg_seconds"] is None
    assert [report["performance"], report["sessions"], report["alerts"]] == [[], [], []]
    assert report["session_count"] == 0
    assert report["errors"] == {"total": 0, "by_type": [], "groups": [], "recent": []}
    assert report["ledger"] == {
        "captured": 0,
        "applied": 0,
        "in_flight": 0,
        "dropped": {},
        "lost": 0,
        "quarantined": 0,
        "impossible": 0,
        "foreign": 0,
    }


def test_costs_add_up_over_partitions_and_price_classes_by_model_and_service(store: Store) -> None:
    position(store, 0)
    position(store, 1)
    used = {"calls": 2, "priced_calls": 2, "input_tokens": 100, "cache_read_tokens": 40, "output_tokens": 20}
    fill(
        store,
        "cost_minute",
        cost_row(NOON_NS, 0, **used, cost_picodollars=1_500_000_000_001, reasoning_tokens=5),
        cost_row(NOON_NS, 1, **used, cost_picodollars=2_000_000_000_000, cache_write_5m_tokens=7),
        cost_row(NOON_NS, 1, price_class="batch", **used, cost_picodollars=500_000_000_000, cache_write_1h_tokens=1),
        cost_row(NOON_NS, 0, model="in-house", service="search", calls=3, unpriced_calls=2, unmetered_calls=1),
        # A rebuild in the making must not be counted.
        cost_row(NOON_NS, 0, calls=99, cost_picodollars=99) | {"generation": 1},
    )
    report: dict[str, Any] = {**build_report(store, None, None, None, UTC, NOW_NS)["cost"]}
    by_model, by_service = report.pop("by_model"), report.pop("by_service")
    assert report == {
        "calls": 9,
        "priced_calls": 6,
        "unpriced_calls": 2,
        "unmetered_calls": 1,
        "input_tokens": 300,
        "output_tokens": 60,
        "total_tokens": 360,
        "cost_usd": "4.000000000001",
        "average_cost_per_call_usd": "0.666666666667",
    }
    assert by_model == [
        {
            "provider": "openai",
            "model": "gpt-4o",
            "calls": 6,
            "unpriced_calls": 0,
            "input_tokens": 300,
            "cache_read_tokens": 120,
            "cache_write_tokens": 8,
            "output_tokens": 60,
            "reasoning_tokens": 5,
            "cost_usd": "4.000000000001",
        },
        {
            "provider": "openai",
            "model": "in-house",
            "calls": 3,
            "unpriced_calls": 2,
            "input_tokens": 0,
            "cache_read_tokens": 0,
            "cache_write_tokens": 0,
            "output_tokens": 0,
            "reasoning_tokens": 0,
            "cost_usd": None,
        },
    ]
    assert by_service == [
        {"service": "checkout", "environment": "prod", "calls": 6, "unpriced_calls": 0, "cost_usd": "4.000000000001"},
        {"service": "search", "environment": "prod", "calls": 3, "unpriced_calls": 2, "cost_usd": None},
    ]
    only = build_report(store, None, None, "search", UTC, NOW_NS)["cost"]
    assert (only["calls"], only["cost_usd"], only["average_cost_per_call_usd"]) == (3, None, None)


def test_sums_beyond_nine_million_dollars_are_exact(store: Store) -> None:
    position(store, 0)
    nearly = cost_of(2**63 - 1)
    fill(
        store,
        "cost_minute",
        *(cost_row(NOON_NS, 0, model=f"m{n}", calls=1, priced_calls=1, **nearly) for n in range(2)),
        *(
            cost_row(NOON_NS, 0, model="m0", price_class=name, calls=1, priced_calls=1, **nearly)
            for name in ("batch", "flex")
        ),
    )
    report = build_report(store, None, None, None, UTC, NOW_NS)["cost"]
    assert report["cost_usd"] == "36893488.147419103228"
    assert report["by_model"][0]["cost_usd"] == "27670116.110564327421"


def test_each_bucket_of_a_range_is_read_once_from_the_grain_that_is_kept(store: Store) -> None:
    position(store, 0)
    for grain, buckets in {
        "minute": [
            NOON_NS - 100 * MINUTE_NS,
            NOON_NS - 90 * MINUTE_NS,
            NOON_NS - HOUR_NS,
            NOON_NS,
            NOON_NS + MINUTE_NS,
        ],
        "hour": [NOON_NS - 2 * HOUR_NS, NOON_NS - HOUR_NS, NOON_NS],
        "day": [day_start_ns(NOON_NS, BERLIN)],
    }.items():
        # Each minute counts by its place, so that what was read can be told from the sum.
        place = {"minute": 1, "hour": 100, "day": 10_000}[grain]
        fill(store, f"cost_{grain}", *(cost_row(at, 0, calls=place * 10**n) for n, at in enumerate(buckets)))

    def calls(since_ns: int, until_ns: int) -> tuple[int, int, int]:
        report = build_report(store, since_ns, until_ns, None, UTC, NOW_NS)
        window = report["range"]
        lengths = [
            (edge - NOON_NS) // MINUTE_NS
            for edge in range(NOON_NS - 20 * DAY_NS, NOON_NS + 2 * DAY_NS, MINUTE_NS)
            if format_instant(edge, UTC) in window.values()
        ]
        return report["cost"]["calls"], lengths[0], lengths[-1]

    # 10:25 to 12:01:30: minutes to 11:00, the hour of 11, minutes from 12:00.
    assert calls(NOON_NS - 95 * MINUTE_NS, NOON_NS + 90 * SECOND) == (10 + 1_000 + 1_000 + 10_000, -95, 2)
    # 10:20 is whole, so is all of it.
    assert calls(NOON_NS - 100 * MINUTE_NS, NOON_NS) == (11 + 1_000, -100, 0)
    # Three days back there are only hours.
    assert calls(NOON_NS - 3 * DAY_NS, NOON_NS + SECOND) == (100 + 1_000 + 10_000, -3 * 1_440, 60)
    # Beyond a week days of the store's zone: Berlin's begins at 22:00 UTC.
    assert calls(NOON_NS - 10 * DAY_NS, NOON_NS) == (10_000, -10 * 1_440 - 14 * 60, 10 * 60)


def performance_row(bucket_ns: int, partition: int, *durations_ns: int, **other: Any) -> dict[str, Any]:
    return {
        "bucket_ns": bucket_ns,
        "partition": partition,
        "service": "checkout",
        "environment": "prod",
        "run_type": "llm",
        "name": "ChatOpenAI",
        "model": "gpt-4o",
        "count": len(durations_ns),
        "ok": len(durations_ns),
        "total_ns": sum(durations_ns),
        "min_ns": min(durations_ns),
        "max_ns": max(durations_ns),
        "sketch": sketch_of(*durations_ns),
        **other,
    }


def test_components_add_up_and_the_slowest_in_total_comes_first(store: Store) -> None:
    position(store, 0)
    position(store, 1)
    fill(
        store,
        "performance_minute",
        performance_row(
            NOON_NS,
            0,
            *[SECOND] * 98,
            ok=96,
            errors=2,
            output_tokens=900,
            output_ns=90 * SECOND,
            first_token_sketch=sketch_of(SECOND // 10),
        ),
        performance_row(NOON_NS, 1, 3 * SECOND, 5 * SECOND, ok=0, interrupted=1, cancelled=1, service="search"),
        performance_row(NOON_NS, 1, 2 * SECOND, run_type="tool", name="weather", model="", ok=0, errors=1),
        performance_row(NOON_NS, 0, 500 * SECOND, run_type="chain", name="", model="", ok=0, cancelled=1),
    )
    report = build_report(store, NOW_NS - HOUR_NS, None, None, UTC, NOW_NS)
    chain, called, tool = report["performance"]
    assert [row["total_seconds"] for row in report["performance"]] == [500, 106, 2]
    assert (chain["name"], chain["model"], chain["success_rate"]) == (None, None, None)
    assert chain["output_tokens_per_second"] is None
    assert (tool["name"], tool["success_rate"], tool["count"], tool["errors"]) == ("weather", 0, 1, 1)
    assert tool["p50_seconds"] == tool["p99_seconds"] == tool["min_seconds"] == 2
    llm: dict[str, Any] = {**called}
    assert llm.pop("p50_seconds") == pytest.approx(1, rel=0.01)
    assert llm.pop("p95_seconds") == pytest.approx(1, rel=0.01)
    assert llm.pop("p99_seconds") == pytest.approx(3, rel=0.01)
    assert llm.pop("first_token_p50_seconds") == pytest.approx(0.1, rel=0.01)
    assert llm.pop("first_token_p95_seconds") == pytest.approx(0.1, rel=0.01)
    # The range begins at 11:00 and has lasted 60.5 minutes.
    assert llm.pop("calls_per_minute") == pytest.approx(100 / 60.5)
    assert llm == {
        "run_type": "llm",
        "name": "ChatOpenAI",
        "model": "gpt-4o",
        "request_models": [],
        "count": 100,
        "errors": 2,
        "success_rate": 96 / 98,
        "total_seconds": 106,
        "avg_seconds": 1.06,
        "min_seconds": 1,
        "max_seconds": 5,
        "output_tokens_per_second": 10,
    }
    by_type = report["performance_by_run_type"]
    assert {name: figures["count"] for name, figures in by_type.items()} == {
        "llm": 100,
        "chain": 1,
        "tool": 1,
        "retriever": 0,
    }
    assert by_type["llm"].keys() == report["performance"][0].keys() - {"run_type", "name", "model", "request_models"}
    assert by_type["retriever"]["p50_seconds"] is None
    only = build_report(store, None, None, "search", UTC, NOW_NS)["performance"]
    assert [(row["count"], row["max_seconds"]) for row in only] == [(2, 5)]


def error_rows(store: Store, fingerprint: str, partition: int, count: int, last_at_ns: int, **other: Any) -> None:
    key = {"service": "checkout", "environment": "prod", "fingerprint": fingerprint, "partition": partition}
    occurrence = {
        "count": count,
        "first_at_ns": last_at_ns - SECOND,
        "last_at_ns": last_at_ns,
        "sample_run_id": f"{fingerprint}-{partition}",
    }
    facts = {"type": "RateLimitError", "category": "rate_limit", "message": "slow down", "run_type": "llm", **other}
    facts = {"status_code": 429, "code": "slow_down", "raised_at": "shop.ask:7", **facts}
    for name, grain_ns in (("errors_minute", MINUTE_NS), ("errors_hour", HOUR_NS)):
        fill(store, name, {**key, **occurrence, "bucket_ns": last_at_ns // grain_ns * grain_ns})
    # The group is older than the range.
    fill(store, "error_groups", {**key, **occurrence, **facts, "first_at_ns": last_at_ns - 3 * DAY_NS, "count": 99})


def test_errors_are_counted_by_group_and_type_against_ended_roots(store: Store) -> None:
    position(store, 0)
    position(store, 1)
    error_rows(store, "slow", 0, 3, NOON_NS - HOUR_NS)
    error_rows(store, "slow", 1, 2, NOON_NS)
    error_rows(store, "other", 0, 1, NOON_NS, type="KeyError", category="tool", message="", run_type="tool")
    root = {"bucket_ns": NOON_NS, "service": "checkout", "environment": "prod"}
    fill(
        store,
        "roots_minute",
        {**root, "partition": 0, "ok": 12, "errors": 4, "interrupted": 5, "cancelled": 7},
        {**root, "partition": 1, "ok": 4, "service": "search"},
    )
    recent = {"environment": "prod", "run_type": "tool", "type": "KeyError", "message": None, "service": "checkout"}
    recent = {**recent, "category": "tool", "raised_at": "shop.look:9"}
    fill(
        store,
        "recent_errors",
        *(
            {**recent, "at_ns": NOON_NS - n * SECOND, "run_id": f"r{n:02}", "name": "", "partition": n % 2}
            for n in range(12)
        ),
    )
    errors = build_report(store, None, None, None, BERLIN, NOW_NS)["errors"]
    assert errors["total"] == 6
    assert errors["by_type"] == [
        {"type": "RateLimitError", "category": "rate_limit", "count": 5, "rate": 0.25},
        {"type": "KeyError", "category": "tool", "count": 1, "rate": 0.05},
    ]
    assert errors["groups"][0] == {
        "fingerprint": "slow",
        "type": "RateLimitError",
        "category": "rate_limit",
        "status_code": 429,
        "code": "slow_down",
        "raised_at": "shop.ask:7",
        "message": "slow down",
        "run_type": "llm",
        "service": "checkout",
        "count": 5,
        "first_seen": "2025-06-17T13:00:00.000000+02:00",
        "last_seen": "2025-06-20T14:00:00.000000+02:00",
        "sample_run_id": "slow-1",
    }
    assert [group["count"] for group in errors["groups"]] == [5, 1]
    assert [error["run_id"] for error in errors["recent"]] == [f"r{n:02}" for n in range(10)]
    assert errors["recent"][0] == {
        "run_id": "r00",
        "run_type": "tool",
        "name": None,
        "type": "KeyError",
        "category": "tool",
        "status_code": None,
        "code": None,
        "raised_at": "shop.look:9",
        "message": None,
        "at": "2025-06-20T14:00:00.000000+02:00",
        "service": "checkout",
    }
    search = build_report(store, None, None, "search", UTC, NOW_NS)["errors"]
    assert search == {"total": 0, "by_type": [], "groups": [], "recent": []}


def session_row(session_id: str, partition: int, last_at_ns: int, **other: Any) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "partition": partition,
        "first_at_ns": last_at_ns - 10 * SECOND,
        "last_at_ns": last_at_ns,
        "last_log_time_ns": last_at_ns,
        "service": "checkout",
        "user_id": "",
        **other,
    }


def known_to(store: Store, complete_ns: int, projections: tuple[str, ...] = PROJECTIONS) -> None:
    """One emitter, whose newest frame all projections have applied, says that it is complete to that instant."""
    lane_rows(store, {**LANE, "at_ns": complete_ns, "log_time_ns": complete_ns}, projections)


LANE = {
    "partition": 0,
    "emitter": "e1",
    "mark": 5,
    "gaps": "[]",
    **dict.fromkeys(("before", "forgotten", "quarantined", "repeats", "is_shared"), 0),
    "first_at_ns": NOON_NS - 5 * HOUR_NS,
    "at_ns": NOW_NS,
    "log_time_ns": NOW_NS,
}


def lane_rows(store: Store, lane: dict[str, Any], projections: tuple[str, ...] = PROJECTIONS) -> None:
    fill(store, "lane_marks", *({**lane, "projection": name} for name in projections))


def test_sessions_add_up_and_their_status_is_measured_against_complete_to(store: Store) -> None:
    position(store, 0)
    position(store, 1)
    known_to(store, NOW_NS)
    counts = {"traces": 1, "llm_calls": 2, "tool_calls": 1, "errors": 1, "input_tokens": 10, "output_tokens": 5}
    fill(
        store,
        "sessions",
        session_row("ended", 0, NOON_NS - 60 * SECOND, starts=1, user_id="u2", **counts),
        session_row("ended", 1, NOON_NS - 30 * SECOND, user_id="u1"),
        session_row("ended", 1, NOON_NS, ends=1, service="search", user_id="u2", **counts),
        session_row("idle", 0, NOON_NS - HOUR_NS),
        session_row("open", 1, NOON_NS - 20 * MINUTE_NS, starts=2, ends=1),
        # An end that nobody began says nothing.
        session_row("odd", 1, NOON_NS - 40 * MINUTE_NS, ends=1),
        session_row("past", 0, NOON_NS - 3 * DAY_NS),
    )
    money = {"session_id": "ended", "partition": 0, "calls": 1, "priced_calls": 1, **cost_of(2**62)}
    fill(
        store,
        "session_costs",
        *({**money, "cost_key": number} for number in (1, 2, 3)),
        {"session_id": "idle", "partition": 0, "cost_key": 4, "calls": 2, "unpriced_calls": 2},
    )
    found = build_report(store, None, None, None, UTC, NOW_NS)
    sessions = found["sessions"]
    assert found["session_count"] == len(sessions)
    assert [(row["session_id"], row["status"], row["cost_usd"]) for row in sessions] == [
        ("ended", "ended", "13835058.055282163712"),
        ("open", "open", "0"),
        ("odd", "idle", "0"),
        ("idle", "idle", None),
    ]
    assert sessions[0] == {
        "session_id": "ended",
        "user_ids": ["u1", "u2"],
        "status": "ended",
        "started_at": "2025-06-20T11:58:50.000000Z",
        "ended_at": "2025-06-20T12:00:00.000000Z",
        "duration_seconds": 70,
        "traces": 2,
        "llm_calls": 4,
        "tool_calls": 2,
        "errors": 2,
        "input_tokens": 20,
        "output_tokens": 10,
        "cost_usd": "13835058.055282163712",
    }
    assert sessions[3]["ended_at"] is None
    served = build_report(store, None, None, "search", UTC, NOW_NS)["sessions"]
    assert [(row["session_id"], row["traces"]) for row in served] == [("ended", 2)]
    with open_snapshot(store) as snapshot:
        assert [row.session_id for row in read_sessions(snapshot, limit=2)] == ["ended", "open"]
        assert len(list(read_sessions(snapshot))) == count_sessions(snapshot) == 5


def test_a_report_names_the_newest_sessions_and_says_how_many_there_are(store: Store) -> None:
    position(store, 0)
    rows = (session_row(f"s-{number:03}", 0, NOON_NS - number * SECOND) for number in range(SESSIONS_SHOWN + 20))
    fill(store, "sessions", *rows)
    report = build_report(store, None, None, None, UTC, NOW_NS)
    assert [row["session_id"] for row in report["sessions"]] == [f"s-{number:03}" for number in range(SESSIONS_SHOWN)]
    assert report["session_count"] == SESSIONS_SHOWN + 20


def test_alerts_of_the_range_come_newest_first(store: Store) -> None:
    fill(
        store,
        "alert_outbox",
        *(
            alert_row(an_alert(id=name, status=status, group={"service": service}), at_ns)
            for name, at_ns, status, service in [
                ("a1", NOON_NS, "firing", "checkout"),
                ("a2", NOW_NS, "resolved", "checkout"),
                ("a3", NOW_NS, "noticed", "search"),
                ("a0", NOON_NS - 2 * DAY_NS, "firing", "checkout"),
            ]
        ),
    )
    newest, oldest = build_report(store, None, None, "checkout", UTC, NOW_NS)["alerts"]
    assert (newest["id"], newest["status"], newest["at"]) == ("a2", "resolved", "2025-06-20T12:00:30.000000Z")
    assert (oldest["id"], oldest["status"], oldest["at"]) == ("a1", "firing", "2025-06-20T12:00:00.000000Z")
    assert set(newest) == AlertFigures.__annotations__.keys() == Alert.__annotations__.keys() - {"schema"}
    assert (newest["rule"], newest["value"]) == ({"id": "error_rate", "revision": "1"}, None)


def test_ledger_shows_the_worst_projection_and_leaves_superseded_starts_out(store: Store) -> None:
    position(store, 0)
    lane = {**LANE, "forgotten": 1, "quarantined": 1, "gaps": "[[2,3]]", "repeats": 3}
    for name in PROJECTIONS:
        lane_rows(store, {**lane, "mark": 7 if name == "errors" else 12}, (name,))
    said = {"emitter": "e1", "log_time_ns": NOW_NS, "partition": 0}
    counts = [("dropped", "full", 3), ("dropped", "closed", 1), ("superseded", "", 5)]
    fill(
        store,
        "emitter_counts",
        *({**said, "kind": kind, "reason": reason, "total": total} for kind, reason, total in counts),
    )
    ledger = build_report(store, None, None, None, UTC, NOW_NS)["ledger"]
    assert ledger == {
        "captured": 16,
        "applied": 3,
        "in_flight": 5,
        "dropped": {"closed": 1, "full": 3},
        "lost": 3,
        "quarantined": 1,
        "impossible": 0,
        "foreign": 0,
    }
    assert ledger["captured"] == ledger["applied"] + ledger["in_flight"] + 4 + ledger["lost"] + ledger["quarantined"]


def test_complete_to_is_what_the_newest_frame_applied_says_in_the_projection_furthest_behind(store: Store) -> None:
    position(store, 0)
    known_to(store, NOON_NS, ("cost", "errors", "sessions"))
    lane_rows(store, {**LANE, "mark": 134}, ("performance", "ledger"))
    with open_snapshot(store) as snapshot:
        assert read_completeness(snapshot, ("cost", "errors")).at_ns == NOON_NS
        assert read_completeness(snapshot, ("performance",)).at_ns == NOW_NS
    report = build_report(store, None, None, None, BERLIN, NOW_NS)
    assert report["complete_to"] == "2025-06-20T14:00:00.000000+02:00"
    # The projections that have met nothing of it yet.
    assert report["ledger"]["in_flight"] == 134


def test_complete_to_waits_for_a_partition_that_was_not_read(store: Store) -> None:
    position(store, 0)
    position(store, 1, log_time_ns=0)
    known_to(store, NOW_NS)
    assert build_report(store, None, None, None, UTC, NOW_NS)["complete_to"] is None
    with store.engine.begin() as connection:
        connection.execute(text(f"UPDATE positions SET caught_up_at_ns = {NOON_NS} WHERE partition = 1"))
    assert build_report(store, None, None, None, UTC, NOW_NS)["complete_to"] == "2025-06-20T12:00:00.000000Z"


def test_emitter_that_fell_silent_long_ago_holds_nobody_back(store: Store) -> None:
    position(store, 0, log_time_ns=NOW_NS)
    known_to(store, NOON_NS - DAY_NS)
    lane_rows(store, {**LANE, "emitter": "e2", "mark": 900})
    minute = NOON_NS - DAY_NS - NOON_NS % MINUTE_NS
    fill(store, "report_minutes", *({"bucket_ns": minute + n * MINUTE_NS, "tens": 63, "partition": 0} for n in (1, 2)))
    with open_snapshot(store) as snapshot:
        complete = read_completeness(snapshot, ("cost",))
    assert complete.silent == ("e1",)
    assert complete.at_ns == NOW_NS


def test_an_emitter_killed_before_a_night_of_short_jobs_holds_nobody_back_in_the_morning(store: Store) -> None:
    position(store, 0, log_time_ns=NOW_NS)
    known_to(store, NOON_NS - DAY_NS)
    minutes = [NOON_NS - DAY_NS - NOON_NS % MINUTE_NS + n * MINUTE_NS for n in range(1, 603)]
    # One report a minute for ten hours, then some at each time.
    tens = [1] * 600 + [63] * 2
    rows = ({"bucket_ns": at, "tens": bits, "partition": 0} for at, bits in zip(minutes, tens, strict=True))
    fill(store, "report_minutes", *rows)
    with open_snapshot(store) as snapshot:
        assert read_completeness(snapshot, ("cost",)).silent == ("e1",)


def run_row(run_id: str, started_at_ns: int, **other: Any) -> dict[str, Any]:
    return {
        "partition": 0,
        "log_time_ns": NOW_NS,
        "started_at_ns": started_at_ns,
        "ended_at_ns": started_at_ns + SECOND,
        "duration_ns": SECOND,
        "run_id": run_id,
        "trace_id": "t1",
        "service": "checkout",
        "environment": "prod",
        "run_type": "llm",
        "name": "ChatOpenAI",
        "status": "ok",
        "usage_source": "none",
        "tags": "[]",
        "metadata": "{}",
        **other,
    }


def open_row(run_id: str, started_at_ns: int, **other: Any) -> dict[str, Any]:
    facts = {"service": "checkout", "environment": "prod", "run_type": "chain", "name": "graph", "trace_id": "t1"}
    return {"run_id": run_id, "partition": 1, "started_at_ns": started_at_ns, "log_time_ns": NOW_NS, **facts, **other}


def listed(store: Store, limit: int | None = None, **wanted: Any) -> list[Run]:
    with open_snapshot(store) as snapshot:
        boundary = abandoned_before(read_completeness(snapshot, ("runs",)).at_ns)
        rows = stream_runs(snapshot, RunFilter(**wanted), boundary, limit)
        return [describe_run(row, boundary, UTC) for row in rows]


def ids(rows: list[Run]) -> list[str]:
    return [row["run_id"] for row in rows]


def test_a_run_shows_every_fact_and_null_where_unknown(store: Store) -> None:
    position(store, 0)
    position(store, 1)
    facts = {
        "parent_run_id": "p",
        "session_id": "s",
        "user_id": "u",
        "provider": "openai",
        "request_model": "gpt-4o",
        "model": "gpt-4o-2024",
        "status": "error",
        "finish_reason": "stop",
        "error_type": "KeyError",
        "error_category": "tool",
        "error_origin": 0,
        "error_status_code": 404,
        "error_code": "no_such_order",
        "error_raised_at": "shop.find:7",
        "error_message": "none",
        "usage_source": "response",
        "first_token_ns": SECOND // 4,
        "input_tokens": 0,
        "output_tokens": 7,
        "cache_read_tokens": 3,
        "cache_write_1h_tokens": 2,
        "reasoning_tokens": 1,
        "cost_picodollars": 1_230_000,
        "tags": '["a"]',
        "metadata": '{"team": "x"}',
    }
    fill(store, "runs", run_row("r1", NOON_NS, **facts), run_row("r2", NOON_NS - 1))
    full, bare = listed(store)
    expected = {name: value for name, value in facts.items() if not name.endswith(("_ns", "picodollars"))}
    assert full == {
        **expected,
        "run_id": "r1",
        "trace_id": "t1",
        "service": "checkout",
        "environment": "prod",
        "run_type": "llm",
        "name": "ChatOpenAI",
        "error_origin": False,
        "started_at": "2025-06-20T12:00:00.000000Z",
        "duration_seconds": 1,
        "first_token_seconds": 0.25,
        "cache_write_tokens": 2,
        **dict.fromkeys(("cache_write_5m_tokens", "web_searches", "model_source", "root_name")),
        **dict.fromkeys(("input_audio_tokens", "input_image_tokens", "output_audio_tokens")),
        "cost_usd": "0.00000123",
        "tags": ["a"],
        "metadata": {"team": "x"},
    }
    assert list(bare) == list(full)
    assert {name for name, value in bare.items() if value is None} == {
        *("parent_run_id", "session_id", "user_id", "provider", "request_model", "model", "finish_reason"),
        *("error_type", "error_category", "error_origin", "first_token_seconds", "input_tokens", "output_tokens"),
        *("error_status_code", "error_code", "error_raised_at", "error_message"),
        *("cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost_usd"),
        *("cache_write_5m_tokens", "cache_write_1h_tokens", "web_searches", "model_source", "root_name"),
        *("input_audio_tokens", "input_image_tokens", "output_audio_tokens"),
    }


def test_open_runs_are_shown_only_where_no_ended_row_has_their_id(store: Store) -> None:
    position(store, 0, log_time_ns=0)
    position(store, 1, log_time_ns=0)
    fill(store, "runs", run_row("done", NOON_NS), run_row("old", NOON_NS - 5), run_row("unborn", 1) | {"generation": 1})
    fill(
        store,
        "open_runs",
        open_row("done", NOON_NS),
        open_row("open", NOON_NS - 2, request_model="m", session_id="s"),
        open_row("abandoned", NOW_NS - 2 * HOUR_NS),
        open_row("unborn", NOON_NS - 3),
    )
    assert [(row["run_id"], row["status"]) for row in listed(store)] == [
        ("done", "ok"),
        ("open", "open"),
        ("unborn", "open"),
        ("old", "ok"),
        ("abandoned", "open"),
    ]
    # Only once it is known that no end is missing.
    with store.engine.begin() as connection:
        connection.execute(text(f"UPDATE positions SET caught_up_at_ns = {NOW_NS}"))
    assert ids(listed(store, status="abandoned")) == ["abandoned"]
    assert ids(listed(store, status="open")) == ["open", "unborn"]
    assert ids(listed(store, model="m")) == ["open"]
    row = listed(store, status="abandoned")[0]
    assert (row["status"], row["duration_seconds"], row["tags"], row["usage_source"]) == ("abandoned", None, None, None)


def test_runs_are_filtered_and_limited_newest_first(store: Store) -> None:
    position(store, 0)
    fill(
        store,
        "runs",
        run_row("r0", NOON_NS, session_id="s", model="m", status="error"),
        run_row("r1", NOON_NS - 1, trace_id="t2", run_type="tool"),
        *(run_row(f"x{n:04}", NOON_NS - 100 - n) for n in range(2_500)),
    )
    assert ids(listed(store, limit=3)) == ["r0", "r1", "x0000"]
    assert len(listed(store)) == 2_502
    assert ids(listed(store, session_id="s")) == ids(listed(store, model="m")) == ids(listed(store, status="error"))
    assert ids(listed(store, trace_id="t2")) == ids(listed(store, run_type="tool")) == ["r1"]
    assert ids(listed(store, since_ns=NOON_NS - 100)) == ["r0", "r1", "x0000"]
    assert ids(listed(store, status="cancelled")) == []


def test_all_runs_are_read_in_pieces(store: Store) -> None:
    position(store, 0)
    fill(store, "runs", *(run_row(f"x{n}", NOON_NS - n) for n in range(2_100)))
    with open_snapshot(store) as snapshot:
        rows = stream_runs(snapshot, RunFilter(), None)
        assert next(rows)["run_id"] == "x0"
        # The rest is still where it came from, and other statements run beside it.
        assert snapshot.connection.execute(select(tables.store.c.store_id)).scalar_one() == store.store_id
        assert sum(1 for _ in rows) == 2_099


def test_failed_calls_count_under_the_model_that_others_answered_as(store: Store, tools: WorkerTools) -> None:
    log = Log()
    asked, answered = "gpt-4o", "gpt-4o-2024-08-06"
    for number in range(1, 4):
        log.append(model_call(request_model=asked, model=answered, model_source="answer"), "e", number)
    # As the collector sends it: nobody answered, so that only the name is known that was asked for.
    for number, name in enumerate((asked, "never-answers"), start=4):
        log.append(model_call(request_model=name, model=name, model_source="request", status="error"), "e", number)
    tools.apply(log)
    report = build_report(store, START_NS, None, None, UTC, START_NS + MINUTE_NS)
    rows = {row["model"]: row for row in report["performance"]}
    assert rows.keys() == {answered, "never-answers"}
    row = rows[answered]
    assert (row["request_models"], row["count"], row["errors"], row["success_rate"]) == ([asked], 4, 1, 0.75)
    assert (rows["never-answers"]["request_models"], rows["never-answers"]["success_rate"]) == ([], 0.0)


def test_the_database_joins_bytes_as_they_are(store: Store) -> None:
    blobs = [bytes(range(256)) * 4, b"\x00\x00", b"", b"\xff\x00\xfe", None, b"\x80" * 300]
    fill(
        store,
        "performance_day",
        *(performance_row(NOON_NS, 0, 1, name=f"name-{number}", sketch=blob) for number, blob in enumerate(blobs)),
    )
    joined = store.dialect.join_bytes.format("sketch")
    with store.read() as connection:
        found = connection.exec_driver_sql(f"SELECT {joined} FROM (SELECT * FROM performance_day ORDER BY name) AS o")
        assert bytes(found.scalar_one()) == b"".join(blob or b"" for blob in blobs)
