"""The table of open runs."""

from __future__ import annotations

import uuid

from captured_events import Captured
from runtap_collector.capture.open_runs import MAX_AGE_SECONDS, OpenRuns, TraceMemory
from runtap_collector.send.records import OpenRun, Trace, View

_VIEW = View("s", "e", {}, captures_content=False)


def _run(parent: OpenRun | None = None) -> OpenRun:
    run_id = uuid.uuid4()
    route = parent.trace if parent else Trace(run_id)
    return OpenRun(run_id, parent.run_id if parent else None, "chain", "n", _VIEW, route)


def _begin(runs: OpenRuns, run: OpenRun) -> None:
    runs.by_key[run.run_id.int] = run


def test_a_run_ends_once() -> None:
    runs = OpenRuns()
    run = _run()
    _begin(runs, run)
    assert runs.end(run.run_id.int) is run
    assert runs.end(run.run_id.int) is None


def test_children_of_ended_and_of_unknown_parents_find_one_trace() -> None:
    runs = OpenRuns()
    run = _run()
    _begin(runs, run)
    runs.end(run.run_id.int)
    assert runs.trace_under(run.run_id) is run.trace
    stranger = uuid.uuid4()
    assert runs.trace_under(stranger) is runs.trace_under(stranger)
    assert runs.trace_under(stranger).id == stranger


def test_interrupt_marks_open_ancestors_only() -> None:
    runs = OpenRuns()
    root = _run()
    middle = _run(root)
    leaf = _run(middle)
    sibling = _run(root)
    for run in (root, middle, leaf, sibling):
        _begin(runs, run)
    runs.mark_interrupted(leaf)
    assert [run.interrupted for run in (root, middle, leaf, sibling)] == [True, True, False, False]


def test_the_oldest_leave_a_full_table() -> None:
    runs = OpenRuns(max_runs=100)
    entered = [_run() for _ in range(101)]
    for run in entered:
        run.started_monotonic_ns = 10**18
        _begin(runs, run)
    assert runs.evict(now_monotonic_ns=10**18) == entered[:2]
    assert len(runs) == 99


def test_runs_older_than_a_day_leave() -> None:
    runs = OpenRuns()
    old, young = _run(), _run()
    old.started_monotonic_ns, young.started_monotonic_ns = 1, 10**9
    _begin(runs, old)
    _begin(runs, young)
    assert runs.evict(now_monotonic_ns=MAX_AGE_SECONDS * 10**9 + 5) == [old]


def test_eviction_is_counted_and_its_end_ignored() -> None:
    captured = Captured()
    captured.emitter.open_runs = OpenRuns(max_runs=10)
    run_ids = [uuid.uuid4() for _ in range(12)]
    for run_id in run_ids:
        captured.call("on_chain_start", {}, {}, run_id=run_id)
    for run_id in run_ids:
        captured.call("on_chain_end", {}, run_id=run_id)
    buffer = captured.emitter.buffer
    evicted = buffer.dropped["evicted", "run.ended"]
    assert evicted > 0
    assert len(captured.ended()) == 12 - evicted
    assert buffer.captured == 24


def test_what_an_evicted_run_held_is_given_back() -> None:
    captured = Captured(capture_content=True)
    captured.emitter.open_runs = OpenRuns(max_runs=10)
    run_ids = [uuid.uuid4() for _ in range(12)]
    for run_id in run_ids:
        captured.call("on_chain_start", {}, "x" * 1_000, run_id=run_id)
    for run_id in run_ids:
        captured.call("on_chain_end", {}, run_id=run_id)
    buffer = captured.emitter.buffer
    assert buffer.dropped["evicted", "run.ended"] > 0
    assert captured.events()
    assert buffer.held_bytes == 0


def test_memory_forgets_the_oldest() -> None:
    memory = TraceMemory(limit=4)
    traces = {name: memory.get_or_add(name, name) for name in "abcdefg"}
    assert [name for name in "abcdefg" if memory.get(name) is not None] == ["d", "e", "f", "g"]
    assert memory.get("g") is traces["g"] is memory.get_or_add("g", "g")
