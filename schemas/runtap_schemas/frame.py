"""A frame: one Kafka record of JSON Lines, a header and then the events, one a line.

    {"frame":1,"emitter":"…","birth":"…","first":1,"count":2,"at":1795…}

`birth` are 16 random bytes in hex, made with the emitter; its id is the first half of their SHA-256. `first` is the
number of the first event in the emitter's lane, `count` how many follow. `at` (Unix nanoseconds) claims that everything
captured before it is in this frame, in an earlier one, or counted in a report; the parts of a halved frame but the last
have none. These never change their meaning in any version.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from runtap_schemas.codec import DECODE_ERRORS, Skipped, Unreadable, decode_event
from runtap_schemas.events import MAX_COUNT, AnyEvent, LaneNumber, Nanoseconds

FRAME_VERSION = 1
# Of a record before compression: what every Kafka takes with its default settings.
MAX_FRAME_BYTES = 256 * 1024
MAX_FRAME_EVENTS = 65_536
_HEX_PATTERN = r"^[0-9a-f]{32}$"


class _Header(Struct, gc=False):
    emitter: Annotated[str, Meta(pattern=_HEX_PATTERN)]
    birth: Annotated[str, Meta(pattern=_HEX_PATTERN)]
    first: LaneNumber
    count: Annotated[int, Meta(ge=1, le=MAX_FRAME_EVENTS)]
    at: Nanoseconds | None = None
    frame: Any = None


class Frame(Struct, frozen=True, gc=False):
    """A frame whose header is right. `at_ns`: `None` where it claims nothing."""

    emitter: str
    birth: str
    first: int
    count: int
    at_ns: int | None
    body: bytes

    @property
    def last(self) -> int:
        """The number of its last event."""
        return self.first + self.count - 1

    def events(self) -> list[AnyEvent | Skipped | Unreadable]:
        """Its events in order, the first of them with the number `first`; what cannot be read says why."""
        body = self.body
        if b"\\u0000" not in body:
            try:
                events: list[AnyEvent | Skipped | Unreadable] = _event_decoder.decode_lines(body)
                if len(events) == self.count:
                    return events
            except DECODE_ERRORS:
                # One of them is not as expected: which one, only line by line tells.
                pass
        return [decode_event(line) for line in body[:-1].split(b"\n")]


_header_decoder = msgspec.json.Decoder(_Header)
_event_decoder: Any = msgspec.json.Decoder(AnyEvent)


def emitter_of(birth: str) -> str:
    """The id of the emitter that was born so.

    Raises:
        ValueError: it is no hex.
    """
    return sha256(bytes.fromhex(birth)).hexdigest()[:32]


def encode_frame(birth: str, first: int, at_ns: int | None, events: list[bytes]) -> bytes:
    """The record of some encoded events.

    Args:
        birth: of the emitter, 32 hex digits.
        first: number of the first event.
        at_ns: what the frame claims to be complete to; `None`: nothing.
        events: what `encode_event` returned, one or more.
    """
    at = "" if at_ns is None else f',"at":{at_ns}'
    header = (
        f'{{"frame":{FRAME_VERSION},"emitter":"{emitter_of(birth)}","birth":"{birth}",'
        f'"first":{first},"count":{len(events)}{at}}}\n'
    )
    return b"%b%b\n" % (header.encode(), b"\n".join(events))


def decode_frame(value: bytes | None) -> Frame | Unreadable:
    """Reads a record. Never raises: what is no frame, and belongs to no lane, says why.

    Returns:
        An `Unreadable` with emitter and numbers where the header is right and the rest is not.
    """
    if value is None:
        return Unreadable("the record has no value")
    line, _, body = value.partition(b"\n")
    try:
        header = _header_decoder.decode(line)
    except DECODE_ERRORS as error:
        return Unreadable(f"no readable header: {error}"[:500])
    if header.emitter != emitter_of(header.birth):
        return Unreadable("the emitter is not the hash of its birth")
    if header.first + header.count - 1 > MAX_COUNT:
        return Unreadable(f"first {header.first} and count {header.count} go beyond {MAX_COUNT}")
    lane = (header.emitter, header.first, header.count, header.at)
    if type(header.frame) is not int or header.frame != FRAME_VERSION:
        return Unreadable(f"unknown major version {header.frame!r:.50}, known is {FRAME_VERSION}", *lane)
    if not body.endswith(b"\n") or body.count(b"\n") != header.count:
        return Unreadable(f"not as many lines as the header's count, {header.count}", *lane)
    return Frame(header.emitter, header.birth, header.first, header.count, header.at, body)
