"""Costs by anything: time, model, provider, service, user, root, a metadata key of `RUNTAP_COST_BY` (from rollups), or
the name, tags and other metadata of single runs; with what caching saved, and where the month is going.
"""

from __future__ import annotations

from calendar import monthrange
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast
from zoneinfo import ZoneInfo

import orjson

from runtap_consumers.correct.price_terms import Terms, find_terms, read_class
from runtap_consumers.errors import InputError
from runtap_consumers.figures.report import read_completeness
from runtap_consumers.figures.sections import CostFigures, Costs, Month
from runtap_consumers.figures.shapes import pick
from runtap_consumers.instants import day_start_ns, dollars, format_instant, hour_start_ns, local_time, minute_start_ns
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.rollups import COST_BY_ATTRIBUTE, SKEW_AHEAD_NS
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.costs import (
    CACHED,
    CostCut,
    CostSums,
    Cut,
    read_attributes,
    read_cuts,
    read_days,
    stream_called_runs,
)
from runtap_consumers.store.read.ranges import DEFAULT_NS, MOST_HOURS, Segment, snap_range
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot
from runtap_consumers.units import DAY_NS, HOUR_NS

TIMES = ("hour", "day")
FACTS = ("provider", "model", "service", "environment")
ATTRIBUTES = ("user", "root")
OF_RUNS = ("name", "tag")
METADATA = "metadata."
FILTERS = ("service", "environment", "provider", "model")
_MOST_DAYS = 400
_LEAST_DAYS = 3
_STARTS = {"minute": minute_start_ns, "hour": hour_start_ns, "day": day_start_ns}
# All calls, and once more those whose prices matter, apart by them.
_TWICE = (Cut.WHOLE, Cut.CACHED)
METHOD = "so far, and each day that is left as the mean of this month's whole days; its range by the least and the most"


@dataclass(frozen=True)
class CostQuestion:
    """What is asked for. `by`: at most two names. `since_ns`, `until_ns` `None`: the last 24 hours, to now."""

    by: tuple[str, ...]
    since_ns: int | None = None
    until_ns: int | None = None
    where: Mapping[str, str] = field(default_factory=dict)

    def span(self, now_ns: int) -> tuple[int, int]:
        """Begin and end."""
        end_ns = now_ns + SKEW_AHEAD_NS if self.until_ns is None else self.until_ns
        until_ns = now_ns if self.until_ns is None else self.until_ns
        return until_ns - DEFAULT_NS if self.since_ns is None else self.since_ns, end_ns


def build_costs(
    store: Store, prices: PriceTable, asked: CostQuestion, configured: tuple[str, ...], zone: ZoneInfo, now_ns: int
) -> Costs:
    """Costs of a range, cut by one or two names; a value null is for calls without it.

    Args:
        store: where from.
        prices: what calls would have cost without a cache, as far as today's prices tell.
        asked: the question.
        configured: the metadata keys that costs are attributed to now.
        zone: of the times in it; days and hours are those of the store's.
        now_ns: the present.

    Raises:
        InputError: there is nothing by that name, or no such cross.
    """
    from_ns, to_ns = asked.span(now_ns)
    with open_snapshot(store) as snapshot:
        by = _checked(snapshot, asked.by, configured)
        attribute = next((name for name in by if name not in (*TIMES, *FACTS, *OF_RUNS)), None)
        is_of_runs = any(name in OF_RUNS or name.startswith(METADATA) for name in by)
        where = asked.where
        segments: tuple[Segment, ...]
        cuts: Iterable[CostCut]
        if is_of_runs:
            segments = (Segment("hour", from_ns, to_ns),)
            cuts, all_cuts = _cut_runs(snapshot, by, where, from_ns, to_ns)
            cached: Iterable[CostCut] = cuts
        else:
            segments = _segments(by, attribute, from_ns, to_ns, snapshot.newest_log_time_ns, store.zone)
            cuts, cached = (_cut_rollups(snapshot, by, attribute, where, segments, only) for only in _TWICE)
        grain = series_grain(segments)
        options = (prices, grain, store.zone)
        table = whole = _Table(cuts, cached, *options)
        if is_of_runs:
            whole = _Table(all_cuts, all_cuts, *options)
        elif attribute is not None:
            cuts, cached = (_cut_rollups(snapshot, by, None, where, segments, only) for only in _TWICE)
            whole = _Table(cuts, cached, *options)
            # Calls without the attribute: all others.
            table.add_rest(whole, by.index(attribute))
        complete = read_completeness(snapshot, ("runs",) if is_of_runs else ("cost",))
        month = None if where or is_of_runs else _month(snapshot, store.zone, now_ns)
    total = whole.total
    buckets = bucket_starts(segments, grain, store.zone, total.by_bucket)
    return {
        "generated_at": format_instant(now_ns, zone),
        "range": {
            "from": format_instant(segments[0].from_ns, zone),
            "to": format_instant(segments[-1].to_ns, zone),
        },
        "complete_to": format_instant(complete.at_ns, zone),
        "timezone": store.zone.key,
        "by": list(by),
        "source": "runs" if is_of_runs else "rollups",
        "rows": [
            cast(CostFigures, {**_named(by, key, zone), **_describe(row, total, buckets)})
            for key, row in table.sorted_rows(by)
        ],
        "total": _describe(total, total, buckets),
        "buckets": [format_instant(bucket, zone) for bucket in buckets],
        "month": month,
    }


