"""Rebuilding a projection: a worker of its own folds the retained log anew, beside the live ones, and switches at once.

It has positions, marks and a generation of its own (`refold.Refold`): one that was killed goes on where it stood. It
never passes the live workers. Where it has read all that they have applied, one transaction locks both positions, folds
what came last, and replaces their rows by its own.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple
from zoneinfo import ZoneInfo

import structlog

from runtap_consumers.correct import rebuild_statements as statements
from runtap_consumers.correct.rebuild_statements import Sides, Sums
from runtap_consumers.correct.refold import Refold
from runtap_consumers.errors import FencedError, FoldFailedError, RebuildError, StoreError
from runtap_consumers.kafka.partition_reader import LostToRetentionError, PartitionReader
from runtap_consumers.kafka.records import KafkaRecord
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.dimensions import Dimensions
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store import tables
from runtap_consumers.store.cost_keys import CostKeys
from runtap_consumers.store.dimension_values import admit_inside
from runtap_consumers.store.engine import Store
from runtap_consumers.store.positions import Position
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import HOUR_NS, MINUTE_NS
from runtap_consumers.worker.decoding import count_events
from runtap_consumers.worker.partition import Tools

_ATTEMPTS = 5
# Of all partitions together: bounds memory.
_EVENTS_HELD, _LEAST_EVENTS_A_BATCH = 60_000, 500
_IDLE_SECONDS = 0.02

_logger = structlog.get_logger(__name__)


class FigureDifference(NamedTuple):
    """A sum that a rebuild changes. `day_ns` is `None` in tables without days."""

    table: str
    day_ns: int | None
    measure: str
    before: int
    after: int


class Rebuilt(NamedTuple):
    """What a rebuild did. `from_ns`: begin of the replaced range; 0: all. `differences`: of a dry run."""

    from_ns: int
    records: int
    differences: list[FigureDifference]


class _ChangedError(Exception):
    """What a rebuild was built on has changed."""


@dataclass
class _Reading:
    """A partition in hand, and what of its log was read and not folded."""

    refold: Refold
    next_offset: int
    waiting: list[KafkaRecord] = field(default_factory=list)


async def rebuild(
    store: Store,
    projection: str,
    log: PartitionReader,
    prices: PriceTable,
    settings: ConsumerSettings,
    since_ns: int = 0,
    is_dry_run: bool = False,
) -> Rebuilt:
    """Makes a projection's figures anew, from the first whole day that every partition's log still holds.

    One that was ended goes on, if it was asked for the same: prices, attributes of costs, and `since_ns`, the instant
    before whose day nothing is replaced. A dry run works out the differences instead of the switch, and deletes
    what it has made.

    Raises:
        RebuildError: it cannot be done now. Here and below no figure has changed.
        StoreError: the store cannot be used.
        KafkaError: the log cannot be read.
    """
    if projection not in PROJECTIONS:
        raise RebuildError(f"there is no projection {projection!r}: expected one of {', '.join(PROJECTIONS)}")
    with Writer.of(store) as writer:
        for attempt in range(1, _ATTEMPTS + 1):
            tools = Tools.of(store, writer, prices, settings)
            try:
                return await _Rebuild(projection, log, tools, since_ns).run(is_dry_run)
            except (_ChangedError, LostToRetentionError) as error:
                _logger.warning("rebuild_started_again", projection=projection, attempt=attempt, reason=str(error))
                with writer.transaction():
                    statements.forget_rebuilds(writer, projection)
            except FencedError as error:
                raise RebuildError(f"another rebuild of {projection} is running: {error}") from error
            except FoldFailedError as error:
                raise RebuildError(f"a bug of runtap ended it: {error}") from error
    raise RebuildError(f"{projection} kept changing under the rebuild, {_ATTEMPTS} times: try again later")


def first_whole_day(zone: ZoneInfo, at_ns: int) -> int:
    """Begin of the first local day that begins at an instant or after it."""
    calendar = Calendar(zone)
    day = calendar.day_of(at_ns)
    # 36 hours on, since a day may have 25.
    return day if day >= at_ns else calendar.day_of(day + 36 * HOUR_NS)


def _count(records: list[KafkaRecord]) -> int:
    return sum(map(count_events, records))


class _Rebuild:
    """One attempt: from the beginning, or from where an earlier process was ended."""

    def __init__(self, projection: str, log: PartitionReader, tools: Tools, since_ns: int) -> None:
        self._projection, self._log, self._tools, self._since_ns = projection, log, tools, since_ns
        self._writer = tools.writer
        self._readings: dict[int, _Reading] = {}
        self._from_ns = self._records = 0

    async def run(self, is_dry_run: bool) -> Rebuilt:
        await self._begin()
        _logger.info("rebuild_began", projection=self._projection, from_ns=self._from_ns)
        differences: list[FigureDifference] | None = None
        while differences is None:
            self._look_at_live(statements.read_positions(self._writer.read, self._projection))
            if not await self._read_and_fold():
                await asyncio.sleep(_IDLE_SECONDS)
            if self._has_read_all():
                differences = self._switch(is_dry_run)
        _logger.info("rebuild_ended", projection=self._projection, records=self._records, is_dry_run=is_dry_run)
        return Rebuilt(self._from_ns, self._records, differences)

    async def _begin(self) -> None:
        read, projection = self._writer.read, self._projection
        self._live = live = statements.read_positions(read, projection)
        if not live:
            raise RebuildError(f"{projection} has no figures yet: `runtap worker {projection}` makes them")
        self._basis = self._basis_of(live)
        settings = self._tools.settings
        self._at_most = min(settings.commit_events, max(_EVENTS_HELD // len(live), _LEAST_EVENTS_A_BATCH))
        starts = {number: await self._log_start(number) for number in live}
        name = statements.find_rebuild(read, projection, self._basis)
        if name is None:
            name = statements.rebuild_name(projection, await self._first_instant(starts), self._basis)
            offsets = {number: min(start, live[number].next_offset) for number, start in starts.items()}
            statements.begin_rebuild(self._writer, projection, name, offsets)
        self._name, self._from_ns = name, int(name.split("/")[1])
        for number, start in starts.items():
            refold = Refold(number, name, projection, self._tools, self._from_ns)
            refold.load(start)
            if refold.next_offset < min(start, live[number].next_offset):
                raise LostToRetentionError(f"the log of partition {number} begins at {start} now")
            self._readings[number] = _Reading(refold, max(refold.next_offset, start))
        self._log.take({number: reading.next_offset for number, reading in self._readings.items()})

    def _basis_of(self, live: dict[int, Position]) -> str:
        """Identifies what the rows that are made depend on, but for the log."""
        epochs = [(number, position.epoch) for number, position in live.items()]
        basis = (self._since_ns, self._tools.prices.price_set, self._tools.settings.cost_attributes, epochs)
        return hashlib.blake2b(repr(basis).encode(), digest_size=12).hexdigest()

    async def _log_start(self, number: int) -> int:
        log_start, log_end = await self._log.log_range(number)
        if log_end < self._live[number].next_offset:
            raise RebuildError(f"partition {number} ends before what was applied: if it was made again, start a worker")
        return log_start

    async def _first_instant(self, starts: dict[int, int]) -> int:
        """Begin of the first day of which the log has lost nothing; 0: it has lost nothing at all."""
        zone = self._tools.store.zone
        earliest = Calendar(zone).day_of(self._since_ns) if self._since_ns else 0
        for number, start in starts.items():
            position = self._live[number]
            if start > 0 or position.incarnation > 1:
                record = await self._log.record_at(number, start) if start < position.next_offset else None
                first_ns = record.timestamp * 1_000_000 if record else 0
                # Events of clocks up to a minute fast are believed.
                earliest = max(earliest, first_whole_day(zone, (first_ns or position.log_time_ns) + MINUTE_NS))
        return earliest

    def _look_at_live(self, live: dict[int, Position]) -> None:
        if self._basis_of(live) != self._basis:
            raise _ChangedError("another writer than its workers changed the figures")
        self._live = live

    async def _read_and_fold(self) -> bool:
        has_moved = False
        for number, reading in self._readings.items():
            held = _count(reading.waiting)
            # Frames are about as large as those before.
            room = (self._at_most - held) // max(held // max(len(reading.waiting), 1), 1)
            polled = await self._log.poll(number, reading.next_offset, room) if room > 0 else []
            if polled:
                reading.waiting += polled
                reading.next_offset = polled[-1].offset + 1
            due = self._due(number)
            # Small batches cost several times as much an event.
            if due and (_count(due) >= self._at_most // 2 or not polled):
                reading.refold.commit(reading.refold.fold(due))
                self._let_go(number, due)
            has_moved |= bool(polled or due)
        return has_moved

    def _due(self, number: int) -> list[KafkaRecord]:
        return [one for one in self._readings[number].waiting if one.offset < self._live[number].next_offset]

    def _let_go(self, number: int, folded: list[KafkaRecord]) -> None:
        del self._readings[number].waiting[: len(folded)]
        self._records += len(folded)
        _logger.info("rebuild_progressed", partition=number, records=self._records)

    def _has_read_all(self) -> bool:
        return all(reading.next_offset >= self._live[number].next_offset for number, reading in self._readings.items())

    def _switch(self, is_dry_run: bool) -> list[FigureDifference] | None:
        """Locks the positions, folds what is left up to the live ones, and switches.

        Returns:
            What a dry run found; `None` where workers were quicker, or hold their positions too long.
        """
        writer, projection = self._writer, self._projection
        before, after = Sums(), Sums()
        is_locked = False
        calendar = Calendar(self._tools.store.zone)
        try:
            with writer.transaction():
                live = statements.lock_positions(writer, projection)
                made = statements.lock_positions(writer, self._name)
                is_locked = True
                self._look_at_live(live)
                if not self._has_read_all():
                    return None
                attributes = self._tools.settings.cost_attributes
                self._tools.dimensions = Dimensions(lambda day, values: admit_inside(writer, day, values), attributes)
                self._tools.cost_keys = CostKeys(writer, is_inside=True)
                for number, reading in self._readings.items():
                    self._catch_up(number, reading.refold, made.get(number))
                    sides = Sides(number, live[number].generation, self._from_ns)
                    if is_dry_run:
                        statements.add_sums(writer.query, projection, sides, calendar, before, after)
                    else:
                        statements.switch_rows(writer, projection, sides, live[number].log_time_ns)
                        writer.upsert(tables.lane_marks, reading.refold.joined_lanes())
                statements.forget_rebuilds(writer, projection)
        except StoreError as error:
            if is_locked:
                raise
            _logger.info("rebuild_waits_for_workers", reason=str(error))
            return None
        keys = sorted(before.keys() | after.keys(), key=lambda key: (key[0], key[1] or 0, key[2]))
        return [FigureDifference(*key, before[key], after[key]) for key in keys if before[key] != after[key]]

    def _catch_up(self, number: int, refold: Refold, stored: Position | None) -> None:
        if stored is None or stored.next_offset != refold.next_offset:
            raise FencedError(f"partition {number} is no longer at {refold.next_offset}", self._projection)
        due = self._due(number)
        if due:
            self._writer.write(refold.fold(due))
            self._let_go(number, due)
        live, ((next_offset, fingerprint),) = self._live[number], refold.read_up_to()
        if next_offset != live.next_offset or (fingerprint and live.fingerprint not in ("", fingerprint)):
            raise _ChangedError(f"the log of partition {number} is not the one that was applied")
