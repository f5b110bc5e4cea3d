"""What a request asks for: the parameters, each declared once, and how they are read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import msgspec

from runtap_consumers.errors import InputError
from runtap_consumers.figures.runs import STATUSES
from runtap_consumers.instants import EXPECTED, parse_instant
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store

MAX_ROWS = 1_000
MOST_TRACES = 100
_DEFAULT_ROWS = 50


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


# JSON Schema of each parameter: what is accepted, and what `docs/openapi.json` says. An array may be given repeatedly.
PARAMETERS: dict[str, dict[str, Any]] = {
    "since": _text(f"Begin: {EXPECTED}.", examples=["7d"]),
    "until": _text("End, not included; now if left out.", examples=["2025-06-30"]),
    "before_since": _text("Begin of the range to compare with."),
    "before_until": _text("End of the range to compare with, not included."),
    "by": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "maxItems": 2,
        "description": "hour, day, model, provider, service, environment, user, root, name, tag, or a metadata key; of "
        "a series one.",
        "examples": [["model"]],
    },
    "metric": _text(
        "What the points are.",
        enum=["cost_usd", "calls", "unpriced_calls", "input_tokens", "output_tokens"],
        default="cost_usd",
    ),
    "grain": _text("How long a point is.", enum=["hour", "day"], default="hour"),
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_ROWS,
        "default": _DEFAULT_ROWS,
        "description": f"How many; of a session's traces {MOST_TRACES} at most.",
    },
    "cursor": _text("Where the answer before ended."),
    "metadata": _text("Only ended runs with this metadata: KEY=VALUE.", pattern="="),
    "tag": _text("Only ended runs with this tag."),
    "roots": _text("Only runs that no other has called.", enum=["true", "false"], default="false"),
    "status": _text("Only runs of this status.", enum=list(STATUSES)),
    "type": _text("Only runs of this type: llm, chain, tool, retriever, …"),
    "name": _text("Only runs of this name."),
    **{
        name: _text(f"Only this {name}.")
        for name in ("service", "environment", "provider", "model", "user", "session", "trace")
    },
}


@dataclass(frozen=True)
class Source:
    """Where answers come from. `seconds`: how long a query may take."""

    store: Store
    settings: ConsumerSettings
    prices: PriceSource
    seconds: float = 10.0


@dataclass(frozen=True)
class Query:
    """What a request asks for."""

    source: Source
    parameters: Mapping[str, list[str]]
    path: Mapping[str, str]
    now_ns: int

    def one(self, name: str) -> str | None:
        """A parameter that is given at most once; its default where it is not."""
        values = self.parameters.get(name)
        return values[0] if values else PARAMETERS[name].get("default")

    def instant(self, name: str) -> int | None:
        """A time, as `--since` takes it."""
        text = self.one(name)
        return None if text is None else parse_instant(text, self.source.settings.zone(), self.now_ns)

    def span(self) -> tuple[int | None, int | None]:
        """Begin and end."""
        since, until = self.instant("since"), self.instant("until")
        if since is not None and since >= (self.now_ns if until is None else until):
            raise InputError(
                f"the range ends before it begins: since={self.one('since')}, until={self.one('until') or 'now'}"
            )
        return since, until

    def rows(self) -> int:
        """How many rows are wanted."""
        text = str(self.one("limit"))
        if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_ROWS:
            raise InputError(f"limit={text!r}: expected 1 to {MAX_ROWS:,}; what is beyond has a cursor")
        return int(text)

    def after(self) -> tuple[int, str] | None:
        """The row that the page before ended with."""
        text = self.one("cursor")
        return None if text is None else _read_cursor(text)


@dataclass(frozen=True)
class Question:
    """What a route answers, as its type says, and which of `PARAMETERS` it takes."""

    answer: Callable[[Query], Any]
    takes: tuple[str, ...]

    def check(self, parameters: Mapping[str, Sequence[str]], path: Mapping[str, str]) -> None:
        """Raises `InputError` for what it does not take."""
        for text in (*path.values(), *chain(*parameters.values())):
            if "\0" in text:
                raise InputError(f"{text!r} has a zero byte, which no text in a database has")
        for name, values in parameters.items():
            if name not in self.takes:
                raise InputError(f"no parameter is called {name!r} here: expected {', '.join(self.takes) or 'none'}")
            schema = PARAMETERS[name]
            if schema["type"] != "array" and len(values) > 1:
                raise InputError(f"{name!r} is given {len(values)} times: expected once")
            if "enum" in schema and values[0] not in schema["enum"]:
                raise InputError(f"{name}={values[0]!r}: expected {', '.join(schema['enum'])}")


def write_cursor(at_ns: int, row_id: str) -> str:
    """What `Query.after` reads."""
    return base64.urlsafe_b64encode(msgspec.json.encode((at_ns, row_id))).decode()


# What a database takes for a number and a text.
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Text = Annotated[str, msgspec.Meta(pattern="^[^\0]*$")]
_after_row = msgspec.json.Decoder(tuple[_Number, _Text])


def _read_cursor(text: str) -> tuple[int, str]:
    try:
        return _after_row.decode(base64.urlsafe_b64decode(text))
    except (binascii.Error, ValueError) as error:
        raise InputError(f"cursor={text!r} is none of ours: leave it out, or take it from the answer before") from error
