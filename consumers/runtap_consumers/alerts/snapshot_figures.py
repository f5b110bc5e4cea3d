"""The figures that rules ask for, read from one state of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import select

from runtap_consumers.alerts.state import AnySettings, ErrorFound
from runtap_consumers.figures.completeness import work_out_completeness
from runtap_consumers.figures.quantities import Present, PresentQuantity, Quantity, read_lost
from runtap_consumers.figures.words import error_facts
from runtap_consumers.instants import hour_start_ns
from runtap_consumers.store import tables
from runtap_consumers.store.read.books import read_books
from runtap_consumers.store.read.ranges import exact_segments
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.store.read.window_sums import EVALUATION, Group, Sums, add_sums, read_sums
from runtap_consumers.units import HOUR_NS

_MESSAGE_LENGTH = 500
_SHOWN = ("cost", "performance", "errors", "sessions")


@dataclass
class RunningSums:
    """Sums of a window that begins where it began, up to an hour or so ago, kept from round to round: a month of many
    users takes seconds to add up.
    """

    key: tuple[Any, ...] = ()
    settled_to_ns: int = 0
    sums: dict[Group, Sums] = field(default_factory=dict)
    # What came after, as it was read last, and for which window.
    recent: Mapping[Group, Sums] = field(default_factory=dict)
    recent_of: tuple[int, int] = (0, 0)


class SnapshotFigures:
    """Figures of a snapshot.

    Args:
        snapshot: what to read.
        zone: of the store's days and hours.
        present: the present.
        learning_until_ns: until then a new store learns its error groups.
        touched_ns: the oldest minute that commits touched, by projection.
        running: of each rule, from the rounds before.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        zone: ZoneInfo,
        present: Present,
        learning_until_ns: int = 0,
        touched_ns: Mapping[str, int] = {},
        running: dict[str, RunningSums] | None = None,
    ) -> None:
        self.snapshot, self.zone, self.now_ns = snapshot, zone, present.now_ns
        self.learning_until_ns = learning_until_ns
        self._present, self._touched_ns = present, touched_ns
        self._running = {} if running is None else running
        # Whoever wrote figures again, under what rows there were, has raised an epoch.
        self._epochs = tuple(
            (row.partition, row.epoch, row.generation) for row in snapshot.positions if row.projection == "cost"
        )
        self._sums: dict[tuple[Any, ...], dict[Group, Sums]] = {}

    def sums(self, rule: AnySettings, quantity: Quantity, from_ns: int, to_ns: int) -> Mapping[Group, Sums]:
        """As `Figures.sums`; asked for again, what was read before."""
        key = (rule.id, from_ns, to_ns)
        if key not in self._sums:
            self._sums[key] = self._read(rule, quantity, from_ns, to_ns)
        return self._sums[key]

    def _read(self, rule: AnySettings, quantity: Quantity, from_ns: int, to_ns: int) -> dict[Group, Sums]:
        segments = exact_segments(from_ns, to_ns, self.zone)
        # What the rule says goes before what is meant unless it says otherwise.
        where = {name: value for name, value in quantity.where.items() if name not in rule.group_by} | rule.where
        without = _left_out(where)
        return read_sums(self.snapshot, quantity.rollup, quantity.measures, rule.group_by, where, segments, without)

    def running_sums(self, rule: AnySettings, quantity: Quantity, from_ns: int, to_ns: int) -> Mapping[Group, Sums]:
        """As `Figures.running_sums`."""
        target_ns = hour_start_ns(self.now_ns - HOUR_NS, self.zone)
        if not from_ns < target_ns <= to_ns:
            return self.sums(rule, quantity, from_ns, to_ns)
        key = (rule.revision, from_ns, self._epochs)
        settled = self._running.get(rule.id)
        touched_ns = self._touched_ns.get("cost", self.now_ns)
        # The hour of a touched minute is read whole where only hours are kept.
        is_known = (
            settled is not None and settled.key == key and settled.settled_to_ns <= hour_start_ns(touched_ns, self.zone)
        )
        if settled is None or not is_known:
            settled = self._running[rule.id] = RunningSums(key, from_ns)
        passed = {}
        if settled.settled_to_ns < target_ns:
            passed = self._read(rule, quantity, settled.settled_to_ns, target_ns)
            for group, sums in passed.items():
                settled.sums[group] = add_sums(settled.sums.get(group), sums)
            settled.settled_to_ns = target_ns
        recent = self.sums(rule, quantity, settled.settled_to_ns, to_ns)
        groups = {*passed, *recent} if is_known else {*settled.sums, *recent}
        of = (settled.settled_to_ns, to_ns)
        if is_known and settled.recent_of == of:
            before = settled.recent
            groups = {group for group, sums in recent.items() if before.get(group) != sums}
        settled.recent, settled.recent_of = recent, of
        return {group: add_sums(settled.sums.get(group), recent.get(group)) for group in groups}

    def present(self, rule: AnySettings, quantity: PresentQuantity) -> Mapping[Group, Decimal]:
        """As `Figures.present`."""
        return quantity.read(self.snapshot, self._present, rule.group_by, rule.where, _left_out(rule.where))

    def errors_since(self, from_ns: int) -> Sequence[ErrorFound]:
        """As `Figures.errors_since`."""
        table = tables.metadata.tables["error_groups"]
        statement = select(table).where(table.c.last_at_ns >= from_ns, self.snapshot.is_live(table))
        found: dict[tuple[str, str], ErrorFound] = {}
        for row in self.snapshot.connection.execute(statement.order_by(table.c.first_at_ns, table.c.fingerprint)):
            key = (row.service, row.fingerprint)
            before = found[key].occurrences if key in found else 0
            says = f"{row.type} ({error_facts(row.category, row.status_code, row.code)})"
            if row.raised_at:
                says += f" at {row.raised_at}"
            if row.message:
                says += f": {' '.join(row.message.split())[:_MESSAGE_LENGTH]}"
            first = found.get(key) or ErrorFound(
                *(row.service, row.environment, row.fingerprint, 0, row.sample_run_id, says, row.type, row.raised_at)
            )
            found[key] = first._replace(occurrences=before + int(row._mapping["count"]))
        return list(found.values())

    def lost(self) -> int:
        """As `Figures.lost`."""
        return read_lost(self.snapshot)

    @cached_property
    def complete_to_ns(self) -> int | None:
        """Before which instant nothing is missing that is not counted."""
        return work_out_completeness(read_books(self.snapshot), _SHOWN).at_ns


def _left_out(where: Mapping[str, str]) -> dict[str, str]:
    return {} if "environment" in where else {"environment": EVALUATION}
