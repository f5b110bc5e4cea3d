"""Pricing again beside running workers: transactions that own a partition each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from runtap_consumers.correct import stored_costs
from runtap_consumers.correct.outcome import Inexact, Outcome, Request
from runtap_consumers.correct.rows import RUNS_A_TRANSACTION, Repricer
from runtap_consumers.correct.stored_costs import Query, Wanted
from runtap_consumers.instants import day_start_ns, dollars
from runtap_consumers.pricing import PriceTable
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Writer

# Days that one transaction prices again: it holds a partition for as long.
CHUNK_DAYS = 30
SESSIONS_A_TRANSACTION = 20_000


def preview_repricing(store: Store, table: PriceTable, request: Request) -> Outcome:
    """What a repricing would change in costs and sessions. Writes nothing and locks nothing."""
    outcome = Outcome()
    span = request.span(store)
    with store.read() as connection:
        query = stored_costs.snapshot_query(connection)
        generations = stored_costs.read_generations(query)
        for partition, of_projections in generations.items():
            repricer = Repricer(query, store, table, request.wanted(partition, table.price_set), of_projections)
            if "cost" in of_projections:
                for chunk in chunks(span, store, query):
                    repricer.reprice_costs(*chunk, outcome)
            if "sessions" in of_projections:
                repricer.reprice_sessions(*span, outcome)
            outcome.inexact += repricer.inexact
    return outcome


def apply_repricing(
    store: Store,
    table: PriceTable,
    request: Request,
    foreseen: Outcome,
    requested_by: str,
    clock_ns: Callable[[], int],
) -> Outcome:
    """Prices again, beside running workers: a partition's projection is locked, written and fenced in one transaction.

    A crash leaves whole transactions; what they have written is not met again by the next attempt. Rows that cannot be
    priced exactly stay as they are, and are in the outcome.

    Args:
        store: whose figures.
        table: the prices.
        request: which figures.
        foreseen: what `preview_repricing` said, for the record.
        requested_by: who asks, for the record.
        clock_ns: the present, for the record.

    Raises:
        StoreError: the store did not take it; what was written so far is exact.
    """
    span = request.span(store)
    outcome = Outcome()
    with Writer.of(store) as writer:
        with store.read() as connection:
            query = stored_costs.snapshot_query(connection)
            generations = stored_costs.read_generations(query)
            days = list(chunks(span, store, query))
        number = stored_costs.begin_repricing(
            writer,
            {
                "at_ns": clock_ns(),
                "requested_by": requested_by,
                "price_set": table.price_set,
                "from_ns": span[0],
                "to_ns": span[1],
                "provider": request.provider or "",
                "model": request.model or "",
                "old_cost_usd": dollars(foreseen.total.old_picodollars),
                "new_cost_usd": dollars(foreseen.total.new_picodollars),
                "rows_changed": 0,
            },
        )
        for partition, of_projections in generations.items():
            step = _Step(writer, store, table, request.wanted(partition, table.price_set), outcome)
            # Runs last: until then they say what the rows that were made of them cost.
            for chunk in days if "cost" in of_projections else ():
                step.run("cost", chunk)
            for page in stored_costs.session_pages(writer.read, partition, SESSIONS_A_TRANSACTION):
                if "sessions" in of_projections:
                    replace(step, wanted=replace(step.wanted, sessions=page)).run("sessions", span)
            if "runs" in of_projections:
                while step.run("runs", span) == RUNS_A_TRANSACTION:
                    pass
        stored_costs.finish_repricing(writer, number, outcome.rows, clock_ns())
    return outcome


@dataclass
class _Step:
    """One transaction: a projection's rows of a range, in one partition."""

    writer: Writer
    store: Store
    table: PriceTable
    wanted: Wanted
    outcome: Outcome

    def run(self, projection: str, span: tuple[int, int]) -> int:
        """Does it, again where the store was busy. Returns how many rows it changed."""
        # Nobody is fenced for nothing.
        if not stored_costs.has_rows(self.writer.read, self.wanted, projection, *span):
            return 0
        done, inexact, rows = stored_costs.retrying(lambda: self._attempt(projection, span))
        for place, difference in done.days.items():
            self.outcome.days[place].join(difference)
        self.outcome.sessions.join(done.sessions)
        self.outcome.runs.join(done.runs)
        self.outcome.inexact += inexact
        self.outcome.rows += rows
        return rows

    def _attempt(self, projection: str, span: tuple[int, int]) -> tuple[Outcome, list[Inexact], int]:
        done = Outcome()
        with stored_costs.fenced(self.writer, projection, self.wanted.partition):
            query = self.writer.query
            generations = stored_costs.read_generations(query)[self.wanted.partition]
            repricer = Repricer(query, self.store, self.table, self.wanted, generations)
            if projection == "runs":
                costs = repricer.reprice_runs(*span, done)
                stored_costs.write_run_costs(self.writer, self.table.price_set, costs)
                rows = len(costs)
            elif projection == "sessions":
                rows = stored_costs.write_deltas(self.writer, repricer.reprice_sessions(*span, done))
            else:
                rows = stored_costs.write_deltas(self.writer, repricer.reprice_costs(*span, done))
        return done, repricer.inexact, rows


def chunks(span: tuple[int, int], store: Store, query: Query) -> Iterator[tuple[int, int]]:
    """The days with costs in a span, a transaction's worth each."""
    stored = stored_costs.days_stored(query)
    if stored is None:
        return
    begin = max(span[0], stored[0])
    end = min(span[1], day_start_ns(stored[1], store.zone, days_later=1))
    while begin < end:
        following = min(day_start_ns(begin, store.zone, days_later=CHUNK_DAYS), end)
        yield begin, following
        begin = following
