"""The live stream, one line a record, for people and for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from rich.console import Console
from rich.text import Text

from runtap_consumers.cli.terminal import one_line, visible, visible_json
from runtap_consumers.figures.error_text import error_facts, error_text
from runtap_consumers.instants import local_time
from runtap_consumers.kafka.record_tail import Record, tail_records
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
from runtap_schemas.topics import alerts_topic, events_topic

_STATUS_STYLES = {"ok": "green", "error": "bold red", "interrupted": "yellow", "cancelled": "yellow"}
_ALERT_STYLES = {"firing": "bold red", "resolved": "green", "noticed": "yellow"}
_TEXT_LENGTH = 160

Decoded = AnyEvent | Skipped | Unreadable


class TailFilter(NamedTuple):
    """Which events to show. Without a filter everything is, also what cannot be read.

    `types` holds event types (`run.ended`) and run types (`llm`); an event of one of them is shown.
    """

    session: str | None = None
    types: tuple[str, ...] = ()

    def admits(self, event: Decoded) -> bool:
        """Whether to show an event."""
        if self.session is not None and getattr(event, "session_id", None) != self.session:
            return False
        return not self.types or bool({type_name(event), getattr(event, "run_type", None)} & {*self.types})


def type_name(event: Decoded) -> str:
    """The event type as it stands on the wire; `unreadable` for what is none."""
    if isinstance(event, Skipped):
        return event.type
    return "unreadable" if isinstance(event, Unreadable) else str(event.__struct_config__.tag)


class Entry(NamedTuple):
    """An event and where it lay. `line`: of its frame; the whole record where that is none. `emitter`: if known."""

    record: Record
    emitter: str | None
    line: bytes
    event: Decoded


Show = Callable[[Entry], None]


def entries_of(record: Record) -> Iterator[Entry]:
    """The events of a record; the record itself where it is no frame."""
    frame = decode_frame(record.value)
    if isinstance(frame, Unreadable):
        yield Entry(record, frame.emitter, record.value or b"", frame)
        return
    for line, event in zip(frame.body.split(b"\n"), frame.events(), strict=False):
        yield Entry(record, frame.emitter, line, event)


async def tail_events(settings: ConsumerSettings, wanted: TailFilter, show: Show, from_beginning: bool = False) -> None:
    """Shows events as they come, until it is cancelled.

    Args:
        settings: how to reach Kafka.
        wanted: which events.
        show: what becomes of one: `as_lines`, `as_json` or `Tokens`.
        from_beginning: begin with the oldest event that is kept.

    Raises:
        KafkaUnavailableError: the topic cannot be read.
    """
    records = tail_records(settings, events_topic(settings.topic_prefix), from_beginning)
    # The generator holds a connection: it is closed here, not when it is thrown away.
    async with aclosing(records) as open_records:  # type: ignore[type-var]
        async for record in open_records:
            for entry in entries_of(record):
                if wanted.admits(entry.event):
                    show(entry)


async def tail_alerts(settings: ConsumerSettings, as_json: bool = False, from_beginning: bool = False) -> None:
    """Prints alerts as they come, until it is cancelled.

    Args:
        settings: how to reach Kafka, and the time zone to print in.
        as_json: print the records as they are, one a line, instead of lines for people.
        from_beginning: begin with the oldest alert that is kept.

    Raises:
        KafkaUnavailableError: the topic cannot be read.
    """
    console, zone = _open_console(), settings.zone()
    records = tail_records(settings, alerts_topic(settings.topic_prefix), from_beginning)
    async with aclosing(records) as open_records:  # type: ignore[type-var]
        async for record in open_records:
            alert = _decode_alert(record)
            if as_json:
                _write_json(json_line(record, record.value or b"", alert))
            elif isinstance(alert, Unreadable):
                console.print(_unreadable(alert.cause, record, zone), soft_wrap=True)
            else:
                console.print(describe_alert(alert, zone), soft_wrap=True)


def _decode_alert(record: Record) -> Alert | Unreadable:
    try:
        return decode_alert(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Unreadable(str(error))


def as_lines(zone: ZoneInfo) -> Show:
    """A line for people for each event."""
    console = _open_console()
    return lambda entry: console.print(describe_event(entry, zone), soft_wrap=True)


def as_json(entry: Entry) -> None:
    """The events as they are, one a line."""
    _write_json(json_line(entry.record, entry.line, entry.event))


class Tokens:
    """The text of streamed answers, as it comes: where another run goes on, under a line that names it."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._show_head = as_lines(zone)
        self._run_id: str | None = None

    def __call__(self, entry: Entry) -> None:
        event = entry.event
        if isinstance(event, RunStreamed):
            if event.run_id != self._run_id:
                self._end_line()
                self._run_id = event.run_id
                self._show_head(entry._replace(event=msgspec.structs.replace(event, text="")))
            self._write(visible(event.text, keep="\n\t"))
        elif isinstance(event, RunEnded) and event.run_id == self._run_id:
            self._end_line()

    def _end_line(self) -> None:
        if self._run_id is not None:
            self._write("\n")
            self._run_id = None

    @staticmethod
    def _write(text: str) -> None:
        # Not through rich, which takes spaces away from the ends of long lines.
        sys.stdout.write(text)
        sys.stdout.flush()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would end the process from in here, with the connection still open.
        raise BrokenPipeError


def _open_console() -> Console:
    return _Console(highlight=False)


def _write_json(line: bytes) -> None:
    sys.stdout.buffer.write(visible_json(line) + b"\n")
    sys.stdout.buffer.flush()


