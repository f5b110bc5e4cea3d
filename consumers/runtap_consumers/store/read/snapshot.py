"""Reading the store: a snapshot, which of its rows count, and the alerts.

The rest is read by `read_books` (what the ledger is worked out from), `read_figures`, `read_sessions`, `read_runs`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, Table, and_, false, func, or_, select

from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.rollups import GRAINS
from runtap_consumers.store import tables
from runtap_consumers.store.dialect import Dialect, dialect_of
from runtap_consumers.store.engine import Store, open_store

# Which projection writes a table, where it is not the one of the table's name.
_OWNERS = {
    "cost_by_attribute": "cost",
    "roots": "errors",
    "error_groups": "errors",
    "recent_errors": "errors",
    "touched_minutes": "errors",
    "session_costs": "sessions",
    "open_runs": "runs",
    "scores": "runs",
    "run_scores": "runs",
    "skipped_types": "ledger",
    "emitter_reports": "ledger",
    "emitter_counts": "ledger",
    "abandoned_lanes": "ledger",
    "report_minutes": "ledger",
    "strays": "ledger",
    "skewed_events": "performance",
    "model_names": "performance",
    "run_durations": "performance",
}


def owner_of(table: Table) -> str:
    """The projection that writes a table."""
    name = table.name
    for grain in GRAINS:
        name = name.removesuffix(f"_{grain}")
    return _OWNERS.get(name, name)


@dataclass(frozen=True)
class Snapshot:
    """A connection whose statements all see one state of the store, and the positions of that state."""

    connection: Connection
    positions: tuple[Row[Any], ...]
    generations: dict[str, dict[int, list[int]]]

    @property
    def projections(self) -> list[str]:
        """The projections that have ever run."""
        return list(self.generations)

    @property
    def dialect(self) -> Dialect:
        """What the database's SQL is like."""
        return dialect_of(self.connection.engine.url)

    @property
    def newest_log_time_ns(self) -> int:
        """Up to where the log was applied by whoever is furthest; 0 before anybody was."""
        return max((position.log_time_ns for position in self.positions), default=0)

    def select_lanes(self) -> Select[Any]:
        """The lane marks of the projections."""
        return select(tables.lane_marks).where(tables.lane_marks.c.projection.in_(PROJECTIONS))

    def is_live(self, table: Table, alias: FromClause | None = None) -> ColumnElement[bool]:
        """The condition for rows of a table, or of it by another name, to count: of the live generation of their
        partition.
        """
        columns = (table if alias is None else alias).c
        generations = self.generations.get(owner_of(table), {})
        if len(generations) == 1:
            return columns.generation == next(iter(generations))
        return or_(
            false(),
            *(
                and_(columns.generation == generation, columns.partition.in_(partitions))
                for generation, partitions in generations.items()
            ),
        )


@contextmanager
def open_snapshot(store: Store) -> Iterator[Snapshot]:
    """One state of the store to read from."""
    with store.read() as connection:
        # A rebuild that is under way has positions, too, under names of its own.
        known = tables.positions.c.projection.in_(PROJECTIONS)
        positions = connection.execute(select(tables.positions).where(known).order_by("projection", "partition")).all()
        generations: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row in positions:
            generations[row.projection][row.generation].append(row.partition)
        yield Snapshot(connection, tuple(positions), dict(generations))


@contextmanager
def open_reader(database_url: str) -> Iterator[Snapshot]:
    """One state of a store that is opened for it alone.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    with closing(open_store(database_url)) as store, open_snapshot(store) as snapshot:
        yield snapshot


def read_counts(snapshot: Snapshot, table_name: str, key: str) -> dict[str, int]:
    """The sums of a table of counts: `skipped_types` by `type`, `skewed_events` by `service`, `strays` by `kind`."""
    table = tables.metadata.tables[table_name]
    counts = select(table.c[key], func.sum(table.c.count)).where(snapshot.is_live(table))
    rows = snapshot.connection.execute(counts.group_by(table.c[key]).order_by(table.c[key]))
    return {name: int(count) for name, count in rows}


def cost_sum(table: FromClause) -> tuple[ColumnElement[Any], ...]:
    """What the rows of a table of costs come to; put together by `cost_of`."""
    return tuple(func.sum(table.c[name]).label(name) for name in ("cost_microdollars", "cost_picodollars"))


def cost_of(row: Row[Any]) -> int:
    """Picodollars of a `cost_sum`; 0 where nothing was summed."""
    return int(row.cost_microdollars or 0) * 10**6 + int(row.cost_picodollars or 0)


def read_alerts(snapshot: Snapshot, from_ns: int, to_ns: int, service: str | None) -> list[tuple[int, bytes]]:
    """Alerts that were raised in [from_ns, to_ns), newest first: when, and the record."""
    outbox = tables.alert_outbox.c
    statement = (
        select(outbox.at_ns, outbox.payload)
        .where(outbox.at_ns >= from_ns, outbox.at_ns < to_ns)
        .order_by(outbox.at_ns.desc(), outbox.id)
    )
    if service is not None:
        statement = statement.where(outbox.service == service)
    return [(at_ns, bytes(payload)) for at_ns, payload in snapshot.connection.execute(statement)]
