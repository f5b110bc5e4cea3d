"""Pricing history again beside running workers (`runtap reprice`).

Hours are priced, each by what it holds: tokens by class, and a price class. A day changes by what its hours change by,
totals likewise, and minutes are priced as their hour. Runs are priced one by one; sessions, and costs by attribute, by
the time that a row spans. What cannot be told keeps its price set, and is counted. Price classes remain: they say what
is known of the calls.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.correct import reprice_statements as statements
from runtap_consumers.correct.price_terms import TOLD, Terms, cost_of, find_terms, metered_calls, read_class
from runtap_consumers.correct.reprice_statements import Deltas, Measures, Span, Wanted
from runtap_consumers.errors import StoreError
from runtap_consumers.instants import day_start_ns, dollars, hour_start_ns
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.batch import MAX_CALL_PICODOLLARS
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.projections.rollups import COST_BY_ATTRIBUTE, SESSION_COSTS, TOKEN_CLASSES
from runtap_consumers.store.cost_keys import CostKeys
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Writer
from runtap_schemas import Usage

# Rows of a table in one transaction, during which no worker can write the partition. Of costs at least a whole day.
ROWS_A_TRANSACTION = 20_000
# What is compared of the calls of a day, before and after.
DIFFERENCE = ("calls", "old_unpriced_calls", "new_unpriced_calls", "old_picodollars", "new_picodollars")
# Later than any instant.
_END_NS = 2**63 - 1
_ATTEMPTS = 5


@dataclass(frozen=True)
class Request:
    """Whole days of the store's, of the providers and models that fit the patterns; `to_ns` `None`: to the end."""

    from_ns: int
    to_ns: int | None = None
    provider: str | None = None
    model: str | None = None

    def span(self, store: Store) -> Span:
        """The days' begin and end."""
        end_ns = _END_NS if self.to_ns is None else day_start_ns(self.to_ns - 1, store.zone, days_later=1)
        return day_start_ns(self.from_ns, store.zone), end_ns