class _Row:
    """What the calls of a row used, cost and saved; `by_bucket` is cost over time."""

    def __init__(self) -> None:
        self.sums = CostSums.nothing()
        self.saved_picodollars = 0
        self.is_saved_known = True
        self.by_bucket: dict[int, int] = defaultdict(int)

    def add(self, cut: CostSums, bucket_ns: int) -> None:
        self.sums.add(cut)
        self.by_bucket[bucket_ns] += cut.cost_picodollars

    def save(self, saved: int | None) -> None:
        self.is_saved_known &= saved is not None
        self.saved_picodollars += saved or 0

    def add_row(self, other: _Row, times: int = 1) -> None:
        self.sums.add(other.sums, times)
        for bucket_ns, cost in other.by_bucket.items():
            self.by_bucket[bucket_ns] += times * cost
        self.is_saved_known &= other.is_saved_known
        self.saved_picodollars += times * other.saved_picodollars


class _Table:
    def __init__(
        self, cuts: Iterable[CostCut], cached: Iterable[CostCut], prices: PriceTable, grain: str, zone: ZoneInfo
    ) -> None:
        """`cached`: those with cached tokens, apart by their price. `grain`: of the points over time."""
        self._prices, self._grain, self._zone = prices, grain, zone
        self._starts: dict[int, int] = {}
        self._terms: dict[tuple[Any, ...], Terms | None] = {}
        self.rows: dict[tuple[str, ...], _Row] = defaultdict(_Row)
        for cut in cuts:
            self.rows[cut.key].add(cut.sums, self._start(cut.bucket_ns))
        for cut in cached:
            self.rows[cut.key].save(self._saved(cut))
        self.total = _Row()
        for row in self.rows.values():
            self.total.add_row(row)

    def add_rest(self, whole: _Table, place: int) -> None:
        """Adds rows, of no value at a place of the key, with what the others leave of the whole."""
        rests: dict[tuple[str, ...], _Row] = defaultdict(_Row)
        for key, row in whole.rows.items():
            rests[key].add_row(row)
        for key, row in self.rows.items():
            rests[(*key[:place], "", *key[place + 1 :])].add_row(row, -1)
        self.rows.update({key: row for key, row in rests.items() if row.sums.counts["calls"] > 0})

    def sorted_rows(self, by: Sequence[str]) -> list[tuple[tuple[str, ...], _Row]]:
        """The dearest first, those without a value last; by time in its order."""
        if by[0] in TIMES:
            return sorted(self.rows.items(), key=lambda row: (int(row[0][0]), row[0][1:]))
        return sorted(
            self.rows.items(),
            key=lambda row: ("" in row[0], -row[1].sums.cost_picodollars, -row[1].sums.counts["calls"], row[0]),
        )

    def _start(self, bucket_ns: int) -> int:
        start = self._starts.get(bucket_ns)
        if start is None:
            start = _STARTS[self._grain](bucket_ns, self._zone)
            self._starts[bucket_ns] = start
        return start

    def _saved(self, cut: CostCut) -> int | None:
        """What its cached tokens would have cost more, less what writing them cost more; `None`: prices do not say."""
        counts = cut.sums.counts
        read, short, long = [counts[name] for name in CACHED]
        if not (read or short or long):
            return 0
        place = (cut.provider, cut.model, cut.price_class, cut.bucket_ns, cut.grain)
        # Without marks it is the class alone that says what calls cost, whatever they used.
        if place not in self._terms or read_class(cut.price_class).marks:
            self._terms[place] = self._find_terms(cut)
        terms = self._terms[place]
        if terms is None or terms.rates is None:
            return None
        rates = terms.rates
        return -(read * rates.cache_read + short * rates.cache_write_5m + long * rates.cache_write_1h)

    def _find_terms(self, cut: CostCut) -> Terms | None:
        key = {"provider": cut.provider, "model": cut.model, "price_class": cut.price_class}
        stored, counts = read_class(cut.price_class), cut.sums.counts
        from_ns, to_ns = cut.bucket_ns, cut.bucket_ns + (DAY_NS if cut.grain == "day" else HOUR_NS)
        if stored.marks or stored.window is not None:
            return find_terms(self._prices, key, counts, (from_ns, to_ns))
        # One price of all day is that of each hour, and need not be asked for again.
        whole_day = from_ns // DAY_NS, -(-to_ns // DAY_NS)
        place = (cut.provider, cut.model, cut.price_class, *whole_day)
        if place not in self._terms:
            self._terms[place] = find_terms(self._prices, key, counts, (whole_day[0] * DAY_NS, whole_day[1] * DAY_NS))
        return self._terms[place] or find_terms(self._prices, key, counts, (from_ns, to_ns))


