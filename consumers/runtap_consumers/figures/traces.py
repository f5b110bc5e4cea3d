"""A trace as a tree of its runs, and a session as its traces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NotRequired, TypedDict, cast
from zoneinfo import ZoneInfo

from runtap_consumers.errors import InputError
from runtap_consumers.figures.report import read_completeness
from runtap_consumers.figures.runs import PROJECTION, Run, abandoned_before, describe_run
from runtap_consumers.figures.sessions import SessionFigures, describe_session
from runtap_consumers.figures.shapes import Dollars, Instant, pick
from runtap_consumers.instants import dollars, format_instant, seconds
from runtap_consumers.store.read.scores import read_scores_of
from runtap_consumers.store.read.sessions import read_session
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.store.read.traces import find_traces, read_contents, read_session_traces, read_trace

# More than anybody looks at; what is beyond is counted.
MAX_RUNS = 5_000


class Content(TypedDict):
    """What was captured of a run; `content_bytes`: what it was before it was cut off."""

    inputs: NotRequired[Any]
    outputs: NotRequired[Any]
    content_bytes: NotRequired[int]


class RunFeedback(TypedDict):
    """What somebody thought of a run: a number, `score`, or a category, `value`."""

    at: Instant
    key: str
    score: str | None
    value: str | None
    source: str
    comment: str | None


class TraceRun(Run):
    """A run of a trace. `depth`: how many are above it; `offset_seconds`: after the trace's begin; `self_seconds`: the
    time in which no child of it ran.
    """

    depth: int
    offset_seconds: float
    self_seconds: float | None
    content: Content | None
    feedback: list[RunFeedback]


class TraceTokens(TypedDict):
    """Tokens of a trace's calls."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    reasoning_tokens: int


class TraceFigures(TraceTokens):
    """A trace: facts of its root, sums of its runs, and these, each below its parent."""

    trace_id: str
    name: str | None
    status: str
    service: str | None
    environment: str | None
    session_id: str | None
    user_id: str | None
    started_at: Instant
    duration_seconds: float
    run_count: int
    is_cut_off: bool
    errors: int
    llm_calls: int
    unpriced_calls: int
    cost_usd: Dollars | None
    runs: list[TraceRun]


class SessionTraces(SessionFigures):
    """A session and its traces, as far as their runs are kept, the oldest first."""

    kept_traces: list[TraceFigures]


def build_trace(snapshot: Snapshot, text: str, zone: ZoneInfo, *, with_content: bool = True) -> TraceFigures:
    """The trace of an id, or of the beginning of a run's.

    Raises:
        InputError: there is none, or more than one.
    """
    found = find_traces(snapshot, text)
    if not found:
        raise InputError(
            f"there is no run or trace {text!r}: it is past retention, not applied yet, or `runtap worker runs` does "
            "not run"
        )
    if len(found) > 1:
        raise InputError(f"{text!r} begins the ids of runs of {len(found)} traces or more: {', '.join(found[:3])}, …")
    return _describe_trace(snapshot, found[0], zone, with_content)


def build_session(
    snapshot: Snapshot, session_id: str, zone: ZoneInfo, limit: int, *, with_content: bool = True
) -> SessionTraces:
    """A session and its traces, the oldest first.

    Raises:
        InputError: there is none.
    """
    row = read_session(snapshot, session_id)
    if row is None:
        raise InputError(f"there is no session {session_id!r}: `runtap sessions` lists them")
    complete = read_completeness(snapshot, ("sessions",))
    return {
        **describe_session(row, complete.at_ns, zone),
        "kept_traces": [
            _describe_trace(snapshot, trace_id, zone, with_content)
            for trace_id in read_session_traces(snapshot, row, limit)
        ],
    }


def _describe_trace(snapshot: Snapshot, trace_id: str, zone: ZoneInfo, with_content: bool) -> TraceFigures:
    rows = read_trace(snapshot, trace_id, MAX_RUNS + 1)
    # Only what has not ended may be abandoned.
    is_open = any(row.get("status") is None for row in rows)
    boundary = abandoned_before(read_completeness(snapshot, (PROJECTION,)).at_ns) if is_open else None
    contents = read_contents(snapshot, [row["run_id"] for row in rows]) if with_content else {}
    scores = read_scores_of(snapshot, [row["run_id"] for row in rows])
    began_ns = min(row["started_at_ns"] for row in rows)
    ended_ns = max(_end_ns(row) for row in rows)
    selves = self_times(rows)
    runs: list[TraceRun] = []
    for row, depth in in_tree_order(rows[:MAX_RUNS]):
        run_id = row["run_id"]
        run: TraceRun = {
            **describe_run(row, boundary, zone),
            "depth": depth,
            "offset_seconds": seconds(row["started_at_ns"] - began_ns),
            "self_seconds": seconds(selves[run_id]) if row.get("duration_ns") is not None else None,
            "content": cast(Content | None, contents.get(run_id)),
            "feedback": [
                cast(RunFeedback, {"at": format_instant(each.pop("at_ns"), zone), **each})
                for each in scores.get(run_id, ())
            ],
        }
        runs.append(run)
    root = runs[0]
    calls = [row for row in rows if row["run_type"] == "llm" and row.get("status") is not None]
    priced = [row["cost_picodollars"] for row in calls if row["cost_picodollars"] is not None]
    return {
        **pick(TraceFigures, root),
        "trace_id": trace_id,
        "duration_seconds": seconds(ended_ns - began_ns),
        "run_count": len(runs),
        "is_cut_off": len(rows) > MAX_RUNS,
        "errors": sum(run["status"] == "error" for run in runs),
        "llm_calls": len(calls),
        "unpriced_calls": sum(row["cost_picodollars"] is None and row["input_tokens"] is not None for row in calls),
        **pick(TraceTokens, {name: sum(row[name] or 0 for row in calls) for name in TraceTokens.__annotations__}),
        "cost_usd": dollars(sum(priced)) if priced or not calls else None,
        "runs": runs,
    }


def in_tree_order(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Runs below their parents, siblings by start, with how deep they are. Whose parent is not there is a root."""
    ids = {row["run_id"] for row in rows}
    children = defaultdict[str | None, list[dict[str, Any]]](list)
    for row in rows:
        parent = row["parent_run_id"]
        children[parent if parent in ids and parent != row["run_id"] else None].append(row)
    seen: set[str] = set()
    waiting = [(row, 0) for row in reversed(children[None])]
    while waiting:
        row, depth = waiting.pop()
        if row["run_id"] in seen:
            continue
        seen.add(row["run_id"])
        yield row, depth
        waiting += [(child, depth + 1) for child in reversed(children[row["run_id"]])]
    # Runs that name each other as their parents, which only a forger sends.
    yield from ((row, 0) for row in rows if row["run_id"] not in seen)


def self_times(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How long each run was busy itself, by its id: without the time in which some child of it ran."""
    spans = defaultdict[str, list[tuple[int, int]]](list)
    for row in rows:
        if row["parent_run_id"]:
            spans[row["parent_run_id"]].append((row["started_at_ns"], _end_ns(row)))
    found = {}
    for row in rows:
        first, last = row["started_at_ns"], _end_ns(row)
        covered, until = 0, first
        for begin, end in sorted(spans[row["run_id"]]):
            begin, end = max(begin, until), min(end, last)
            if end > begin:
                covered += end - begin
                until = end
        found[row["run_id"]] = max((row.get("duration_ns") or last - first) - covered, 0)
    return found


def _end_ns(row: Mapping[str, Any]) -> int:
    return int(row["started_at_ns"] + (row.get("duration_ns") or 0))
