"""Partitions in one worker's hands, over logs that are lists: how tests fill a store the way workers do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import text

from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_consumers.store.retention import passed_hours
from runtap_consumers.store.writer import Writer
from runtap_consumers.worker.partition import Partition, Tools
from samples import Log

ALL = tuple(PROJECTIONS)
PRICES = PriceTable.load()


class WorkerTools:
    """The tools of workers on one store. Each call of `make` stands for another process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._writers: list[Writer] = []

    def make(self, prices: PriceTable = PRICES) -> Tools:
        """The tools of one worker."""
        writer = Writer.of(self.store)
        self._writers.append(writer)
        return Tools.of(self.store, writer, prices, ConsumerSettings.load(cost_by="metadata.team"))

    def apply(
        self, log: Log, number: int = 0, projections: Iterable[str] = ALL, at_most: int | None = None, **tools: Any
    ) -> Partition:
        """Lets a new worker apply what is in a partition's log; in commits of `at_most` records."""
        partition = Partition(number, projections, self.make(**tools))
        partition.load(log.first_offset)
        while records := log.since(partition.next_offset, at_most):
            partition.commit(partition.fold(records))
        return partition

    def close(self) -> None:
        """Closes all connections."""
        for writer in self._writers:
            writer.close()


# A table of costs with the names that its keys have numbers for; costs by attribute are in hours, and later in days.
NAMED = "{} AS costs JOIN cost_keys ON cost_keys.id = costs.cost_key"
ATTRIBUTED = NAMED.format("(SELECT * FROM cost_by_attribute_hour UNION ALL SELECT * FROM cost_by_attribute_day)")
SESSION_COSTS = NAMED.format("session_costs")


def pass_hours_on(store: Store, at_ns: int) -> None:
    """Lets all hours of attributes pass that a worker would in time, at a log time."""
    with Writer.of(store) as writer:
        for key in rows(store, "SELECT partition, generation FROM positions WHERE projection = 'cost'"):
            while changes := passed_hours(writer, "cost", (key[0], key[1]), at_ns, Calendar(store.zone)):
                with writer.transaction():
                    for statement, parameters in changes:
                        writer.execute(statement, parameters)


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    """What a query finds."""
    with store.read() as connection:
        return [tuple(row) for row in connection.execute(text(query))]
