"""What stored rows become under other prices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import orjson

from runtap_consumers.correct import stored_costs
from runtap_consumers.correct.outcome import END_NS, Inexact, Outcome
from runtap_consumers.correct.stored_costs import MEASURES, Deltas, Measures, Query, StoredRow, StoredRun, Wanted
from runtap_consumers.instants import day_start_ns
from runtap_consumers.pricing import PriceTable
from runtap_consumers.pricing.history import price_sum, read_class
from runtap_consumers.projections.batch import MAX_CALL_PICODOLLARS
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.projections.rollups import COST, COST_BY_ATTRIBUTE, HOUR_NS, MINUTE_NS, OTHER, TOKEN_CLASSES
from runtap_consumers.store.engine import Store
from runtap_schemas import Usage

RUNS_A_TRANSACTION = 50_000


class Repricer:
    """What becomes of the rows of one partition. It reads in a transaction or a snapshot of the caller's."""

    def __init__(
        self, query: Query, store: Store, table: PriceTable, wanted: Wanted, generations: dict[str, int]
    ) -> None:
        """Args:
        query: reads.
        store: whose rows.
        table: the prices.
        wanted: which rows of which partition.
        generations: that count there, by projection.
        """
        self._query = query
        self._store = store
        self._table = table
        self._wanted = wanted
        self._generations = generations
        self._calendar = Calendar(store.zone)
        self.inexact: list[Inexact] = []
        # By table and bucket; of the chunk in hand.
        self._parts: dict[tuple[str, int], list[StoredRow]] = {}
        self._range = self._runs_within = (0, 0)

    def reprice_costs(self, from_ns: int, to_ns: int, outcome: Outcome) -> Deltas:
        """Works out the changes of the projection `cost` for whole days of the store's, in [from_ns, to_ns)."""
        deltas = Deltas((self._wanted.partition, self._generations["cost"]))
        self._begin(from_ns, to_ns)
        by_grain = {grain: self._read_grain(grain) for grain in ("minute", "hour", "day")}
        for grain, rows in by_grain.items():
            for row in rows:
                new = self._reprice(row)
                if new is None:
                    continue
                self._move(deltas, row.table, row.key, row.measures, new)
                if grain == "day":
                    # Totals have no time of their own; days are kept for ever and add up to them.
                    self._move(deltas, COST.table_name("total"), _without(row.key, "bucket_ns"), row.measures, new)
                    outcome.days[row.key["bucket_ns"], row.key["provider"], row.key["model"]].add(row.measures, new)
        generation = self._generations["cost"]
        for grain in COST_BY_ATTRIBUTE.grains:
            for row in stored_costs.read_attribute_rows(
                self._query, self._wanted, generation, grain, *self._range, self._length(grain)
            ):
                new = self._reprice(row)
                if new is not None:
                    self._move(deltas, row.table, row.key, row.measures, new)
        return deltas

    def reprice_sessions(self, from_ns: int, to_ns: int, outcome: Outcome) -> Deltas:
        """Works out the changes of the projection `sessions`. Of a session that began before, only the runs within
        change.
        """
        generation = self._generations["sessions"]
        deltas = Deltas((self._wanted.partition, generation))
        self._begin(from_ns, to_ns, runs_within=(0, END_NS))
        for row in stored_costs.read_session_rows(self._query, self._wanted, generation, from_ns, to_ns):
            if from_ns <= row.from_ns and row.to_ns <= to_ns:
                old, new = row.measures, self._reprice(row)
            else:
                old, new = self._reprice_part(row, from_ns, to_ns)
            if new is not None and old["calls"]:
                self._move(deltas, row.table, row.key, old, new)
                outcome.sessions.add(old, new)
        return deltas

    def reprice_runs(self, from_ns: int, to_ns: int, outcome: Outcome) -> list[tuple[Any, int | None]]:
        """Works out what runs cost; some of them at a time: those that are written are not met again."""
        found = stored_costs.read_runs(
            self._query,
            self._wanted,
            self._generations["runs"],
            from_ns,
            to_ns,
            stored_costs.row_id_column(self._store),
            RUNS_A_TRANSACTION,
        )
        costs = []
        for run in found:
            cost = run_cost(self._table, run.facts)
            costs.append((run.row_id, cost))
            old = run.facts["cost_picodollars"]
            is_metered = _is_metered(run.facts)
            outcome.runs.calls += 1
            outcome.runs.old_unpriced_calls += is_metered and old is None
            outcome.runs.new_unpriced_calls += is_metered and cost is None
            outcome.runs.old_picodollars += old or 0
            outcome.runs.new_picodollars += cost or 0
        return costs

    def _begin(self, from_ns: int, to_ns: int, runs_within: tuple[int, int] | None = None) -> None:
        self._range = (from_ns, to_ns)
        self._runs_within = runs_within or (from_ns, to_ns)
        self._parts.clear()
        self.__dict__.pop("_runs", None)

    def _read_grain(self, grain: str) -> list[StoredRow]:
        rows = stored_costs.read_cost_rows(
            self._query, self._wanted, self._generations["cost"], grain, *self._range, self._length(grain)
        )
        for row in rows:
            at_ns: int = row.key["bucket_ns"]
            part_of = (self._calendar.day_of if grain == "hour" else self._calendar.hour_of)(at_ns)
            if grain != "day":
                self._parts.setdefault((row.table, part_of), []).append(row)
        return rows

    def _length(self, grain: str) -> Callable[[int], int]:
        if grain == "day":
            return lambda bucket: day_start_ns(bucket, self._store.zone, days_later=1)
        return lambda bucket: bucket + (MINUTE_NS if grain == "minute" else HOUR_NS)

    def _move(self, deltas: Deltas, table: str, key: dict[str, Any], old: Measures, new: Measures) -> None:
        deltas.add(table, key, old, -1)
        deltas.add(table, {**key, "price_set": self._table.price_set}, new, 1)

    def _reprice(self, row: StoredRow) -> Measures | None:
        """A row's measures under the new prices; `None`, and noted, where they cannot be told."""
        new = self._price(row)
        if new is None:
            self._refuse(row, "its prices differ within it, and its single runs are not all there")
        return new

    def _refuse(self, row: StoredRow, reason: str) -> None:
        self.inexact.append(Inexact(row.table, row.key, row.measures["calls"], reason))

    def _price(self, row: StoredRow) -> Measures | None:
        if OTHER not in (row.key["provider"], row.key["model"]):
            whole = price_row(self._table, row)
            if whole is not None:
                return whole
            parts = self._parts_of(row)
            if parts and _sum(part.measures for part in parts) == row.measures:
                priced = [self._price(part) for part in parts]
                known = [each for each in priced if each is not None]
                if len(known) == len(priced):
                    return _sum(known)
        runs = self._runs_of(row)
        return self._price_runs(runs) if _sum(map(_stored_measures, runs)) == row.measures else None

    def _reprice_part(self, row: StoredRow, from_ns: int, to_ns: int) -> tuple[Measures, Measures | None]:
        runs = self._runs_of(row)
        if _sum(map(_stored_measures, runs)) != row.measures:
            self._refuse(row, "the session reaches beyond the range, and its single runs are not all there")
            return row.measures, None
        within = [run for run in runs if from_ns <= run.facts["ended_at_ns"] < to_ns]
        return _sum(map(_stored_measures, within)), self._price_runs(within)

    def _parts_of(self, row: StoredRow) -> list[StoredRow]:
        """The rows of the next finer grain that the row was made of, if it was made of whole ones."""
        finer = {COST.table_name("day"): COST.table_name("hour"), COST.table_name("hour"): COST.table_name("minute")}
        table = finer.get(row.table)
        if table is None:
            return []
        wanted = _without(row.key, "bucket_ns")
        return [part for part in self._parts.get((table, row.from_ns), ()) if _without(part.key, "bucket_ns") == wanted]

    @cached_property
    def _runs(self) -> dict[tuple[str, ...], list[StoredRun]]:
        """The runs of the partition that are still kept, by provider, model, price set and price class."""
        generation = self._generations.get("runs")
        if generation is None:
            return {}
        found: dict[tuple[str, ...], list[StoredRun]] = defaultdict(list)
        for run in stored_costs.read_runs(
            self._query, self._wanted, generation, *self._runs_within, stored_costs.row_id_column(self._store)
        ):
            found[_price_key(run.facts)].append(run)
        return found

    def _runs_of(self, row: StoredRow) -> list[StoredRun]:
        return [run for run in self._runs.get(_price_key(row.key), ()) if _is_in(run.facts, row)]

    def _price_runs(self, runs: Iterable[StoredRun]) -> Measures:
        return _sum(_measures_of(run, run_cost(self._table, run.facts)) for run in runs)


