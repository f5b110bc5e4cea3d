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
    Alert,
    EmitterReported,
    RunEnded,
    RunNoted,
    RunStarted,
    RunStreamed,
    SessionEnded,
    SessionStarted,
    Skipped,
    Unreadable,
    Usage,
    decode_alert,
    decode_event,
    encode_alert,
    encode_event,
    number_event,
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
}


def record(**changes: Any) -> bytes:
    fields = orjson.loads(number_event(encode_event(model_call()), "e1", 7))
    return orjson.dumps({**fields, **changes})


@pytest.mark.parametrize("sample", sorted(GOLDEN.glob("v1/*.json")), ids=lambda path: path.stem)
def test_stored_samples_of_every_version_decode_for_ever(sample: Path) -> None:
    value = sample.read_bytes().strip()
    if sample.stem.startswith("alert"):
        assert decode_alert(value).id
        return
    event = decode_event(value)
    assert isinstance(event, TYPES[sample.stem.split("-")[0]]), event
    # Written again it is the same: nothing in a sample was ignored.
    bare = msgspec.structs.replace(event, emitter="", sequence=0)
    assert orjson.loads(number_event(encode_event(bare), event.emitter, event.sequence)) == orjson.loads(value)


def test_there_is_a_sample_of_every_event_type() -> None:
    assert {sample.stem.split("-")[0] for sample in GOLDEN.glob("v1/*.json")} == {*TYPES, "alert"}


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_schema_file_is_what_the_structs_say(name: str) -> None:
    stored = json.loads(resources.files("runtap_schemas").joinpath("json", f"{name}.json").read_text())
    assert stored == schema_of(name), "run `python -m runtap_schemas.schema_files`"


@pytest.mark.parametrize("sample", sorted(GOLDEN.glob("v1/*.json")), ids=lambda path: path.stem)
def test_samples_are_valid_by_the_schema_files(sample: Path) -> None:
    jsonschema.validate(orjson.loads(sample.read_bytes()), schema_of(sample.stem.split("-")[0]))


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
        ({"version": 2}, "version"),
        ({"version": True}, "version"),
    ],
)
def test_what_breaks_a_limit_is_quarantined_under_its_number(changes: dict[str, Any], cause: str) -> None:
    found = decode_event(record(**changes))
    assert isinstance(found, Unreadable)
    assert (found.emitter, found.sequence) == ("e1", 7)
    assert cause in found.cause


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"not json",
        b"[]",
        b"17",
        b'{"version":1}',
        b'{"emitter":"e","sequence":0,"version":1,"type":"run.ended"}',
        b'{"emitter":"","sequence":3,"version":1,"type":"run.ended"}',
        b'{"emitter":"e","sequence":9223372036854775808,"version":1,"type":"x"}',
        # Valid as an integer, absurd as a number of a lane: it would count as so many lost.
        b'{"emitter":"e","sequence":9007199254740992,"version":1,"type":"session.started"}',
        b'{"emitter":17,"sequence":3,"version":1,"type":"run.ended"}',
        b"[" * 100_000,
    ],
)
def test_what_has_no_number_is_foreign(value: bytes | None) -> None:
    found = decode_event(value)
    assert isinstance(found, Unreadable)
    assert found.emitter is None
    assert found.sequence is None


def test_unknown_types_are_skipped_and_unknown_fields_ignored() -> None:
    assert decode_event(record(type="run.dreamt")) == Skipped("run.dreamt", "e1", 7)
    event = decode_event(record(mood="good", usage={"input_tokens": 3, "smell_tokens": 4}))
    assert isinstance(event, RunEnded)
    assert event.usage == Usage(input_tokens=3)


def test_a_nul_character_cannot_reach_the_store() -> None:
    event = decode_event(record(name="a\0b"))
    assert isinstance(event, RunEnded)
    assert event.name == "a\ufffdb"


@given(st.binary(max_size=200), st.integers(0, 300))
def test_mutated_records_never_raise(noise: bytes, place: int) -> None:
    value = record()
    decode_event(value[:place] + noise + value[place + len(noise) :])
    decode_event(noise)


def test_an_encoded_event_decodes_to_itself_under_its_number() -> None:
    event = model_call(tags=["a"], metadata={"team": "red", "n": 3}, outputs=msgspec.Raw(b'{"text":"hi"}'))
    found = decode_event(number_event(encode_event(event), "e1", 12))
    assert isinstance(found, RunEnded)
    assert (found.emitter, found.sequence) == ("e1", 12)
    assert bytes(found.outputs) == b'{"text":"hi"}'  # type: ignore[arg-type]
    assert msgspec.structs.replace(found, emitter="", sequence=0, outputs=event.outputs) == event


def test_an_alert_decodes_to_itself() -> None:
    alert = Alert(id="error_rate/checkout/test/1", rule="error_rate", state="firing", at_ns=5, service="s", summary="x")
    assert orjson.loads(encode_alert(alert))["version"] == 1
    assert decode_alert(encode_alert(alert)) == alert
