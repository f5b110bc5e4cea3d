"""The real worker, partition, lane rule, fold and commit, driven by a state machine through everything that goes wrong.

Two workers share a SQLite store and may both believe that a partition is theirs. Whatever happens, every figure equals
what the simulation knows of the records that were read, the ledger's terms are never negative, and nothing captured
before `complete_to` is missing without being counted; at rest every event in the log is counted once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiokafka import TopicPartition
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import text

import runtap_consumers.kafka.partition_reader
import runtap_consumers.worker.worker
from cost_sql import COST_SUM, DURATION
from runtap_consumers.errors import StoreError
from runtap_consumers.figures.completeness import lost_ranges, work_out_completeness, work_out_sums
from runtap_consumers.kafka.records import KafkaRecord, fingerprint_of
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.sketch import quantiles_ns
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.read.books import Books, read_books
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_consumers.units import MINUTE_NS
from runtap_consumers.worker.health import Health
from runtap_consumers.worker.worker import Worker
from samples import SECOND_NS, Log, LogRecord, id_of
from simulation import TOPIC, CommitFaults, Emitter, Place, SimulatedClient, World

PARTITIONS = 2
PROJECTIONS = ("cost", "performance", "runs", "ledger")
# Any projections may run apart from the others.
SETS = (PROJECTIONS, ("cost",), ("ledger", "performance"), ("cost", "runs"))
CALLS = ("call", "call", "dropped", "unreadable")
FORMS = ("plain", "plain", "plain", "future", "poison")
EXAMPLES = int(os.environ.get("RUNTAP_MODEL_EXAMPLES", "50"))
_SHRINKS = "RUNTAP_MODEL_SHRINKS" in os.environ
_LONG_AGO = -1e9
_prices = PriceTable.load()

workers = st.integers(0, 1)
partitions = st.integers(0, PARTITIONS - 1)
emitters = st.integers(0, 2)


class _Prices:
    table = _prices

    def refresh(self) -> bool:
        return False


class _KilledError(BaseException):
    """Ends a worker where it stands."""


def _be_silent(*_: object) -> Any:
    raise structlog.DropEvent


@pytest.fixture(scope="module", autouse=True)
def _simulated() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtap_consumers.kafka.partition_reader, "AIOKafkaConsumer", SimulatedClient)
        clock = SimpleNamespace(monotonic=time.monotonic, time_ns=lambda: SimulatedClient.world.now_ns)
        patch.setattr(runtap_consumers.worker.worker, "time", clock)
        # A thousand warnings are what it is about.
        structlog.configure(processors=[_be_silent])
        yield
        structlog.reset_defaults()


class Machine(RuleBasedStateMachine):
    """The rules by which things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="runtap-model-"))
        self.url = f"sqlite:///{self.folder}/runtap.db"
        self.store: Store = open_store(self.url, TOPIC, "Europe/Berlin")
        self.world = SimulatedClient.world = World(PARTITIONS)
        self.emitters = [Emitter(self.world, f"emitter-{number}", number % PARTITIONS) for number in range(3)]
        self.workers: list[Worker] = []
        self.faults: list[CommitFaults] = []
        self.applied: dict[str, set[Place]] = defaultdict(set)
        # Where each projection stands, and in which log.
        self.read: dict[tuple[str, int], tuple[int, int, Log]] = {}
        self.old_logs: dict[int, list[Log]] = defaultdict(list)
        # What retention took, by log: a worker may have had it in hand.
        self.deleted: dict[int, list[LogRecord]] = defaultdict(list)
        # Partitions whose log was made again so alike that a worker cannot see it: only the weaker promises hold.
        self.slipped: set[tuple[str, int]] = set()

    @initialize()
    def begin(self) -> None:
        for number in range(2):
            self.workers.append(self._new_worker(PROJECTIONS))
            self.faults.append(CommitFaults(self.workers[number]._writer))
        self._assign(0, {0, 1})
        for partition in range(PARTITIONS):
            self._turn(0, partition)

    # What emitters do.

    @rule(emitter=emitters, kinds=st.lists(st.sampled_from(CALLS), min_size=1, max_size=4))
    def capture(self, emitter: int, kinds: list[str]) -> None:
        if not self.emitters[emitter].is_closed:
            for kind in kinds:
                self.emitters[emitter].capture(kind)

    @rule(emitter=emitters)
    def capture_calls(self, emitter: int) -> None:
        self.capture(emitter, ["call"] * 3)

    @rule(
        emitter=emitters,
        with_report=st.booleans(),
        form=st.sampled_from(FORMS),
        outcome=st.sampled_from(["acknowledged", "acknowledged", "unanswered", "underway", "refused"]),
    )
    def send(self, emitter: int, with_report: bool, form: str, outcome: str) -> None:
        if not self.emitters[emitter].is_closed:
            self.emitters[emitter].close_frame(with_report=with_report, form=form)
            self.emitters[emitter].send(outcome)

    @rule(emitter=emitters, outcome=st.sampled_from(["acknowledged", "unanswered", "underway"]))
    def send_again(self, emitter: int, outcome: str) -> None:
        self.emitters[emitter].send(outcome)

    @rule(emitter=emitters)
    def halve(self, emitter: int) -> None:
        self.emitters[emitter].halve()

    @rule(emitter=emitters, worker=workers)
    def flow(self, emitter: int, worker: int) -> None:
        partition = self.emitters[emitter].partition
        self.capture_calls(emitter)
        self.send(emitter, False, "plain", "acknowledged")
        self._assign(worker, {partition})
        self._commit(worker, partition)

    @rule(emitter=emitters, choice=st.integers(0, 3), again=st.booleans())
    def land(self, emitter: int, choice: int, again: bool) -> None:
        self.emitters[emitter].land(choice, again=again)

    @rule(emitter=emitters)
    def skip(self, emitter: int) -> None:
        if not self.emitters[emitter].is_closed:
            self.emitters[emitter].skip()

    @rule(emitter=emitters)
    def supersede(self, emitter: int) -> None:
        self.emitters[emitter].supersede()

    @rule(emitter=emitters)
    def close(self, emitter: int) -> None:
        self.emitters[emitter].close()

    @rule(emitter=emitters, other=emitters)
    def abandon(self, emitter: int, other: int) -> None:
        if not self.emitters[emitter].is_closed:
            self.emitters[emitter].abandon(self.emitters[other])

    @rule(partition=partitions, value=st.sampled_from([b"not json", None]))
    def write_noise(self, partition: int, value: bytes | None) -> None:
        self.world.logs[partition].append_value(value, self.world.now_ns)

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.world.tick(seconds)

    # What workers do, and what befalls them.

    @rule(worker=workers, owned=st.sets(partitions))
    def rebalance(self, worker: int, owned: set[int]) -> None:
        self._assign(worker, owned)

    @rule(worker=workers, partition=partitions)
    def poll(self, worker: int, partition: int) -> None:
        self._turn(worker, partition)

    @rule(worker=workers, partition=partitions, is_checked=st.booleans())
    def commit(self, worker: int, partition: int, is_checked: bool) -> None:
        self._commit(worker, partition, is_checked)

    @rule(worker=workers, partition=partitions)
    def fail_a_poll(self, worker: int, partition: int) -> None:
        self._client(worker).fails_next_poll = True
        self._turn(worker, partition)
        self._client(worker).fails_next_poll = False

    @rule(worker=workers, partition=partitions, moment=st.sampled_from(["before", "inside", "after"]))
    def fail_a_commit(self, worker: int, partition: int, moment: str) -> None:
        def fail() -> None:
            if moment == "inside":
                raise sqlite3.OperationalError("disk I/O error")
            raise StoreError("the answer was lost")

        self._with_fault(worker, partition, moment, fail)

    @rule(worker=workers, partition=partitions, moment=st.sampled_from(["before", "inside", "after"]))
    def kill(self, worker: int, partition: int, moment: str) -> None:
        def die() -> None:
            raise _KilledError

        try:
            self._with_fault(worker, partition, moment, die)
        except _KilledError:
            pass
        self._replace(worker, PROJECTIONS)

    @rule(worker=workers, partition=partitions)
    def be_overtaken(self, worker: int, partition: int) -> None:
        def overtake() -> None:
            asyncio.run_coroutine_threadsafe(self._commit_async(1 - worker, partition), self.loop).result(20)

        self._assign(1 - worker, {0, 1})
        self._with_fault(worker, partition, "before", overtake)

    @rule(worker=workers, projections=st.sampled_from(SETS), owned=st.sets(partitions, min_size=1))
    def restart(self, worker: int, projections: tuple[str, ...], owned: set[int]) -> None:
        self._replace(worker, projections)
        self._assign(worker, owned)

    # What befalls the log and the store.

    @rule(partition=partitions)
    def make_topic_again(self, partition: int) -> None:
        self.old_logs[partition].append(self.world.logs[partition])
        self.world.logs[partition] = Log()
        for worker in self.workers:
            for assigned in worker._assigned.values():
                # More than ten seconds pass before enough is written to hide it.
                assigned.checked = assigned.end_noted = _LONG_AGO

    @rule(partition=partitions, count=st.integers(1, 5))
    def delete_oldest(self, partition: int, count: int) -> None:
        log = self.world.logs[partition]
        count = min(count, len(log.records))
        self.deleted[id(log)] += log.records[:count]
        del log.records[:count]
        log.first_offset += count

    @rule(projection=st.sampled_from(PROJECTIONS), partition=partitions)
    def write_beside_the_workers(self, projection: str, partition: int) -> None:
        with self.store.engine.begin() as connection:
            connection.execute(
                text("UPDATE positions SET epoch = epoch + 1 WHERE projection = :name AND partition = :partition"),
                {"name": projection, "partition": partition},
            )

    # The means.

    def _new_worker(self, projections: tuple[str, ...]) -> Worker:
        consumer_settings = ConsumerSettings.load(database_url=self.url, commit_events=20, commit_seconds=60)

        async def make() -> Worker:
            return Worker(consumer_settings, projections, self.store, _Prices(), Health(projections), asyncio.Event())

        return self.loop.run_until_complete(make())

    def _client(self, worker: int) -> SimulatedClient:
        client: SimulatedClient = self.workers[worker]._reader._consumer
        return client

    def _assign(self, worker: int, owned: set[int]) -> None:
        places = {TopicPartition(TOPIC, partition) for partition in owned}
        self._client(worker).assign(places)
        # As the client does when the group is balanced.
        self.workers[worker]._reader._listener.on_partitions_assigned(places)
        self.workers[worker]._take_assignment()

    def _turn(self, worker: int, partition: int, *, is_due: bool = False, is_checked: bool = False) -> None:
        self.loop.run_until_complete(self._turn_async(worker, partition, is_due, is_checked))
        self._observe()

    async def _turn_async(self, worker: int, partition: int, is_due: bool, is_checked: bool) -> None:
        assigned = self.workers[worker]._assigned.get(partition)
        if assigned is not None:
            assigned.retry_at = 0
            if is_due:
                assigned.since = _LONG_AGO
            if is_checked:
                assigned.checked = assigned.end_noted = _LONG_AGO
            await self.workers[worker]._work_on(partition, assigned)

    async def _commit_async(self, worker: int, partition: int, is_checked: bool = False) -> None:
        await self._turn_async(worker, partition, False, is_checked)
        await self._turn_async(worker, partition, True, is_checked)

    def _commit(self, worker: int, partition: int, is_checked: bool = False) -> None:
        self.loop.run_until_complete(self._commit_async(worker, partition, is_checked))
        self._observe()

    def _with_fault(self, worker: int, partition: int, moment: str, fault: Callable[[], None]) -> None:
        setattr(self.faults[worker], moment, fault)
        try:
            self._commit(worker, partition)
        finally:
            self.faults[worker].clear()
            self._observe()

    def _replace(self, worker: int, projections: tuple[str, ...]) -> None:
        self._end(self.workers[worker])
        self.workers[worker] = self._new_worker(projections)
        self.faults[worker] = CommitFaults(self.workers[worker]._writer)

    def _end(self, worker: Worker) -> None:
        worker._thread.shutdown(wait=True)
        worker._writer.close()

    # The oracle.

    def _observe(self) -> None:
        """Notes which records each projection's position has passed since the last look."""
        with self.store.read() as connection:
            rows = connection.execute(
                text("SELECT projection, partition, next_offset, incarnation, fingerprint FROM positions")
            ).all()
        lost = defaultdict(list)
        incidents = "SELECT projection, partition, incarnation, first_offset, last_offset FROM log_incidents"
        for *place, first, last in self._rows(f"{incidents} WHERE kind = 'retention'"):
            lost[tuple(place)].append((first, last))
        for name, partition, offset, incarnation, fingerprint in rows:
            log = self._log_of(partition, offset, fingerprint)
            before, incarnation_before, log_before = self.read.get((name, partition), (0, incarnation, log))
            if incarnation != incarnation_before:
                before = log.first_offset
                self.slipped.discard((name, partition))
            elif log is not log_before and before > log.first_offset:
                self.slipped.add((name, partition))
            skipped = {at for first, last in lost[name, partition, incarnation] for at in range(first, last + 1)}
            self.applied[name] |= self.world.places(
                record
                for record in (*self.deleted[id(log)], *log.records)
                if before <= record.offset < offset and record.offset not in skipped
            )
            self.read[name, partition] = offset, incarnation, log

    def _log_of(self, partition: int, offset: int, fingerprint: str) -> Log:
        for log in (self.world.logs[partition], *reversed(self.old_logs[partition])):
            if not fingerprint:
                return log
            record: list[KafkaRecord] = list(log.since(offset - 1, 1)) if offset > log.first_offset else []
            if record and _fingerprint(record[0], self.world) == fingerprint:
                return log
        known = [log for (_, at), (_, _, log) in self.read.items() if at == partition]
        return known[0] if known else self.world.logs[partition]

    def _calls(self, name: str, kind: str = "call") -> list[Any]:
        captures = (self.world.captures[place] for place in self.applied[name])
        return [capture for capture in captures if capture.kind == kind]

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.store.read() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    @invariant()
    def every_event_read_is_counted_once(self) -> None:
        calls = self._calls("cost")
        tokens, money = sum(call.input_tokens for call in calls), sum(call.picodollars for call in calls)
        for grain in ("minute", "hour", "day", "total"):
            sums = f"coalesce(sum(calls), 0), coalesce(sum(input_tokens), 0), coalesce({COST_SUM}, 0)"
            assert self._rows(f"SELECT {sums} FROM cost_{grain}") == [(len(calls), tokens, money)], grain
        minutes = Counter(call.at_ns // MINUTE_NS * MINUTE_NS for call in calls)
        assert Counter(dict(self._rows("SELECT bucket_ns, sum(calls) FROM cost_minute GROUP BY 1"))) == minutes
        calls = self._calls("performance")
        durations = sum(call.serial for call in calls)
        for grain in ("minute", "hour", "day"):
            rows = self._rows(f"SELECT count, {DURATION}, sketch FROM performance_{grain}")
            assert [sum(row[0] for row in rows), sum(row[1] for row in rows)] == [len(calls), durations], grain
            assert sum(_sketched(row[2]) for row in rows) == len(calls), grain
        runs = Counter(run_id for (run_id,) in self._rows("SELECT run_id FROM runs"))
        assert runs == Counter(f"run-{call.serial}" for call in self._calls("runs"))
        newest = defaultdict[str, int](int)
        for name, number in self.applied["ledger"]:
            capture = self.world.captures[name, number]
            if capture.kind == "report":
                newest[id_of(name)] = max(newest[id_of(name)], number)
            if capture.abandoned is not None and capture.kind == "abandonment":
                other, last, _ = capture.abandoned
                newest[id_of(other)] = max(newest[id_of(other)], last)
        query = "SELECT emitter, max(number) FROM emitter_reports WHERE number > 0 GROUP BY emitter"
        assert dict(self._rows(query)) == newest
        assert self._rows("SELECT count(*) FROM lane_marks WHERE is_shared") == [(0,)]

    @invariant()
    def ledger_and_completeness_are_true(self) -> None:
        with open_snapshot(self.store) as snapshot:
            books = read_books(snapshot)
        for name in PROJECTIONS:
            completeness = work_out_completeness(books, [name])
            for emitter in self.emitters:
                if id_of(emitter.name) not in books.emitters:
                    continue
                self._check_sums(books, name, emitter)
                if completeness.at_ns is not None and id_of(emitter.name) not in completeness.silent:
                    self._check_complete(books, name, emitter, completeness.at_ns)

    def _check_sums(self, books: Books, name: str, emitter: Emitter) -> None:
        sums = work_out_sums(books, name, id_of(emitter.name))
        terms = (sums.captured, sums.applied, sums.in_flight, sums.lost, sums.quarantined, sums.superseded)
        assert min(terms) >= 0, (name, emitter.name, sums)
        mine = [self.world.captures[place] for place in self.applied[name] if place[0] == emitter.name]
        quarantined = sum(capture.kind == "unreadable" for capture in mine)
        assert (sums.applied, sums.quarantined) == (len(mine) - quarantined, quarantined), (name, emitter.name, sums)
        assert sums.captured <= len(emitter.captured), (name, emitter.name, sums)

    def _check_complete(self, books: Books, name: str, emitter: Emitter, at_ns: int) -> None:
        """Nothing that the emitter captured before the instant is missing and not counted as missing.

        An emitter is known from the first of its events that anybody read; what it captured before is unknown.
        """
        key = (emitter.partition, id_of(emitter.name))
        if key not in books.heard_ns:
            return
        lane = books.lanes[name].get(key)
        lost = lost_ranges(books, name, key)
        for capture in emitter.captured:
            if capture.at_ns >= at_ns or capture.is_given_up:
                continue
            assert capture.number is not None, (name, emitter.name, capture, at_ns)
            if lane is None or capture.number > lane.mark:
                is_lost = any(first <= capture.number <= last for first, last in lost)
                assert is_lost, (name, emitter.name, capture, at_ns)

    def teardown(self) -> None:
        if not self.workers:
            self._dispose()
            return
        try:
            self._come_to_rest()
            self._check_rest()
        finally:
            for worker in self.workers:
                self._end(worker)
            self._dispose()

    def _dispose(self) -> None:
        self.store.close()
        self.loop.close()
        shutil.rmtree(self.folder)

    def _come_to_rest(self) -> None:
        for emitter in self.emitters:
            emitter.close()
        # Whatever befell them, workers go on by themselves; then others take over.
        for number, worker in enumerate(self.workers):
            for partition in worker._assigned:
                self._catch_up(number, partition)
        for number in range(2):
            self._replace(number, PROJECTIONS)
        self._assign(0, {0, 1})
        for partition in range(PARTITIONS):
            self._catch_up(0, partition)

    def _catch_up(self, worker: int, partition: int) -> None:
        end = self._client(worker).highwater(TopicPartition(TOPIC, partition))
        names = self.workers[worker]._projections
        for _ in range(5 + 2 * len(self.world.logs[partition].records)):
            self._commit(worker, partition, is_checked=True)
            if all(self.read[name, partition][0] == end for name in names):
                return
            assigned = self.workers[worker]._assigned[partition]
            if not self.world.logs[partition].records and assigned.partition and assigned.partition.next_offset == end:
                # A log made again, empty, which looks to this worker as it did before another moved the position: it
                # has nothing to commit, so nothing to be refused. Only who loads the position sees it.
                return
        raise AssertionError(f"worker {worker} is stuck in partition {partition} before {end}: {self.read}")

    def _check_rest(self) -> None:
        self.every_event_read_is_counted_once()
        self.ledger_and_completeness_are_true()
        for name in PROJECTIONS:
            for partition, log in enumerate(self.world.logs):
                if (name, partition) not in self.slipped:
                    assert self.world.places(log.records) <= self.applied[name], (name, partition)
        # Nothing comes any more, and workers notice.
        self.world.tick(60)
        for partition in range(PARTITIONS):
            self._turn(0, partition, is_checked=True)
        with open_snapshot(self.store) as snapshot:
            books = read_books(snapshot)
        for name in PROJECTIONS:
            for emitter in self.emitters:
                known = books.emitters.get(id_of(emitter.name))
                if known is not None and known.is_closed:
                    sums = work_out_sums(books, name, id_of(emitter.name))
                    assert sums.in_flight == 0, (name, emitter.name, sums)
                    assert sums.captured == len(emitter.captured), (name, emitter.name, sums)
                    assert sum(sums.dropped.values()) == emitter.dropped
                    assert sums.superseded == emitter.superseded
        if all(one.is_closed for one in books.emitters.values()):
            assert work_out_completeness(books, PROJECTIONS).at_ns == self.world.now_ns - 10 * SECOND_NS


def _fingerprint(record: KafkaRecord, world: World) -> str:
    if record.value in world.poison:
        # What the worker can know of it.
        return fingerprint_of(type(record)(record.offset, 0, None, None))  # type: ignore[call-arg]
    return fingerprint_of(record)


def _sketched(blob: bytes) -> int:
    assert quantiles_ns(blob, [0.5]) != [None]
    words = memoryview(blob).cast("I")
    return sum(word & 0xFFFFF for word in words)


@pytest.mark.parametrize("count", [1, 8], ids=["end-before-the-position", "numbers-missing"])
def test_a_log_that_was_made_again_is_noticed_at_once(count: int) -> None:
    machine = Machine()
    machine.begin()
    try:
        emitter = machine.emitters[1]

        def send(calls: int) -> None:
            for _ in range(calls):
                emitter.capture("call")
                emitter.close_frame(with_report=False)
                emitter.send("acknowledged")

        send(3)
        machine._commit(0, 1)
        machine.old_logs[1].append(machine.world.logs[1])
        machine.world.logs[1] = Log()
        send(count)
        for _ in range(3):
            machine._commit(0, 1)
        assert machine._rows("SELECT DISTINCT kind FROM log_incidents") == [("recreated",)]
        assert machine._rows("SELECT sum(calls) FROM cost_total") == [(3 + count,)]
    finally:
        machine.teardown()


def test_what_was_polled_of_a_log_is_not_mixed_with_the_one_that_was_made_again() -> None:
    machine = Machine()
    machine.begin()
    try:
        gone, there = machine.emitters[1], Emitter(machine.world, "another", 1)
        machine.emitters.append(there)

        def send(emitter: Emitter, calls: int) -> None:
            for _ in range(calls):
                emitter.capture("call")
                emitter.close_frame(with_report=False)
                emitter.send("acknowledged")

        send(gone, 3)
        # Polled, and not yet due.
        machine._turn(0, 1)
        machine.old_logs[1].append(machine.world.logs[1])
        machine.world.logs[1] = Log()
        send(there, 8)
        for _ in range(3):
            machine._commit(0, 1)
        runs = {run_id for (run_id,) in machine._rows("SELECT run_id FROM runs")}
        assert runs == {f"run-{capture.serial}" for capture in there.captured}
    finally:
        machine.teardown()


@pytest.mark.parametrize("moment", ["before", "inside", "after"])
def test_after_a_commit_that_failed_the_next_one_is_not_fenced(moment: str) -> None:
    machine = Machine()
    machine.begin()
    try:
        machine.capture_calls(1)
        machine.send(1, False, "plain", "acknowledged")
        machine.fail_a_commit(0, 1, moment)
        machine._commit(0, 1)
        assert machine._rows("SELECT sum(calls) FROM cost_total") == [(3,)]
        assert machine.workers[0]._health.fenced == 0
    finally:
        machine.teardown()


def test_a_log_made_again_after_retention_overtook_the_worker_is_noticed() -> None:
    machine = Machine()
    machine.begin()
    try:
        emitter = machine.emitters[1]
        for kept in (0, 5):
            for _ in range(5):
                emitter.capture("call")
                emitter.close_frame(with_report=False)
                emitter.send("acknowledged")
            if not kept:
                machine.delete_oldest(1, 5)
                machine._commit(0, 1)
                # It stands at 5 now, and has read nothing by which the log could be told.
                machine.old_logs[1].append(machine.world.logs[1])
                machine.world.logs[1] = Log()
        for _ in range(3):
            machine._commit(0, 1, is_checked=True)
        assert machine._rows("SELECT sum(calls) FROM cost_total") == [(5,)]
        assert machine._rows("SELECT DISTINCT kind FROM log_incidents ORDER BY 1") == [("recreated",), ("retention",)]
    finally:
        machine.teardown()


Machine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
    report_multiple_bugs=False,
    # Not `explain`, whose tracing takes minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate, *((Phase.shrink,) if _SHRINKS else ())),
)


TestModel = Machine.TestCase
