"""The report: every figure of a range of time, as JSON with fixed names (`build_report`).

Unknown is null and never 0: a cost without any priced call, an average of nothing, a rate without runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from typing import Any, TypeVar, cast
from zoneinfo import ZoneInfo

import orjson

from runtap_consumers.errors import InputError
from runtap_consumers.figures.completeness import (
    Completeness,
    describe_all,
    work_out_completeness,
    work_out_ledger,
)
from runtap_consumers.figures.feedback import describe_feedback
from runtap_consumers.figures.sections import (
    AlertFigures,
    Component,
    CostSection,
    ErrorGroupFigures,
    ErrorSection,
    LastError,
    ModelCost,
    Performance,
    ReportFigures,
    ServiceCost,
)
from runtap_consumers.figures.sessions import describe_session
from runtap_consumers.figures.shapes import OfRange, pick
from runtap_consumers.figures.words import RUN_TYPES
from runtap_consumers.instants import average_dollars, dollars, format_instant, seconds
from runtap_consumers.projections.rollups import SKEW_AHEAD_NS
from runtap_consumers.projections.sketch import quantiles_ns
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.books import read_books
from runtap_consumers.store.read.costs import CostSums
from runtap_consumers.store.read.figures import (
    ComponentFigures,
    is_service,
    read_components,
    read_costs,
    read_ended_roots,
    read_error_groups,
    read_model_names,
    read_recent_errors,
    read_services,
    sum_figures,
)
from runtap_consumers.store.read.ranges import DEFAULT_NS, TimeRange, snap_range
from runtap_consumers.store.read.sessions import count_sessions, read_sessions
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot, read_alerts
from runtap_consumers.units import MINUTE_NS

# The projections that the report shows; `complete_to` is that of the one furthest behind.
SHOWN = ("cost", "performance", "errors", "sessions")
RECENT_ERRORS_SHOWN = 10
SESSIONS_SHOWN = 100

_COST_KEY = ("provider", "model", "service", "environment")
_CostRow = tuple[tuple[str, ...], CostSums]
_Components = dict[tuple[str, str, str], ComponentFigures]
_Shown = TypeVar("_Shown", bound=OfRange)


def build_report(
    store: Store,
    since: int | None,
    until: int | None,
    service: str | None,
    zone: ZoneInfo,
    now_ns: int,
) -> ReportFigures:
    """All of the report; arguments as `build_sections` takes them."""
    return build_sections(ReportFigures, store, since, until, service, zone, now_ns)


def build_sections(
    shape: type[_Shown],
    store: Store,
    since: int | None,
    until: int | None,
    service: str | None,
    zone: ZoneInfo,
    now_ns: int,
) -> _Shown:
    """Reads one state of the store.

    Args:
        shape: which sections are wanted; nothing is read for others.
        store: where from.
        since: begin, Unix nanoseconds; `None`: 24 hours before the end. It snaps outward to the grain that is kept.
        until: end, likewise; `None`: now.
        service: only this service's figures; `None`: all. The ledger and `complete_to` are always of all.
        zone: of the times in it.
        now_ns: the present.
    """
    # Events of clocks up to a minute fast are believed, so a report up to now must include them.
    end_ns = now_ns + SKEW_AHEAD_NS if until is None else until
    begin_ns = (now_ns if until is None else until) - DEFAULT_NS if since is None else since
    with open_snapshot(store) as snapshot:
        time_range = snap_range(begin_ns, end_ns, snapshot.newest_log_time_ns, store.zone)
        books = read_books(snapshot)
        complete = work_out_completeness(books, SHOWN)
        elapsed_ns = min(time_range.to_ns, max(now_ns, time_range.from_ns + MINUTE_NS)) - time_range.from_ns
        model_names = read_model_names(snapshot)
        is_about_components = "performance" in shape.__annotations__
        components = read_components(snapshot, time_range, service, model_names) if is_about_components else {}
        within = (time_range.from_ns, time_range.to_ns, service)
        minutes = elapsed_ns / MINUTE_NS
        makers: dict[str, Callable[[], Any]] = {
            "cost": lambda: _cost_section(list(read_costs(snapshot, time_range, service, _COST_KEY))),
            "performance_by_run_type": lambda: _run_types_section(components, minutes),
            "performance": lambda: _performance_section(components, minutes, model_names),
            "errors": lambda: _errors_section(snapshot, time_range, service, zone),
            "session_count": lambda: count_sessions(snapshot, *within),
            "sessions": lambda: [
                describe_session(row, complete.at_ns, zone)
                for row in read_sessions(snapshot, *within, limit=SESSIONS_SHOWN)
            ],
            "feedback": lambda: describe_feedback(snapshot, time_range, service),
            "alerts": lambda: describe_alerts(snapshot, *within, zone),
            "ledger": lambda: describe_all(books, work_out_ledger(books, snapshot.projections)),
        }
        found = {
            "generated_at": format_instant(now_ns, zone),
            "range": {"from": format_instant(time_range.from_ns, zone), "to": format_instant(time_range.to_ns, zone)},
            "complete_to": format_instant(complete.at_ns, zone),
            **{name: make() for name, make in makers.items() if name in shape.__annotations__},
        }
        return cast(_Shown, found)


def check_service(snapshot: Snapshot, service: str | None) -> None:
    """Raises `InputError` where there is no such service, with the names of those that there are."""
    if service is None or is_service(snapshot, service):
        return
    if known := read_services(snapshot):
        raise InputError(f"there is no service {service!r}: expected any of {', '.join(known)}")


def read_completeness(snapshot: Snapshot, projections: Sequence[str]) -> Completeness:
    """`complete_to` of figures of some projections, with the emitters that fell silent."""
    return work_out_completeness(read_books(snapshot), projections)


def describe_alerts(
    snapshot: Snapshot, from_ns: int, to_ns: int, service: str | None, zone: ZoneInfo
) -> list[AlertFigures]:
    """Alerts that were raised in a range, newest first."""
    return [
        {**pick(AlertFigures, orjson.loads(payload)), "at": format_instant(at_ns, zone)}
        for at_ns, payload in read_alerts(snapshot, from_ns, to_ns, service)
    ]


def _cost_section(rows: list[_CostRow]) -> CostSection:
    total = _sum_costs(rows)
    counts = total.counts
    by_model: list[ModelCost] = [
        {
            **pick(ModelCost, summed.counts),
            "provider": provider or None,
            "model": model or None,
            "cache_write_tokens": summed.counts["cache_write_5m_tokens"] + summed.counts["cache_write_1h_tokens"],
            "cost_usd": _cost(summed),
        }
        for (provider, model), summed in _group_costs(rows, 0, 2)
    ]
    by_service: list[ServiceCost] = [
        {
            **pick(ServiceCost, summed.counts),
            "service": service or None,
            "environment": environment or None,
            "cost_usd": _cost(summed),
        }
        for (service, environment), summed in _group_costs(rows, 2, 4)
    ]
    return {
        **pick(CostSection, counts),
        "total_tokens": counts["input_tokens"] + counts["output_tokens"],
        "cost_usd": _cost(total),
        "average_cost_per_call_usd": average_dollars(total.cost_picodollars, counts["priced_calls"]),
        "by_model": by_model,
        "by_service": by_service,
    }


def _sum_costs(rows: Iterable[_CostRow]) -> CostSums:
    total = CostSums.nothing()
    for _, sums in rows:
        total.add(sums)
    return total


def _group_costs(rows: list[_CostRow], first: int, end: int) -> list[tuple[tuple[str, ...], CostSums]]:
    """By a part of the key, the dearest first."""
    grouped = defaultdict[tuple[str, ...], CostSums](CostSums.nothing)
    for key, sums in rows:
        grouped[key[first:end]].add(sums)
    return sorted(grouped.items(), key=lambda group: (-group[1].cost_picodollars, -group[1].counts["calls"], group[0]))


def _cost(sums: CostSums) -> str | None:
    return None if sums.counts["calls"] and not sums.counts["priced_calls"] else dollars(sums.cost_picodollars)


def _performance_section(
    components: _Components, minutes: float, model_names: list[tuple[str, str, int]]
) -> list[Component]:
    asked = defaultdict[str, list[str]](list)
    for request_model, model, _ in model_names:
        asked[model].append(request_model)
    slowest_first = sorted(components.items(), key=lambda component: (-component[1].duration_ns, component[0]))
    return [
        {
            "run_type": run_type,
            "name": name or None,
            "model": model or None,
            # What calls of this model asked for, where that has another name.
            "request_models": sorted(asked[model]) if model else [],
            **describe_figures(figures, minutes),
        }
        for (run_type, name, model), figures in slowest_first
    ]


def _run_types_section(components: _Components, minutes: float) -> dict[str, Performance]:
    by_type: dict[str, list[tuple[Any, ...]]] = {run_type: [] for run_type in RUN_TYPES}
    for (run_type, _, _), figures in components.items():
        by_type.setdefault(run_type, []).append(astuple(figures))
    return {run_type: describe_figures(sum_figures(rows), minutes) for run_type, rows in by_type.items()}


def describe_figures(figures: ComponentFigures, minutes: float) -> Performance:
    """How runs went that took `minutes` on the clock."""
    judged, outputs_ns = figures.ok + figures.errors, figures.output_duration_ns
    p50, p95, p99 = quantiles_ns(figures.sketch, (0.5, 0.95, 0.99))
    first_p50, first_p95 = quantiles_ns(figures.first_token_sketch, (0.5, 0.95))
    return {
        "count": figures.count,
        "errors": figures.errors,
        "success_rate": figures.ok / judged if judged else None,
        "calls_per_minute": figures.count / minutes,
        "total_seconds": seconds(figures.duration_ns),
        "avg_seconds": seconds(figures.duration_ns / figures.count) if figures.count else None,
        "min_seconds": seconds(figures.min_ns),
        "max_seconds": seconds(figures.max_ns),
        "p50_seconds": _within(p50, figures),
        "p95_seconds": _within(p95, figures),
        "p99_seconds": _within(p99, figures),
        "first_token_p50_seconds": seconds(first_p50),
        "first_token_p95_seconds": seconds(first_p95),
        "output_tokens_per_second": figures.output_tokens / (outputs_ns / 1e9) if outputs_ns else None,
    }


def _within(quantile_ns: float | None, figures: ComponentFigures) -> float | None:
    # A sketch is off by up to 1 %, which could put a quantile outside of what was measured.
    if quantile_ns is None or figures.min_ns is None or figures.max_ns is None:
        return seconds(quantile_ns)
    return seconds(min(max(quantile_ns, figures.min_ns), figures.max_ns))


def _errors_section(snapshot: Snapshot, time_range: TimeRange, service: str | None, zone: ZoneInfo) -> ErrorSection:
    groups = read_error_groups(snapshot, time_range, service)
    roots = read_ended_roots(snapshot, time_range, service)
    types: dict[tuple[str, str], int] = defaultdict(int)
    for group in groups:
        types[group.type, group.category] += group.count
    recent = read_recent_errors(snapshot, time_range.from_ns, time_range.to_ns, service, RECENT_ERRORS_SHOWN)
    return {
        "total": sum(types.values()),
        "by_type": [
            {"type": name, "category": category, "count": count, "rate": count / roots if roots else None}
            for (name, category), count in sorted(types.items(), key=lambda kind: (-kind[1], kind[0]))
        ],
        "groups": [
            {
                **pick(ErrorGroupFigures, vars(group)),
                "first_seen": format_instant(group.first_at_ns, zone),
                "last_seen": format_instant(group.last_at_ns, zone),
            }
            for group in groups
        ],
        "recent": [
            {
                **pick(LastError, vars(error)),
                "status_code": error.status_code or None,
                "at": format_instant(error.at_ns, zone),
            }
            for error in recent
        ],
    }
