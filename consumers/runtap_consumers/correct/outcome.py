"""What is to be priced again, and what became of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.correct.stored_costs import Measures, Wanted
from runtap_consumers.instants import day_start_ns, format_instant
from runtap_consumers.store.engine import Store

# Later than any instant.
END_NS = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """What is to be priced again: whole days of the store's from the one that holds `from_ns` to the one before `to_ns`
    (`None`: to the end), of the providers and models that fit the patterns.
    """

    from_ns: int
    to_ns: int | None = None
    provider: str | None = None
    model: str | None = None

    def span(self, store: Store) -> tuple[int, int]:
        """The days' begin and end."""
        end_ns = END_NS if self.to_ns is None else day_start_ns(self.to_ns - 1, store.zone, days_later=1)
        return day_start_ns(self.from_ns, store.zone), end_ns

    def wanted(self, partition: int, price_set: str) -> Wanted:
        """The rows of a partition that it is about, under other prices than these."""
        return Wanted(partition, price_set, self.provider, self.model)


@dataclass(frozen=True)
class Inexact:
    """A row that cannot be priced again exactly."""

    table: str
    key: dict[str, Any]
    calls: int
    reason: str

    def __str__(self) -> str:
        key = " ".join(
            str(value) for name, value in self.key.items() if name not in ("bucket_ns", "price_set") and value
        )
        at_ns = self.key.get("bucket_ns")
        when = "" if at_ns is None else f" of {format_instant(at_ns, ZoneInfo('UTC'))}"
        return f"{self.table}{when}, {key}, {self.calls:,} calls: {self.reason}"


@dataclass
class Difference:
    """Calls that are priced again: what they cost, and what they cost now."""

    calls: int = 0
    old_unpriced_calls: int = 0
    new_unpriced_calls: int = 0
    old_picodollars: int = 0
    new_picodollars: int = 0

    def add(self, old: Measures, new: Measures) -> None:
        """Adds a row, before and after."""
        self.calls += old["calls"]
        self.old_unpriced_calls += old["unpriced_calls"]
        self.new_unpriced_calls += new["unpriced_calls"]
        self.old_picodollars += old["cost_picodollars"]
        self.new_picodollars += new["cost_picodollars"]

    def join(self, other: Difference) -> None:
        """Adds another one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Outcome:
    """What a repricing changes: costs by day, provider and model; sessions and runs besides, which tell of the same
    calls.
    """

    days: dict[tuple[int, str, str], Difference] = field(default_factory=lambda: defaultdict(Difference))
    sessions: Difference = field(default_factory=Difference)
    runs: Difference = field(default_factory=Difference)
    inexact: list[Inexact] = field(default_factory=list)
    rows: int = 0

    @property
    def total(self) -> Difference:
        """All days together."""
        total = Difference()
        for each in self.days.values():
            total.join(each)
        return total
