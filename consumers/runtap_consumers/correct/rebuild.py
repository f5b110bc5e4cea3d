"""Rebuilding a projection: its figures made anew of the retained log, beside the live ones, and switched to at once.

`rebuild` works in attempts. Each copies the older rows of the live generation, folds the log again from its beginning
(`refold.Refold`) into a new one, follows the live workers until it has read all that they have applied, locks their
positions, folds the rest, and switches, in one transaction. Nothing of an attempt counts before that; what was left of
one that was ended is deleted by the next. `compare` does the same into a store of its own that is thrown away.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo

import structlog

from runtap_consumers.correct import generations
from runtap_consumers.correct.generations import LivePartition
from runtap_consumers.correct.refold import Refold
from runtap_consumers.errors import RebuildError, StoreError
from runtap_consumers.kafka.partition_reader import LostToRetentionError
from runtap_consumers.kafka.records import Record
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.dimensions import Dimensions, Value
from runtap_consumers.projections.grains import Calendar
from runtap_consumers.projections.rollups import HOUR_NS, MINUTE_NS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.dimension_values import admit_inside, admit_values
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.positions import Position
from runtap_consumers.store.writer import Writer
from runtap_consumers.worker.partition import Tools

_ATTEMPTS = 5
_LEAST_RECORDS_A_BATCH = 500
# Of all partitions together: bounds memory.
_RECORDS_HELD = 60_000
# Fewer are folded while the live positions are locked.
_RECORDS_LEFT_FOR_SWITCH = 200
_IDLE_SECONDS = 0.02
_REFRESH_EVERY_SECONDS = 0.5
_STALLED_AFTER_SECONDS = 60.0
_LOGGED_EVERY_SECONDS = 10.0

_logger = structlog.get_logger(__name__)


class Log(Protocol):
    """The events topic, as `partition_reader.PartitionReader` reads it."""

    async def log_range(self, partition: int) -> tuple[int, int]:
        """Offsets of the log's start and end."""

    def take(self, offsets: dict[int, int]) -> None:
        """Begins to read these partitions, each at an offset."""

    async def poll(self, partition: int, next_offset: int, at_most: int) -> Sequence[Record]:
        """The records that are there now."""


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did. `from_ns`: begin of the replaced range; 0: all that there is."""

    projection: str
    from_ns: int
    partitions: int
    records: int
    generation: int


@dataclass(frozen=True)
class Difference:
    """A sum that a rebuild would change. `day_ns` is `None` in tables without days."""

    table: str
    day_ns: int | None
    measure: str
    before: int
    after: int


@dataclass(frozen=True)
class Comparison:
    """What a rebuild would change, of the figures as they stood when it was looked for."""

    projection: str
    from_ns: int
    partitions: int
    records: int
    differences: list[Difference]


class _StartAgainError(Exception):
    """What an attempt has built on has changed. The message says what."""


@dataclass
class _Reading:
    """A partition in hand: what of its log was read and not folded."""

    log_start: int
    log_end: int
    waiting: list[Record] = field(default_factory=list)
    next_offset: int = 0
    refold: Refold | None = None


async def rebuild(
    store: Store,
    projection: str,
    log: Log,
    prices: PriceTable,
    settings: ConsumerSettings,
    since_ns: int = 0,
) -> Rebuilt:
    """Makes a projection's figures anew, from the first whole day that every partition's log still holds.

    Args:
        store: where the figures are; workers may go on.
        projection: whose figures.
        log: the events topic.
        prices: at which calls are priced.
        settings: for the size of batches and the attributes of costs.
        since_ns: replace only days from this one on.

    Raises:
        RebuildError: it cannot be done now; nothing has changed.
        StoreError: the store cannot be used.
        KafkaError: the log cannot be read.
    """
    _check_name(projection)
    with generations.exclusively(store), Writer.of(store) as writer:
        generations.delete_dead_generations(writer, projection)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                rebuilt = await _Attempt(store, projection, log, prices, settings, since_ns, writer).run()
            except (_StartAgainError, LostToRetentionError) as error:
                _logger.warning("rebuild_started_again", projection=projection, attempt=attempt, reason=str(error))
                generations.delete_dead_generations(writer, projection)
            else:
                generations.delete_dead_generations(writer, projection)
                return rebuilt
    raise RebuildError(f"{projection} kept changing under the rebuild, {_ATTEMPTS} times: try again later")


async def compare(
    store: Store,
    projection: str,
    log: Log,
    prices: PriceTable,
    settings: ConsumerSettings,
    since_ns: int = 0,
) -> Comparison:
    """Finds out what `rebuild` would change; writes nothing but a temporary file, which it deletes.

    Raises:
        RebuildError: it cannot be done now.
        StoreError: the store cannot be read.
        KafkaError: the log cannot be read.
    """
    _check_name(projection)
    with tempfile.TemporaryDirectory(prefix="runtap-rebuild-") as folder:
        trial = open_store(f"sqlite:///{Path(folder) / 'trial.db'}", store.events_topic, store.zone.key)
        try:
            with Writer.of(trial) as writer:
                return await _Trial(store, projection, log, prices, settings, since_ns, writer, trial).compare()
        except LostToRetentionError as error:
            raise RebuildError("retention deleted what was about to be read: try again") from error
        finally:
            trial.close()


def first_whole_day(zone: ZoneInfo, at_ns: int) -> int:
    """Begin of the first local day that begins at an instant or after it."""
    calendar = Calendar(zone)
    day = calendar.day_of(at_ns)
    # Days are 23 to 25 hours long.
    return day if day >= at_ns else calendar.day_of(day + 36 * HOUR_NS)


def _check_name(projection: str) -> None:
    if projection not in PROJECTIONS:
        raise RebuildError(f"there is no projection {projection!r}: expected one of {', '.join(PROJECTIONS)}")


class _Attempt:
    """One try, from a fresh beginning."""

    def __init__(
        self,
        store: Store,
        projection: str,
        log: Log,
        prices: PriceTable,
        settings: ConsumerSettings,
        since_ns: int,
        writer: Writer,
        target: Store | None = None,
    ) -> None:
        self._store = store
        self._projection = projection
        self._log = log
        self._since_ns = since_ns
        self._writer = writer
        self._admit: Callable[[Writer, int, set[Value]], set[Value]] = admit_values
        dimensions = Dimensions(lambda day, values: self._admit(writer, day, values), settings.cost_attributes)
        self._tools = Tools(target or store, writer, prices, dimensions, settings)
        self._readings: dict[int, _Reading] = {}
        self._live: dict[int, Position] = {}
        self._records = 0
        self._at_most = settings.commit_events
        self._moved = self._logged = time.monotonic()
        self._refreshed = 0.0

    async def run(self) -> Rebuilt:
        """Builds a generation and makes it the live one.

        Raises:
            _StartAgainError: something else than its workers changed the projection.
            LostToRetentionError: the log lost its beginning before it was read.
        """
        from_ns = await self._begin()
        generation = max(position.generation for position in self._live.values()) + 1
        _logger.info("rebuild_began", projection=self._projection, from_ns=from_ns, partitions=len(self._readings))
        for number, reading in self._readings.items():
            with generations.snapshot_to_write(self._store) as connection:
                live = generations.read_live(connection, self._projection, number, from_ns)
                generations.copy_older(connection, self._projection, live, generation, from_ns)
            self._check_epoch(number, live.position.epoch)
            self._open(reading, live, generation, from_ns)
        while True:
            if self._has_read_all() or time.monotonic() - self._refreshed > _REFRESH_EVERY_SECONDS:
                self._refresh_live()
            moved = await self._read_and_fold()
            if self._has_read_all() and self._switch(generation):
                _logger.info("rebuild_switched", projection=self._projection, records=self._records)
                return Rebuilt(self._projection, from_ns, len(self._readings), self._records, generation)
            await self._rest(moved)

    async def _begin(self) -> int:
        """Begins to read every partition at its log's start, and decides which range can be replaced."""
        self._live = generations.read_positions(self._store, self._projection)
        numbers = sorted(self._live)
        if not numbers:
            raise RebuildError(f"{self._projection} has no figures yet: `runtap worker {self._projection}` makes them")
        for number in numbers:
            self._readings[number] = _Reading(*await self._log.log_range(number))
        self._at_most = min(self._at_most, max(_RECORDS_HELD // len(numbers), _LEAST_RECORDS_A_BATCH))
        self._log.take({number: reading.log_start for number, reading in self._readings.items()})
        boundaries = [await self._boundary_of(number, reading) for number, reading in self._readings.items()]
        begin = max(boundaries)
        earliest = first_whole_day(self._store.zone, begin) if begin else 0
        return max(earliest, Calendar(self._store.zone).day_of(self._since_ns) if self._since_ns else 0)

    async def _boundary_of(self, number: int, reading: _Reading) -> int:
        """No event that the log has lost lies at that instant or after it; 0 where it has lost none."""
        position = self._live[number]
        reading.next_offset = reading.log_start
        if reading.log_start == 0 and position.incarnation == 1:
            return 0
        while reading.next_offset < reading.log_end:
            records = await self._poll(number, reading)
            known = [record.timestamp for record in records if record.timestamp > 0]
            if known:
                return known[0] * 1_000_000 + MINUTE_NS
            await self._rest(bool(records))
        return position.log_time_ns + MINUTE_NS

    def _open(self, reading: _Reading, live: LivePartition, generation: int, from_ns: int) -> None:
        self._live[live.number] = live.position
        reading.refold = Refold(self._projection, live, self._tools, reading.log_start, generation, from_ns)

    async def _read_and_fold(self) -> bool:
        moved = False
        enough = _RECORDS_LEFT_FOR_SWITCH if self._has_read_all() else self._at_most // 2
        for number, reading in self._readings.items():
            if len(reading.waiting) < self._at_most:
                moved |= bool(await self._poll(number, reading))
            due = [record for record in reading.waiting if record.offset < self._live[number].next_offset]
            if len(due) >= enough:
                self._fold(reading, due)
                moved = True
        return moved

    def _fold(self, reading: _Reading, due: list[Record]) -> None:
        assert reading.refold is not None
        for part in reading.refold.parts(due):
            commit = reading.refold.fold(part)
            with self._writer.transaction():
                self._writer.write(commit)
        del reading.waiting[: len(due)]
        self._records += len(due)

    async def _poll(self, number: int, reading: _Reading) -> Sequence[Record]:
        records = await self._log.poll(number, reading.next_offset, self._at_most - len(reading.waiting))
        if records:
            reading.waiting += records
            reading.next_offset = records[-1].offset + 1
        return records

    def _has_read_all(self) -> bool:
        return all(reading.next_offset >= self._live[number].next_offset for number, reading in self._readings.items())

    def _switch(self, generation: int) -> bool:
        """Locks the positions, folds what is left up to them, and makes the generation the live one.

        Returns:
            False where live workers were quicker than what was read, or hold their positions too long.
        """
        is_locked = False
        try:
            with self._writer.transaction():
                found = generations.lock_positions(self._writer, self._projection)
                is_locked = True
                for number, reading in self._readings.items():
                    next_offset, epoch, _ = found[number]
                    self._check_epoch(number, epoch)
                    if reading.next_offset < next_offset:
                        return False
                self._admit = admit_inside
                for number, reading in self._readings.items():
                    self._fold_rest(number, reading, *found[number])
                    assert reading.refold is not None
                    generations.switch_generation(
                        self._writer, self._projection, number, generation, reading.refold.changed_lanes()
                    )
        except StoreError as error:
            if is_locked:
                raise
            _logger.info("rebuild_waits_for_workers", reason=str(error))
            return False
        return True

    def _fold_rest(self, number: int, reading: _Reading, next_offset: int, _epoch: int, fingerprint: str) -> None:
        assert reading.refold is not None
        due = [record for record in reading.waiting if record.offset < next_offset]
        for part in reading.refold.parts(due):
            self._writer.write(reading.refold.fold(part))
        self._records += len(due)
        read = reading.refold.fingerprint
        if read and fingerprint and read != fingerprint and reading.log_start < next_offset:
            raise _StartAgainError(f"partition {number}: this is not the log that was applied")

    def _refresh_live(self) -> None:
        found = generations.read_positions(self._store, self._projection)
        for number, reading in self._readings.items():
            self._check_epoch(number, found[number].epoch)
            self._live[number] = found[number]
            assert reading.refold is not None
            reading.refold.live_log_time_ns = max(reading.refold.live_log_time_ns, found[number].log_time_ns)
        self._refreshed = time.monotonic()

    def _check_epoch(self, number: int, epoch: int) -> None:
        if epoch != self._live[number].epoch:
            raise _StartAgainError(f"partition {number}: another writer than its worker changed it")

    async def _rest(self, moved: bool) -> None:
        now = time.monotonic()
        if moved:
            self._moved = now
        elif now - self._moved > _STALLED_AFTER_SECONDS:
            raise RebuildError(
                f"nothing moved for {_STALLED_AFTER_SECONDS:.0f} s: the log ends before what workers have applied, or "
                "they hold their positions. Check Kafka, and whether the topic was made again"
            )
        else:
            await asyncio.sleep(_IDLE_SECONDS)
        if now - self._logged > _LOGGED_EVERY_SECONDS:
            self._logged = now
            behind = sum(
                max(self._live[number].next_offset - reading.next_offset, 0)
                for number, reading in self._readings.items()
            )
            _logger.info("rebuild_progressed", projection=self._projection, records=self._records, behind=behind)


class _Trial(_Attempt):
    """A try into a store of its own, of which only the sums are wanted."""

    async def compare(self) -> Comparison:
        """Folds up to where live workers stand now, and compares."""
        from_ns = await self._begin()
        generations.copy_dimension_values(self._store, self._writer, from_ns)
        before: dict[tuple[str, int | None, str], int] = {}
        after: dict[tuple[str, int | None, str], int] = {}
        with self._store.read() as connection:
            for number, reading in self._readings.items():
                live = generations.read_live(connection, self._projection, number, from_ns)
                self._open(reading, live, live.position.generation, from_ns)
                generations.sum_replaced(connection, self._projection, live, live.position.generation, from_ns, before)
        while not self._has_read_all():
            await self._rest(await self._read_and_fold())
        for number, reading in self._readings.items():
            assert reading.refold is not None
            due = [record for record in reading.waiting if record.offset < self._live[number].next_offset]
            self._fold(reading, due)
            with self._tools.store.read() as connection:
                generations.sum_replaced(
                    connection, self._projection, reading.refold.live, self._live[number].generation, from_ns, after
                )
        differences = [
            Difference(*key, before.get(key, 0), after.get(key, 0))
            for key in sorted({*before, *after}, key=lambda key: (key[0], key[1] or 0, key[2]))
            if before.get(key, 0) != after.get(key, 0)
        ]
        return Comparison(self._projection, from_ns, len(self._readings), self._records, differences)
