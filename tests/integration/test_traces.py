"""Traces and sessions as trees, what was captured of their content, and filters of runs, on both stores."""

from __future__ import annotations

import json
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec import Raw

from partition_setting import WorkerTools
from runtap_consumers.errors import InputError
from runtap_consumers.figures.traces import TraceFigures, build_session, build_trace
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.runs import stream_runs
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.store.read.traces import read_contents
from runtap_consumers.units import DAY_NS
from runtap_schemas import RunEnded, RunError
from samples import SECOND_NS, START_NS, Log, chain_end, model_call, run_start
from worker_process import WorkerSetting

UTC = ZoneInfo("UTC")


def run(run_id: str, parent: str | None, first: int, last: int, **facts: Any) -> RunEnded:
    """From one second to another."""
    make = model_call if facts.get("run_type") == "llm" else chain_end
    return make(
        START_NS + last * SECOND_NS,
        **{
            "run_id": run_id,
            "parent_run_id": parent,
            "is_root": parent is None,
            "trace_id": "aaa-root",
            "session_id": "chat-1",
            "started_at_ns": START_NS + first * SECOND_NS,
            "duration_ns": (last - first) * SECOND_NS,
            "name": run_id.partition("-")[2],
            "run_type": "chain",
            **facts,
        },
    )


FAILURE = RunError(type="TimeoutError", category="timeout", fingerprint="f", origin=True, raised_at="app:ask:3")


def logged() -> Log:
    log = Log()
    events = [
        run("aab-model", "aaa-root", 1, 4, run_type="llm", inputs=Raw(b'["hello"]'), outputs=Raw(b'{"text":"hi"}')),
        # Two at once: their time counts once against their parent's.
        run("aac-tool", "aaa-root", 5, 8, run_type="tool", status="error", error=FAILURE, tags=["x", 'a "b"']),
        run("aad-tool", "aaa-root", 6, 9, run_type="tool", metadata={"team": "red", "size": 3, "is_new": True}),
        run("aaa-root", None, 0, 10, user_id="ann"),
        run("bbb-root", None, 20, 21, trace_id="bbb-root", user_id="ann"),
        run("ccc-root", None, 30, 31, trace_id="ccc-root", session_id=None, service="search"),
    ]
    for number, event in enumerate(events, start=1):
        log.append(event, "e", number)
    begun = run_start(START_NS + 9 * SECOND_NS, run_id="aae-open", trace_id="aaa-root", parent_run_id="aad-tool")
    log.append(begun, "e", len(events) + 1)
    return log


@pytest.fixture
def filled(store: Store, tools: WorkerTools) -> Store:
    tools.apply(logged())
    return store


def trace(store: Store, text: str) -> TraceFigures:
    with open_snapshot(store) as snapshot:
        return build_trace(snapshot, text, UTC)


def test_a_trace_is_a_tree_with_self_times_and_sums(filled: Store) -> None:
    found = trace(filled, "aaa-root")
    assert [(one["run_id"], one["depth"], one["offset_seconds"], one["self_seconds"]) for one in found["runs"]] == [
        ("aaa-root", 0, 0, 10 - 3 - 4),
        ("aab-model", 1, 1, 3),
        ("aac-tool", 1, 5, 3),
        ("aad-tool", 1, 6, 3),
        ("aae-open", 2, 9, None),
    ]
    assert (found["duration_seconds"], found["run_count"], found["llm_calls"], found["errors"]) == (10, 5, 1, 1)
    assert (found["input_tokens"], found["cost_usd"], found["unpriced_calls"]) == (1_000, "0.000195", 0)
    assert (found["name"], found["session_id"], found["user_id"]) == ("root", "chat-1", "ann")
    assert found["runs"][1]["content"] == {"inputs": ["hello"], "outputs": {"text": "hi"}}
    assert found["runs"][0]["content"] is None


@pytest.mark.parametrize("text", ["aad-tool", "aad", "aae-o", "aaa-root", "aa"])
def test_any_runs_id_or_its_beginning_finds_its_trace(filled: Store, text: str) -> None:
    assert trace(filled, text)["trace_id"] == "aaa-root"


def test_what_is_none_or_more_than_one_is_refused(filled: Store, tools: WorkerTools) -> None:
    with pytest.raises(InputError, match="no run or trace 'zzz'"):
        trace(filled, "zzz")
    with pytest.raises(InputError, match="3 traces"):
        trace(filled, "")


