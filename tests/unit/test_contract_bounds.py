"""Every key, number, text and list of the contract has a bound: one without stops a projection, or
the store, for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import orjson
import pytest
from msgspec import Meta, Raw, Struct, inspect

from runtap_schemas import Alert, AnyEvent, Unreadable, decode_event, encode_event
from samples import model_call, report, session_start

# Content is as large as Kafka lets a record be, and no projection reads it.
UNBOUNDED = {("RunEnded", "inputs"), ("RunEnded", "outputs"), ("RunNoted", "data")}
_HARMLESS = (inspect.BoolType, inspect.NoneType, inspect.LiteralType)


def unbounded(kind: inspect.Type, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places in a type where a value of any size or length would be decoded."""
    match kind:
        case inspect.StructType():
            for field in kind.fields:
                yield from unbounded(field.type, (kind.cls.__name__, field.name))
        case inspect.Metadata():
            yield from unbounded(kind.type, place)
        case inspect.UnionType():
            for one in kind.types:
                yield from unbounded(one, place)
        case inspect.DictType():
            yield from unbounded(kind.key_type, (*place, "key"))
            yield from unbounded(kind.value_type, (*place, "value"))
            if kind.max_length is None:
                yield place
        case inspect.ListType():
            yield from unbounded(kind.item_type, (*place, "item"))
            if kind.max_length is None:
                yield place
        case inspect.StrType():
            if kind.max_length is None:
                yield place
        case inspect.IntType() | inspect.FloatType():
            if kind.ge is None or kind.le is None:
                yield place
        case _ if not isinstance(kind, _HARMLESS):
            yield place


@pytest.mark.parametrize("event_type", [*AnyEvent.__args__, Alert])
def test_everything_that_is_decoded_is_bounded(event_type: type[Struct]) -> None:
    assert set(unbounded(inspect.type_info(event_type))) <= UNBOUNDED


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (int, ()),
        (Annotated[int, Meta(ge=0)], ()),
        (float, ()),
        (str, ()),
        (bytes, ()),
        (Raw, ()),
        (Any, ()),
        (Annotated[list[str], Meta(max_length=3)], ("item",)),
        (list[bool], ()),
        (dict[bool, bool], ()),
        (Annotated[dict[int, bool], Meta(max_length=3)], ("key",)),
        (Annotated[dict[bool, int], Meta(max_length=3)], ("value",)),
        (None | str, ()),
    ],
)
def test_the_search_finds_what_has_no_bound(kind: Any, place: tuple[str, ...]) -> None:
    struct = msgspec.defstruct("Made", [("field", kind)])
    assert list(unbounded(inspect.type_info(struct))) == [("Made", "field", *place)]


LONG = "9" * 20
RANGE = {"first": 1, "last": 2, "reason": "unknown"}


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (report(), {"superseded": int(LONG)}),
        (report(), {"dropped": {"x" * 33: {}}}),
        (report(), {"dropped": {"closed": {"x" * 33: 1}}}),
        (report(), {"dropped": {"closed": {str(n): 1 for n in range(65)}}}),
        (report(), {"dropped": {str(n): {} for n in range(65)}}),
        (report(), {"skipped": [RANGE] * 1_001}),
        (report(), {"skipped": [{**RANGE, "last": int(LONG)}]}),
        (model_call(), {"metadata": {"n": 2**63}}),
        (model_call(), {"metadata": {"n": -(2**63) - 1}}),
        (session_start(), {"metadata": {"n": int("9" * 400)}}),
        (model_call(), {"type": "run.streamed", "index": 0, "text": "x" * (16 * 1024 + 1)}),
    ],
)
def test_what_has_no_bound_of_its_own_is_unreadable(event: Any, changes: dict[str, Any]) -> None:
    fields = orjson.loads(encode_event(event))
    assert isinstance(decode_event(msgspec.json.encode({**fields, **changes})), Unreadable)
