"""Batches: what was given to the builder is what a spool keeps, and what two halves are made of."""

from __future__ import annotations

from uuid import uuid4

from runtap_collector.send.lanes import Batch, NumberedEvent
from runtap_collector.send.records import REPORT, Record, Route
from runtap_schemas import number_event


class _Builder:
    def __init__(self) -> None:
        self.given: list[tuple[int | None, bytes | None, bytes | None]] = []

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object | None:
        if len(self.given) == 5:
            return None
        self.given.append((timestamp, key, value))
        return self


def _batch() -> tuple[Batch, _Builder]:
    builder = _Builder()
    batch = Batch("e1", 7, builder)
    route = Route(uuid4())
    route.key_text()
    assert batch.append(Record(REPORT, Route("e1", key_bytes=b"e1"), 0, b'{"r":1}', at_ns=1_999_999))
    for number in range(4):
        assert batch.append(Record("run.ended", route, 300 + number, b'{"n":%d}' % number, at_ns=number * 1_000_000))
    assert not batch.append(Record("run.ended", route, 1, b"{}"))
    return batch, builder


def test_numbered_form_is_what_the_builder_was_given() -> None:
    batch, builder = _batch()
    numbered = batch.numbered()
    assert [(event.timestamp_ms, event.key, event.value) for event in numbered] == builder.given
    assert numbered[0] == NumberedEvent(1, b"e1", number_event(b'{"r":1}', "e1", 7), 0, is_report=True)
    assert [(event.size_bytes, event.is_report) for event in numbered[1:]] == [(300 + n, False) for n in range(4)]
    assert (batch.first, batch.last, batch.event_count, batch.size_bytes) == (7, 11, 4, 1_206)


def test_halves_hold_the_same_events_with_the_same_numbers() -> None:
    batch, _ = _batch()
    halves = batch.halve(_Builder)
    assert [event for half in halves for event in half.numbered()] == batch.numbered()
    assert [(half.first, half.last, half.event_count, half.size_bytes) for half in halves] == [
        (7, 8, 1, 300),
        (9, 11, 3, 906),
    ]
