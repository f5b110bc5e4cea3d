"""Events and records for tests: a log that is a list."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from runtap_schemas import (
    Alert,
    AlertRule,
    EmitterReported,
    Event,
    RunEnded,
    RunError,
    RunStarted,
    SessionEnded,
    SessionStarted,
    Usage,
    emitter_of,
    encode_alert,
    encode_event,
    encode_frame,
)

# 2026-03-02 10:00:00 UTC, a Monday.
START_NS = 1_772_445_600 * 10**9
SECOND_NS = 10**9


def birth_of(emitter: str) -> str:
    """The birth of an emitter that tests call so."""
    return sha256(emitter.encode()).hexdigest()[:32]


def id_of(emitter: str) -> str:
    """The id of an emitter that tests call so."""
    return emitter_of(birth_of(emitter))


def framed(events: Iterable[Event | bytes], emitter: str, first: int, at_ns: int | None = None) -> bytes:
    """The record of events, or of lines as they are, from the number `first` on."""
    lines = [event if isinstance(event, bytes) else encode_event(event) for event in events]
    return encode_frame(birth_of(emitter), first, at_ns, lines)


def unreadable(emitter: str, first: int, count: int = 1) -> bytes:
    """A record of a major version that nobody knows yet."""
    return framed([b"{}"] * count, emitter, first).replace(b'"frame":1', b'"frame":2')


@dataclass
class LogRecord:
    """One record as the worker's Kafka client hands it out."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class Log:
    """One partition's log."""

    def __init__(self, first_offset: int = 0) -> None:
        self.first_offset = first_offset
        self.records: list[LogRecord] = []

    def append_value(self, value: bytes | None, at_ns: int = START_NS) -> LogRecord:
        """Appends raw bytes at a log time."""
        record = LogRecord(self.first_offset + len(self.records), at_ns // 1_000_000, b"key", value)
        self.records.append(record)
        return record

    def append(self, event: Event, emitter: str, number: int, log_time_ns: int | None = None) -> LogRecord:
        """Appends an event under its number, in a frame of its own that claims all up to it."""
        return self.append_frame([event], emitter, number, log_time_ns)

    def append_frame(
        self, events: Sequence[Event], emitter: str, first: int, log_time_ns: int | None = None, **claim: int | None
    ) -> LogRecord:
        """Appends events in a frame. `at_ns`: what it claims, else all up to the newest event."""
        at_ns = max(event.at_ns for event in events)
        value = framed(events, emitter, first, claim.get("at_ns", at_ns))
        return self.append_value(value, at_ns if log_time_ns is None else log_time_ns)

    def since(self, offset: int, at_most: int | None = None) -> list[LogRecord]:
        """The records from an offset on."""
        first = offset - self.first_offset
        return self.records[first : None if at_most is None else first + at_most]


def model_call(at_ns: int = START_NS, **changes: Any) -> RunEnded:
    """An ended call of gpt-4o-mini: 1,000 tokens in, 200 of them cached, 100 out; 0.000195 dollars."""
    facts: dict[str, Any] = {
        "at_ns": at_ns,
        "run_id": f"run-{at_ns}",
        "trace_id": "trace-1",
        "parent_run_id": "root-1",
        "service": "checkout",
        "environment": "test",
        "run_type": "llm",
        "name": "ChatOpenAI",
        "status": "ok",
        "started_at_ns": at_ns - 2 * SECOND_NS,
        "duration_ns": 2 * SECOND_NS,
        "time_to_first_token_ns": SECOND_NS // 4,
        "provider": "openai",
        "request_model": "gpt-4o-mini",
        "model": "gpt-4o-mini-2024-07-18",
        "usage": Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=200, reasoning_tokens=0),
        "usage_source": "response",
    }
    return RunEnded(**{**facts, **changes})


def chain_end(at_ns: int = START_NS, **changes: Any) -> RunEnded:
    """An ended root chain."""
    facts: dict[str, Any] = {
        "at_ns": at_ns,
        "run_id": f"chain-{at_ns}",
        "trace_id": "trace-1",
        "is_root": True,
        "service": "checkout",
        "environment": "test",
        "run_type": "chain",
        "name": "RunnableSequence",
        "status": "ok",
        "started_at_ns": at_ns - 3 * SECOND_NS,
        "duration_ns": 3 * SECOND_NS,
    }
    return RunEnded(**{**facts, **changes})


def failure(origin: bool = True, fingerprint: str = "f1") -> RunError:
    """A tool's error."""
    return RunError(
        type="ToolException", category="tool", message="no such order", fingerprint=fingerprint, origin=origin
    )


def run_start(at_ns: int = START_NS, **changes: Any) -> RunStarted:
    """A start of the root chain."""
    facts: dict[str, Any] = {
        "at_ns": at_ns,
        "run_id": f"chain-{at_ns}",
        "trace_id": "trace-1",
        "is_root": True,
        "service": "checkout",
        "environment": "test",
        "run_type": "chain",
        "name": "RunnableSequence",
    }
    return RunStarted(**{**facts, **changes})


def session_start(at_ns: int = START_NS, session_id: str = "s-1") -> SessionStarted:
    """A session that the service opened."""
    return SessionStarted(at_ns=at_ns, session_id=session_id, user_id="u-7", service="checkout", environment="test")


def session_end(at_ns: int = START_NS, session_id: str = "s-1") -> SessionEnded:
    """The end of that session."""
    return SessionEnded(at_ns=at_ns, session_id=session_id, user_id="u-7", service="checkout", environment="test")


_report_ids = itertools.count(1)


def report(at_ns: int = START_NS, **changes: Any) -> EmitterReported:
    """What an emitter says of itself."""
    facts: dict[str, Any] = {
        "at_ns": at_ns,
        "report_id": f"report-{next(_report_ids)}",
        "service": "checkout",
        "environment": "test",
        "host": "host-1",
        "process_id": 1,
        "runtap_version": "0",
        "started_at_ns": START_NS,
    }
    return EmitterReported(**{**facts, **changes})


def an_alert(**changes: Any) -> Alert:
    """An alert about an error rate, but for some fields."""
    facts: dict[str, Any] = {
        "id": "error_rate?service=checkout/1",
        "incident_id": "error_rate?service=checkout/1",
        "rule": AlertRule("error_rate", "1"),
        "status": "firing",
        "severity": "critical",
        "group": {"service": "checkout"},
        "at": "2026-01-01T10:00:00Z",
        "unit": "share",
        "summary": "service checkout: 20 of 30 root runs failed",
        "query": "runtap report",
        "trace_id": "trace-1",
    }
    return Alert(**facts | changes)


def alert_row(alert: Alert, at_ns: int) -> dict[str, Any]:
    """The row of the store's outbox that holds an alert which was published."""
    return {
        "id": alert.id,
        "at_ns": at_ns,
        "rule": alert.rule.id,
        "status": alert.status,
        "severity": alert.severity,
        "group_values": "[]",
        "service": alert.group.get("service", ""),
        "summary": alert.summary,
        "window_from_ns": 0,
        "window_to_ns": 0,
        "payload": encode_alert(alert),
        "revised_at_ns": 0,
        "published": 1,
    }
