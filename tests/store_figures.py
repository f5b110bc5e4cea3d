"""Figures in a store as a worker would have written them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runtap_consumers.store import tables
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import DAY_NS, HOUR_NS, minute_of
from runtap_schemas import Alert, decode_alert


class Figures:
    """Writes what a worker would have written."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._writer = Writer.of(store)
        # When groups occur.
        self.at_ns = store.created_at_ns

    def add(self, table_name: str, *rows: tuple[Any, ...]) -> None:
        with self.open_commit(table_name, *rows):
            pass

    @contextmanager
    def open_commit(self, table_name: str, *rows: tuple[Any, ...]) -> Iterator[None]:
        """A transaction that has written the rows, and commits at the end of the block."""
        table = tables.metadata.tables[table_name]
        with self._writer.transaction():
            self._writer.upsert(table, list(rows))
            yield

    def position(self, partition: int = 0, next_offset: int = 0, log_time_ns: int = 0, generation: int = 0) -> None:
        names = ("cost", "errors", "performance")
        with self._writer.transaction():
            for name in names:
                self._writer.execute("DELETE FROM positions WHERE projection = ? AND partition = ?", (name, partition))
        rows = [(name, partition, next_offset, 0, 0, generation, 0, "", log_time_ns, 0) for name in names]
        self.add("positions", *rows)

    def roots(self, minute_ns: int, ok: int, errors: int, partition: int = 0, generation: int = 0) -> None:
        key = (minute_ns, "checkout", "prod", partition, generation)
        with self.open_commit("roots_minute", (*key, ok, errors, 0, 0, f"run-{minute_ns}" if errors else None)):
            self.touch("errors", minute_ns, partition, generation)

    def spend(
        self,
        minute_ns: int,
        dollars: float,
        user: str = "",
        calls: int = 1,
        service: str = "checkout",
        environment: str = "prod",
    ) -> None:
        """A commit with the costs of a minute, in every grain, and by user."""
        measures = dict.fromkeys((column.name for column in tables.metadata.tables["cost_total"].columns), 0)
        measures |= {"calls": calls, "priced_calls": calls, "input_tokens": 10 * calls, "output_tokens": calls}
        measures["cost_microdollars"] = round(dollars * 10**6)
        facts = ("openai", "gpt-5", service, environment, "set", "standard")
        key_number = 1 if environment == "prod" else 2
        buckets = {
            "minute": minute_ns,
            "hour": minute_ns // HOUR_NS * HOUR_NS,
            "day": minute_ns // DAY_NS * DAY_NS,
            "total": None,
        }
        with self._writer.transaction():
            for grain, bucket_ns in buckets.items():
                table = tables.metadata.tables[f"cost_{grain}"]
                sums = [measures[column.name] for column in table.columns if not column.primary_key]
                key = (*(() if bucket_ns is None else (bucket_ns,)), *facts, 0, 0)
                self._writer.upsert(table, [(*key, *sums)])
            if user:
                self._writer.execute(
                    "INSERT INTO cost_keys (id, provider, model, service, environment, price_set, price_class) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (key_number, *facts),
                )
                table = tables.metadata.tables["cost_by_attribute_hour"]
                sums = [measures[column.name] for column in table.columns if not column.primary_key]
                self._writer.upsert(table, [(buckets["hour"], "user", user, key_number, 0, 0, *sums)])
            self.touch("cost", minute_ns)

    def touch(self, projection: str, minute_ns: int, partition: int = 0, generation: int = 0) -> None:
        row = (projection, minute_ns, partition, generation, 1)
        self._writer.upsert(tables.metadata.tables["touched_minutes"], [row])

    def groups(self, count: int, service: str = "checkout", first: int = 0) -> None:
        self.add(
            "error_groups",
            *(
                (
                    *(service, "prod", f"fingerprint-{number:03}", 0, 0),
                    *("ValueError", "other", f"boom {number}", "tool", None, None, None),
                    *(2, self.at_ns + number, self.at_ns + number + 1, f"run-{number}"),
                )
                for number in range(first, first + count)
            ),
        )
        self.add("touched_minutes", ("errors", minute_of(self.at_ns), 0, 0, 1))

    def query(self, statement: str) -> list[Any]:
        with self._writer.transaction():
            return self._writer.query(statement)

    def alerts(self) -> list[Alert]:
        rows = self.query("SELECT payload FROM alert_outbox ORDER BY at_ns, id")
        return [decode_alert(bytes(payload)) for (payload,) in rows]

    def close(self) -> None:
        self._writer.close()
