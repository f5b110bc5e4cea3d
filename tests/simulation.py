"""A world without servers: logs that are lists, emitters that number as the real one does, and a Kafka client that
reads those lists into the real worker. What it knows of every event is the oracle of the model test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from runtap_schemas import Event, SkippedRange, Usage, encode_event, number_event
from samples import SECOND_NS, START_NS, Log, LogRecord, model_call, report

TOPIC = "runtap.events"
# Dollars 0.15 and 0.60 a million tokens.
INPUT_PICODOLLARS, OUTPUT_PICODOLLARS = 150_000, 600_000

Place = tuple[str, int, int]


@dataclass
class Capture:
    """An event, and where it is: without a number, numbered, or given up before that."""

    kind: str
    at_ns: int
    serial: int
    partition: int
    number: int | None = None
    is_given_up: bool = False

    @property
    def input_tokens(self) -> int:
        """Another for each event, so that one too few and one too many do not make up for each other."""
        return 1_000 + self.serial

    @property
    def picodollars(self) -> int:
        """What the call cost, by hand."""
        return self.input_tokens * INPUT_PICODOLLARS + 10 * OUTPUT_PICODOLLARS


class World:
    """Clock, logs, and everything that was ever captured or written."""

    def __init__(self, partitions: int) -> None:
        self.now_ns = START_NS
        self.logs = [Log() for _ in range(partitions)]
        self.captures: dict[Place, Capture] = {}
        self.by_value: dict[bytes, Place] = {}
        # Values that the Kafka client cannot decode.
        self.poison: set[bytes] = set()
        self._serial = 0

    def tick(self, seconds: int) -> None:
        """Lets time pass."""
        self.now_ns += seconds * SECOND_NS

    def next_serial(self) -> int:
        """A number for the next event, of all emitters."""
        self._serial += 1
        return self._serial

    def append(self, partition: int, values: Iterable[bytes]) -> None:
        """The broker's side of a delivery."""
        for value in values:
            self.logs[partition].append_value(value, self.now_ns)

    def places(self, records: Iterable[LogRecord]) -> set[Place]:
        """Whose events records are; those without a number, or that nobody can decode, are nobody's."""
        found = (self.by_value.get(record.value or b"") for record in records if record.value not in self.poison)
        return {place for place in found if place is not None}


@dataclass
class Emitter:
    """Captures, numbers, sends, and reports as `runtap_collector` does."""

    world: World
    name: str
    captured: list[Capture] = field(default_factory=list)
    waiting: list[Capture] = field(default_factory=list)
    lanes: Counter[int] = field(default_factory=Counter)
    batches: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    # Requests that were written and may still land.
    underway: list[tuple[int, list[bytes]]] = field(default_factory=list)
    skipped: list[SkippedRange] = field(default_factory=list)
    dropped: int = 0
    superseded: int = 0
    reports: int = 0
    is_closed: bool = False

    def capture(self, partition: int, kind: str) -> None:
        """Takes an event, or drops it at the door."""
        capture = Capture(kind, self.world.now_ns, self.world.next_serial(), partition)
        self.captured.append(capture)
        if kind == "dropped":
            capture.is_given_up = True
            self.dropped += 1
        else:
            self.waiting.append(capture)

    def supersede(self) -> None:
        """Gives up the oldest start that waits."""
        if self.waiting:
            self.waiting.pop(0).is_given_up = True
            self.superseded += 1

    def number(self, partition: int, *, with_report: bool, closing: bool = False) -> None:
        """Makes the lane's next batch; there is one at a time."""
        if partition in self.batches:
            return
        batch: list[tuple[int, bytes]] = []
        if with_report:
            self._number(partition, self._report_capture(partition), self._report(partition, closing), batch)
        for capture in [capture for capture in self.waiting if capture.partition == partition]:
            self.waiting.remove(capture)
            self._number(partition, capture, _event(capture), batch)
        if batch:
            self.batches[partition] = batch

    def _report_capture(self, partition: int) -> Capture:
        capture = Capture("report", self.world.now_ns, self.world.next_serial(), partition)
        self.captured.append(capture)
        return capture

    def _report(self, partition: int, closing: bool) -> Event:
        self.reports += 1
        now_ns = self.world.now_ns
        oldest_ns = min((capture.at_ns for capture in self.waiting), default=now_ns)
        lanes = {**self.lanes, partition: self.lanes[partition] + 1}
        return report(
            self.reports,
            len(self.captured),
            {lane: last for lane, last in lanes.items() if last},
            now_ns,
            complete_at_ns=oldest_ns,
            complete_age_ns=now_ns - oldest_ns,
            closing=closing,
            superseded=self.superseded,
            dropped={"buffer_full": {"run.ended": self.dropped}} if self.dropped else {},
            skipped=list(self.skipped),
        )

    def _number(self, partition: int, capture: Capture, event: Event, batch: list[tuple[int, bytes]]) -> None:
        self.lanes[partition] += 1
        number = capture.number = self.lanes[partition]
        value = number_event(encode_event(event), self.name, number)
        if capture.kind == "unreadable":
            value = value.replace(b'"version":1', b'"version":2')
        if capture.kind == "poison":
            self.world.poison.add(value)
        batch.append((number, value))
        self.world.captures[self.name, partition, number] = capture
        self.world.by_value[value] = (self.name, partition, number)

    def send(self, partition: int, outcome: str) -> None:
        """Sends the lane's batch: `acknowledged`, `unanswered` (it landed), `underway` (it may still land) or
        `refused`.
        """
        batch = [value for _, value in self.batches.get(partition, ())]
        if outcome in ("acknowledged", "unanswered"):
            self.world.append(partition, batch)
        if outcome == "acknowledged":
            self.batches.pop(partition, None)
        if outcome == "underway" and batch:
            self.underway.append((partition, batch))

    def give_up(self, partition: int) -> None:
        """Announces the lane's batch as skipped, though it may still land."""
        batch = self.batches.pop(partition, None)
        if batch:
            self.underway.append((partition, [value for _, value in batch]))
            self.skipped.append(
                SkippedRange(
                    emitter=self.name, partition=partition, first=batch[0][0], last=batch[-1][0], reason="unknown"
                )
            )

    def land(self, choice: int, *, again: bool) -> None:
        """Lets a request that was underway reach the log."""
        if self.underway:
            partition, values = self.underway[choice % len(self.underway)]
            self.world.append(partition, values)
            if not again:
                self.underway.pop(choice % len(self.underway))

    def close(self, partition: int) -> None:
        """Sends all there is and reports for the last time."""
        if self.is_closed:
            return
        for lane in range(len(self.world.logs)):
            self.send(lane, "acknowledged")
            self.number(lane, with_report=False)
            self.send(lane, "acknowledged")
        self.number(partition, with_report=True, closing=True)
        self.send(partition, "acknowledged")
        self.is_closed = True


