"""One event, one line of JSON, and back: `encode_event` on the emitter's side, `decode_event` on the workers'."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from runtap_schemas.events import AnyEvent, Event

_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(AnyEvent)
_EVENT_TYPES = frozenset(str(kind.__struct_config__.tag) for kind in AnyEvent.__args__)
# What a decoder raises for bytes that are not what it expects.
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Unreadable(Struct, frozen=True):
    """What is no event, or no frame, and why.

    Of a whole record, the others say to which numbers of whose lane it belongs, and what it claims to be complete to,
    where that could be read: it is quarantined there; else it is foreign.
    """

    cause: str
    emitter: str | None = None
    first: int = 0
    count: int = 0
    at_ns: int | None = None


class Skipped(Struct, frozen=True):
    """An event of a type that this version does not know. Its number counts, its content does not."""

    type: str


class _Type(Struct):
    type: Any = None


_type_decoder = msgspec.json.Decoder(_Type)


def encode_event(event: Event) -> bytes:
    """The JSON of an event, in one line, without its end."""
    return _encoder.encode(event)


def decode_event(line: bytes) -> AnyEvent | Skipped | Unreadable:
    """Reads a line of a frame. Never raises: what cannot be read says why."""
    if b"\\u0000" in line:
        # PostgreSQL's text cannot hold it, and one name with it would stop a partition for ever.
        line = line.replace(b"\\u0000", b"\\ufffd")
    try:
        event: AnyEvent = _event_decoder.decode(line)
    except DECODE_ERRORS as error:
        return _classify(line, str(error))
    return event


def _classify(line: bytes, cause: str) -> Skipped | Unreadable:
    try:
        found = _type_decoder.decode(line).type
    except DECODE_ERRORS as error:
        return Unreadable(f"not an event: {error}"[:500])
    if isinstance(found, str) and found and found not in _EVENT_TYPES:
        return Skipped(found[:200])
    return Unreadable(cause[:500])