def json_line(record: Record, line: bytes, event: Decoded | Alert) -> bytes:
    """A line of a record as it is, or a record that is one; of what cannot be read, where it lies and why."""
    if isinstance(event, Unreadable):
        place = {"partition": record.partition, "offset": record.offset}
        return msgspec.json.encode({"type": "unreadable", "cause": event.cause, **place})
    # Another client's JSON may be laid out over lines.
    return line if b"\n" not in line else msgspec.json.format(line, indent=-1)


def describe_event(entry: Entry, zone: ZoneInfo) -> Text:
    """One line about an event: when, whose, what, how it went."""
    record, event = entry.record, entry.event
    if isinstance(event, Unreadable):
        return _unreadable(event.cause, record, zone)
    if isinstance(event, Skipped):
        return _line(record.log_time_ns, zone, entry.emitter, (f"unknown event type {event.type}", "yellow"))
    if isinstance(event, EmitterReported):
        return _describe_report(entry.emitter, event, zone)
    if isinstance(event, LaneAbandoned):
        numbers = f"numbers {event.first:,} to {event.last:,} of emitter {event.emitter}"
        return _line(event.at_ns, zone, None, ("given up", "bold red"), numbers, event.reason)
    if isinstance(event, RunScored):
        verdict = event.value if event.score is None else f"{event.score:g}"
        return _line(
            event.at_ns, zone, event.service, ("scored", "cyan"), event.key, verdict or "", f"by {event.source}"
        )
    if isinstance(event, SessionEvent):
        user = f"by {event.user_id}" if event.user_id else ""
        action = type_name(event).removeprefix("session.")
        return _line(event.at_ns, zone, event.service, (f"session {action}", "cyan"), event.session_id, user)
    return _describe_run(event, zone)


def _describe_run(event: RunEvent, zone: ZoneInfo) -> Text:
    parts: list[str | tuple[str, str]] = [f"{event.run_type:9}", (event.name or "(unnamed)", "bold")]
    if isinstance(event, RunStarted):
        parts += [("started", "dim"), event.request_model or ""]
    elif isinstance(event, RunEnded):
        parts += [(event.status, _STATUS_STYLES[event.status]), _duration(event.duration_ns), *_call(event)]
        if event.error is not None:
            style = "red" if event.status == "error" else "yellow"
            error = event.error
            facts = error_facts(error.category, error.status_code, error.code)
            parts.append((f"{error.type}: {_shortened(error_text(facts, error.raised_at, error.message))}", style))
    elif isinstance(event, RunNoted):
        attempt = f"attempt {event.attempt}" if event.attempt is not None else ""
        parts += [(event.kind.replace("_", " "), "magenta"), event.note or "", attempt]
    elif isinstance(event, RunStreamed):
        parts.append((_shortened(event.text), "dim"))
    return _line(event.at_ns, zone, event.service, *parts)


def _call(event: RunEnded) -> list[str | tuple[str, str]]:
    """What a model run used, and the model."""
    parts: list[str | tuple[str, str]] = []
    if event.usage is not None:
        taken, given = (
            "?" if tokens is None else f"{tokens:,}" for tokens in (event.usage.input_tokens, event.usage.output_tokens)
        )
        parts.append(f"{taken} → {given} tokens")
    parts.append((event.model or event.request_model or "", "blue"))
    return parts


def _describe_report(emitter: str | None, event: EmitterReported, zone: ZoneInfo) -> Text:
    dropped = sum(sum(kinds.values()) for kinds in event.dropped.values())
    counts = f"{dropped:,} events dropped"
    who = f"emitter {emitter} on {event.host}"
    style = "yellow" if dropped else "dim"
    return _line(
        event.at_ns, zone, event.service, (who, "dim"), ("closing" if event.closing else "", "dim"), (counts, style)
    )


def describe_alert(alert: Alert, zone: ZoneInfo) -> Text:
    """One line about an alert."""
    run = f"sample run {alert.sample_run_id}" if alert.sample_run_id else ""
    return _line(alert.at_ns, zone, None, (f"{alert.state:8}", _ALERT_STYLES[alert.state]), alert.summary, (run, "dim"))


def _unreadable(cause: str, record: Record, zone: ZoneInfo) -> Text:
    place = f"partition {record.partition}, offset {record.offset}"
    return _line(record.log_time_ns, zone, None, ("unreadable", "bold red"), place, (_shortened(cause), "red"))


def _line(at_ns: int, zone: ZoneInfo, service: str | None, *parts: str | tuple[str, str]) -> Text:
    """Text is appended as it is: what a service sends is never read as markup or as control codes."""
    moment = local_time(at_ns, zone)
    line = Text(f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}", style="")
    for part in (*(() if service is None else ((service or "(unknown service)", "dim"),)), *parts):
        text, style = (part, "") if isinstance(part, str) else part
        if text:
            line.append("  ").append(visible(text), style=style)
    return line


def _shortened(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _TEXT_LENGTH else f"{line[: _TEXT_LENGTH - 1]}…"


def _duration(duration_ns: int) -> str:
    milliseconds = duration_ns / 1e6
    return f"{milliseconds:.0f} ms" if milliseconds < 1_000 else f"{milliseconds / 1e3:.2f} s"


def event_types() -> tuple[str, ...]:
    """Names of the event types that this version knows."""
    kinds: tuple[Any, ...] = AnyEvent.__args__
    return tuple(str(kind.__struct_config__.tag) for kind in kinds)
