"""The routes of `/api/v1/`: the figures as the commands print them with `--json`."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, TypedDict, TypeVar

import orjson
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runtap_consumers.correct.unpriced import ModelWithoutPrice, list_unpriced
from runtap_consumers.errors import InputError, QueryTimeoutError, StoreError
from runtap_consumers.figures import overview
from runtap_consumers.figures import runs as run_rows
from runtap_consumers.figures.changes import CostChanges, build_changes
from runtap_consumers.figures.costs import FILTERS, CostQuestion, build_costs
from runtap_consumers.figures.dead_letters import DeadLetterFacts, describe_letter
from runtap_consumers.figures.ledger import Ledger, build_ledger
from runtap_consumers.figures.report import build_sections, check_service, read_completeness
from runtap_consumers.figures.run_pages import read_page
from runtap_consumers.figures.sections import Alerts, Components, Costs, Errors, FeedbackOfRange, ReportFigures
from runtap_consumers.figures.sessions import PROJECTION, SessionFigures, describe_session
from runtap_consumers.figures.shapes import Instant, OfRange, pick
from runtap_consumers.figures.traces import SessionTraces, TraceFigures, build_session, build_trace
from runtap_consumers.figures.workers import Workers, describe_workers
from runtap_consumers.serve.guard import refuse
from runtap_consumers.serve.query import MOST_TRACES, Query, Question, Source, write_cursor
from runtap_consumers.store import tables
from runtap_consumers.store.read.dead_letters import list_dead_letters
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.sessions import read_sessions
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot

_prices = threading.Lock()
# Runs that few have in common are found part by part: whoever waits sees that it goes on.
_SEARCH_SECONDS = 1.0
_RUN_FILTERS = {
    "session": "session_id",
    "trace": "trace_id",
    "user": "user_id",
    "type": "run_type",
    **{name: name for name in ("model", "status", "service", "name", "tag")},
}
_SPAN = ("since", "until")
_PAGE = ("limit", "cursor")


ANSWERS: dict[str, Question] = {}
_Answered = TypeVar("_Answered")
_Answer = Callable[[Query], _Answered]


def _at(path: str, *takes: str) -> Callable[[_Answer[_Answered]], _Answer[_Answered]]:
    def register(answer: _Answer[_Answered]) -> _Answer[_Answered]:
        ANSWERS[path] = Question(answer, takes)
        return answer

    return register


class Series(OfRange):
    """A figure over time, a series for each value of `by`. A point: its begin, and the figure."""

    timezone: str
    source: str
    metric: str
    grain: str
    by: str | None
    series: list[OneSeries]


class OneSeries(TypedDict):
    """The points of one value; null is for calls without it."""

    value: str | None
    points: list[tuple[Instant, int | str | None]]


class Runs(TypedDict):
    """A page of runs, newest first. `complete`: false where the time was up before the page was full."""

    runs: list[run_rows.Run]
    complete: bool
    cursor: str | None


class Sessions(TypedDict):
    """A page of sessions, the one with the newest event first."""

    sessions: list[SessionFigures]
    cursor: str | None


_Shown = TypeVar("_Shown", bound=OfRange)


def _sections(query: Query, shape: type[_Shown]) -> _Shown:
    source = query.source
    return build_sections(
        shape, source.store, *query.span(), query.one("service"), source.settings.zone(), query.now_ns
    )


@_at("report", *_SPAN, "service")
def _report(query: Query) -> ReportFigures:
    """Every figure of a range of time, as `runtap report --json` prints it."""
    return _sections(query, ReportFigures)


class ComponentsInside(Components):
    """With how long they were busy themselves."""

    self_times: overview.SelfTimes


class ErrorsOverTime(Errors):
    """With how often each group occurred when."""

    trend: overview.ErrorTrend


class DeadLetters(TypedDict):
    """The newest first."""

    dead_letters: list[DeadLetterFacts]


class Unpriced(TypedDict):
    """Models without a price, the most called first."""

    models: list[ModelWithoutPrice]


def _asked(query: Query, *by: str) -> CostQuestion:
    where = {name: value for name in FILTERS if (value := query.one(name)) is not None}
    return CostQuestion(by, *query.span(), where)


@_at("overview", *_SPAN, "service")
def _overview(query: Query) -> overview.Overview:
    """What a page shows first: a range beside the one before it, each figure over time."""
    settings = query.source.settings
    attributes, zone = settings.cost_attributes, settings.zone()
    return overview.build_overview(query.source.store, _asked(query), attributes, zone, query.now_ns)


@_at("components", *_SPAN, "service")
def _components(query: Query) -> ComponentsInside:
    """How long components took, and how often they failed."""
    self_times = overview.build_self_times(query.source.store, _asked(query), query.now_ns)
    return {**_sections(query, Components), "self_times": self_times}


@_at("errors", *_SPAN, "service")
def _errors(query: Query) -> ErrorsOverTime:
    """Errors by type and group, and the last ones."""
    store, zone = query.source.store, query.source.settings.zone()
    trend = overview.build_error_trend(store, _asked(query), zone, query.now_ns)
    return {**_sections(query, Errors), "trend": trend}


@_at("feedback", *_SPAN, "service")
def _feedback(query: Query) -> FeedbackOfRange:
    """What was thought of runs."""
    return _sections(query, FeedbackOfRange)


@_at("alerts", *_SPAN, "service")
def _alerts(query: Query) -> Alerts:
    """Alerts that fired, and those that were resolved."""
    return _sections(query, Alerts)


@_at("costs", "by", *_SPAN, *FILTERS)
def _costs(query: Query) -> Costs:
    """Costs cut by one name or two."""
    return _asked_costs(query, tuple(query.parameters.get("by", ["model"])))


def _asked_costs(query: Query, by: tuple[str, ...]) -> Costs:
    source = query.source
    asked = _asked(query, *by)
    attributes, zone = source.settings.cost_attributes, source.settings.zone()
    # A table of prices is for one thread at a time.
    with _prices:
        source.prices.refresh()
        return build_costs(source.store, source.prices.table, asked, attributes, zone, query.now_ns)


@_at("changes", *_SPAN, "before_since", "before_until", "service")
def _changes(query: Query) -> CostChanges:
    """Why costs differ from those of a range before; if that is left out, of the one as long just before."""
    source, before = query.source, (query.instant("before_since"), query.instant("before_until"))
    zone, service = source.settings.zone(), query.one("service")
    with _prices:
        source.prices.refresh()
        return build_changes(source.store, source.prices.table, query.span(), before, service, zone, query.now_ns)


@_at("series", "metric", "by", "grain", *_SPAN, *FILTERS)
def _series(query: Query) -> Series:
    """A figure of costs over time."""
    metric, grain, by = str(query.one("metric")), str(query.one("grain")), query.parameters.get("by", [])
    found = _asked_costs(query, (grain, *by))
    points: dict[str | None, list[tuple[str, int | str | None]]] = {}
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    for row in rows:
        points.setdefault(row[by[0]] if by else None, []).append((row[grain], row[metric]))
    return {
        **pick(Series, found),
        "metric": metric,
        "grain": grain,
        "by": by[0] if by else None,
        "series": [{"value": value, "points": each} for value, each in points.items()],
    }


@_at("runs", *_RUN_FILTERS, "roots", "metadata", *_SPAN, *_PAGE)
def _runs(query: Query) -> Runs:
    """Single runs, newest first."""
    limit, zone, (since_ns, until_ns) = query.rows(), query.source.settings.zone(), query.span()
    wanted: dict[str, Any] = {column: query.one(name) for name, column in _RUN_FILTERS.items()}
    filtered = RunFilter(
        **wanted,
        since_ns=since_ns,
        until_ns=until_ns,
        roots=query.one("roots") == "true",
        metadata=run_rows.metadata_pair(query.one("metadata")),
        after=query.after(),
    )
    page = read_page(query.source.store, filtered, limit, min(query.source.seconds, _SEARCH_SECONDS))
    return {
        "runs": [run_rows.describe_run(row, page.abandoned_before_ns, zone) for row in page.rows],
        "complete": page.is_complete,
        "cursor": None if page.after is None else write_cursor(*page.after),
    }


@_at("sessions", "user", "service", *_SPAN, *_PAGE)
def _sessions(query: Query) -> Sessions:
    """Sessions, the one with the newest event first."""
    limit, (since_ns, until_ns) = query.rows(), query.span()
    of = (since_ns or 0, until_ns, query.one("service"), query.one("user"))
    with open_snapshot(query.source.store) as snapshot:
        complete = read_completeness(snapshot, (PROJECTION,))
        with closing(read_sessions(snapshot, *of, limit=limit + 1, after=query.after())) as rows:
            shown = list(islice(rows, limit))
            more = next(rows, None) is not None
    zone = query.source.settings.zone()
    return {
        "sessions": [describe_session(row, complete.at_ns, zone) for row in shown],
        "cursor": write_cursor(shown[-1].last_at_ns, shown[-1].session_id) if more else None,
    }


@_at("sessions/{id}", "limit")
def _session(query: Query) -> SessionTraces:
    """A session and its traces, the oldest first."""
    limit = min(query.rows(), MOST_TRACES)
    with open_snapshot(query.source.store) as snapshot:
        return build_session(snapshot, query.path["id"], query.source.settings.zone(), limit)


@_at("traces/{id}")
def _trace(query: Query) -> TraceFigures:
    """The trace of an id: its own, or a run's, or how a run's begins."""
    with open_snapshot(query.source.store) as snapshot:
        return build_trace(snapshot, query.path["id"], query.source.settings.zone())


@_at("ledger")
def _ledger(query: Query) -> Ledger:
    """Where every captured event is."""
    with open_snapshot(query.source.store) as snapshot:
        return build_ledger(snapshot, query.source.settings.zone())


@_at("workers")
def _workers(query: Query) -> Workers:
    """How far the projections are."""
    with open_snapshot(query.source.store) as snapshot:
        return describe_workers(snapshot, query.source.settings.zone(), query.now_ns)


@_at("dead-letters", "limit")
def _dead_letters(query: Query) -> DeadLetters:
    """Records and lines of them that could not be read or applied, the newest first."""
    zone = query.source.settings.zone()
    with open_snapshot(query.source.store) as snapshot:
        return {"dead_letters": [describe_letter(row, zone) for row in list_dead_letters(snapshot, query.rows())]}


@_at("unpriced")
def _unpriced(query: Query) -> Unpriced:
    """Models whose calls have no price, and what to do."""
    with _prices, open_snapshot(query.source.store) as snapshot:
        query.source.prices.refresh()
        return {"models": list_unpriced(snapshot, query.source.prices.table)}


_NOT_FOUND = ("traces/{id}", "sessions/{id}")


def api_routes(source: Source) -> list[Route]:
    """One route an answer."""
    return [Route(f"/api/v1/{path}", _endpoint(source, path, one), name=path) for path, one in ANSWERS.items()]


def _endpoint(source: Source, path: str, question: Question) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        parameters: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            parameters.setdefault(name, []).append(value)
        query = Query(source, parameters, request.path_params, time.time_ns())
        try:
            question.check(parameters, request.path_params)
            etag = await run_in_threadpool(_etag, query, request.url.path)
            if request.headers.get("if-none-match") == etag:
                return Response(status_code=304, headers={"etag": etag})
            found = await run_in_threadpool(_limited, question, query)
        except InputError as error:
            return refuse(404 if path in _NOT_FOUND and "there is no" in str(error) else 400, str(error))
        except QueryTimeoutError as error:
            return refuse(503, f"{error}: ask for a shorter range, or fewer rows")
        except StoreError as error:
            return refuse(503, str(error))
        return Response(orjson.dumps(found), media_type="application/json", headers={"etag": etag})

    return endpoint


def _limited(question: Question, query: Query) -> Any:
    with query.source.store.limit(query.source.seconds):
        with open_snapshot(query.source.store) as snapshot:
            check_service(snapshot, query.one("service"))
        return question.answer(query)


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
