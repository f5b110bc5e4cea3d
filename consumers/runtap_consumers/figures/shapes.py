"""What the types of the figures are made of. The types are what `docs/openapi.json` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict, TypeVar, cast

from msgspec import Meta

Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Dollars = Annotated[str, Meta(description="Dollars, as exact decimal text.", pattern=r"^-?\d+(\.\d+)?$")]
# `from` is no name that a class can give.
Range = TypedDict("Range", {"from": Instant, "to": Instant})
Shape = TypeVar("Shape")


class OfRange(TypedDict):
    """What every answer about a range of time begins with. `complete_to`: before it nothing is missing that is not
    counted.
    """

    generated_at: Instant
    range: Range
    complete_to: Instant | None


def pick(shape: type[Shape], row: Mapping[str, Any]) -> Shape:
    """What a row has of a `TypedDict`'s names; what it does not have, and empty text, is null."""
    found = ((name, row.get(name)) for name in shape.__annotations__)
    return cast(Shape, {name: None if value == "" else value for name, value in found})
