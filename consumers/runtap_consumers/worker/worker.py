"""The worker: poll a partition, fold, commit, poll again.

One event loop speaks to Kafka, one thread folds and speaks to the store. The store holds the truth about positions: on
every doubt (a rebalance, a fence, a failed commit) all memory of a partition is thrown away and loaded again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import structlog

from runtap_consumers.errors import FencedError, FoldFailedError, StoreError, StoreVersionError, WorkerStoppedError
from runtap_consumers.kafka.errors import KafkaError
from runtap_consumers.kafka.partition_reader import LostToRetentionError, PartitionReader
from runtap_consumers.kafka.records import fingerprint_of
from runtap_consumers.projections.batch import Prices
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_consumers.store.positions import read_least_offsets
from runtap_consumers.store.writer import Writer
from runtap_consumers.worker.assigned import BACKOFF_SECONDS, FENCES_OF_A_REBALANCE, Assigned, LogUnsettledError
from runtap_consumers.worker.dead_letters import keep_publishing_dead_letters
from runtap_consumers.worker.decoding import count_events
from runtap_consumers.worker.health import Health
from runtap_consumers.worker.partition import Partition, Tools
from runtap_consumers.worker.refusal import REASONS, find_refused
from runtap_consumers.worker.topic import publish_progress, watch_topic

logger = structlog.get_logger(__name__)

_IDLE_SECONDS = 0.02
# How many times longer than otherwise a commit is waited for where the log has enough for a whole one.
_PATIENCE_BEHIND = 4
# How often a running partition's log is compared with what was read of it; and where nothing comes, how often it is
# noted that nothing is there.
_SAME_LOG_EVERY_SECONDS = 10.0
_NOTE_END_EVERY_SECONDS = 5.0
# Between this machine's clock and a broker's.
_CLOCKS_DIFFER_NS = 10 * 10**9
_REFRESH_PRICES_EVERY_SECONDS = 3.0
_LOG_START_EVERY_SECONDS = 3_600.0
# An honest commit has a tenth of it.
_COMMIT_BYTES = 64 * 2**20
# Records that a projection can fold no event of, one after the other, before it is thought to be at fault itself.
_MOST_REFUSED_IN_A_ROW = 10

Result = TypeVar("Result")
SideTask = Callable[[Store], Coroutine[Any, Any, None]]


class PriceFeed(Protocol):
    """Prices that may change while the worker runs."""

    @property
    def table(self) -> Prices:
        """What calls cost now."""

    def refresh(self) -> bool:
        """Looks for other prices. Whether `table` is another one now."""


class Worker:
    """Runs a set of projections over the partitions that the group assigns."""

    def __init__(
        self,
        settings: ConsumerSettings,
        projections: tuple[str, ...],
        store: Store,
        prices: PriceFeed,
        health: Health,
        stop: asyncio.Event,
        side_tasks: Sequence[SideTask] = (),
    ) -> None:
        """`stop` ends the loop; `side_tasks` run for as long as the worker does, and one that fails ends it."""
        self._settings = settings
        self._projections = projections
        self._store = store
        self._health = health
        self._stop = stop
        self._writer = Writer.of(store)
        self._prices = prices
        self._prices_checked = time.monotonic()
        self._tools = Tools.of(store, self._writer, self._prices.table, settings)
        # Two stores on one Kafka must not share work, nor two sets of projections.
        group = f"{settings.topic_prefix}.{'-'.join(sorted(projections))}.{store.store_id}"
        self._reader = PartitionReader(settings, store.events_topic, group, self._assignment_changed)
        self._assignments = 0
        self._seen_assignment = -1
        self._assigned: dict[int, Assigned] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runtap-fold")
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._more_side_tasks = side_tasks

    async def run(self, drain: bool) -> None:
        """Works until told to stop, or drained.

        Raises:
            KafkaUnavailableError: the topic cannot be read, or is no longer there.
            WorkerStoppedError: there is lag and no projection moves.
        """
        try:
            await self._reader.start()
            ends = await self._reader.log_ends(await self._reader.partition_numbers()) if drain else None
            logger.info("worker_started", projections=self._projections, topic=self._store.events_topic, drain=drain)
            self._health.waiting_for = None
            watched = (self._reader, self._store.events_topic, self._projections, self._writer)
            self._start_side_task(watch_topic(*watched, self._in_thread, self._health), "topic")
            self._start_side_task(publish_progress(self._reader, self._next_offsets), "progress")
            if "ledger" in self._projections:
                publishing = keep_publishing_dead_letters(self._store, self._settings, lambda: list(self._assigned))
                self._start_side_task(publishing, "dead-letters")
            for side_task in self._more_side_tasks:
                self._start_side_task(side_task(self._store), side_task.__name__)
            await self._work_until_stopped(ends)
        finally:
            for task in self._side_tasks:
                task.cancel()
            await self._reader.stop()
            self._thread.shutdown(wait=True)
            self._writer.close()

    async def _work_until_stopped(self, ends: dict[int, int] | None) -> None:
        drained_checked = 0.0
        while not self._stop.is_set():
            if self._reader.is_rebalancing or not self._assigned:
                await self._await_rebalance()
            self._take_assignment()
            await self._refresh_prices()
            moved = False
            for number, assigned in list(self._assigned.items()):
                if self._must_stop_working():
                    break
                moved |= await self._work_on(number, assigned)
            self._update_health()
            if self._health.is_stalled():
                raise WorkerStoppedError("; ".join(self._health.problems()))
            for task in [task for task in self._side_tasks if task.done()]:
                # A side task ends only by failing, and ends the worker with it.
                task.result()
            if moved:
                continue
            if ends is not None and time.monotonic() - drained_checked > 0.2:
                drained_checked = time.monotonic()
                with contextlib.suppress(StoreError):
                    if await self._in_thread(self._is_drained, ends):
                        return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _IDLE_SECONDS)

    def _must_stop_working(self) -> bool:
        return self._reader.is_rebalancing or self._seen_assignment != self._assignments or self._stop.is_set()

    async def _refresh_prices(self) -> None:
        """Reads prices again where their files have changed; a batch has one set of prices."""
        if time.monotonic() - self._prices_checked < _REFRESH_PRICES_EVERY_SECONDS:
            return
        self._prices_checked = time.monotonic()
        if await self._in_thread(self._prices.refresh):
            self._tools.prices = self._prices.table

    def _assignment_changed(self) -> None:
        self._assignments += 1

    def _take_assignment(self) -> None:
        if self._seen_assignment == self._assignments:
            return
        self._seen_assignment = self._assignments
        # Kafka's client has moved all partitions to its own positions, also those that were assigned before: load all.
        self._assigned = {number: Assigned() for number in sorted(self._reader.assigned())}
        self._health.partitions = list(self._assigned)
        self._health.standing.clear()
        logger.info("partitions_assigned", partitions=self._health.partitions, projections=self._projections)

    async def _await_rebalance(self) -> None:
        """Waits, as a member of the group, while it is balanced: what is assigned now may be another's in a moment."""
        try:
            await self._reader.await_rebalance()
        except KafkaError as error:
            logger.warning("rebalance_failed", reason=str(error) or repr(error))
            await asyncio.sleep(BACKOFF_SECONDS)

    async def _work_on(self, number: int, assigned: Assigned) -> bool:
        """Polls a partition, and commits what has gathered once it is enough or old enough; whether it did either."""
        if time.monotonic() < assigned.retry_at:
            return False
        try:
            if assigned.partition is None:
                await self._load(number, assigned, self._running())
            assert assigned.partition is not None
            polled = await self._poll(number, assigned)
            if assigned.records and self._is_due(number, assigned):
                await self._commit(number, assigned)
                return True
            return polled > 0
        except LostToRetentionError:
            assigned.forget()
        except REASONS as error:
            return await self._isolate(number, assigned, error)
        except FencedError as error:
            self._health.fenced += 1
            logger.warning("worker_fenced", partition=number, reason=str(error))
            assigned.forget()
            assigned.back_off(is_fenced=True)
            if assigned.fences > FENCES_OF_A_REBALANCE:
                logger.error(
                    "projection_moved_by_others",
                    projection=error.projection,
                    partition=number,
                    reason="another set of workers moves it on this store: stop one, or give each a store of its own",
                )
        except StoreVersionError as error:
            raise WorkerStoppedError(str(error)) from error
        except (LogUnsettledError, StoreError, KafkaError, TimeoutError) as error:
            self._back_off(number, assigned, error)
        return False

    def _back_off(self, number: int, assigned: Assigned, error: Exception) -> None:
        failures = assigned.failures + 1
        logger.warning("partition_backed_off", partition=number, failures=failures, reason=str(error) or repr(error))
        assigned.forget()
        assigned.back_off()
        self._health.backoffs += 1
        self._health.standing.setdefault(number, (time.monotonic(), str(error) or repr(error)))

    async def _poll(self, number: int, assigned: Assigned) -> int:
        assert assigned.partition is not None
        room = self._settings.commit_events - assigned.events
        if room <= 0 or assigned.size >= _COMMIT_BYTES:
            return 0
        following = assigned.records[-1].offset + 1 if assigned.records else assigned.partition.next_offset
        records = min(max(room // assigned.events_a_record, 1), assigned.at_most - len(assigned.records))
        polled = await self._reader.poll(number, following, records) if records > 0 else []
        if self._seen_assignment != self._assignments:
            return 0
        assigned.hold(polled)
        if not assigned.records and time.monotonic() - assigned.end_noted > _NOTE_END_EVERY_SECONDS:
            await self._note_caught_up(number, assigned, assigned.partition)
        return len(polled)

    def _is_due(self, number: int, assigned: Assigned) -> bool:
        commit_events, longest = self._settings.commit_events, self._settings.commit_seconds
        end = self._reader.highwater(number)
        if assigned.partition is not None and end is not None:
            behind = (end - assigned.partition.next_offset) * assigned.events_a_record
            if behind >= commit_events:
                # A whole commit is on its way, and costs half as much an event as several small ones.
                longest *= _PATIENCE_BEHIND
        is_full = assigned.events >= commit_events or assigned.size >= _COMMIT_BYTES
        is_full |= len(assigned.records) >= assigned.at_most
        return is_full or time.monotonic() - assigned.since >= longest

    async def _load(self, number: int, assigned: Assigned, projections: list[str]) -> None:
        # It may have been a migration that fenced this worker.
        await self._in_thread(self._store.check_version)
        partition = Partition(number, projections, self._tools)
        partition.refused = assigned.refused
        for _ in range(2 + len(self._projections)):
            log_start, _ = await self._reader.log_range(number)
            await self._in_thread(partition.load, log_start)
            # Asked after loading: another worker may have moved the position beyond an end that was asked before.
            _, log_end = await self._reader.log_range(number)
            if not await self._reader.is_same_log(number, partition.read_up_to(), log_start, log_end):
                await self._in_thread(partition.begin_incarnation, log_start, time.time_ns())
            elif partition.next_offset < log_start:
                await self._in_thread(partition.skip_lost, log_start, time.time_ns())
            else:
                self._reader.seek(number, partition.next_offset)
                assigned.partition, assigned.checked = partition, time.monotonic()
                assigned.let_go()
                return
        # Nobody could tell whether what is read next belongs to the log that was applied.
        raise LogUnsettledError(f"partition {number} was another log at each of several looks")

    async def _note_caught_up(self, number: int, assigned: Assigned, partition: Partition) -> None:
        """Looks whether this is still the log that was read, and notes where nothing more is in it."""
        # Before the log is asked for its end: one that stands still in here must not vouch for what came meanwhile.
        asked_ns = time.time_ns() - _CLOCKS_DIFFER_NS
        assigned.end_noted = time.monotonic()
        log_start, log_end = await self._reader.log_range(number)
        positions = partition.read_up_to()
        if not await self._reader.is_same_log(number, positions, log_start, log_end):
            # Loading begins the new incarnation.
            assigned.forget()
            return
        assigned.checked = time.monotonic()
        if all(next_offset == log_end for next_offset, _ in positions):
            await self._in_thread(partition.note_caught_up, asked_ns)
            self._health.standing.pop(number, None)

    async def _commit(self, number: int, assigned: Assigned) -> None:
        partition, records = assigned.partition, assigned.records
        assert partition is not None
        before = partition.read_up_to()
        if any(not fingerprint for _, fingerprint in before):
            # Without a fingerprint, only the batch itself can show that the log was made again since it was polled.
            first = await self._reader.record_at(number, records[0].offset)
            if first is not None and fingerprint_of(first) != fingerprint_of(records[0]):
                assigned.forget()
                return
        commit = await self._in_thread(partition.fold, records)
        due = time.monotonic() - assigned.checked > _SAME_LOG_EVERY_SECONDS
        if partition.opened_gap or due:
            # Numbers missing may mean that this is another log, made again at a length beyond our offset.
            if not await self._reader.is_same_log(number, before, *await self._reader.log_range(number)):
                assigned.forget()
                return
            assigned.checked = time.monotonic()
            if assigned.checked - assigned.log_start_read > _LOG_START_EVERY_SECONDS:
                # It only ever moves forward, so an old answer is a safe one.
                partition.log_start_ns = await self._reader.log_start_time(number)
                assigned.log_start_read = time.monotonic()
        began = time.monotonic()
        await self._in_thread(partition.commit, commit)
        letters = sum(len(rows) for _, rows in commit.new_rows)
        self._health.committed(len(records), assigned.events, letters, time.monotonic() - began)
        for record in records:
            if not assigned.refused.pop(record.offset, None):
                assigned.refused_in_a_row = 0
        assigned.let_go()
        assigned.failures = assigned.fences = 0
        self._health.standing.pop(number, None)

    async def _isolate(self, number: int, assigned: Assigned, error: Exception) -> bool:
        """Makes batches smaller until the record at fault is alone, then finds which of its events are, and goes on
        without them. A projection that folds nothing is at fault itself, and stops.
        """
        records = assigned.records
        if not records:
            # It was refused while the partition was loaded.
            self._back_off(number, assigned, error)
            return False
        if len(records) > 1:
            assigned.suspect_end = records[-1].offset + 1
            logger.warning("batch_refused", partition=number, records=len(records), reason=str(error))
            assigned.forget()
            return True
        (record,) = records
        try:
            refused = await self._in_thread(find_refused, number, self._running(), self._tools, record)
        except FoldFailedError as failure:
            self._stop_projection(number, assigned, failure)
            return True
        except StoreError as refusal:
            self._back_off(number, assigned, refusal)
            return False
        if len(refused) >= count_events(record):
            assigned.refused_in_a_row += 1
        if isinstance(error, FoldFailedError) and assigned.refused_in_a_row > _MOST_REFUSED_IN_A_ROW:
            self._stop_projection(number, assigned, error)
            return True
        assigned.refused[record.offset] = refused
        events = len(refused)
        logger.error("events_refused", partition=number, offset=record.offset, events=events, reason=str(error))
        assigned.forget()
        return True

    def _stop_projection(self, number: int, assigned: Assigned, error: FoldFailedError) -> None:
        logger.error("projection_failed", projection=error.projection, partition=number, reason=str(error))
        self._health.failed[error.projection] = str(error)
        # Its positions stand until the process is started again; the others go on.
        for each in self._assigned.values():
            each.forget()
        assigned.refused_in_a_row = 0

    def _running(self) -> list[str]:
        running = [name for name in self._projections if name not in self._health.failed]
        if not running:
            raise WorkerStoppedError(f"every projection has stopped: {self._health.failed}")
        return running

    def _update_health(self) -> None:
        self._health.last_iteration = time.monotonic()
        assigned = self._assigned.items()
        self._health.lags = {number: each.lags(self._reader.highwater(number)) for number, each in assigned}
        lags = [max(of_partition.values()) for of_partition in self._health.lags.values() if of_partition]
        self._health.lag = sum(lags) if len(lags) == len(self._assigned) else None
        if self._health.lag == 0:
            self._health.progressed()

    def _is_drained(self, ends: dict[int, int]) -> bool:
        reached = read_least_offsets(self._writer, self._projections)
        return all(reached.get(number, -1) >= end for number, end in ends.items())

    def _next_offsets(self) -> dict[int, int]:
        assigned = self._assigned.items()
        return {number: each.partition.next_offset for number, each in assigned if each.partition is not None}

    def _start_side_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._side_tasks.add(asyncio.create_task(work, name=name))

    async def _in_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
