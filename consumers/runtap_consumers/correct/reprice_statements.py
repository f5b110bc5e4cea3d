"""The statements of `runtap reprice`: rows that carry a price are read for one partition, and written again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtap_consumers.errors import StoreError
from runtap_consumers.projections.rollups import COST_KEY, COST_MEASURES, SESSION_COSTS, TOKEN_CLASSES, Rollup
from runtap_consumers.store import tables
from runtap_consumers.store.cost_keys import CostKeys
from runtap_consumers.store.statements import update_by_row_id_statement
from runtap_consumers.store.writer import Row, Writer

Query = Callable[[str, Sequence[Any]], list[Any]]
Key = dict[str, Any]
Measures = dict[str, int]
Span = tuple[int, int]

# The projections whose rows carry prices, with the tables and the instant by which rows are divided into transactions.
# A session's last instant only grows, so none is missed that goes on meanwhile.
PROJECTIONS = {
    "cost": (("cost_minute", "cost_hour", "cost_by_attribute_hour", "cost_by_attribute_day"), "bucket_ns"),
    "sessions": (("sessions",), "last_at_ns"),
    "runs": (("runs",), "started_at_ns"),
}
_MEASURES = [measure.name for measure in COST_MEASURES]
# As they are stored: of a sum in two columns the whole units first.
_COLUMNS = [name for measure in COST_MEASURES for name in (measure.whole, measure.name) if name]
_RUN_COLUMNS = ("ended_at_ns", "provider", "model", "request_model", "service_tier", "price_class", *TOKEN_CLASSES)


@dataclass(frozen=True)
class Wanted:
    """Which rows are to be priced again: a partition's live ones under other prices than these; patterns may hold `*`.

    What a provider billed itself and what a cache answered have no price of a table.
    """

    partition: int
    generation: int
    price_set: str
    provider: str | None = None
    model: str | None = None

    def condition(self, provider: str = "provider", model: str = "model") -> tuple[str, list[Any]]:
        """SQL of the condition, with its parameters."""
        parts = ["partition = ?", "generation = ?", "price_set NOT IN (?, 'provider')", "price_class <> 'cached'"]
        parameters: list[Any] = [self.partition, self.generation, self.price_set]
        for column, pattern in ((provider, self.provider), (model, self.model)):
            if pattern is not None:
                parts.append(f"lower({column}) LIKE ? ESCAPE '!'")
                escaped = "".join(f"!{letter}" if letter in "!%_" else letter for letter in pattern.lower())
                parameters.append(escaped.replace("*", "%"))
        return " AND ".join(parts), parameters


@dataclass
class Deltas:
    """What is added to rows, by table and whole key; what is taken from them is negative. `cost_keys`: those of the
    transaction.
    """

    wanted: Wanted
    cost_keys: CostKeys
    rows: dict[str, dict[tuple[Any, ...], list[int]]] = field(default_factory=dict)

    def move(self, table: str, key: Key, old: Measures, new: Measures) -> None:
        """Takes measures from their row, and adds others to the row under the wanted prices."""
        rows = self.rows.setdefault(table, {})
        names = _key_names(table)
        new_key = {**key, "price_set": self.wanted.price_set}
        if "cost_key" in names:
            named: Any = tuple(new_key[name] for name in COST_KEY)
            new_key["cost_key"] = self.cost_keys.numbers({named})[named]
        for sign, of_key, measures in ((-1, key, old), (1, new_key, new)):
            whole = (*(of_key[name] for name in names), self.wanted.partition, self.wanted.generation)
            row = rows.setdefault(whole, [0] * len(_MEASURES))
            for index, name in enumerate(_MEASURES):
                row[index] += sign * measures[name]


def read_partitions(query: Query, projection: str) -> list[int]:
    """The partitions of a projection."""
    return [row[0] for row in query("SELECT partition FROM positions WHERE projection = ? ORDER BY 1", (projection,))]


def end_of_slice(query: Query, projection: str, partition: int, from_ns: int, to_ns: int, rows: int) -> int:
    """Up to where rows go that begin at an instant and are about so many of one table; at most `to_ns`."""
    names, column = PROJECTIONS[projection]
    for name in names:
        found = query(
            f"SELECT {column} FROM {name} WHERE partition = ? AND {column} > ? AND {column} < ? "
            f"ORDER BY {column} LIMIT 1 OFFSET ?",
            (partition, from_ns, to_ns, rows),
        )
        to_ns = int(found[0][0]) if found else to_ns
    return to_ns


def lock_position(writer: Writer, projection: str, partition: int) -> int:
    """Keeps workers from moving a position until the transaction ends. Returns the live generation."""
    # Longer than a worker's: this waits for its commit, and works between its own statements.
    writer.set_local(lock_timeout="20s", statement_timeout="300s", idle_in_transaction_session_timeout="120s")
    statement = "SELECT generation FROM positions WHERE projection = ? AND partition = ?" + writer.dialect.for_update
    found = writer.query(statement, (projection, partition))
    if not found:
        raise StoreError(f"{projection}/{partition}: there is no such position any more")
    return int(found[0][0])


def raise_epoch(writer: Writer, projection: str, partition: int) -> None:
    """Fences the worker that holds a batch of a locked position."""
    writer.execute(
        "UPDATE positions SET epoch = epoch + 1 WHERE projection = ? AND partition = ?", (projection, partition)
    )


def read_rows(query: Query, wanted: Wanted, table: str, span: Span) -> list[tuple[Key, Measures]]:
    """The rows of a table whose buckets begin in a span; keys have the names of a cost key, too."""
    names, source = _key_names(table), table
    if "cost_key" in names:
        names, source = [*names, *COST_KEY], f"{table} JOIN cost_keys ON cost_keys.id = cost_key"
    condition, parameters = wanted.condition()
    found = query(
        f"SELECT {', '.join((*names, *_COLUMNS))} FROM {source} WHERE bucket_ns >= ? AND bucket_ns < ? AND {condition}",
        (*span, *parameters),
    )
    return [_key_and_measures(names, values) for values in found]


def read_sessions(query: Query, wanted: Wanted, last_events: Span) -> list[tuple[Key, Measures, Span]]:
    """Costs of sessions whose last event lies in a span, with the span of all their events."""
    names = (*SESSION_COSTS.keys, *COST_KEY)
    condition, parameters = wanted.condition()
    live, key = "partition = ? AND generation = ?", (wanted.partition, wanted.generation)
    # A session has a row for each of its users, and the last event of one of them lies in the span.
    found = query(
        "SELECT s.first_at_ns, s.last_at_ns, c.* FROM "
        f"(SELECT {', '.join((*names, *_COLUMNS))} FROM session_costs JOIN cost_keys ON cost_keys.id = cost_key "
        f"WHERE {condition}) AS c JOIN "
        "(SELECT session_id, min(first_at_ns) AS first_at_ns, max(last_at_ns) AS last_at_ns FROM sessions "
        f"WHERE {live} AND session_id IN "
        f"(SELECT session_id FROM sessions WHERE {live} AND last_at_ns >= ? AND last_at_ns < ?) "
        "GROUP BY session_id HAVING max(last_at_ns) < ?) AS s ON s.session_id = c.session_id",
        (*parameters, *key, *key, *last_events, last_events[1]),
    )
    return [(*_key_and_measures(names, values), (first_ns, last_ns + 1)) for first_ns, last_ns, *values in found]


def read_runs(writer: Writer, wanted: Wanted, started: Span, ended: Span) -> list[tuple[Any, dict[str, Any]]]:
    """Model runs that started and ended in these spans: the database's id of the row, and facts."""
    condition, parameters = wanted.condition("coalesce(provider, '')", "coalesce(model, request_model, '')")
    found = writer.query(
        f"SELECT {writer.dialect.row_id}, {', '.join(_RUN_COLUMNS)} FROM runs WHERE run_type = 'llm' "
        f"AND started_at_ns >= ? AND started_at_ns < ? AND ended_at_ns >= ? AND ended_at_ns < ? AND {condition}",
        (*started, *ended, *parameters),
    )
    return [(row, dict(zip(_RUN_COLUMNS, values, strict=True))) for row, *values in found]


