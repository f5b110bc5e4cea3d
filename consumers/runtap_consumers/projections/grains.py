"""From a commit's minute deltas to the rows of every grain.

Minutes are what a fold makes; hours, days and totals are derived from them once a commit. Sums stay deltas. Sketches
become absolute values: the worker holds the sketches of the buckets it is filling, which saves reading them before each
write.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import add
from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.instants import day_start_ns
from runtap_consumers.projections.rollups import Measure, Merge, Rollup
from runtap_consumers.projections.sketch import Sketch
from runtap_consumers.units import HOUR_NS

Key = tuple[Any, ...]
Rows = dict[Key, list[Any]]
# (table, bucket) -> the sketch columns of every row there is, by the rollup's keys.
LoadSketches = Callable[[str, int], dict[Key, list[bytes | None]]]
# Buckets of one table whose sketches are kept in memory: the current ones, and a few that late events reach.
_BUCKETS_KEPT = 4


class Calendar:
    """Days and hours of the store's time zone, of which it remembers the last day: it is asked for every row."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._until_ns = self._day_ns = 0

    def day_of(self, at_ns: int) -> int:
        """Start of the local day that holds an instant, Unix nanoseconds."""
        if not self._day_ns <= at_ns < self._until_ns:
            self._day_ns = day_start_ns(at_ns, self._zone)
            self._until_ns = day_start_ns(at_ns, self._zone, days_later=1)
        return self._day_ns

    def hour_of(self, at_ns: int) -> int:
        """Start of the hour that holds an instant, counted from the local day's start: so a day consists of whole hours
        also where the zone's midnight is at half past. The last one is shorter where a clock change cuts it off.
        """
        day_ns = self.day_of(at_ns)
        return at_ns - (at_ns - day_ns) % HOUR_NS


class SketchBook:
    """The sketches of one partition and projection in memory. Thrown away whole when another worker may write."""

    def __init__(self, load: LoadSketches) -> None:
        self._load = load
        self._buckets: dict[str, OrderedDict[int, dict[Key, list[Sketch | None]]]] = {}

    def grow(self, table: str, bucket: int, key: Key, additions: list[list[int]]) -> list[bytes | None]:
        """Adds to a row's sketches; returns their new stored forms, `None` for one that never had an entry."""
        buckets = self._buckets.setdefault(table, OrderedDict())
        if bucket not in buckets:
            buckets[bucket] = {
                found: [None if blob is None else Sketch(blob) for blob in blobs]
                for found, blobs in self._load(table, bucket).items()
            }
        buckets.move_to_end(bucket)
        sketches = buckets[bucket].setdefault(key, [None] * len(additions))
        for index, added in enumerate(additions):
            if added:
                sketch = sketches[index] or Sketch()
                sketch.add(added)
                sketches[index] = sketch
        return [None if sketch is None else sketch.to_bytes() for sketch in sketches]

    def trim(self) -> None:
        """Forgets all but the buckets used last."""
        for buckets in self._buckets.values():
            while len(buckets) > _BUCKETS_KEPT:
                buckets.popitem(last=False)


def rows_by_grain(
    rollup: Rollup, minutes: Rows, calendar: Calendar, log_time_ns: int, sketches: SketchBook
) -> Iterator[tuple[str, Rows]]:
    """The rows that minute deltas add to each grain's table, by (bucket, *keys); by keys alone for totals.

    Deltas of buckets past a grain's retention are left out: their row is gone.
    """
    rows = minutes
    for grain, kept_ns in rollup.grains.items():
        # Each grain out of the finer one before it, of which there are fewer rows than minutes.
        rows = _coarsened(rollup, grain, rows, calendar)
        if rollup.passes_on:
            # Also late ones: what is written past its time passes on, too.
            yield grain, rows
            return
        kept = rows
        if kept_ns is not None:
            horizon = log_time_ns - kept_ns
            kept = {key: row for key, row in rows.items() if key[0] >= horizon}
        yield grain, _with_sketches(rollup, grain, kept, sketches)


def _coarsened(rollup: Rollup, grain: str, rows: Rows, calendar: Calendar) -> Rows:
    if grain == "minute":
        return rows
    measures = rollup.measures
    # Most rollups only add; looking at each measure's rule takes five times as long.
    is_sum = all(measure.merge is Merge.ADD for measure in measures)
    starts: dict[int, tuple[int, ...]] = {}
    merged: Rows = {}
    for key, delta in rows.items():
        start = starts.get(key[0])
        if start is None:
            start = starts[key[0]] = _start(grain, key[0], calendar)
        coarse = (*start, *key[1:])
        row = merged.get(coarse)
        if row is None:
            merged[coarse] = delta
        else:
            merged[coarse] = list(map(add, row, delta)) if is_sum else _merge(measures, row, delta)
    return merged


def _start(grain: str, at_ns: int, calendar: Calendar) -> tuple[int, ...]:
    """The bucket of an instant; totals have none."""
    if grain == "hour":
        return (calendar.hour_of(at_ns),)
    if grain == "day":
        return (calendar.day_of(at_ns),)
    assert grain == "total", grain
    return ()


def _with_sketches(rollup: Rollup, grain: str, rows: Rows, sketches: SketchBook) -> Rows:
    """The same with sketches as they are stored; totals have none."""
    # They are the last measures.
    count = sum(measure.kind == "bytes" for measure in rollup.measures)
    if not count:
        return rows
    if grain == "total":
        return {key: row[:-count] for key, row in rows.items()}
    name = rollup.table_name(grain)
    return {key: [*row[:-count], *sketches.grow(name, key[0], key[1:], row[-count:])] for key, row in rows.items()}


def _merge(measures: tuple[Measure, ...], row: list[Any], delta: list[Any]) -> list[Any]:
    merged = []
    for measure, old, new in zip(measures, row, delta, strict=True):
        if measure.merge is Merge.ADD or measure.merge is Merge.REPLACE:
            # Sketches are lists of buckets until they are stored: adding joins them.
            merged.append(old + new)
        elif old is None or new is None:
            merged.append(new if old is None else old)
        elif measure.merge is Merge.MIN:
            merged.append(min(old, new))
        elif measure.merge is Merge.MAX:
            merged.append(max(old, new))
        else:
            merged.append(old)
    return merged