def _checked(snapshot: Snapshot, by: Sequence[str], configured: Sequence[str]) -> tuple[str, ...]:
    known = (*TIMES, *FACTS, *ATTRIBUTES, *configured, *OF_RUNS)
    names = []
    for name in by:
        short = name.removeprefix(METADATA)
        if short in known or short in read_attributes(snapshot):
            names.append(short)
        elif name != short and short:
            names.append(name)
        else:
            others = sorted({*configured, *read_attributes(snapshot)} - {*ATTRIBUTES})
            known = (*TIMES, *FACTS, *ATTRIBUTES, *others, *OF_RUNS)
            raise InputError(
                f"there are no costs by {name!r}: expected {', '.join(known)}, or metadata.KEY of single runs; "
                "RUNTAP_COST_BY names up to three metadata keys for workers"
            )
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise InputError(f"costs are cut by one name or two different ones, not by {', '.join(by)}")
    apart = [name for name in names if name not in (*TIMES, *FACTS)]
    if len(apart) > 1:
        raise InputError(f"costs by {apart[0]} can be cut by time, model, provider, service or environment as well")
    return tuple(names)


def _segments(
    by: Sequence[str], attribute: str | None, from_ns: int, to_ns: int, newest_ns: int, zone: ZoneInfo
) -> tuple[Segment, ...]:
    if attribute is not None:
        hours_ns, days_ns = (COST_BY_ATTRIBUTE.grains[grain] or 0 for grain in TIMES)
        if from_ns >= newest_ns - hours_ns + HOUR_NS and "day" not in by:
            return (_whole("hour", from_ns, to_ns, zone),)
        if "hour" in by:
            raise InputError(f"costs by {attribute} are kept by the hour for two days: --since 1d, or --by day")
        # Costs without attributes are kept for longer: without this, all of them would be shown as costs without one.
        kept_ns = day_start_ns(max(newest_ns - days_ns, 0), zone, days_later=1)
        return (_whole("day", max(from_ns, kept_ns), max(to_ns, kept_ns + 1), zone),)
    if "hour" in by or "day" in by:
        return (_whole("hour" if "hour" in by else "day", from_ns, to_ns, zone),)
    return snap_range(from_ns, to_ns, newest_ns, zone).segments


def _whole(grain: str, from_ns: int, to_ns: int, zone: ZoneInfo) -> Segment:
    if grain == "hour":
        return Segment(grain, hour_start_ns(from_ns, zone), hour_start_ns(to_ns - 1, zone, hours_later=1))
    return Segment(grain, day_start_ns(from_ns, zone), day_start_ns(to_ns - 1, zone, days_later=1))


def _cut_rollups(
    snapshot: Snapshot,
    by: Sequence[str],
    attribute: str | None,
    where: Mapping[str, str],
    segments: Sequence[Segment],
    only: Cut,
) -> Iterator[CostCut]:
    facts = [name for name in by if name in FACTS]
    # Where each value is: of an attribute in front, and '' where all calls are asked for; then time.
    names = [attribute or "", *facts]
    places = [len(names) if name in TIMES else names.index(name) if name in names else 0 for name in by]
    before = () if attribute is not None else ("",)
    for cut in read_cuts(snapshot, segments, facts, where, attribute, only):
        values = (*before, *cut.key, str(cut.bucket_ns))
        yield cut._replace(key=tuple([values[place] for place in places]))


def _cut_runs(
    snapshot: Snapshot, by: Sequence[str], where: Mapping[str, str], from_ns: int, to_ns: int
) -> tuple[list[CostCut], list[CostCut]]:
    """The cuts, and all calls, each once: a run with two tags is in two cuts."""
    column = {"tag": "tags", "name": "name"}
    columns = [column.get(name, "metadata" if name.startswith(METADATA) else name) for name in by if name not in TIMES]
    if len(columns) != len(by):
        raise InputError(f"costs by {by[0]} and {by[1]} are not kept: leave the time out")
    cuts, whole = [], []
    for values, sums in stream_called_runs(snapshot, from_ns, to_ns, columns, where):
        whole.append(CostCut(from_ns, (), "", "", "", sums))
        each = [_values_of(name, value) for name, value in zip(by, values, strict=True)]
        cuts += [CostCut(from_ns, key, "", "", "", sums) for key in product(*each)]
    return cuts, whole