def write_deltas(writer: Writer, deltas: Deltas) -> int:
    """Adds deltas to their rows, and deletes the rows of which nothing is left. Returns how many rows it touched."""
    touched = 0
    for name, rows in sorted(deltas.rows.items()):
        table = tables.metadata.tables[name]
        rollup: Rollup = table.info["rollup"]
        whole: list[Row] = [rollup.stored_row(key, (), row) for key, row in sorted(rows.items()) if any(row)]
        writer.upsert(table, whole)
        touched += len(whole)
        condition, parameters = "partition = ? AND generation = ?", [deltas.wanted.partition, deltas.wanted.generation]
        if "bucket_ns" in table.c:
            # Without a range of the key's first column, every transaction would read the whole table.
            condition += " AND bucket_ns BETWEEN ? AND ?"
            parameters += [min(rows)[0], max(rows)[0]]
        writer.execute(f"DELETE FROM {name} WHERE calls = 0 AND {condition}", parameters)
    return touched


def write_run_costs(writer: Writer, price_set: str, costs: Sequence[tuple[Any, int | None]]) -> int:
    """Gives runs their new cost, picodollars by row id. Returns how many they are."""
    statement = update_by_row_id_statement(tables.runs, ("price_set", "cost_picodollars"), writer.dialect)
    writer.execute_rows(statement, tables.runs, [(price_set, cost, row_id) for row_id, cost in costs])
    return len(costs)


def write_record(writer: Writer, facts: dict[str, Any]) -> None:
    """Records what a repricing is about and how far it is, inside a transaction."""
    writer.upsert(tables.repricings, [tuple(facts.get(column.name) for column in tables.repricings.columns)])


def _key_names(table: str) -> list[str]:
    """The columns of a table's key, less partition and generation."""
    return [column.name for column in tables.metadata.tables[table].primary_key.columns][:-2]


def _key_and_measures(names: Sequence[str], values: Sequence[Any]) -> tuple[Key, Measures]:
    stored = dict(zip(_COLUMNS, map(int, values[len(names) :]), strict=True))
    measures = {one.name: stored.get(one.whole, 0) * one.unit + stored[one.name] for one in COST_MEASURES}
    return dict(zip(names, values, strict=False)), measures
