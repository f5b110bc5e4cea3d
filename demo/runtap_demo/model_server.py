"""A loopback server that speaks OpenAI's chat completions API, and counts what it answered.

It imports nothing of runtap: its totals are the demo's independent second opinion. Run as a process of its own:

    python -m runtap_demo.model_server --port 8181 --seed 7

What it answers depends on the seed, the request and how often that same request came before, not on the order of
different ones, so a seed decides the figures however the service's calls interleave. An answer counts only once it
was sent whole; one refused, never given or broken off by the client counts as nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

# Answering model by requested name. The last one stands for a model without a public price.
MODELS = {
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
    "o4-mini": "o4-mini-2025-04-16",
    "house-model-7b": "house-model-7b",
}
REASONING_MODELS = ("gpt-5-mini", "o4-mini")

# Shares of requests, in percent, whose first attempt fails in this way.
_RATE_LIMITED, _SERVER_ERROR, _UNANSWERED = 4, 3, 2
# Of those that fail, the share (percent) whose every attempt fails.
_PERSISTENT = 30
_UNANSWERED_SECONDS = 60.0
_PROMPT_CACHE_STEP = 128
_PROMPT_CACHE_LEAST = 1_024

_TEXT = (
    "the order was shipped on time and arrives within three working days after payment is confirmed by your bank "
    "please check the invoice number returned items are refunded once they reach our warehouse thank you for asking "
    "our team found that delivery to this region takes longer because of customs and weather this week"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Answer:
    """One answer, as it will be sent. `tool_call`: name and arguments, instead of text."""

    id: str
    model: str
    text: str
    tool_call: tuple[str, str] | None
    finish_reason: str
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    first_token_seconds: float
    seconds_per_token: float

    def counts(self, metered: bool) -> dict[str, int]:
        """What it adds to the totals of its model."""
        names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
        tokens = {name: getattr(self, name) if metered else 0 for name in names}
        return {"calls": 1, "unmetered_calls": int(not metered), **tokens}

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_input_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens, "audio_tokens": 0},
        }

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        assert self.tool_call is not None
        name, arguments = self.tool_call
        return [{"id": f"call_{self.id[9:33]}", "type": "function", "function": {"name": name, "arguments": arguments}}]


class ModelServer:
    """The routes, the seed and the totals of what was sent, in answers sent whole.

    `unmetered_calls` are streams whose client did not ask for usage: it cannot know their tokens, so they are in no
    other figure.
    """

    def __init__(self, seed: int) -> None:
        self._by_model: dict[str, Counter[str]] = defaultdict(Counter)
        self._not_answered: Counter[str] = Counter()
        self._seed = seed
        self._seen: Counter[str] = Counter()

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/totals", self.show_totals, methods=["GET"]),
            ]
        )

    async def show_totals(self, request: Request) -> Response:
        by_model = dict(sorted(self._by_model.items()))
        return JSONResponse({"seed": self._seed, "by_model": by_model, "not_answered": self._not_answered})

    async def complete(self, request: Request) -> Response:
        """Answers one request, or fails it."""
        body = await request.json()
        if body.get("model") not in MODELS:
            self._not_answered["404"] += 1
            return _error(404, f"The model `{body.get('model')}` does not exist", "model_not_found")
        digest = hashlib.sha256(f"{self._seed}:{json.dumps(body, sort_keys=True)}".encode()).hexdigest()
        attempt = self._seen[digest]
        self._seen[digest] += 1
        failure = _choose_failure(digest, attempt)
        if failure is not None:
            return await self._fail(failure, request)
        answer = _compose(body, random.Random(f"{digest}:{attempt}"))
        if body.get("stream"):
            metered = bool((body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(
                self._send(answer, _stream(answer, metered), metered), media_type="text/event-stream"
            )
        return StreamingResponse(self._send(answer, _whole(answer), metered=True), media_type="application/json")

    async def _fail(self, failure: str, request: Request) -> Response:
        self._not_answered[failure] += 1
        if failure == "429":
            response = _error(429, "Rate limit reached for requests", "rate_limit_exceeded")
            response.headers["retry-after-ms"] = "60"
            return response
        if failure == "500":
            return _error(500, "The server had an error while processing your request", None)
        # After the body the only message that may still come says that the client is gone.
        with suppress(TimeoutError):
            await asyncio.wait_for(request.receive(), _UNANSWERED_SECONDS)
        return _error(504, "Timed out", None)

    async def _send(self, answer: Answer, pieces: Iterable[tuple[float, str]], metered: bool) -> AsyncIterator[str]:
        """Sends pieces, each after so many seconds, and counts the answer once the last was handed over."""
        whole = False
        try:
            for seconds, piece in pieces:
                await asyncio.sleep(seconds)
                yield piece
            whole = True
            self._by_model[answer.model].update(answer.counts(metered))
        finally:
            if not whole:
                self._not_answered["broken_off"] += 1


def _error(status: int, message: str, code: str | None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "error", "param": None, "code": code}}, status)


def _choose_failure(digest: str, attempt: int) -> str | None:
    """How this attempt of a request fails, if it does: its digest decides, for the first attempt or for every one."""
    dice = random.Random(f"failure:{digest}")
    percent, persistent = dice.randrange(100), dice.randrange(100) < _PERSISTENT
    if percent < _RATE_LIMITED + _SERVER_ERROR:
        failure = "429" if percent < _RATE_LIMITED else "500"
        return failure if attempt == 0 or persistent else None
    # Three attempts without an answer would take longer than the demo.
    return "unanswered" if percent < _RATE_LIMITED + _SERVER_ERROR + _UNANSWERED and attempt == 0 else None


def _compose(body: dict[str, Any], dice: random.Random) -> Answer:
    """Makes up an answer of realistic length: mostly 40 to 250 tokens, of which reasoning models hide some."""
    input_tokens = _count_input_tokens(body)
    cached = 0
    if input_tokens >= _PROMPT_CACHE_LEAST and dice.random() < 0.6:
        cached = (input_tokens - dice.randrange(_PROMPT_CACHE_STEP)) // _PROMPT_CACHE_STEP * _PROMPT_CACHE_STEP
    tool = _choose_tool(body, dice)
    reasoning = 64 * round(dice.lognormvariate(1.0, 0.7)) if body["model"] in REASONING_MODELS else 0
    least = 250 if body.get("verbosity") == "high" else 8
    visible = dice.randint(14, 30) if tool else min(300, max(least, round(dice.lognormvariate(math.log(90), 0.7))))
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    finish_reason = "tool_calls" if tool else "stop"
    if limit is not None and visible > limit:
        visible, finish_reason = limit, "length"
    arguments = json.dumps(_fill(tool["function"].get("parameters") or {}, _last_text(body), dice)) if tool else ""
    return Answer(
        id=f"chatcmpl-{dice.getrandbits(140):035x}",
        model=MODELS[body["model"]],
        text="" if tool else " ".join(dice.choice(_WORDS) for _ in range(visible)),
        tool_call=(tool["function"]["name"], arguments) if tool else None,
        finish_reason=finish_reason,
        input_tokens=input_tokens,
        cached_input_tokens=cached,
        output_tokens=visible + reasoning,
        reasoning_tokens=reasoning,
        first_token_seconds=min(0.6, dice.lognormvariate(math.log(0.12), 0.5)) + min(0.6, reasoning * 0.001),
        seconds_per_token=dice.uniform(0.003, 0.005),
    )


def _count_input_tokens(body: dict[str, Any]) -> int:
    """About four characters a token, and four tokens around each message."""
    characters = sum(len(json.dumps(message.get("content") or "")) for message in body["messages"])
    return 3 + 4 * len(body["messages"]) + (characters + len(json.dumps(body.get("tools") or ""))) // 4


def _choose_tool(body: dict[str, Any], dice: random.Random) -> dict[str, Any] | None:
    """A tool to call: the one whose verb the user said, else any; none once two answered, or where none is offered."""
    tools: list[dict[str, Any]] = body.get("tools") or []
    answered = sum(message["role"] == "tool" for message in body["messages"])
    if not tools or body.get("tool_choice") == "none" or answered >= 2 or (answered == 1 and dice.random() < 0.5):
        return None
    question = _last_text(body).lower()
    named = [tool for tool in tools if tool["function"]["name"].partition("_")[0] in question]
    return dice.choice(named or tools)


def _last_text(body: dict[str, Any]) -> str:
    return next((str(message["content"]) for message in reversed(body["messages"]) if message["role"] == "user"), "")


def _fill(schema: dict[str, Any], text: str, dice: random.Random) -> dict[str, Any]:
    """Arguments that fit a tool's schema."""
    kinds: dict[str, Any] = {"integer": dice.randint(1, 99), "number": dice.randint(1, 99) / 2, "boolean": True}
    return {name: kinds.get(part.get("type"), text[:60]) for name, part in (schema.get("properties") or {}).items()}


