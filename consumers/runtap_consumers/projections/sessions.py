"""
Sessions: when, who, how much, at what cost.
"""

from __future__ import annotations

from typing import Any

from runtap_consumers.batch import Batch, add_row, add_up_by_value
from runtap_consumers.rollups import COST_MEASURES, SESSION_COSTS, SESSION_USERS, SESSIONS, Changes
from runtap_schemas import RunNoted, RunStarted, SessionEvent, SessionStarted

_FIRST, _LAST, _STARTS, _ENDS, _TRACES, _LLM, _TOOLS, _ERRORS, _INPUT, _OUTPUT, _SERVICE, _LOG_TIME = range(12)
_MEASURE_NAMES = [measure.name for measure in COST_MEASURES]
_CALLS_MEASURE = _MEASURE_NAMES.index("calls")
_INPUT_MEASURE, _OUTPUT_MEASURE = _MEASURE_NAMES.index("input_tokens"), _MEASURE_NAMES.index("output_tokens")


def fold_sessions(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """
    Folds everything that names a session. A run counts from its start to its end.
    """
    rows: dict[str, list[Any]] = {}
    users: set[tuple[str, str]] = set()
    for event, at_ns in batch.ended:
        session_id = event.session_id
        if session_id is None:
            continue
        started_ns = max(at_ns - event.duration_ns, 0)
        row = rows.get(session_id)
        if row is None:
            row = rows[session_id] = _new_row(event.service, started_ns, at_ns, batch.log_time_ns)
        elif started_ns < row[_FIRST]:
            row[_FIRST] = started_ns
        if at_ns > row[_LAST]:
            row[_LAST] = at_ns
        if event.user_id is not None:
            users.add((session_id, event.user_id))
        if event.is_root:
            row[_TRACES] += 1
        if event.run_type == "tool":
            row[_TOOLS] += 1
        if event.error is not None and event.status == "error" and event.error.origin:
            row[_ERRORS] += 1
    others: list[tuple[RunStarted | RunNoted | SessionEvent, int]] = [*batch.started, *batch.noted, *batch.sessions]
    for other, at_ns in others:
        session_id = other.session_id
        if session_id is None:
            continue
        row = rows.get(session_id)
        if row is None:
            row = rows[session_id] = _new_row(other.service, at_ns, at_ns, batch.log_time_ns)
        row[_FIRST], row[_LAST] = min(row[_FIRST], at_ns), max(row[_LAST], at_ns)
        if other.user_id is not None:
            users.add((session_id, other.user_id))
        if isinstance(other, SessionEvent):
            row[_STARTS if isinstance(other, SessionStarted) else _ENDS] += 1
    costs: dict[tuple[Any, ...], list[Any]] = {}
    for (_, provider, model, _, _, price_set, price_class), calls in batch.calls_by_price.items():
        for session_id, sums in add_up_by_value([(call.event.session_id, call.measures) for call in calls]).items():
            add_row(costs, (session_id, provider, model, price_set, price_class), sums)
            row = rows[session_id]
            row[_LLM] += sums[_CALLS_MEASURE]
            row[_INPUT] += sums[_INPUT_MEASURE]
            row[_OUTPUT] += sums[_OUTPUT_MEASURE]
    return Changes(
        rows={
            SESSIONS.name: {(session_id,): row for session_id, row in rows.items()},
            SESSION_USERS.name: {pair: [] for pair in users},
            SESSION_COSTS.name: costs,
        }
    )


def _new_row(service: str, first_ns: int, last_ns: int, log_time_ns: int) -> list[Any]:
    return [first_ns, last_ns, 0, 0, 0, 0, 0, 0, 0, 0, service, log_time_ns]
