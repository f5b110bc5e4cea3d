"""Records to the events of a batch: `decode_records`, `sort_records`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from runtap_consumers.kafka.records import (
    MAX_RECORD_BYTES,
    KafkaRecord,
    OversizedRecord,
    UndecodableRecord,
    fingerprint_of,
)
from runtap_consumers.projections.batch import Batch, Report
from runtap_consumers.projections.lane_marks import LaneMarks, can_claim
from runtap_schemas import (
    AnyEvent,
    EmitterReported,
    Frame,
    LaneAbandoned,
    RunEnded,
    RunNoted,
    RunScored,
    RunStarted,
    SessionEnded,
    SessionStarted,
    Skipped,
    Unreadable,
    decode_frame,
)

# Begins the causes of events that cannot be applied.
NOT_APPLIED = "cannot be applied: "
# Events that cannot be applied: offset -> number -> cause.
Refused = dict[int, dict[int, str]]
_IMPOSSIBLE_CLAIM = "impossible: it reports more events than any process captures in that time"
_NO_TAGS: list[str] = []
_NO_METADATA: dict[str, Any] = {}


class Letter(NamedTuple):
    """A record that cannot be read or believed, or one line of it: `value`, then."""

    record: KafkaRecord
    unreadable: Unreadable
    value: bytes | None
    is_line: bool = False

    def row(self, place: str, partition: int) -> tuple[Any, ...]:
        """As `dead_letters` holds it. `place`: topic and partition."""
        record, why = self.record, self.unreadable
        whole = f"{place}/{record.offset}/{fingerprint_of(record)}"
        letter_id = f"{whole}/{why.first}" if self.is_line else whole
        lane = (why.emitter, why.first or None, why.count)
        log_time_ns = record.timestamp * 1_000_000
        return (letter_id, partition, record.offset, log_time_ns, why.cause, *lane, record.key, self.value, 0)


class Decoded(NamedTuple):
    """What a record holds; no events where it is no readable frame."""

    frame: Frame | Unreadable
    events: Sequence[AnyEvent | Skipped | Unreadable]


def count_events(record: KafkaRecord) -> int:
    """How many events a record holds, about: before it is decoded, so that no batch grows beyond what fits."""
    return max((record.value or b"").count(b"\n") - 1, 1)


def decode_records(records: Sequence[KafkaRecord], *, keeps_labels: bool = True) -> Iterator[Decoded]:
    """Reads records, also those that the Kafka client could not hand out, one when it is asked for: what is done with
    events at once finds them in the processor's cache.

    Args:
        records: in the order of the log.
        keeps_labels: whether anything reads the tags and the metadata of ended runs. What is dropped at once, though
            checked all the same, leaves room in that cache for what is read.
    """
    for record in records:
        frame = _frame_of(record)
        events = frame.events() if isinstance(frame, Frame) else []
        if not keeps_labels:
            for event in events:
                if isinstance(event, RunEnded):
                    event.tags, event.metadata = _NO_TAGS, _NO_METADATA
        yield Decoded(frame, events)


def _frame_of(record: KafkaRecord) -> Frame | Unreadable:
    if isinstance(record, UndecodableRecord):
        return Unreadable(record.cause)
    frame = decode_frame(record.value)
    if isinstance(record, OversizedRecord):
        cause = f"it has more than {MAX_RECORD_BYTES:,} bytes, of which this is the beginning"
        return Unreadable(cause, frame.emitter, frame.first, frame.count, frame.at_ns)
    return frame


def without_refused(
    decoded: Iterable[tuple[KafkaRecord, Decoded]], refused: Refused
) -> Iterator[tuple[KafkaRecord, Decoded]]:
    """What was decoded, with events that are refused as if they could not be read."""
    for record, (frame, events) in decoded:
        causes = refused.get(record.offset)
        if causes and isinstance(frame, Frame):
            kept: list[Any] = list(events)
            for number, cause in causes.items():
                kept[number - frame.first] = Unreadable(cause)
            events = kept
        yield record, Decoded(frame, events)


def sort_records(batch: Batch, marks: LaneMarks, decoded: Iterable[tuple[KafkaRecord, Decoded]]) -> list[Letter]:
    """Puts what is new in records into a batch, and moves the marks; returns what becomes a dead letter."""
    letters = []
    for record, (frame, events) in decoded:
        log_time = record.timestamp * 1_000_000
        if log_time > batch.log_time_ns:
            batch.log_time_ns = log_time
        emitter = frame.emitter
        if emitter is None:
            assert isinstance(frame, Unreadable)
            batch.strays["foreign"] += 1
            letters.append(Letter(record, frame, record.value))
            continue
        if emitter not in marks.lanes:
            batch.newcomers.append((emitter, events, log_time))
        new = marks.take(frame, events, log_time)
        if new is None:
            batch.strays["impossible"] += frame.count
            cause = f"impossible: number {frame.first} is further ahead than any process comes in that time"
            letters.append(Letter(record, Unreadable(cause, emitter), record.value))
        elif isinstance(frame, Frame):
            unreadable = list(_add_frame(batch, frame, events, new, log_time))
            if unreadable:
                marks.quarantine(emitter, len(unreadable))
                letters += _letters_of_lines(record, frame, unreadable)
        elif new:
            marks.quarantine(emitter, len(new))
            letters.append(Letter(record, frame, record.value))
    return letters


def _letters_of_lines(record: KafkaRecord, frame: Frame, unreadable: list[tuple[int, str]]) -> Iterator[Letter]:
    """One for lines that follow each other: a frame of nothing but line ends would make 65,536."""
    lines = frame.body.split(b"\n")
    for _, run in groupby(enumerate(unreadable), lambda numbered: numbered[1][0] - numbered[0]):
        (_, (first, cause)), *others = run
        index = first - frame.first
        value = b"\n".join(lines[index : index + 1 + len(others)])
        yield Letter(record, Unreadable(cause, frame.emitter, first, 1 + len(others)), value, is_line=True)


def _add_frame(
    batch: Batch, frame: Frame, events: Sequence[Any], new: Sequence[int], log_time_ns: int
) -> Iterator[tuple[int, str]]:
    """Puts the new events of a frame where their kinds belong.

    Yields:
        Numbers that cannot be read, and why.
    """
    if len(new) < len(events):
        # Of what came before only reports are looked at, which may show two processes.
        known = set(new)
        for number, event in enumerate(events, frame.first):
            if number not in known and isinstance(event, EmitterReported):
                batch.reports.append(Report(frame.emitter, number, event, log_time_ns, is_new=False))
        events = [events[number - frame.first] for number in new]
    for number, event in zip(new, events, strict=True):
        if isinstance(event, RunEnded):
            # First, since nearly all are.
            batch.add_ended(event, log_time_ns)
        elif isinstance(event, EmitterReported):
            if can_claim(event, number):
                batch.reports.append(Report(frame.emitter, number, event, log_time_ns))
            else:
                yield number, _IMPOSSIBLE_CLAIM
        elif isinstance(event, LaneAbandoned):
            if event.report is None or can_claim(event.report, 0):
                batch.abandoned.append((event, log_time_ns))
            else:
                yield number, _IMPOSSIBLE_CLAIM
        elif isinstance(event, Skipped):
            batch.skipped_types.append(event.type)
        elif isinstance(event, Unreadable):
            yield number, event.cause
        else:
            at_ns = batch.instant_of(event, log_time_ns)
            if isinstance(event, RunStarted):
                batch.started.append((event, at_ns))
            elif isinstance(event, RunNoted):
                batch.noted.append((event, at_ns))
            elif isinstance(event, SessionStarted | SessionEnded):
                batch.sessions.append((event, at_ns))
            elif isinstance(event, RunScored):
                batch.scored.append((event, at_ns))