def _event(capture: Capture) -> Event:
    return model_call(
        capture.at_ns,
        run_id=f"run-{capture.serial}",
        usage=Usage(input_tokens=capture.input_tokens, output_tokens=10),
        duration_ns=capture.serial,
    )


class SimulatedClient:
    """Stands for `AIOKafkaConsumer`: keeps a position of its own, which moves whether or not its records arrive."""

    world: World

    def __init__(self, *_: str, **__: object) -> None:
        self._assigned: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()
        self._positions: dict[TopicPartition, int] = {}
        self.fails_next_poll = False

    def assign(self, places: Iterable[TopicPartition]) -> None:
        """Takes partitions, as the group or the caller says."""
        self._assigned = set(places)
        self._paused = set()

    def assignment(self) -> set[TopicPartition]:
        return self._assigned

    def seek(self, place: TopicPartition, offset: int) -> None:
        assert place in self._assigned
        self._positions[place] = offset

    def pause(self, *places: TopicPartition) -> None:
        self._paused.update(places)

    def resume(self, place: TopicPartition) -> None:
        self._paused.discard(place)

    def highwater(self, place: TopicPartition) -> int:
        log = self.world.logs[place.partition]
        return int(log.first_offset + len(log.records))

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self.world.logs[place.partition].first_offset for place in places}

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: self.highwater(place) for place in places}

    async def getmany(
        self, place: TopicPartition, *, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[LogRecord]]:
        log, position = self.world.logs[place.partition], self._positions[place]
        if not log.first_offset <= position <= self.highwater(place):
            raise OffsetOutOfRangeError({place: position})
        records = log.since(position, max_records)
        self._positions[place] = position + len(records)
        if self.fails_next_poll:
            self.fails_next_poll = False
            raise KafkaError("told to fail")
        for record in records:
            if record.value in self.world.poison:
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a header that is no text")
        return {place: records}


class CommitFaults:
    """Stands in a writer's way at its next commit."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._commit: Callable[[Any], None] = writer.commit
        self._after_move: Callable[[Any], None] = writer._write_after_move
        self.before: Callable[[], None] | None = None
        self.inside: Callable[[], None] | None = None
        self.after: Callable[[], None] | None = None
        writer.commit = self._guarded
        writer._write_after_move = self._guarded_after_move

    def _guarded(self, commit: Any) -> None:
        self._take("before")
        self._commit(commit)
        self._take("after")

    def _guarded_after_move(self, commit: Any) -> None:
        self._after_move(commit)
        self._take("inside")

    def _take(self, moment: str) -> None:
        fault = getattr(self, moment)
        setattr(self, moment, None)
        if fault is not None:
            fault()

    def clear(self) -> None:
        """Takes away what did not come into play."""
        self.before = self.inside = self.after = None