def _values_of(name: str, stored: str | None) -> list[str]:
    if name == "tag":
        return list(dict.fromkeys(orjson.loads(stored or "[]"))) or [""]
    if name.startswith(METADATA):
        value = orjson.loads(stored or "{}").get(name.removeprefix(METADATA))
        return ["" if value is None else value if isinstance(value, str) else orjson.dumps(value).decode()]
    return [stored or ""]


def series_grain(segments: Sequence[Segment]) -> str:
    """Of the points over a range: minutes, hours or days, some 60 of them at most."""
    hours = (segments[-1].to_ns - segments[0].from_ns) / HOUR_NS
    if {segment.grain for segment in segments} == {"minute"} and hours < 2:
        return "minute"
    return "day" if segments[0].grain == "day" or hours > MOST_HOURS else "hour"


def start_of(grain: str, at_ns: int, zone: ZoneInfo) -> int:
    """Where the point begins that holds an instant."""
    return _STARTS[grain](at_ns, zone)


def bucket_starts(segments: Sequence[Segment], grain: str, zone: ZoneInfo, called: Collection[int]) -> list[int]:
    """Where the points over a range begin; of centuries only those between the first and the last that is `called`."""
    start = _STARTS[grain]
    at_ns, end_ns = start(segments[0].from_ns, zone), segments[-1].to_ns
    if end_ns - at_ns > _MOST_DAYS * DAY_NS:
        # From 1970 to 2261, say: only where there were calls.
        at_ns, end_ns = min(called, default=end_ns), min(end_ns, max(called, default=0) + 1)
    found = list[int]()
    while at_ns < end_ns:
        found.append(at_ns)
        at_ns = start(at_ns, zone, 1)
    return found


def _named(by: Sequence[str], key: Sequence[str], zone: ZoneInfo) -> dict[str, Any]:
    return {
        name: format_instant(int(value), zone) if name in TIMES else value or None
        for name, value in zip(by, key, strict=True)
    }


def _describe(row: _Row, total: _Row, buckets: Sequence[int]) -> CostFigures:
    counts, cost = row.sums.counts, row.sums.cost_picodollars
    is_unknown = counts["calls"] > 0 and counts["priced_calls"] == 0
    return {
        **pick(CostFigures, counts),
        "cached_share": counts["cache_read_tokens"] / counts["input_tokens"] if counts["input_tokens"] else None,
        "saved_usd": dollars(row.saved_picodollars) if row.is_saved_known and row.saved_picodollars >= 0 else None,
        "cost_usd": None if is_unknown else dollars(cost),
        "share": cost / total.sums.cost_picodollars if total.sums.cost_picodollars else None,
        "series_usd": [dollars(row.by_bucket.get(bucket, 0)) for bucket in buckets],
    }


def _month(snapshot: Snapshot, zone: ZoneInfo, now_ns: int) -> Month:
    """What this month, of the store's zone, cost so far, and what it will cost if it goes on like that."""
    today = local_time(now_ns, zone).date()
    today_ns = day_start_ns(now_ns, zone)
    begin_ns = day_start_ns(now_ns, zone, days_later=1 - today.day)
    days = read_days(snapshot, begin_ns, today_ns + 2 * DAY_NS)
    whole = [days.get(day_start_ns(begin_ns, zone, days_later=number), 0) for number in range(today.day - 1)]
    # Before its first call nobody knew of this store.
    while whole and not whole[0]:
        whole.pop(0)
    so_far, left = sum(days.values()), monthrange(today.year, today.month)[1] - today.day + 1
    found = pick(Month, {"from": format_instant(begin_ns, zone), "cost_usd": dollars(so_far)})
    if len(whole) < _LEAST_DAYS:
        return found
    # Today is not over: it counts as a day that is left, or as what it cost so far where that is more.
    of_today = days.get(today_ns, 0)
    before = so_far - of_today

    def month(a_day: int) -> int:
        return before + max(of_today, a_day) + (left - 1) * a_day

    mean = sum(whole) // len(whole)
    return {
        **found,
        "forecast_usd": dollars(month(mean)),
        "least_usd": dollars(month(min(whole))),
        "most_usd": dollars(month(max(whole))),
        "method": METHOD,
    }
