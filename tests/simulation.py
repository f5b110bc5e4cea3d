"""A world without servers: logs that are lists, emitters that number as the real one does, and a Kafka client that
reads those lists into the real worker. What it knows of every event is the oracle of the model test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from runtap_schemas import EmitterReported, Event, LaneAbandoned, SkippedRange, Usage
from samples import SECOND_NS, START_NS, Log, LogRecord, framed, id_of, model_call, report

TOPIC = "runtap.events"
# Dollars 0.15 and 0.60 a million tokens.
INPUT_PICODOLLARS, OUTPUT_PICODOLLARS = 150_000, 600_000

# Emitter and number.
Place = tuple[str, int]


@dataclass
class Capture:
    """An event, and where it is: without a number, numbered, or given up before that."""

    kind: str
    at_ns: int
    serial: int
    number: int | None = None
    is_given_up: bool = False
    # Of an announcement: whose lane ended, at which number, and whether its report was among what was given up.
    abandoned: tuple[str, int, bool] | None = None

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
        self.by_value: dict[bytes, list[Place]] = {}
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

    def places(self, records: Iterable[LogRecord]) -> set[Place]:
        """Whose events records hold; what has no number, or nobody can decode, is nobody's."""
        values = (record.value or b"" for record in records if record.value not in self.poison)
        return {place for value in values for place in self.by_value.get(value, ())}


@dataclass
class Emitter:
    """Captures, numbers, sends, and reports as `runtap_collector` does. `form` of a frame: `plain`, `future` (of a
    major version that nobody knows yet) or `poison` (its record cannot be decoded by the client).
    """

    world: World
    name: str
    partition: int
    captured: list[Capture] = field(default_factory=list)
    waiting: list[tuple[Capture, Event | bytes]] = field(default_factory=list)
    last: int = 0
    frames: list[list[tuple[Capture, Event | bytes]]] = field(default_factory=list)
    claims: list[tuple[int | None, str]] = field(default_factory=list)
    # Requests that were written and may still land.
    underway: list[bytes] = field(default_factory=list)
    skipped: list[SkippedRange] = field(default_factory=list)
    dropped: int = 0
    superseded: int = 0
    newest_report: EmitterReported | None = None
    is_closed: bool = False

    def capture(self, kind: str) -> Capture:
        """Takes an event, or drops it at the door."""
        capture = Capture(kind, self.world.now_ns, self.world.next_serial())
        self.captured.append(capture)
        if kind == "dropped":
            capture.is_given_up = True
            self.dropped += 1
        else:
            self.waiting.append((capture, b'{"type":"run.ended"}' if kind == "unreadable" else _event(capture)))
        return capture

    def supersede(self) -> None:
        """Gives up the oldest start that waits."""
        if self.waiting and self.waiting[0][0].kind == "call":
            self.waiting.pop(0)[0].is_given_up = True
            self.superseded += 1

    def close_frame(self, *, with_report: bool, form: str = "plain", closing: bool = False) -> None:
        """Numbers all that waits, in a frame that claims everything up to now; a report comes last."""
        if with_report:
            capture = Capture("report", self.world.now_ns, self.world.next_serial())
            self.captured.append(capture)
            dropped = {"buffer_full": {"run.ended": self.dropped}} if self.dropped else {}
            facts = {"closing": closing, "superseded": self.superseded, "dropped": dropped}
            said = self.newest_report = report(self.world.now_ns, skipped=list(self.skipped), **facts)
            self.waiting.append((capture, said))
        if not self.waiting:
            return
        for capture, _ in self.waiting:
            self.last += 1
            capture.number = self.last
            self.world.captures[self.name, self.last] = capture
            if form == "future":
                capture.kind = "unreadable"
        self.frames.append(self.waiting)
        self.claims.append((self.world.now_ns, form))
        self.waiting = []

    def halve(self) -> None:
        """Makes two of the frame that is sent next; only the second claims what it claimed."""
        if self.frames and len(self.frames[0]) > 1:
            half = len(self.frames[0]) // 2
            self.frames[:1] = [self.frames[0][:half], self.frames[0][half:]]
            self.claims[:1] = [(None, self.claims[0][1]), self.claims[0]]

    def send(self, outcome: str) -> None:
        """Sends the oldest frame: `acknowledged`, `unanswered` (it landed), `underway` (it may still land) or
        `refused`.
        """
        if not self.frames:
            return
        value = self._value()
        if outcome in ("acknowledged", "unanswered"):
            self.world.logs[self.partition].append_value(value, self.world.now_ns)
        if outcome == "acknowledged":
            self._pop()
        if outcome == "underway":
            self.underway.append(value)

    def _value(self) -> bytes:
        lines, (at_ns, form) = self.frames[0], self.claims[0]
        first = lines[0][0].number
        assert first is not None
        value = framed([event for _, event in lines], self.name, first, at_ns)
        if form == "future":
            value = value.replace(b'"frame":1', b'"frame":2')
        if form == "poison":
            self.world.poison.add(value)
        self.world.by_value[value] = [(self.name, first + place) for place in range(len(lines))]
        return value

    def _pop(self) -> list[tuple[Capture, Event | bytes]]:
        self.claims.pop(0)
        return self.frames.pop(0)

    def skip(self) -> None:
        """Announces the oldest frame's numbers as never to come, though they may still land."""
        if self.frames:
            self.underway.append(self._value())
            numbers = [capture.number or 0 for capture, _ in self._pop()]
            self.skipped.append(SkippedRange(first=numbers[0], last=numbers[-1], reason="too_large"))

    def land(self, choice: int, *, again: bool) -> None:
        """Lets a request that was underway reach the log."""
        if self.underway:
            place = choice % len(self.underway)
            self.world.logs[self.partition].append_value(self.underway[place], self.world.now_ns)
            if not again:
                self.underway.pop(place)

    def close(self) -> None:
        """Sends all there is and reports for the last time."""
        if self.is_closed:
            return
        self.close_frame(with_report=True, closing=True)
        while self.frames:
            self.send("acknowledged")
        self.is_closed = True

    def abandon(self, other: Emitter) -> None:
        """Says for another that what it has not sent never will be. It went on as a new emitter."""
        if other.is_closed or other is self:
            return
        other.close_frame(with_report=True, closing=True)
        first = other.frames[0][0][0].number
        assert first is not None
        capture = Capture("abandonment", self.world.now_ns, self.world.next_serial())
        capture.abandoned = (other.name, other.last, other.newest_report is not None)
        self.captured.append(capture)
        event = LaneAbandoned(
            at_ns=self.world.now_ns,
            emitter=id_of(other.name),
            first=first,
            last=other.last,
            reason="too_old",
            report=other.newest_report,
        )
        self.waiting.append((capture, event))
        other.frames, other.claims, other.is_closed = [], [], True


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
