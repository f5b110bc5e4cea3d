"""What a page shows first: a range beside the one before it, each figure over time; and what components and error
groups did within it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import closing
from typing import Any, TypedDict, cast
from zoneinfo import ZoneInfo

from runtap_consumers.figures.completeness import AllSums, describe_all, work_out_completeness, work_out_ledger
from runtap_consumers.figures.costs import (
    ATTRIBUTES,
    FACTS,
    OF_RUNS,
    TIMES,
    CostQuestion,
    bucket_starts,
    series_grain,
    start_of,
)
from runtap_consumers.figures.report import SHOWN, describe_figures
from runtap_consumers.figures.shapes import Dollars, Instant, OfRange, Range
from runtap_consumers.figures.traces import self_times
from runtap_consumers.instants import dollars, format_instant, seconds
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.books import read_books
from runtap_consumers.store.read.costs import CostSums, read_attributes
from runtap_consumers.store.read.figures import read_costs, read_merged, read_services, sum_figures
from runtap_consumers.store.read.ranges import TimeRange, snap_range
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.runs import stream_runs
from runtap_consumers.store.read.sessions import count_begun_sessions
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot

# What is newer than a run holds all that ran within it, so that self times of the newest are whole.
_SELF_RUNS = 5_000


class RangeFigures(TypedDict):
    """What happened in a range. `traces` that ended, `failed_traces` of them; `sessions` that began."""

    cost_usd: Dollars | None
    calls: int
    unpriced_calls: int
    unmetered_calls: int
    input_tokens: int
    cache_read_tokens: int
    output_tokens: int
    total_tokens: int
    traces: int
    failed_traces: int
    error_rate: float | None
    p50_seconds: float | None
    p95_seconds: float | None
    first_token_p95_seconds: float | None
    sessions: int


class OverviewSeries(TypedDict):
    """Figures by bucket; null where there was nothing."""

    cost_usd: list[Dollars | None]
    calls: list[int | None]
    total_tokens: list[int | None]
    error_rate: list[float | None]
    sessions: list[int | None]
    p50_seconds: list[float | None]
    p95_seconds: list[float | None]
    first_token_p95_seconds: list[float | None]


class Overview(OfRange):
    """A range beside the one before it, and over time. `services` and `cuts`: what can be asked for."""

    before_range: Range
    timezone: str
    services: list[str]
    cuts: list[str]
    figures: RangeFigures
    before: RangeFigures
    grain: str
    buckets: list[Instant]
    series: OverviewSeries
    ledger: AllSums


class GroupTrend(TypedDict):
    """How often an error group occurred, by bucket."""

    service: str
    fingerprint: str
    counts: list[int]


class ErrorTrend(TypedDict):
    """Error groups over time."""

    timezone: str
    grain: str
    buckets: list[Instant]
    groups: list[GroupTrend]


class SelfTime(TypedDict):
    """How long a component was busy itself."""

    run_type: str
    name: str | None
    model: str | None
    runs: int
    self_seconds: float


class SelfTimes(TypedDict):
    """Of the newest `runs` of a range; `is_cut_off`: there were more."""

    runs: int
    is_cut_off: bool
    components: list[SelfTime]


def build_overview(
    store: Store, asked: CostQuestion, configured: tuple[str, ...], zone: ZoneInfo, now_ns: int
) -> Overview:
    """Figures of a range, of the range before it, which is as long, and by bucket.

    Args:
        store: where from.
        asked: the range, and `where`, of which `service` counts.
        configured: the metadata keys that costs are attributed to now.
        zone: of the times in it; buckets are those of the store's.
        now_ns: the present.
    """
    service = asked.where.get("service")
    with open_snapshot(store) as snapshot:
        newest_ns = snapshot.newest_log_time_ns
        shown = snap_range(*asked.span(now_ns), newest_ns, store.zone)
        before = snap_range(2 * shown.from_ns - shown.to_ns, shown.from_ns, newest_ns, store.zone)
        grain = series_grain(shown.segments)
        figures, buckets = _read(snapshot, shown, service, grain, store.zone)
        starts = bucket_starts(shown.segments, grain, store.zone, buckets)
        books = read_books(snapshot)
        attributes = {*configured, *read_attributes(snapshot)} - set(ATTRIBUTES)
        return {
            "generated_at": format_instant(now_ns, zone),
            "range": _describe_range(shown, zone),
            "before_range": _describe_range(before, zone),
            "complete_to": format_instant(work_out_completeness(books, SHOWN).at_ns, zone),
            "timezone": store.zone.key,
            "services": read_services(snapshot),
            "cuts": [*FACTS, *ATTRIBUTES, *sorted(attributes), *OF_RUNS, *TIMES],
            "figures": figures,
            "before": _read(snapshot, before, service, grain, store.zone)[0],
            "grain": grain,
            "buckets": [format_instant(start, zone) for start in starts],
            "series": cast(
                OverviewSeries,
                {
                    name: [buckets[start].get(name) if start in buckets else None for start in starts]
                    for name in OverviewSeries.__annotations__
                },
            ),
            "ledger": describe_all(books, work_out_ledger(books, snapshot.projections)),
        }


def _describe_range(shown: TimeRange, zone: ZoneInfo) -> Range:
    return {"from": format_instant(shown.from_ns, zone), "to": format_instant(shown.to_ns, zone)}


def _read(
    snapshot: Snapshot, shown: TimeRange, service: str | None, grain: str, zone: ZoneInfo
) -> tuple[RangeFigures, dict[int, RangeFigures]]:
    """Figures of all of a range, and by bucket."""
    costs = defaultdict[int, CostSums](CostSums.nothing)
    for (bucket_ns,), sums in read_costs(snapshot, shown, service, ("bucket_ns",)):
        costs[start_of(grain, bucket_ns, zone)].add(sums)
    roots = defaultdict[int, Counter[str]](Counter)
    for bucket_ns, ok, errors in read_merged(snapshot, "roots", shown, service, ("bucket_ns",), ("ok", "errors")):
        roots[start_of(grain, bucket_ns, zone)].update(ok=ok, errors=errors)
    calls = defaultdict[int, list[Any]](list)
    for bucket_ns, *measures in read_merged(snapshot, "performance", shown, service, ("bucket_ns",), run_type="llm"):
        calls[start_of(grain, bucket_ns, zone)].append(measures)
    began = Counter[int]()
    sessions = 0
    for bucket_ns, count in count_begun_sessions(snapshot, shown.from_ns, shown.to_ns, service):
        sessions += count
        began[start_of(grain, bucket_ns, zone)] += count
    buckets = {
        start: _describe(costs[start], roots[start], calls[start], began[start])
        for start in {*costs, *roots, *calls, *began}
    }
    whole = CostSums.nothing()
    for each in costs.values():
        whole.add(each)
    all_calls = [measures for each in calls.values() for measures in each]
    return _describe(whole, sum(roots.values(), Counter()), all_calls, sessions), buckets


def _describe(cost: CostSums, roots: Counter[str], calls: list[Any], sessions: int) -> RangeFigures:
    counts, ended = cost.counts, roots["ok"] + roots["errors"]
    durations = describe_figures(sum_figures(calls), 1.0)
    is_unknown = counts["calls"] > 0 and counts["priced_calls"] == 0
    return {
        "cost_usd": None if is_unknown else dollars(cost.cost_picodollars),
        "calls": counts["calls"],
        "unpriced_calls": counts["unpriced_calls"],
        "unmetered_calls": counts["unmetered_calls"],
        "input_tokens": counts["input_tokens"],
        "cache_read_tokens": counts["cache_read_tokens"],
        "output_tokens": counts["output_tokens"],
        "total_tokens": counts["input_tokens"] + counts["output_tokens"],
        "traces": ended,
        "failed_traces": roots["errors"],
        "error_rate": roots["errors"] / ended if ended else None,
        "p50_seconds": durations["p50_seconds"],
        "p95_seconds": durations["p95_seconds"],
        "first_token_p95_seconds": durations["first_token_p95_seconds"],
        "sessions": sessions,
    }


def build_error_trend(store: Store, asked: CostQuestion, zone: ZoneInfo, now_ns: int) -> ErrorTrend:
    """How often each error group of a service occurred by bucket."""
    with open_snapshot(store) as snapshot:
        shown = snap_range(*asked.span(now_ns), snapshot.newest_log_time_ns, store.zone)
        grain = series_grain(shown.segments)
        counts = defaultdict[tuple[str, str], Counter[int]](Counter)
        keys = ("bucket_ns", "service", "fingerprint")
        for bucket_ns, service, fingerprint, count in read_merged(
            snapshot, "errors", shown, asked.where.get("service"), keys, ("count",)
        ):
            counts[service, fingerprint][start_of(grain, bucket_ns, store.zone)] += count
        called = {start for found in counts.values() for start in found}
        starts = bucket_starts(shown.segments, grain, store.zone, called)
    return {
        "timezone": store.zone.key,
        "grain": grain,
        "buckets": [format_instant(start, zone) for start in starts],
        "groups": [
            {"service": service, "fingerprint": fingerprint, "counts": [found[start] for start in starts]}
            for (service, fingerprint), found in sorted(counts.items())
        ],
    }


def build_self_times(store: Store, asked: CostQuestion, now_ns: int) -> SelfTimes:
    """How long components were busy themselves, without what ran within them, in the newest runs of a range."""
    from_ns, to_ns = asked.span(now_ns)
    wanted = RunFilter(since_ns=from_ns, until_ns=to_ns, service=asked.where.get("service"))
    with open_snapshot(store) as snapshot, closing(stream_runs(snapshot, wanted, None, _SELF_RUNS)) as found:
        rows = [dict(row) for row in found]
    spent, counts = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    selves = self_times(rows)
    for row in rows:
        if row.get("duration_ns") is not None:
            component = (row["run_type"], row["name"] or "", row["model"] or row["request_model"] or "")
            spent[component] += selves[row["run_id"]]
            counts[component] += 1
    return {
        "runs": len(rows),
        "is_cut_off": len(rows) == _SELF_RUNS,
        "components": [
            {
                "run_type": run_type,
                "name": name or None,
                "model": model or None,
                "runs": counts[run_type, name, model],
                "self_seconds": seconds(self_ns),
            }
            for (run_type, name, model), self_ns in spent.most_common()
        ],
    }
