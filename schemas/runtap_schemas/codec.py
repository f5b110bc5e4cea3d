"""Bytes to events and back: `encode_event`, `number_event` on the emitter's side, `decode_event` on the workers'."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from runtap_schemas.events import MAX_COUNT, VERSION, Alert, AnyEvent, Event

_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(AnyEvent)
_alert_decoder = msgspec.json.Decoder(Alert)
_BACKSLASH = ord("\\")
_EVENT_TYPES = frozenset(str(kind.__struct_config__.tag) for kind in AnyEvent.__args__)


class Unreadable(Struct, frozen=True):
    """A record that is no event, and why.

    Where `emitter` and `sequence` could be read it belongs to a lane and is quarantined there; else it is foreign.
    """

    cause: str
    emitter: str | None = None
    sequence: int | None = None


class Skipped(Struct, frozen=True):
    """A record of an event type that this version does not know. Its number counts, its content does not."""

    type: str
    emitter: str
    sequence: int


class _Header(Struct):
    """What is readable in every version."""

    emitter: str | None = None
    sequence: int | None = None
    version: Any = None
    type: Any = None


_header_decoder = msgspec.json.Decoder(_Header)


def encode_event(event: Event) -> bytes:
    """The JSON of an event that has no number yet."""
    return _encoder.encode(event)


def number_event(body: bytes, emitter: str, sequence: int) -> bytes:
    """The record of an encoded event: the fields that every version can read are spliced in, without a second pass.

    Args:
        body: what `encode_event` returned.
        emitter: the emitter's id.
        sequence: the event's number in its lane, from 1.
    """
    return b'{"version":%d,"emitter":"%s","sequence":%d,%s' % (VERSION, emitter.encode(), sequence, body[1:])


def decode_event(value: bytes | None) -> AnyEvent | Skipped | Unreadable:
    """Reads a record. Never raises: what cannot be read says why."""
    if value is None:
        return Unreadable("the record has no value")
    # Looking for one byte first is ten times quicker, and nearly every event has none.
    if _BACKSLASH in value and b"\\u0000" in value:
        # PostgreSQL's text cannot hold NUL: one name with it would stop its partition for ever.
        value = value.replace(b"\\u0000", b"\\ufffd")
    try:
        event: AnyEvent = _event_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _classify(value, str(error))
    if event.sequence == 0 or not event.emitter:
        return Unreadable("the event has no emitter or no number")
    return event


def _classify(value: bytes, cause: str) -> Skipped | Unreadable:
    try:
        header = _header_decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Unreadable(f"not an event: {error}"[:500])
    emitter, sequence = header.emitter, header.sequence
    if not emitter or len(emitter) > 64 or sequence is None or not 0 < sequence <= MAX_COUNT:
        return Unreadable(f"no readable emitter and number: {cause}"[:500])
    if type(header.version) is not int or header.version != VERSION:
        return Unreadable(f"unknown major version {header.version!r:.50}, known is {VERSION}", emitter, sequence)
    if isinstance(header.type, str) and header.type and header.type not in _EVENT_TYPES:
        return Skipped(header.type[:200], emitter, sequence)
    return Unreadable(cause[:500], emitter, sequence)


def encode_alert(alert: Alert) -> bytes:
    """The JSON of an alert, version included."""
    return b'{"version":%d,%s' % (VERSION, _encoder.encode(alert)[1:])


def decode_alert(value: bytes) -> Alert:
    """Reads a record of the alerts topic.

    Raises:
        msgspec.DecodeError: it is not an alert of this version.
    """
    return _alert_decoder.decode(value)
