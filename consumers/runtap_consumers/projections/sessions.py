"""
Sessions: when, who, how much, at what cost.
"""

from __future__ import annotations

from operator import add
from typing import Any

from runtap_consumers.batch import Batch
from runtap_consumers.rollups import COST_MEASURES, SESSION_COSTS, SESSION_USERS, SESSIONS, Changes
from runtap_schemas import SessionStarted

_FIRST, _LAST, _STARTS, _ENDS, _TRACES, _LLM, _TOOLS, _ERRORS, _INPUT, _OUTPUT, _SERVICE, _LOG_TIME = range(12)
_MEASURE_NAMES = [measure.name for measure in COST_MEASURES]
_INPUT_MEASURE, _OUTPUT_MEASURE = _MEASURE_NAMES.index("input_tokens"), _MEASURE_NAMES.index("output_tokens")

Rows = dict[tuple[Any, ...], list[Any]]


def fold_sessions(batch: Batch, _cost_attributes: tuple[str, ...]) -> Changes:
    """
    Folds everything that names a session. A run counts from its start to its end.
    """
    folder = _Sessions(batch.log_time_ns)
    for (event, at_ns), call in zip(batch.ended, batch.calls, strict=True):
        if event.session_id is None:
            continue
        row = folder.row(event.session_id, event.user_id, event.service, at_ns - min(event.duration_ns, at_ns), at_ns)
        row[_TRACES] += event.is_root
        row[_TOOLS] += event.run_type == "tool"
        row[_ERRORS] += event.status == "error" and event.error is not None and event.error.origin
        if call is not None:
            folder.add_call(
                event.session_id, row, call.measures, (call.provider, call.model), (call.price_set, call.price_class)
            )
    for run, at_ns in (*batch.started, *batch.noted):
        if run.session_id is not None:
            folder.row(run.session_id, run.user_id, run.service, at_ns, at_ns)
    for session, at_ns in batch.sessions:
        row = folder.row(session.session_id, session.user_id, session.service, at_ns, at_ns)
        row[_STARTS if isinstance(session, SessionStarted) else _ENDS] += 1
    return Changes(
        rows={SESSIONS.name: folder.sessions, SESSION_USERS.name: folder.users, SESSION_COSTS.name: folder.costs}
    )


class _Sessions:
    """
    The rows of one batch.
    """

    def __init__(self, log_time_ns: int) -> None:
        self.sessions: Rows = {}
        self.users: Rows = {}
        self.costs: Rows = {}
        self._log_time_ns = log_time_ns

    def row(self, session_id: str, user_id: str | None, service: str, first_ns: int, last_ns: int) -> list[Any]:
        row = self.sessions.get((session_id,))
        if row is None:
            row = [first_ns, last_ns, 0, 0, 0, 0, 0, 0, 0, 0, service, self._log_time_ns]
            self.sessions[(session_id,)] = row
        row[_FIRST] = min(row[_FIRST], first_ns)
        row[_LAST] = max(row[_LAST], last_ns)
        if user_id is not None:
            self.users[(session_id, user_id)] = []
        return row

    def add_call(
        self, session_id: str, row: list[Any], measures: list[int], model: tuple[str, str], price: tuple[str, str]
    ) -> None:
        row[_LLM] += 1
        row[_INPUT] += measures[_INPUT_MEASURE]
        row[_OUTPUT] += measures[_OUTPUT_MEASURE]
        key = (session_id, *model, *price)
        costs = self.costs.get(key)
        self.costs[key] = measures if costs is None else list(map(add, costs, measures))