def run_cost(table: PriceTable, facts: dict[str, Any]) -> int | None:
    """What a stored run costs: as when it was folded (`batch.price_call`), under these prices."""
    usage = Usage(**{name: facts[name] for name in TOKEN_CLASSES})
    model = facts["model"] or facts["request_model"]
    cost = table.price(facts["provider"], model, usage, facts["ended_at_ns"], facts["service_tier"]).cost_picodollars
    return None if cost is None or cost > MAX_CALL_PICODOLLARS else cost


def price_row(table: PriceTable, row: StoredRow) -> Measures | None:
    """A row's measures under other prices; `None` where its price class, time and tokens leave a doubt."""
    old = row.measures
    calls = old["priced_calls"] + old["unpriced_calls"]
    key = row.key
    priced = price_sum(table, key["provider"], key["model"], key["price_class"], calls, old, row.from_ns, row.to_ns)
    if priced is None:
        return None
    cost = priced.cost_picodollars
    if cost is not None and cost > MAX_CALL_PICODOLLARS:
        # A call that would cost more than the most believed has no price; which of several do, a sum cannot say.
        has_some = bool(old["priced_calls"] and old["unpriced_calls"]) and not read_class(key["price_class"]).marks
        if calls > 1 and (has_some or cost > MAX_CALL_PICODOLLARS * calls):
            return None
        if calls == 1:
            cost = None
    return {
        **old,
        "priced_calls": 0 if cost is None else calls,
        "unpriced_calls": 0 if cost is not None else old["unpriced_calls"] + old["priced_calls"],
        "cost_picodollars": cost or 0,
    }