def test_runs_that_name_each_other_as_parents_are_all_shown(store: Store, tools: WorkerTools) -> None:
    log = Log()
    log.append(run("x-1", "x-2", 0, 5, trace_id="x"), "e", 1)
    log.append(run("x-2", "x-1", 0, 5, trace_id="x"), "e", 2)
    log.append(run("x-3", "x-3", 1, 5, trace_id="x"), "e", 3)
    tools.apply(log)
    assert [(one["run_id"], one["depth"]) for one in trace(store, "x")["runs"]] == [("x-3", 0), ("x-1", 0), ("x-2", 0)]


def test_a_session_is_its_traces_in_order(filled: Store) -> None:
    with open_snapshot(filled) as snapshot:
        found = build_session(snapshot, "chat-1", UTC, 20)
        assert [one["trace_id"] for one in found["kept_traces"]] == ["aaa-root", "bbb-root"]
        assert (found["user_ids"], found["traces"], found["cost_usd"]) == (["ann"], 2, "0.000195")
        assert len(build_session(snapshot, "chat-1", UTC, 1)["kept_traces"]) == 1
        with pytest.raises(InputError, match="no session 'chat-2'"):
            build_session(snapshot, "chat-2", UTC, 20)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (RunFilter(user_id="ann"), ["bbb-root", "aaa-root"]),
        (RunFilter(service="search"), ["ccc-root"]),
        (RunFilter(name="tool"), ["aad-tool", "aac-tool"]),
        (RunFilter(tag="x"), ["aac-tool"]),
        (RunFilter(tag='a "b"'), ["aac-tool"]),
        (RunFilter(tag="b"), []),
        (RunFilter(tag="X"), []),
        (RunFilter(tag=","), []),
        (RunFilter(metadata=("team", "red")), ["aad-tool"]),
        (RunFilter(metadata=("size", "3")), ["aad-tool"]),
        (RunFilter(metadata=("is_new", "true")), ["aad-tool"]),
        (RunFilter(metadata=("team", "re")), []),
        (RunFilter(metadata=("eam", "red")), []),
        (RunFilter(model="gpt-4o-mini"), ["aab-model"]),
        (RunFilter(since_ns=START_NS + 20 * SECOND_NS, until_ns=START_NS + 30 * SECOND_NS), ["bbb-root"]),
        (RunFilter(run_type="tool", order="duration_ns"), ["aad-tool", "aac-tool"]),
        (RunFilter(trace_id="aaa-root", order="duration_ns", status="ok"), ["aaa-root", "aad-tool", "aab-model"]),
    ],
    ids=str,
)
def test_runs_are_found_by_what_they_say(filled: Store, wanted: RunFilter, found: list[str]) -> None:
    with open_snapshot(filled) as snapshot:
        assert [row["run_id"] for row in stream_runs(snapshot, wanted, None)] == found


def test_contents_are_kept_as_long_as_was_asked_for(store: Store, tools: WorkerTools) -> None:
    log = logged()
    tools.apply(log)
    for days, is_kept in ((6, True), (8, False)):
        log.append(chain_end(START_NS + days * DAY_NS), "late", days)
        tools.apply(log)
        with open_snapshot(store) as snapshot:
            assert bool(read_contents(snapshot, ["aab-model"])) is is_kept


def test_commands_show_both(filled: Store, store_url: str) -> None:
    setting = WorkerSetting("127.0.0.1:1", "runtap", store_url)
    shown = setting.run("trace", "aad").stdout
    for part in (
        "Trace aaa-root: root, ok",
        "✗ TimeoutError: timeout (at app:ask:3)",
        'inputs: ["hello"]',
        "$0.000195",
    ):
        assert part in shown, shown
    assert "inputs" not in setting.run("trace", "aad", "--no-content").stdout
    assert json.loads(setting.run("trace", "aad", "--json").stdout)["run_count"] == 5
    shown = setting.run("session", "chat-1").stdout
    assert "Session chat-1 of ann" in shown
    assert shown.count("\nTrace ") == 2
    done = setting.run("session", "nobody's")
    assert (done.returncode, "`runtap sessions` lists them" in done.stderr) == (2, True)
    done = setting.run("runs", "--service", "shop")
    assert (done.returncode, "expected any of checkout, search" in done.stderr) == (2, True)
