"""Feedback on runs: from a service's call to report, trace, metrics and alert rules."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from partition_setting import WorkerTools
from runtap_collector import RunTap
from runtap_consumers.alerts.rule_file import parse_rules, quantity_of
from runtap_consumers.alerts.snapshot_figures import SnapshotFigures
from runtap_consumers.figures.quantities import Present, Quantity
from runtap_consumers.figures.report import build_report
from runtap_consumers.figures.traces import build_trace
from runtap_consumers.serve.metrics import collect_metrics
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.units import DAY_NS, MINUTE_NS
from runtap_schemas import RunScored
from samples import SECOND_NS, START_NS, Log, model_call
from topic_log import read_topic

UTC = ZoneInfo("UTC")


def scored(number: int, key: str = "helpful", score: float | None = 1.0, **changes: Any) -> RunScored:
    facts: dict[str, Any] = {"service": "checkout", "environment": "test", "run_id": "run-1"}
    return RunScored(**{**facts, "at_ns": START_NS + number * SECOND_NS, "key": key, "score": score, **changes})


def filled(tools: WorkerTools) -> None:
    log = Log()
    events: list[Any] = [
        model_call(START_NS, run_id="run-1", trace_id="trace-1", model="gpt-4o", name="ChatOpenAI"),
        model_call(START_NS, run_id="run-2", trace_id="trace-1", model="o3", name="ChatOpenAI"),
        scored(1, score=1.0, comment="thanks"),
        scored(2, score=0.1, run_id="run-2", source="evaluator"),
        scored(3, score=0.2, run_id="run-2"),
        scored(4, "tone", None, value="friendly"),
        scored(5, "tone", None, value="friendly", service="search"),
        scored(6, "tone", None, value="rude"),
        scored(7, score=-0.3, run_id="long-gone"),
    ]
    for number, event in enumerate(events, start=1):
        log.append(event, "e", number)
    tools.apply(log)


def test_feedback_is_in_the_report_by_key_model_and_name(tools: WorkerTools) -> None:
    filled(tools)
    report = build_report(tools.store, START_NS, START_NS + MINUTE_NS, None, UTC, START_NS + DAY_NS)
    found = report["feedback"]
    assert [(row["service"], row["key"], row["value"], row["count"], row["mean"]) for row in found["by_key"]] == [
        # Exact: as floats these add up to 0.9999999999999999 and so on.
        ("checkout", "helpful", None, 4, "0.25"),
        ("checkout", "tone", "friendly", 1, None),
        ("checkout", "tone", "rude", 1, None),
        ("search", "tone", "friendly", 1, None),
    ]
    assert [(row["name"], row["key"], row["count"], row["mean"]) for row in found["by_model"]] == [
        ("gpt-4o", "helpful", 1, "1"),
        ("o3", "helpful", 2, "0.15"),
    ]
    assert [(row["name"], row["count"]) for row in found["by_name"]] == [("ChatOpenAI", 3)]
    of_service = build_report(tools.store, START_NS, START_NS + MINUTE_NS, "search", UTC, START_NS + DAY_NS)
    assert [row["key"] for row in of_service["feedback"]["by_key"]] == ["tone"]


def test_a_trace_shows_what_was_thought_of_its_runs(tools: WorkerTools) -> None:
    filled(tools)
    with open_snapshot(tools.store) as snapshot:
        runs = {run["run_id"]: run["feedback"] for run in build_trace(snapshot, "trace-1", UTC)["runs"]}
    assert [(each["key"], each["score"], each["value"], each["comment"]) for each in runs["run-1"]] == [
        ("helpful", "1.0", None, "thanks"),
        ("tone", None, "friendly", None),
        ("tone", None, "friendly", None),
        ("tone", None, "rude", None),
    ]
    assert [(each["source"], each["score"]) for each in runs["run-2"]] == [("evaluator", "0.1"), ("user", "0.2")]


def test_metrics_count_scores_and_add_up_numbers(tools: WorkerTools) -> None:
    filled(tools)
    with open_snapshot(tools.store) as snapshot:
        samples = {
            (
                sample.name,
                sample.labels.get("key"),
                sample.labels.get("value"),
                sample.labels.get("service"),
            ): sample.value
            for metric in collect_metrics(snapshot)
            for sample in metric.samples
            if "score" in sample.name
        }
    assert samples["runtap_scores_total", "helpful", "", "checkout"] == 4
    assert samples["runtap_scores_total", "tone", "friendly", "search"] == 1
    assert samples["runtap_score_points", "helpful", None, "checkout"] == 1.0


def test_alert_rules_judge_the_mean_score(tools: WorkerTools) -> None:
    filled(tools)
    text = "[[rule]]\nid = 'bad'\nwhat = 'score'\nwindow = '5m'\nbelow = '0.5'\ngroup_by = ['service', 'key']\n"
    (rule,) = parse_rules(text, "t", ()).rules
    quantity = quantity_of(rule)
    assert isinstance(quantity, Quantity)
    with open_snapshot(tools.store) as snapshot:
        figures = SnapshotFigures(snapshot, UTC, Present(START_NS, 0))
        found = figures.sums(rule, quantity, START_NS, START_NS + MINUTE_NS)
        # Categories have no mean.
        assert {group: (quantity.value(sums), quantity.calls(sums)) for group, sums in found.items()} == {
            ("checkout", "helpful"): (quantity.value({"count": 4, "score_billionths": 10**9}), 4)
        }


def test_careless_keys_and_categories_are_capped(tools: WorkerTools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtap_consumers.projections.dimensions.DEFAULT_CAP", 3)
    log = Log()
    for number in range(1, 11):
        log.append(scored(number, f"key-{number:02}"), "e", number)
    for number in range(11, 21):
        log.append(scored(number, "tone", None, value=f"mood-{number}", service="search"), "e", number)
    tools.apply(log)
    report = build_report(tools.store, START_NS, START_NS + MINUTE_NS, None, UTC, START_NS + DAY_NS)
    counts = {(row["key"], row["value"]): row["count"] for row in report["feedback"]["by_key"]}
    assert counts["__other__", None] == 7
    assert counts["tone", "__other__"] == 7
    assert len(counts) == 8


async def test_a_service_sends_feedback_with_its_comment_only_where_content_is_captured(
    kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]], tmp_path: Path
) -> None:
    topic = await events_topic(partitions=1)
    run_id = uuid.uuid4()
    options: dict[str, Any] = {"bootstrap_servers": kafka, "topic_prefix": topic_prefix, "spool_dir": str(tmp_path)}
    with (
        RunTap.from_env(service="shop", **options) as tap,
        RunTap.from_env(service="chat", capture_content=True, **options) as open_tap,
    ):
        tap.feedback(run_id, "helpful", True, comment="my card is 4242…")
        tap.feedback(str(run_id), "tone", "rude", source="moderator")
        open_tap.feedback(run_id, key="helpful", score=0.5, comment="so-so")
        for key, score in (("", 1), ("helpful", ""), ("helpful", float("nan")), ("helpful", 2e9)):
            with pytest.raises(ValueError, match=r"score|feedback"):
                tap.feedback(run_id, key, score)
        with pytest.raises(ValueError, match="feedback"):
            tap.feedback("", "helpful", 1)
        await asyncio.to_thread(tap.flush, 10)
        await asyncio.to_thread(open_tap.close, 10)
    events = [entry.event for entry in await read_topic(kafka, topic) if isinstance(entry.event, RunScored)]
    facts = [(event.service, event.key, event.score, event.value, event.source, event.comment) for event in events]
    assert facts == [
        ("shop", "helpful", 1.0, None, "user", None),
        ("shop", "tone", None, "rude", "moderator", None),
        ("chat", "helpful", 0.5, None, "user", "so-so"),
    ]
    assert {event.run_id for event in events} == {str(run_id)}