def _is_metered(facts: dict[str, Any]) -> bool:
    return facts["input_tokens"] is not None and facts["output_tokens"] is not None


def _stored_measures(run: StoredRun) -> Measures:
    return _measures_of(run, run.facts["cost_picodollars"])


def _measures_of(run: StoredRun, picodollars: int | None) -> Measures:
    """The measures that a run of that cost adds to its rows, as `batch.price_call` makes them."""
    facts = run.facts
    is_metered = _is_metered(facts)
    return {
        "calls": 1,
        "priced_calls": int(picodollars is not None),
        "unpriced_calls": int(picodollars is None and is_metered),
        "unmetered_calls": int(picodollars is None and not is_metered and facts["status"] == "ok"),
        "cached_calls": 0,
        **{name: facts[name] or 0 for name in TOKEN_CLASSES},
        "cost_picodollars": picodollars or 0,
    }


def _is_in(facts: dict[str, Any], row: StoredRow) -> bool:
    """Whether a run is one of those that a row was made of; provider, model, price set and class are known to be the
    same.
    """
    if not row.from_ns <= facts["ended_at_ns"] < row.to_ns:
        return False
    key = row.key
    if "session_id" in key:
        return bool(facts["session_id"] == key["session_id"])
    if "attribute" in key:
        if facts["service"] != key["service"]:
            return False
        if key["attribute"] == "user":
            return bool(facts["user_id"] == key["value"])
        metadata = orjson.loads(facts["metadata"])
        return key["attribute"] in metadata and str(metadata[key["attribute"]]) == key["value"]
    return bool(facts["service"] == key["service"] and facts["environment"] == key["environment"])


def _price_key(facts: dict[str, Any]) -> tuple[str, ...]:
    model = facts["model"] or facts.get("request_model") or ""
    return facts["provider"] or "", model, facts["price_set"], facts["price_class"]


def _without(key: dict[str, Any], name: str) -> dict[str, Any]:
    return {column: value for column, value in key.items() if column != name}


def _sum(measures: Iterable[Measures]) -> Measures:
    total = dict.fromkeys(MEASURES, 0)
    for each in measures:
        for name in MEASURES:
            total[name] += each[name]
    return total
