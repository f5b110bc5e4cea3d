"""The routes of `/api/v1/`: the figures as the commands print them with `--json`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runtap_consumers.correct.unpriced import advise, list_unpriced
from runtap_consumers.errors import InputError, QueryTimeoutError, StoreError
from runtap_consumers.figures import overview
from runtap_consumers.figures import runs as run_rows
from runtap_consumers.figures.costs import FILTERS, CostQuestion, build_costs
from runtap_consumers.figures.dead_letters import describe_letter
from runtap_consumers.figures.ledger import build_ledger
from runtap_consumers.figures.report import SECTIONS, build_report, check_service, read_completeness
from runtap_consumers.figures.sessions import PROJECTION, describe_session
from runtap_consumers.figures.traces import build_session, build_trace
from runtap_consumers.figures.workers import describe_workers
from runtap_consumers.instants import parse_instant
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.serve.guard import refuse
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.dead_letters import list_dead_letters
from runtap_consumers.store.read.runs import RunFilter, stream_runs
from runtap_consumers.store.read.sessions import read_sessions
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot

_prices = threading.Lock()
MAX_ROWS = 1_000
_DEFAULT_ROWS = 50
_METRICS = ("cost_usd", "calls", "unpriced_calls", "input_tokens", "output_tokens")
_RUN_FILTERS = {
    "session": "session_id",
    "trace": "trace_id",
    "user": "user_id",
    "type": "run_type",
    **{name: name for name in ("model", "status", "service", "name", "tag")},
}


@dataclass(frozen=True)
class Source:
    """Where answers come from. `seconds`: how long a query may take."""

    store: Store
    settings: ConsumerSettings
    prices: PriceSource
    seconds: float = 10.0


@dataclass(frozen=True)
class Query:
    """What a request asks for."""

    source: Source
    parameters: Mapping[str, list[str]]
    path: Mapping[str, str]
    now_ns: int

    def one(self, name: str) -> str | None:
        """A parameter that is given at most once."""
        values = self.parameters.get(name, [])
        if len(values) > 1:
            raise InputError(f"{name!r} is given {len(values)} times: expected once")
        return values[0] if values else None

    def instant(self, name: str) -> int | None:
        """A time, as `--since` takes it."""
        text = self.one(name)
        return None if text is None else parse_instant(text, self.source.settings.zone(), self.now_ns)

    def rows(self) -> int:
        """How many rows are wanted."""
        text = self.one("limit") or str(_DEFAULT_ROWS)
        if not text.isdecimal() or not 1 <= int(text) <= MAX_ROWS:
            raise InputError(f"limit={text!r}: expected 1 to {MAX_ROWS:,}; what is beyond has a cursor")
        return int(text)


Answer = Callable[[Query], dict[str, Any]]


def _report(*sections: str) -> Answer:
    """All of the report, or these sections of it."""

    def answer(query: Query) -> dict[str, Any]:
        span, zone = (query.instant("since"), query.instant("until")), query.source.settings.zone()
        store, service = query.source.store, query.one("service")
        return build_report(store, *span, service, zone, query.now_ns, sections or SECTIONS)

    return answer


def _asked(query: Query, by: tuple[str, ...] = ()) -> CostQuestion:
    where = {name: value for name in FILTERS if (value := query.one(name)) is not None}
    return CostQuestion(by, query.instant("since"), query.instant("until"), where)


def _overview(query: Query) -> dict[str, Any]:
    settings = query.source.settings
    attributes = settings.cost_attributes
    return overview.build_overview(query.source.store, _asked(query), attributes, settings.zone(), query.now_ns)


def _components(query: Query) -> dict[str, Any]:
    found = _report("performance_by_run_type", "performance")(query)
    return {**found, "self_times": overview.build_self_times(query.source.store, _asked(query), query.now_ns)}


def _errors(query: Query) -> dict[str, Any]:
    store, zone = query.source.store, query.source.settings.zone()
    return {**_report("errors")(query), "trend": overview.build_error_trend(store, _asked(query), zone, query.now_ns)}


def _costs(query: Query) -> dict[str, Any]:
    return _asked_costs(query, tuple(query.parameters.get("by", ["model"])))


def _asked_costs(query: Query, by: tuple[str, ...]) -> dict[str, Any]:
    source = query.source
    asked = _asked(query, by)
    attributes, zone = source.settings.cost_attributes, source.settings.zone()
    # A table of prices is for one thread at a time.
    with _prices:
        source.prices.refresh()
        return build_costs(source.store, source.prices.table, asked, attributes, zone, query.now_ns)


def _series(query: Query) -> dict[str, Any]:
    metric, by, grain = query.one("metric") or "cost_usd", query.one("by"), query.one("grain") or "hour"
    if metric not in _METRICS or grain not in ("hour", "day"):
        raise InputError(f"metric={metric!r}, grain={grain!r}: expected {', '.join(_METRICS)}; hour, day")
    found = _asked_costs(query, (grain, by) if by else (grain,))
    points: dict[str | None, list[list[Any]]] = {}
    for row in found["rows"]:
        points.setdefault(row[by] if by else None, []).append([row[grain], row[metric]])
    named = ("generated_at", "range", "complete_to", "timezone", "source")
    series = [{"value": value, "points": each} for value, each in points.items()]
    return {**{name: found[name] for name in named}, "metric": metric, "grain": grain, "by": by, "series": series}


def _runs(query: Query) -> dict[str, Any]:
    limit, zone = query.rows(), query.source.settings.zone()
    wanted: dict[str, Any] = {column: query.one(name) for name, column in _RUN_FILTERS.items()}
    cursor = query.one("cursor")
    filtered = RunFilter(
        **wanted,
        since_ns=query.instant("since"),
        until_ns=query.instant("until"),
        roots=query.one("roots") == "true",
        metadata=run_rows.metadata_pair(query.one("metadata")),
        after=None if cursor is None else _read_cursor(cursor),
    )
    rows: list[Mapping[str, Any]] = []
    boundary: int | None = None
    is_complete = True
    try:
        with open_snapshot(query.source.store) as snapshot:
            boundary = run_rows.abandoned_before(read_completeness(snapshot, (run_rows.PROJECTION,)).at_ns)
            with closing(stream_runs(snapshot, filtered, boundary, limit + 1)) as found:
                for row in found:
                    rows.append(row)
    except QueryTimeoutError:
        is_complete = False
    shown = rows[:limit]
    more = len(rows) > limit or (not is_complete and shown)
    return {
        "runs": [run_rows.describe_run(row, boundary, zone) for row in shown],
        "complete": is_complete,
        "cursor": _cursor(shown[-1]["started_at_ns"], shown[-1]["run_id"]) if more else None,
    }


def _sessions(query: Query) -> dict[str, Any]:
    zone = query.source.settings.zone()
    since, until = query.instant("since") or 0, query.instant("until")
    with open_snapshot(query.source.store) as snapshot:
        complete = read_completeness(snapshot, (PROJECTION,))
        with closing(
            read_sessions(snapshot, since, until, query.one("service"), query.rows(), query.one("user"))
        ) as rows:
            return {"sessions": [describe_session(row, complete.at_ns, zone) for row in rows]}


def _session(query: Query) -> dict[str, Any]:
    with open_snapshot(query.source.store) as snapshot:
        return build_session(snapshot, query.path["id"], query.source.settings.zone(), min(query.rows(), 100))


def _trace(query: Query) -> dict[str, Any]:
    with open_snapshot(query.source.store) as snapshot:
        return build_trace(snapshot, query.path["id"], query.source.settings.zone())


def _ledger(query: Query) -> dict[str, Any]:
    with open_snapshot(query.source.store) as snapshot:
        return build_ledger(snapshot, query.source.settings.zone())


def _workers(query: Query) -> dict[str, Any]:
    with open_snapshot(query.source.store) as snapshot:
        return describe_workers(snapshot, query.source.settings.zone(), query.now_ns)


def _dead_letters(query: Query) -> dict[str, Any]:
    zone = query.source.settings.zone()
    with open_snapshot(query.source.store) as snapshot:
        return {"dead_letters": [describe_letter(row, zone) for row in list_dead_letters(snapshot, query.rows())]}


def _unpriced(query: Query) -> dict[str, Any]:
    with _prices, open_snapshot(query.source.store) as snapshot:
        query.source.prices.refresh()
        rows = list_unpriced(snapshot, query.source.prices.table)
    return {"models": [{**row, "advice": advise(row)} for row in rows]}


ANSWERS: dict[str, Answer] = {
    "overview": _overview,
    "report": _report(),
    "costs": _costs,
    "series": _series,
    "components": _components,
    "runs": _runs,
    "traces/{id}": _trace,
    "sessions": _sessions,
    "sessions/{id}": _session,
    "errors": _errors,
    "alerts": _report("alerts"),
    "ledger": _ledger,
    "workers": _workers,
    "dead-letters": _dead_letters,
    "unpriced": _unpriced,
}
_NOT_FOUND = ("traces/{id}", "sessions/{id}")


def api_routes(source: Source) -> list[Route]:
    """One route an answer."""
    return [Route(f"/api/v1/{path}", _endpoint(source, path, answer), name=path) for path, answer in ANSWERS.items()]


def _endpoint(source: Source, path: str, answer: Answer) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        parameters: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            parameters.setdefault(name, []).append(value)
        query = Query(source, parameters, request.path_params, time.time_ns())
        try:
            etag = await run_in_threadpool(_etag, query, request.url.path)
            if request.headers.get("if-none-match") == etag:
                return Response(status_code=304, headers={"etag": etag})
            found = await run_in_threadpool(_limited, answer, query)
        except InputError as error:
            return refuse(404 if path in _NOT_FOUND and "there is no" in str(error) else 400, str(error))
        except QueryTimeoutError as error:
            return refuse(503, f"{error}: ask for a shorter range, or fewer rows")
        except StoreError as error:
            return refuse(503, str(error))
        return Response(orjson.dumps(found), media_type="application/json", headers={"etag": etag})

    return endpoint


def _limited(answer: Answer, query: Query) -> dict[str, Any]:
    with query.source.store.limit(query.source.seconds):
        with open_snapshot(query.source.store) as snapshot:
            check_service(snapshot, query.one("service"))
        return answer(query)


def _etag(query: Query, path: str) -> str:
    """Of what the answer is made of: where each projection stands, the newest repricing, and the question. Where it is
    of the time until now, it is another each minute.
    """
    with open_snapshot(query.source.store) as snapshot:
        parts = [
            *(
                (row.projection, row.partition, row.next_offset, row.epoch, row.generation)
                for row in snapshot.positions
            ),
            _newest_repricing(snapshot),
            path,
            sorted(query.parameters.items()),
            None if "until" in query.parameters else query.now_ns // (60 * 10**9),
        ]
    return f'"{hashlib.sha256(orjson.dumps(parts)).hexdigest()[:32]}"'


def _newest_repricing(snapshot: Snapshot) -> str | None:
    table = tables.repricings
    newest = select(table.c.id).order_by(table.c.at_ns.desc()).limit(1)
    return snapshot.connection.execute(newest).scalar()


def _cursor(started_at_ns: int, run_id: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([started_at_ns, run_id])).decode()


def _read_cursor(text: str) -> tuple[int, str]:
    try:
        started_at_ns, run_id = orjson.loads(base64.urlsafe_b64decode(text))
        return int(started_at_ns), str(run_id)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InputError(f"cursor={text!r} is none of ours: leave it out, or take it from the answer before") from error