def _whole(answer: Answer) -> Iterator[tuple[float, str]]:
    """An answer in one piece."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool_call is not None:
        message |= {"content": None, "tool_calls": answer.tool_calls}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    visible_tokens = answer.output_tokens - answer.reasoning_tokens
    seconds = answer.first_token_seconds + visible_tokens * answer.seconds_per_token
    yield seconds, json.dumps({**_head(answer, "chat.completion"), "choices": [choice], "usage": answer.usage})


def _stream(answer: Answer, metered: bool) -> Iterator[tuple[float, str]]:
    """An answer as server-sent events; a word stands for about one token."""
    seconds = answer.first_token_seconds
    for choice in _choices(answer):
        yield seconds, _chunk(answer, [choice], metered)
        seconds = answer.seconds_per_token
    if metered:
        yield seconds, _chunk(answer, [], metered, usage=answer.usage)
        seconds = 0
    yield seconds, "data: [DONE]\n\n"


def _choices(answer: Answer) -> list[dict[str, Any]]:
    """The parts of a streamed answer."""
    deltas: list[dict[str, Any]]
    if answer.tool_call is None:
        words = answer.text.split(" ")
        deltas = [{"content": word if index == 0 else f" {word}"} for index, word in enumerate(words)]
    else:
        # The name comes first, the arguments in two pieces.
        call = answer.tool_calls[0]
        arguments, half = call["function"]["arguments"], len(call["function"]["arguments"]) // 2
        head = {**call, "index": 0, "function": {"name": call["function"]["name"], "arguments": ""}}
        deltas = [{"tool_calls": [head]}] + [
            {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            for piece in (arguments[:half], arguments[half:])
        ]
    deltas = [{"role": "assistant", "content": None if answer.tool_call else ""}, *deltas]
    parts: list[dict[str, Any]] = [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
    ]
    return [*parts, {"index": 0, "delta": {}, "logprobs": None, "finish_reason": answer.finish_reason}]


def _chunk(answer: Answer, choices: list[dict[str, Any]], metered: bool, usage: dict[str, Any] | None = None) -> str:
    chunk = {**_head(answer, "chat.completion.chunk"), "choices": choices}
    if metered:
        chunk["usage"] = usage
    return f"data: {json.dumps(chunk)}\n\n"


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    created = int(time.time())
    return {"id": answer.id, "object": kind, "created": created, "model": answer.model, "service_tier": "default"}


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description="A loopback server that speaks OpenAI's chat completions API")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    uvicorn.run(
        ModelServer(arguments.seed).application(),
        host="127.0.0.1",
        port=arguments.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
