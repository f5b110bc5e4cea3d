"""What a page shows first: a range beside the one before it, each figure over time; and what components and error
groups did within it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import closing
from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.figures.completeness import work_out_completeness
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
from runtap_consumers.figures.report import SHOWN, describe_figures, ledger_section
from runtap_consumers.figures.traces import self_times
from runtap_consumers.instants import dollars, format_instant, seconds
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.books import read_books
from runtap_consumers.store.read.costs import CostSums, read_attributes, read_cuts
from runtap_consumers.store.read.figures import read_buckets, read_services, sum_figures
from runtap_consumers.store.read.ranges import TimeRange, snap_range
from runtap_consumers.store.read.runs import RunFilter, stream_runs
from runtap_consumers.store.read.sessions import count_begun_sessions
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot

# What is newer than a run holds all that ran within it, so that self times of the newest are whole.
_SELF_RUNS = 5_000


def build_overview(
    store: Store, asked: CostQuestion, configured: tuple[str, ...], zone: ZoneInfo, now_ns: int
) -> dict[str, Any]:
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
        starts = bucket_starts(shown.segments, grain, store.zone)
        figures, buckets = _read(snapshot, shown, service, grain, store.zone)
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
            "series": {name: [buckets.get(start, {}).get(name) for start in starts] for name in _SERIES},
            "ledger": ledger_section(books, snapshot),
        }


_SERIES = (
    *("cost_usd", "calls", "total_tokens", "error_rate", "sessions"),
    *("p50_seconds", "p95_seconds", "first_token_p95_seconds"),
)


def _describe_range(shown: TimeRange, zone: ZoneInfo) -> dict[str, Any]:
    return {"from": format_instant(shown.from_ns, zone), "to": format_instant(shown.to_ns, zone)}


def _read(
    snapshot: Snapshot, shown: TimeRange, service: str | None, grain: str, zone: ZoneInfo
) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Figures of all of a range, and by bucket."""
    costs = defaultdict[int, CostSums](CostSums.nothing)
    where = {} if service is None else {"service": service}
    for cut in read_cuts(snapshot, shown.segments, (), where):
        costs[start_of(grain, cut.bucket_ns, zone)].add(cut.sums)
    roots = defaultdict[int, Counter[str]](Counter)
    for bucket_ns, ok, errors in read_buckets(snapshot, "roots", shown, service, ("ok", "errors")):
        roots[start_of(grain, bucket_ns, zone)].update(ok=ok, errors=errors)
    calls = defaultdict[int, list[Any]](list)
    for bucket_ns, *measures in read_buckets(snapshot, "performance", shown, service, run_type="llm"):
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


def _describe(cost: CostSums, roots: Counter[str], calls: list[Any], sessions: int) -> dict[str, Any]:
    counts, ended = cost.counts, roots["ok"] + roots["errors"]
    durations = describe_figures(sum_figures(calls), 1.0)
    is_unknown = counts["calls"] > 0 and counts["priced_calls"] == 0
    return {
        "cost_usd": None if is_unknown else dollars(cost.cost_picodollars),
        **{name: counts[name] for name in ("calls", "unpriced_calls", "unmetered_calls")},
        **{name: counts[name] for name in ("input_tokens", "cache_read_tokens", "output_tokens")},
        "total_tokens": counts["input_tokens"] + counts["output_tokens"],
        "traces": ended,
        "failed_traces": roots["errors"],
        "error_rate": roots["errors"] / ended if ended else None,
        **{name: durations[name] for name in ("p50_seconds", "p95_seconds", "first_token_p95_seconds")},
        "sessions": sessions,
    }


def build_error_trend(store: Store, asked: CostQuestion, zone: ZoneInfo, now_ns: int) -> dict[str, Any]:
    """How often each error group of a service occurred by bucket."""
    with open_snapshot(store) as snapshot:
        shown = snap_range(*asked.span(now_ns), snapshot.newest_log_time_ns, store.zone)
        grain = series_grain(shown.segments)
        starts = bucket_starts(shown.segments, grain, store.zone)
        counts = defaultdict[tuple[str, str], Counter[int]](Counter)
        columns = ("service", "fingerprint", "count")
        for bucket_ns, service, fingerprint, count in read_buckets(
            snapshot, "errors", shown, asked.where.get("service"), columns
        ):
            counts[service, fingerprint][start_of(grain, bucket_ns, store.zone)] += count
    return {
        "timezone": store.zone.key,
        "grain": grain,
        "buckets": [format_instant(start, zone) for start in starts],
        "groups": [
            {"service": service, "fingerprint": fingerprint, "counts": [found[start] for start in starts]}
            for (service, fingerprint), found in sorted(counts.items())
        ],
    }


def build_self_times(store: Store, asked: CostQuestion, now_ns: int) -> dict[str, Any]:
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
