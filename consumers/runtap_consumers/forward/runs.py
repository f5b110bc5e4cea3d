"""Events as LangSmith takes them: a run is a `post`, and a `patch` where its start was told before."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET, Raw, UnsetType, structs

from runtap_consumers.figures.words import ERROR_FACTS, error_text
from runtap_consumers.forward.places import TracePlace, langsmith_id
from runtap_consumers.instants import dollars, format_instant
from runtap_consumers.projections.batch import Call, Prices, believed_time, price_call
from runtap_schemas import RunEnded, RunScored, RunStarted, Usage

_UTC = ZoneInfo("UTC")
_RUN_TYPES = frozenset({"chain", "embedding", "llm", "parser", "prompt", "retriever", "tool"})
# What content that is no object is called.
_INPUT_NAMES = {"llm": "prompts", "retriever": "query"}
_OUTPUT_NAMES = {"llm": "generations", "retriever": "documents"}
# LangSmith takes no more.
_SCORE_DECIMALS = 4
_encode = msgspec.json.Encoder().encode


class RunOperation(NamedTuple):
    """A run as it is sent, once for each of `kinds` (`post`, `patch`): `fields` are JSON, `parts` stand beside them."""

    kinds: tuple[str, ...]
    run_id: str
    fields: bytes
    parts: dict[str, bytes]

    @property
    def size_bytes(self) -> int:
        """About what it takes in a request."""
        # Boundary and headers of a part take so much.
        size = len(self.fields) + sum(map(len, self.parts.values())) + 250 * (1 + len(self.parts))
        return size * len(self.kinds)


def started_run(event: RunStarted, position: TracePlace) -> RunOperation:
    """A run that has begun."""
    extra = {"metadata": _metadata(event, {})}
    return _operation(("post",), position, _fields(event, position, event.at_ns), {"extra": extra})


def ended_run(
    event: RunEnded, log_time_ns: int, position: TracePlace, kinds: tuple[str, ...], prices: Prices
) -> RunOperation:
    """A run that has ended, with all that is known of it.

    Args:
        event: the end.
        log_time_ns: of its record, which decides with which instant it is priced.
        position: its place.
        kinds: `post`, `patch`.
        prices: what model calls cost.
    """
    fields = _fields(event, position, event.started_at_ns)
    # LangSmith takes the difference for the duration, and a wall clock may be set in between.
    fields["end_time"] = format_instant(event.started_at_ns + event.duration_ns, _UTC)
    fields["tags"] = event.tags
    if (error := event.error) is not None:
        said = error_text(*(getattr(error, name) for name in ERROR_FACTS))
        fields["error"] = f"{error.type}: {said}"
    elif event.status in ("error", "cancelled"):
        fields["error"] = event.status
    metadata = _metadata(event, event.metadata)
    if event.run_type == "llm":
        if (usage := usage_metadata(event, log_time_ns, prices)) is not None:
            metadata["usage_metadata"] = usage
        metadata["ls_model_name"] = event.model or event.request_model
    if event.status != "ok":
        metadata["runtap_status"] = event.status
    parts: dict[str, Any] = {"extra": {"metadata": metadata}}
    if event.inputs is not UNSET:
        parts["inputs"] = _object(event.inputs, _input_name(event))
    if event.outputs is not UNSET:
        parts["outputs"] = _object(event.outputs, _OUTPUT_NAMES.get(event.run_type, "output"))
    if event.time_to_first_token_ns is not None:
        at_ns = event.started_at_ns + event.time_to_first_token_ns
        parts["events"] = [{"name": "new_token", "time": format_instant(at_ns, _UTC)}]
    return _operation(kinds, position, fields, parts)


def feedback(event: RunScored, lane_number: str) -> bytes:
    """What somebody thought of a run. `lane_number` tells it from every other event, and gives it its id."""
    score = None if event.score is None else round(event.score, _SCORE_DECIMALS)
    source = "model" if event.source == "evaluator" else "api"
    found = {
        "id": str(uuid.uuid5(uuid.UUID(langsmith_id(event.run_id)), lane_number)),
        "run_id": langsmith_id(event.run_id),
        "created_at": format_instant(event.at_ns, _UTC),
        "key": event.key,
        "score": score,
        "value": event.value,
        "comment": event.comment,
        "feedback_source": {"type": source, "metadata": {"source": event.source, "user_id": event.user_id}},
    }
    return _encode({name: value for name, value in found.items() if value is not None})


def usage_metadata(event: RunEnded, log_time_ns: int, prices: Prices) -> dict[str, Any] | None:
    """What a model call used and cost, to the picodollar, in LangSmith's names; `None`: neither is known.

    LangSmith adds the costs of the calls of a trace up for its root, so no other run carries one.
    """
    if event.seller_host is not None:
        event = structs.replace(event, provider=prices.seller_at(event.provider, event.seller_host))
    at_ns = believed_time(event.at_ns, log_time_ns)
    call = price_call(event, event, at_ns, prices)
    found: dict[str, Any] = {} if event.usage is None else _tokens(event.usage)
    if call.cost_picodollars is not None:
        found["total_cost"] = _amount(call.cost_picodollars)
        input_cost = _input_cost(event, call, at_ns, prices)
        if input_cost is not None:
            found["input_cost"] = _amount(input_cost)
            found["output_cost"] = _amount(call.cost_picodollars - input_cost)
    return found or None


def _input_cost(event: RunEnded, call: Call, at_ns: int, prices: Prices) -> int | None:
    """What of a call's cost is its prompt's: the price of the same call without an answer."""
    total = call.cost_picodollars or 0
    if total == 0:
        return 0
    if event.usage is None or event.reported_cost_usd is not None:
        return None
    prompt = structs.replace(
        event.usage, output_tokens=0, reasoning_tokens=None, output_audio_tokens=None, web_searches=None
    )
    alone = structs.replace(event, usage=prompt)
    cost = price_call(alone, alone, at_ns, prices).cost_picodollars
    return cost if cost is not None and cost <= total else None


def _tokens(usage: Usage) -> dict[str, Any]:
    written = [count for count in (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) if count is not None]
    details = {
        "input_token_details": {
            "cache_read": usage.cache_read_tokens,
            "cache_creation": sum(written) if written else None,
            "audio": usage.input_audio_tokens,
            "image": usage.input_image_tokens,
        },
        "output_token_details": {"reasoning": usage.reasoning_tokens, "audio": usage.output_audio_tokens},
    }
    found: dict[str, Any] = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    if usage.input_tokens is not None and usage.output_tokens is not None:
        found["total_tokens"] = usage.input_tokens + usage.output_tokens
    found |= {name: _known(counts) for name, counts in details.items()}
    return {name: value for name, value in found.items() if value not in (None, {})}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _amount(picodollars: int) -> Raw:
    # A number with all of its digits, which a float would not have.
    return Raw(dollars(picodollars).encode())


def _fields(event: RunStarted | RunEnded, position: TracePlace, started_at_ns: int) -> dict[str, Any]:
    return {
        "id": position.run_id,
        "trace_id": position.trace_id,
        "parent_run_id": position.parent_run_id,
        "dotted_order": position.dotted_order,
        # What has no name, LangSmith refuses.
        "session_name": event.service or "default",
        "name": event.name or event.run_type,
        "run_type": event.run_type if event.run_type in _RUN_TYPES else "chain",
        "start_time": format_instant(started_at_ns, _UTC),
    }


def _metadata(event: RunStarted | RunEnded, given: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        # The first is what LangSmith makes threads of, the second what LangGraph calls it.
        "session_id": event.session_id,
        "thread_id": event.session_id,
        "user_id": event.user_id,
        "environment": event.environment,
        "ls_provider": event.provider,
        "ls_model_name": event.request_model,
    }
    return {**given, **_known(own)}


def _input_name(event: RunEnded) -> str:
    if event.run_type == "llm" and bytes(event.inputs)[:2] == b"[[":  # type: ignore[arg-type]
        return "messages"
    return _INPUT_NAMES.get(event.run_type, "input")


def _object(content: Raw | UnsetType, name: str) -> Raw:
    json = bytes(content)  # type: ignore[arg-type]
    return Raw(json if json.startswith(b"{") else b'{"%b":%b}' % (name.encode(), json))


def _operation(
    kinds: tuple[str, ...], position: TracePlace, fields: dict[str, Any], parts: Mapping[str, Any]
) -> RunOperation:
    written = {name: _encode(value) for name, value in parts.items()}
    return RunOperation(kinds, position.run_id, _encode(fields), written)
