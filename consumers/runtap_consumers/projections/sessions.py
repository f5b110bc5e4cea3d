"""Sessions: when, who, how much, at what cost."""

from __future__ import annotations

from typing import Any

from runtap_consumers.projections.batch import Batch, add_row, add_up_by_value
from runtap_consumers.projections.rollups import COST_MEASURES, SESSION_COSTS, SESSIONS, Changes
from runtap_schemas import SessionStarted

_FIRST, _LAST, _STARTS, _ENDS, _TRACES, _LLM, _TOOLS, _ERRORS, _INPUT, _OUTPUT, _SERVICE, _LOG_TIME = range(12)
_MEASURE_NAMES = [measure.name for measure in COST_MEASURES]
_INPUT_MEASURE, _OUTPUT_MEASURE = _MEASURE_NAMES.index("input_tokens"), _MEASURE_NAMES.index("output_tokens")


def fold_sessions(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """Folds everything that names a session. A run counts from its start to its end."""
    sessions = _Sessions(batch.log_time_ns)
    for (event, at_ns), call in zip(batch.ended, batch.calls, strict=True):
        if event.session_id is None:
            continue
        started_ns = at_ns - event.duration_ns if event.duration_ns < at_ns else 0
        row = sessions.row(event.session_id, event.user_id, event.service, started_ns, at_ns)
        if event.is_root:
            row[_TRACES] += 1
        if event.run_type == "tool":
            row[_TOOLS] += 1
        if event.error is not None and event.status == "error" and event.error.origin:
            row[_ERRORS] += 1
        if call is not None:
            row[_LLM] += 1
            row[_INPUT] += call.measures[_INPUT_MEASURE]
            row[_OUTPUT] += call.measures[_OUTPUT_MEASURE]
    for run, at_ns in (*batch.started, *batch.noted):
        if run.session_id is not None:
            sessions.row(run.session_id, run.user_id, run.service, at_ns, at_ns)
    for session, at_ns in batch.sessions:
        row = sessions.row(session.session_id, session.user_id, session.service, at_ns, at_ns)
        row[_STARTS if isinstance(session, SessionStarted) else _ENDS] += 1
    costs: dict[tuple[Any, ...], list[Any]] = {}
    for _, _, number, calls in batch.priced_calls:
        for session_id, sums in add_up_by_value([(call.event.session_id, call.measures) for call in calls]).items():
            add_row(costs, (session_id, number), sums)
    return Changes(rows={SESSIONS.name: sessions.rows, SESSION_COSTS.name: costs})


class _Sessions:
    """The rows of one batch, by session and user."""

    def __init__(self, log_time_ns: int) -> None:
        self.rows: dict[tuple[Any, ...], list[Any]] = {}
        self._log_time_ns = log_time_ns

    def row(self, session_id: str, user_id: str | None, service: str, first_ns: int, last_ns: int) -> list[Any]:
        """A session's row, stretched over what happened from `first_ns` to `last_ns`."""
        key = (session_id, user_id or "")
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = [first_ns, last_ns, 0, 0, 0, 0, 0, 0, 0, 0, service, self._log_time_ns]
        if first_ns < row[_FIRST]:
            row[_FIRST] = first_ns
        if last_ns > row[_LAST]:
            row[_LAST] = last_ns
        return row
