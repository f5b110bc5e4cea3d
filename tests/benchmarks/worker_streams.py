"""Streams of ended runs for the worker's benchmarks: who calls what, how often, and in which sessions.

`easy`: 36 components, one service, 1,000 sessions of 300 users, all of them at any time. `hard`: 8 services with 40
names and 12 models, and every chain is of any of 20,000 sessions of 4,000 users. `people`: the requests of a
conversation service as they came, by `mooncake_conversation.csv` in the folder that `RUNTAP_DATA` names (cut out of
Mooncake's trace, FAST'25; left out where it is not there): sessions that begin, go on for a few requests and end;
chains of 3 to 7 runs.
"""

from __future__ import annotations

import csv
import heapq
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runtap_schemas import RunEnded, Usage, encode_event

PARTITIONS = 6
TRACE = Path(os.environ.get("RUNTAP_DATA", "missing")) / "mooncake_conversation.csv"
_SECOND_NS = 10**9
_MODELS = [
    ("openai", name)
    for name in (
        *("gpt-4o-mini-2024-07-18", "gpt-4.1-2025-04-14", "o4-mini-2025-04-16", "gpt-4o-2024-08-06"),
        *("gpt-4.1-mini-2025-04-14", "gpt-4.1-nano-2025-04-14", "gpt-5-2025-08-07", "gpt-5-mini-2025-08-07"),
    )
] + [
    ("anthropic", name)
    for name in (
        *("claude-3-5-haiku-20241022", "claude-sonnet-4-20250514", "claude-opus-4-20250514"),
        "claude-3-7-sonnet-20250219",
    )
]


class Request(NamedTuple):
    """One chain that an app ran, and what its model calls used."""

    service: str
    session: int
    user: int
    runs: int
    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int


# A request and the share of the stream's time at which it came.
Arrivals = Callable[[random.Random, int], Iterator[tuple[float, Request]]]


def _easy(dice: random.Random, count: int) -> Iterator[tuple[float, Request]]:
    for _ in range(count // 6 + 1):
        session = dice.randrange(1_000)
        yield dice.random(), Request("checkout", session, session % 300, 6, 3, *_uniform_tokens(dice))


def _hard(dice: random.Random, count: int) -> Iterator[tuple[float, Request]]:
    requests = count // 6 + 1
    for number in range(requests):
        session = dice.randrange(20_000)
        service = f"service-{dice.randrange(8)}"
        yield number / requests, Request(service, session, session % 4_000, 6, 3, *_uniform_tokens(dice))


def _people(dice: random.Random, count: int) -> Iterator[tuple[float, Request]]:
    """The trace from its beginning, several times side by side: an hour of it has but 60,000 runs."""
    with TRACE.open() as file:
        rows = [tuple(map(int, row)) for row in list(csv.reader(file))[1:]]
    copies = 16
    rows = rows[: count // (4 * copies) + 1]
    last_ms = rows[-1][0]

    def service(number: int) -> Iterator[tuple[float, int, Request]]:
        for place, (at_ms, input_tokens, output_tokens, cached_tokens, session) in enumerate(rows):
            runs = dice.randrange(3, 8)
            calls = 1 if runs < 5 else 2
            # Nobody asks at the same instant as in the other copies.
            at = (at_ms + 1_000 * number / copies) / (last_ms + 1_000)
            name = f"service-{number % 8}"
            own = number * 10_000 + session
            # Three sessions a user, as they come.
            request = Request(name, own, own // 3, runs, calls, input_tokens, output_tokens, cached_tokens)
            yield at, number * len(rows) + place, request

    for at, _, request in heapq.merge(*(service(number) for number in range(copies))):
        yield at, request


def _uniform_tokens(dice: random.Random) -> tuple[int, int, int]:
    return dice.randrange(9_000), dice.randrange(900), 0


class Stream(NamedTuple):
    """`rate`: events a second, by their own times. `names`: of components, beside the models'."""

    arrivals: Arrivals
    rate: float
    names: int
    models: int


STREAMS = {
    "easy": Stream(_easy, 12_000, 35, 3),
    # A million in half an hour.
    "hard": Stream(_hard, 556, 40, 12),
    "people": Stream(_people, 556, 40, 12),
}


def make_events(name: str, count: int, rate: float | None = None) -> Iterator[tuple[int, bytes]]:
    """Ended runs of a stream, up to now; `rate` in place of its own, events a second.

    Yields:
        Partition, which all runs of an emitter share, and event.
    """
    stream = STREAMS[name]
    dice = random.Random(1)
    span_ns = int(count / (rate or stream.rate) * _SECOND_NS)
    began_ns = time.time_ns() - span_ns
    made = 0
    for number, (at, request) in enumerate(stream.arrivals(dice, count)):
        at_ns = began_ns + int(at * span_ns)
        for event in _chain(dice, stream, request, at_ns):
            yield number % PARTITIONS, encode_event(event)
            made += 1
            if made == count:
                return


def _chain(dice: random.Random, stream: Stream, request: Request, at_ns: int) -> Iterator[RunEnded]:
    """The runs of a chain, the root last."""
    trace_id = _run_id(dice, at_ns)
    for index in range(request.runs):
        is_root = index == request.runs - 1
        is_call = index % 2 == 0 and index // 2 < request.calls and not is_root
        duration_ns = int(dice.lognormvariate(20, 1))
        yield RunEnded(
            at_ns=at_ns,
            run_id=trace_id if is_root else _run_id(dice, at_ns),
            trace_id=trace_id,
            parent_run_id=None if is_root else trace_id,
            is_root=is_root,
            root_name="answer",
            session_id=f"session-{request.session:06}",
            user_id=f"user-{request.user:06}",
            service=request.service,
            environment="bench",
            run_type="llm" if is_call else "chain",
            name="ChatOpenAI" if is_call else f"step {dice.randrange(stream.names)}",
            status="ok",
            started_at_ns=at_ns - duration_ns,
            duration_ns=duration_ns,
            tags=["web"],
            metadata={"team": "orders", "region": "eu"},
            **(_call_facts(dice, stream, request) if is_call else {}),
        )


def _run_id(dice: random.Random, at_ns: int) -> str:
    # LangChain's are of version 7: milliseconds, then chance.
    return str(uuid.UUID(int=at_ns // 10**6 << 80 | 7 << 76 | dice.getrandbits(76)))


def _call_facts(dice: random.Random, stream: Stream, request: Request) -> dict[str, Any]:
    provider, model = dice.choice(_MODELS[: stream.models])
    usage = Usage(
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        cache_read_tokens=request.cached_tokens,
    )
    return {
        "provider": provider,
        "request_model": model,
        "model": model,
        "usage": usage,
        "usage_source": "response",
        "time_to_first_token_ns": dice.randrange(10**9),
        "finish_reason": "stop",
    }
