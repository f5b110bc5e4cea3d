"""Frames: what is one, whose it is, and what of it can be read."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtap_schemas import Frame, Skipped, Unreadable, decode_frame, emitter_of, encode_event, encode_frame
from samples import framed, model_call, run_start

BIRTH = "000102030405060708090a0b0c0d0e0f"
EMITTER = hashlib.sha256(bytes(range(16))).hexdigest()[:32]
LARGEST = 2**53 - 1
births = st.binary(min_size=16, max_size=16).map(bytes.hex)
lines = st.builds(
    lambda serial, name: encode_event(model_call(run_id=f"run-{serial}", name=name)),
    st.integers(0, 10**6),
    st.text(max_size=20),
)


def header(**changes: Any) -> dict[str, Any]:
    return {"frame": 1, "emitter": EMITTER, "birth": BIRTH, "first": 3, "count": 1, **changes}


def with_header(found: dict[str, Any], body: bytes = b"{}\n") -> bytes:
    return msgspec.json.encode(found) + b"\n" + body


def test_a_frame_is_byte_for_byte_as_the_contract_says() -> None:
    value = encode_frame(BIRTH, 7, 1795, [b'{"a":1}', b'{"b":2}'])
    assert (
        value
        == (
            f'{{"frame":1,"emitter":"{EMITTER}","birth":"{BIRTH}","first":7,"count":2,"at":1795}}\n{{"a":1}}\n{{"b":2}}\n'
        ).encode()
    )
    assert b'"at"' not in encode_frame(BIRTH, 7, None, [b"{}"])
    assert emitter_of(BIRTH) == EMITTER


@given(births, st.integers(1, LARGEST - 100), st.none() | st.integers(0, 2**63 - 1), st.lists(lines, min_size=1))
def test_a_frame_decodes_to_what_was_encoded(birth: str, first: int, at_ns: int | None, events: list[bytes]) -> None:
    frame = decode_frame(encode_frame(birth, first, at_ns, events))
    assert isinstance(frame, Frame)
    assert (frame.birth, frame.emitter, frame.at_ns) == (birth, emitter_of(birth), at_ns)
    assert (frame.first, frame.count, frame.last) == (first, len(events), first + len(events) - 1)
    assert [encode_event(event) for event in frame.events()] == [  # type: ignore[arg-type]
        line.replace(b"\\u0000", "\ufffd".encode()) for line in events
    ]


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\n",
        b"not json\n{}\n",
        b"[]\n{}\n",
        b"[" * 100_000,
        with_header(header(emitter="f" * 32)),
        with_header(header(emitter=EMITTER.upper())),
        with_header(header(birth=BIRTH[:-2])),
        with_header(header(birth="g" * 32)),
        with_header(header(first=0)),
        with_header(header(first=LARGEST + 1)),
        with_header(header(first=LARGEST, count=2)),
        with_header(header(count=0)),
        with_header(header(count=65_537)),
        with_header(header(first="3")),
        with_header(header(at=-1)),
        with_header({name: value for name, value in header().items() if name != "birth"}),
    ],
)
def test_what_has_no_right_header_is_foreign(value: bytes | None) -> None:
    found = decode_frame(value)
    assert isinstance(found, Unreadable)
    assert (found.emitter, found.first, found.count, found.at_ns) == (None, 0, 0, None)


@pytest.mark.parametrize(
    "value",
    [
        with_header(header(frame=2, at=9)),
        with_header(header(frame=True, at=9)),
        with_header(header(frame="1", at=9)),
        with_header({name: value for name, value in header(at=9).items() if name != "frame"}),
        with_header(header(at=9), b""),
        with_header(header(at=9), b"{}"),
        with_header(header(at=9), b"{}\n{}\n"),
    ],
)
def test_what_has_one_and_cannot_be_read_is_quarantined_with_its_numbers_and_claim(value: bytes) -> None:
    found = decode_frame(value)
    assert isinstance(found, Unreadable)
    assert (found.emitter, found.first, found.count, found.at_ns) == (EMITTER, 3, 1, 9)


def test_unknown_fields_of_a_header_are_ignored() -> None:
    assert isinstance(decode_frame(with_header(header(mood="good"))), Frame)


def test_a_line_that_cannot_be_read_takes_no_other_along() -> None:
    dreamt = b'{"type":"run.dreamt"}'
    frame = decode_frame(framed([model_call(), b"nonsense", dreamt, b"", run_start()], "e1", 1))
    assert isinstance(frame, Frame)
    found = frame.events()
    assert (found[0], found[2], found[4]) == (model_call(), Skipped("run.dreamt"), run_start())
    assert isinstance(found[1], Unreadable)
    assert isinstance(found[3], Unreadable)


def test_a_nul_character_cannot_reach_the_store() -> None:
    frame = decode_frame(framed([model_call(name="a\0b"), model_call(name="c")], "e1", 1))
    assert isinstance(frame, Frame)
    assert [event.name for event in frame.events()] == ["a\ufffdb", "c"]  # type: ignore[union-attr]


@given(st.binary(max_size=200), st.integers(0, 600))
def test_mutated_records_never_raise(noise: bytes, place: int) -> None:
    value = framed([model_call(), run_start()], "e1", 5)
    for mutated in (value[:place] + noise + value[place + len(noise) :], noise):
        found = decode_frame(mutated)
        if isinstance(found, Frame):
            assert len(found.events()) == found.count
