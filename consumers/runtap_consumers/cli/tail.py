"""The live streams, one line a record, for people and for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import aclosing, suppress
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from rich.console import Console
from rich.text import Text

from runtap_consumers.cli.terminal import one_line, say, visible, visible_json
from runtap_consumers.errors import InputError
from runtap_consumers.figures.words import ERROR_FACTS, duration, error_text, show
from runtap_consumers.instants import local_time, parse_instant
from runtap_consumers.kafka.record_tail import TailedRecord, tail_records
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import (
    Alert,
    AnyEvent,
    EmitterReported,
    LaneAbandoned,
    RunEnded,
    RunEvent,
    RunNoted,
    RunScored,
    RunStarted,
    RunStreamed,
    SessionEvent,
    Skipped,
    Unreadable,
    decode_alert,
    decode_frame,
)

_STYLES = {"ok": "green", "resolved": "green", "error": "bold red", "firing": "bold red"}
_TEXT_LENGTH = 160

Decoded = AnyEvent | Skipped | Unreadable | Alert
Part = str | tuple[str, str]


class Entry(NamedTuple):
    """What was read, and where it lay. `line`: of a frame, else the whole record. `emitter`: if known."""

    record: TailedRecord
    line: bytes
    event: Decoded
    emitter: str | None = None


Show = Callable[[Entry], None]


def event_types() -> tuple[str, ...]:
    """Names of the event types that this version knows."""
    kinds: tuple[Any, ...] = AnyEvent.__args__
    return tuple(str(kind.__struct_config__.tag) for kind in kinds)


def _type_of(event: Decoded) -> str:
    if isinstance(event, Skipped):
        return event.type
    return "unreadable" if isinstance(event, Unreadable) else str(event.__struct_config__.tag)


def is_wanted(event: Decoded, session: str | None, types: Collection[str]) -> bool:
    """Whether an event is of a session, and of one of these event types (`run.ended`) or run types (`llm`).

    All are without a session and types, also what cannot be read.
    """
    if session is not None and getattr(event, "session_id", None) != session:
        return False
    return not types or _type_of(event) in types or getattr(event, "run_type", None) in types


def entries_of(record: TailedRecord) -> Iterator[Entry]:
    """The events of a record of the events topic; the record itself where it is no frame."""
    frame = decode_frame(record.value)
    if isinstance(frame, Unreadable):
        yield Entry(record, record.value or b"", frame, frame.emitter)
        return
    for line, event in zip(frame.body.split(b"\n"), frame.events(), strict=False):
        yield Entry(record, line, event, frame.emitter)


def alert_of(record: TailedRecord) -> Iterator[Entry]:
    """The alert of a record of the alerts topic."""
    value = record.value or b""
    try:
        yield Entry(record, value, decode_alert(value))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        yield Entry(record, value, Unreadable(str(error)))


async def follow(
    settings: ConsumerSettings,
    topic: str,
    from_beginning: bool,
    read: Callable[[TailedRecord], Iterable[Entry]],
    show: Show,
) -> None:
    """Shows the records of a topic as they come, all that are kept or the next ones, until it is cancelled.

    Raises:
        KafkaUnavailableError: the topic cannot be read.
    """
    # The generator holds a connection: it is closed here, not when it is thrown away.
    async with aclosing(tail_records(settings, topic, from_beginning)) as records:  # type: ignore[type-var]
        async for record in records:
            for entry in read(record):
                show(entry)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the process from in here, with the connection still open.
        raise BrokenPipeError


def as_lines(zone: ZoneInfo) -> Show:
    """A line for people for each event."""
    console = _Console(highlight=False)
    return lambda entry: console.print(describe(entry, zone), soft_wrap=True)


def as_json(entry: Entry) -> None:
    """Events and alerts as they are, one a line."""
    sys.stdout.buffer.write(visible_json(json_line(entry)) + b"\n")
    sys.stdout.buffer.flush()


def json_line(entry: Entry) -> bytes:
    """What was read as it is, in one line; of what cannot be read, where it lies and why."""
    record, line, event, _ = entry
    if isinstance(event, Unreadable):
        where = {"partition": record.partition, "offset": record.offset}
        return msgspec.json.encode({"type": "unreadable", "cause": event.cause, **where})
    # Another client's JSON may be laid out over lines.
    return line if b"\n" not in line else msgspec.json.format(line, indent=-1)


class Tokens:
    """The text of streamed answers, as it comes: where another run goes on, under a line that names it."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._show_head = as_lines(zone)
        self._run_id: str | None = None

    def __call__(self, entry: Entry) -> None:
        event = entry.event
        # Not through rich, which takes spaces away from the ends of long lines.
        if isinstance(event, RunStreamed):
            if event.run_id != self._run_id:
                self._end_line()
                self._run_id = event.run_id
                self._show_head(entry._replace(event=msgspec.structs.replace(event, text="")))
            say(event.text, end="")
        elif isinstance(event, RunEnded) and event.run_id == self._run_id:
            self._end_line()

    def _end_line(self) -> None:
        if self._run_id is not None:
            say("")
            self._run_id = None