@dataclass
class Repricing:
    """What a repricing changes.

    `days`: `DIFFERENCE` by day, provider and model. `counts`: `rows_changed`; `session_calls`, `runs` (the same calls);
    what keeps its prices: `kept_calls` of days, among them `kept_hour_calls` of hours that cannot be told (the hours of
    the others are gone), `kept_session_calls`, and `kept_attribute_calls`, where a call counts once an attribute.
    """

    days: dict[tuple[int, str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> Counter[str]:
        """All days together."""
        return sum(self.days.values(), Counter())


def reprice(
    store: Store,
    prices: PriceTable,
    request: Request,
    requested_by: str,
    clock_ns: Callable[[], int],
    *,
    is_dry_run: bool = False,
) -> Repricing:
    """Prices again. Each transaction locks a position, writes, and fences the worker that holds a batch of it.

    A crash leaves whole transactions; what they have written is not met again by the next attempt. A dry run does the
    same, rolls every transaction back, and is not recorded.

    Raises:
        StoreError: the store did not take it; what was written so far is exact.
    """
    record = None if is_dry_run else {"id": uuid.uuid4().hex[:12], "at_ns": clock_ns(), "requested_by": requested_by}
    with Writer.of(store) as writer:
        repricer = _Repricer(writer, store.zone, prices, request, request.span(store), record, Calendar(store.zone))
        for projection in statements.PROJECTIONS:
            for partition in statements.read_partitions(writer.read, projection):
                for part in repricer.slices(projection, partition):
                    repricer.transact(projection, partition, part)
        if record is not None:
            record["finished_at_ns"] = clock_ns()
            with writer.transaction():
                repricer.write_record(record, repricer.outcome)
    return repricer.outcome


class _RolledBackError(Exception):
    """Ends the transaction of a dry run."""


@dataclass
class _Repricer:
    """The transactions of one repricing. Without a record, each is rolled back."""

    writer: Writer
    zone: ZoneInfo
    prices: PriceTable
    request: Request
    span: Span
    record: dict[str, Any] | None
    calendar: Calendar
    outcome: Repricing = field(default_factory=Repricing)

    def slices(self, projection: str, partition: int) -> Iterator[Span]:
        """Spans of a transaction's size; of costs whole days, since hours and their day change together."""
        first = 0 if projection == "runs" else self.span[0]
        last = self.span[1] if projection == "cost" else _END_NS
        while first < last:
            end = statements.end_of_slice(self.writer.read, projection, partition, first, last, ROWS_A_TRANSACTION)
            if projection == "cost" and end < last:
                end = max(self.calendar.day_of(end), day_start_ns(first, self.zone, days_later=1))
            yield first, end
            first = end

    def transact(self, projection: str, partition: int, part: Span) -> None:
        """Prices a part again in one transaction, and tries again where the database was busy."""
        for attempt in range(1, _ATTEMPTS):
            try:
                self.outcome = self._attempt(projection, partition, part)
                return
            except StoreError:
                time.sleep(attempt / 2)
        self.outcome = self._attempt(projection, partition, part)

    def _attempt(self, projection: str, partition: int, part: Span) -> Repricing:
        outcome = deepcopy(self.outcome)
        work = {"cost": self._reprice_costs, "sessions": self._reprice_sessions, "runs": self._reprice_runs}
        request, writer = self.request, self.writer
        with suppress(_RolledBackError), writer.transaction():
            generation = statements.lock_position(writer, projection, partition)
            wanted = Wanted(partition, generation, self.prices.price_set, request.provider, request.model)
            rows = work[projection](wanted, part, outcome)
            outcome.counts["rows_changed"] += rows
            if rows:
                statements.raise_epoch(writer, projection, partition)
            if self.record is None:
                raise _RolledBackError
            self.write_record(self.record, outcome)
        return outcome

    def write_record(self, record: dict[str, Any], outcome: Repricing) -> None:
        """Records, inside a transaction, what was asked for and what became of it so far."""
        total = outcome.total
        facts = {
            "price_set": self.prices.price_set,
            "from_ns": self.span[0],
            "to_ns": self.span[1],
            "provider": self.request.provider or "",
            "model": self.request.model or "",
            "old_cost_usd": dollars(total["old_picodollars"]),
            "new_cost_usd": dollars(total["new_picodollars"]),
        }
        counts = ("rows_changed", "kept_calls", "kept_session_calls", "kept_attribute_calls")
        statements.write_record(self.writer, {**record, **facts, **{name: outcome.counts[name] for name in counts}})

    def _reprice_costs(self, wanted: Wanted, part: Span, outcome: Repricing) -> int:
        query, deltas, minutes = (
            self.writer.query,
            Deltas(wanted, CostKeys(self.writer, is_inside=True)),
            defaultdict(list),
        )
        for key, old in statements.read_rows(query, wanted, "cost_minute", part):
            of_hour = {**key, "bucket_ns": self.calendar.hour_of(key["bucket_ns"])}
            minutes[tuple(of_hour.values())].append((key, old))
        for key, old in statements.read_rows(query, wanted, "cost_hour", part):
            terms = find_terms(self.prices, key, old, self._hour(key["bucket_ns"]))
            if terms is None:
                outcome.counts["kept_hour_calls"] += old["calls"]
                continue
            new = apply_terms(terms, old)
            day_ns = self.calendar.day_of(key["bucket_ns"])
            deltas.move("cost_hour", key, old, new)
            deltas.move("cost_day", {**key, "bucket_ns": day_ns}, old, new)
            deltas.move("cost_total", {name: value for name, value in key.items() if name != "bucket_ns"}, old, new)
            for minute, measures in minutes.get(tuple(key.values()), ()):
                deltas.move("cost_minute", minute, measures, apply_terms(terms, measures))
            unpriced, cost = "unpriced_calls", "cost_picodollars"
            amounts = (old["calls"], old[unpriced], new[unpriced], old[cost], new[cost])
            outcome.days[day_ns, key["provider"], key["model"]].update(dict(zip(DIFFERENCE, amounts, strict=True)))
        for grain, span_of in (("hour", self._hour), ("day", self._day)):
            table = COST_BY_ATTRIBUTE.table_name(grain)
            for key, old in statements.read_rows(query, wanted, table, part):
                terms = find_terms(self.prices, key, old, span_of(key["bucket_ns"]))
                if terms is not None:
                    deltas.move(table, key, old, apply_terms(terms, old))
        rows = statements.write_deltas(self.writer, deltas)
        attributed = (COST_BY_ATTRIBUTE.table_name(grain) for grain in COST_BY_ATTRIBUTE.grains)
        for name, table in (("kept_calls", "cost_day"), *(("kept_attribute_calls", table) for table in attributed)):
            outcome.counts[name] += sum(old["calls"] for _, old in statements.read_rows(query, wanted, table, part))
        return rows

    def _reprice_sessions(self, wanted: Wanted, part: Span, outcome: Repricing) -> int:
        deltas = self._deltas(wanted)
        for key, old, (first_ns, end_ns) in statements.read_sessions(self.writer.query, wanted, part):
            if first_ns >= self.span[1]:
                continue
            is_within = self.span[0] <= first_ns and end_ns <= self.span[1]
            terms = find_terms(self.prices, key, old, (first_ns, end_ns)) if is_within else None
            if terms is not None:
                deltas.move(SESSION_COSTS.name, key, old, apply_terms(terms, old))
            outcome.counts["kept_session_calls" if terms is None else "session_calls"] += old["calls"]
        return statements.write_deltas(self.writer, deltas)

    def _reprice_runs(self, wanted: Wanted, part: Span, outcome: Repricing) -> int:
        runs = statements.read_runs(self.writer, wanted, part, self.span)
        outcome.counts["runs"] += len(runs)
        costs = [(row_id, run_cost(self.prices, facts)) for row_id, facts in runs]
        return statements.write_run_costs(self.writer, self.prices.price_set, costs)

    def _deltas(self, wanted: Wanted) -> Deltas:
        return Deltas(wanted, CostKeys(self.writer, is_inside=True))

    def _hour(self, bucket_ns: int) -> Span:
        # Hours of UTC, from before hours were counted from the zone's midnight, may belong to two days.
        is_of_zone = self.calendar.hour_of(bucket_ns) == bucket_ns
        return bucket_ns, hour_start_ns(bucket_ns, self.zone, hours_later=1) if is_of_zone else bucket_ns

    def _day(self, bucket_ns: int) -> Span:
        return bucket_ns, day_start_ns(bucket_ns, self.zone, days_later=1)


def apply_terms(terms: Terms, measures: Measures) -> Measures:
    """A row's measures when its calls are priced like that."""
    calls, cost = metered_calls(measures), 0 if terms.rates is None else cost_of(terms.rates, measures)
    priced, unpriced = (0, calls) if terms.rates is None else (calls, 0)
    return {**measures, "priced_calls": priced, "unpriced_calls": unpriced, "cost_picodollars": cost}


def run_cost(prices: PriceTable, facts: dict[str, Any]) -> int | None:
    """What a stored run costs: as when it was folded (`batch.price_call`), under these prices."""
    usage = Usage(**{name: facts[name] for name in TOKEN_CLASSES})
    model = facts["model"] or facts["request_model"]
    marks = read_class(facts["price_class"] or "standard").marks & TOLD
    cost = prices.price(
        facts["provider"], model, usage, facts["ended_at_ns"], facts["service_tier"], marks=marks
    ).cost_picodollars
    return None if cost is None or cost > MAX_CALL_PICODOLLARS else cost
