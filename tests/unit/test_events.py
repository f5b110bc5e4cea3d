"""The wire contract: limits, versions, stored samples that must decode for ever, JSON Schema files
that are up to date.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtap_schemas import (
    EmitterReported,
    Frame,
    LaneAbandoned,
    RunEnded,
    RunNoted,
    RunScored,
    RunStarted,
    RunStreamed,
    SessionEnded,
    SessionStarted,
    Skipped,
    Unreadable,
    Usage,
    alert_key,
    decode_alert,
    decode_event,
    decode_frame,
    encode_alert,
    encode_event,
    encode_frame,
)
from runtap_schemas.schema_files import SCHEMAS, schema_of
from samples import model_call

GOLDEN = Path(__file__).parent.parent / "golden"
TYPES = {
    "run.started": RunStarted,
    "run.ended": RunEnded,
    "run.noted": RunNoted,
    "run.streamed": RunStreamed,
    "session.started": SessionStarted,
    "session.ended": SessionEnded,
    "emitter.reported": EmitterReported,
    "lane.abandoned": LaneAbandoned,
    "run.scored": RunScored,
}


def line(**changes: Any) -> bytes:
    return orjson.dumps({**orjson.loads(encode_event(model_call())), **changes})


@pytest.mark.parametrize("sample", sorted(GOLDEN.glob("v1/*.jsonl")), ids=lambda path: path.stem)
def test_stored_frames_of_every_version_decode_for_ever(sample: Path) -> None:
    value = sample.read_bytes()
    frame = decode_frame(value)
    assert isinstance(frame, Frame), frame
    (event,) = frame.events()
    assert isinstance(event, TYPES[sample.stem.split("-")[0]]), event
    # Written again it is the same: nothing in a sample was ignored.
    header, again = encode_frame(frame.birth, frame.first, frame.at_ns, [encode_event(event)]).splitlines()
    assert value.splitlines()[0] == header
    assert orjson.loads(value.splitlines()[1]) == orjson.loads(again)


def test_stored_alerts_decode_for_ever() -> None:
    assert decode_alert((GOLDEN / "v1" / "alert.json").read_bytes().strip()).id


def test_there_is_a_sample_of_every_event_type() -> None:
    assert {sample.stem.split("-")[0] for sample in GOLDEN.glob("v1/*.jsonl")} == {*TYPES}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_schema_file_is_what_the_structs_say(name: str) -> None:
    stored = json.loads(resources.files("runtap_schemas").joinpath("json", f"{name}.json").read_text())
    assert stored == schema_of(name), "run `python -m runtap_schemas.schema_files`"


@pytest.mark.parametrize("sample", sorted(GOLDEN.glob("v1/*.json*")), ids=lambda path: path.stem)
def test_samples_are_valid_by_the_schema_files(sample: Path) -> None:
    jsonschema.validate(orjson.loads(sample.read_bytes().splitlines()[-1]), schema_of(sample.stem.split("-")[0]))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"usage": {"input_tokens": -1}}, "input_tokens"),
        ({"usage": {"output_tokens": 10**9 + 1}}, "output_tokens"),
        ({"usage": {"output_tokens": 1.5}}, "output_tokens"),
        ({"name": "x" * 201}, "name"),
        ({"status": "odd"}, "status"),
        ({"at_ns": 2**63}, "at_ns"),
        ({"duration_ns": -1}, "duration_ns"),
        ({"duration_ns": 10**16 + 1}, "duration_ns"),
        ({"reported_cost_usd": "10000"}, "reported_cost_usd"),
        ({"metadata": {str(n): n for n in range(33)}}, "metadata"),
        ({"metadata": {"k": "x" * 257}}, "metadata"),
        ({"reported_cost_usd": "1e5"}, "reported_cost_usd"),
        ({"run_id": ""}, "run_id"),
    ],
)
def test_what_breaks_a_limit_is_unreadable(changes: dict[str, Any], cause: str) -> None:
    found = decode_event(line(**changes))
    assert isinstance(found, Unreadable)
    assert cause in found.cause


@pytest.mark.parametrize("value", [b"", b"not json", b"[]", b"17", b"{}", b'{"type":3}', b"[" * 100_000])
def test_what_is_no_event_is_unreadable(value: bytes) -> None:
    assert isinstance(decode_event(value), Unreadable)


def test_unknown_types_are_skipped_and_unknown_fields_ignored() -> None:
    assert decode_event(line(type="run.dreamt")) == Skipped("run.dreamt")
    event = decode_event(line(mood="good", usage={"input_tokens": 3, "smell_tokens": 4}))
    assert isinstance(event, RunEnded)
    assert event.usage == Usage(input_tokens=3)


def test_a_nul_character_cannot_reach_the_store() -> None:
    event = decode_event(line(name="a\0b"))
    assert isinstance(event, RunEnded)
    assert event.name == "a\ufffdb"


@given(st.binary(max_size=200), st.integers(0, 300))
def test_mutated_lines_never_raise(noise: bytes, place: int) -> None:
    value = line()
    decode_event(value[:place] + noise + value[place + len(noise) :])
    decode_event(noise)


def test_an_encoded_event_decodes_to_itself() -> None:
    event = model_call(tags=["a"], metadata={"team": "red", "n": 3}, outputs=msgspec.Raw(b'{"text":"hi"}'))
    found = decode_event(encode_event(event))
    assert isinstance(found, RunEnded)
    assert bytes(found.outputs) == b'{"text":"hi"}'  # type: ignore[arg-type]
    assert msgspec.structs.replace(found, outputs=event.outputs) == event


def test_an_alert_decodes_to_itself() -> None:
    alert = decode_alert((GOLDEN / "v1" / "alert.json").read_bytes())
    assert orjson.loads(encode_alert(alert))["schema"] == "runtap.alert.v1"
    assert decode_alert(encode_alert(alert)) == alert


def test_keys_of_alerts_are_sorted_and_percent_encoded() -> None:
    assert alert_key("spend", {}) == "spend"
    assert alert_key("spend", {"user": "a&b=c", "model": "gpt 5/ü"}) == "spend?model=gpt%205%2F%C3%BC&user=a%26b%3Dc"