def describe(entry: Entry, zone: ZoneInfo) -> Text:
    """One line about an event: when, whose, what, how it went.

    Text is appended as it is: what a service sends is never read as markup or as control codes.
    """
    captured_ns = getattr(entry.event, "at_ns", None)
    if isinstance(entry.event, Alert):
        # Whoever may write the topic may write anything for a time.
        with suppress(InputError):
            captured_ns = parse_instant(entry.event.at, zone, 0)
    moment = local_time(entry.record.log_time_ns if captured_ns is None else captured_ns, zone)
    line = Text(f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}", style="")
    for part in _parts_of(entry):
        text, style = (part, "") if isinstance(part, str) else part
        if text:
            line.append("  ").append(visible(text), style=style)
    return line


def _parts_of(entry: Entry) -> Iterator[Part]:
    record, _, event, emitter = entry
    if hasattr(event, "service") and not isinstance(event, Alert):
        yield event.service or "(unknown service)", "dim"
    match event:
        case Unreadable():
            yield "unreadable", "bold red"
            yield f"partition {record.partition}, offset {record.offset}"
            yield one_line(event.cause, _TEXT_LENGTH), "red"
        case Alert():
            yield f"{event.status:8}", _STYLES.get(event.status, "yellow")
            yield f"{event.severity:8}"
            yield event.summary
            # What `runtap trace` takes.
            yield f"trace {event.trace_id}" if event.trace_id else "", "dim"
        case Skipped():
            yield emitter or "(unknown service)", "dim"
            yield f"unknown event type {event.type}", "yellow"
        case EmitterReported():
            dropped = sum(sum(kinds.values()) for kinds in event.dropped.values())
            yield f"emitter {emitter} on {event.host}", "dim"
            yield "closing" if event.closing else "", "dim"
            yield f"{dropped:,} events dropped", "yellow" if dropped else "dim"
        case LaneAbandoned():
            yield "given up", "bold red"
            yield f"numbers {event.first:,} to {event.last:,} of emitter {event.emitter}"
            yield event.reason
        case RunScored():
            yield "scored", "cyan"
            yield event.key
            yield (event.value or "") if event.score is None else f"{event.score:g}"
            yield f"by {event.source}", "dim"
        case SessionEvent():
            yield _type_of(event).replace(".", " "), "cyan"
            yield event.session_id
            yield f"by {event.user_id}" if event.user_id else ""
        case RunEvent():
            yield f"{event.run_type:9}"
            yield event.name or "(unnamed)", "bold"
            yield from _parts_of_run(event)
            # What `runtap trace` and `runtap session` take.
            yield f"trace {event.trace_id}", "dim"
            yield f"session {event.session_id}" if event.session_id else "", "dim"


def _parts_of_run(event: RunEvent) -> Iterator[Part]:
    match event:
        case RunStarted():
            yield "started", "dim"
            yield event.request_model or ""
        case RunNoted():
            yield event.kind.replace("_", " "), "magenta"
            yield event.note or ""
            yield f"attempt {event.attempt}" if event.attempt is not None else ""
        case RunStreamed():
            yield one_line(event.text, _TEXT_LENGTH), "dim"
        case RunEnded():
            yield event.status, _STYLES.get(event.status, "yellow")
            yield duration(event.duration_ns / 1e9)
            if event.usage is not None:
                used = (event.usage.input_tokens, event.usage.output_tokens)
                taken, given = (show("tokens", count) or "?" for count in used)
                yield f"{taken} → {given} tokens"
            yield event.model or event.request_model or "", "blue"
            if (error := event.error) is not None:
                said = one_line(error_text(*(getattr(error, name) for name in ERROR_FACTS)), _TEXT_LENGTH)
                yield f"{error.type}: {said}", "red" if event.status == "error" else "yellow"
