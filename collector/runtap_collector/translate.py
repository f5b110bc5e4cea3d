"""
LangChain's objects to facts: names, models, usage and finish reasons, from where they really are.

The response is asked first, the request where it is silent. Everything here reads and copies; nothing is kept of a
foreign object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from langchain_core.outputs import LLMResult

from runtap_collector.records import OpenRun, Outcome
from runtap_collector.text import clip, name_of
from runtap_schemas import Usage
from runtap_schemas.events import MAX_NAME_LENGTH, MAX_TOKENS, UsageSource

_MODEL_KEYS = ("model_name", "model", "model_id")
_FINISH_KEYS = ("finish_reason", "stop_reason", "done_reason", "finishReason")
_MAX_WORD_LENGTH = 32
# Tiers that langchain-openai puts before the names of details.
_TIER_PREFIXES = ("priority_", "flex_")


def run_name(serialized: Mapping[str, Any] | None, name: object, run_type: str) -> str:
    """
    Name of a run: given, or the class's (models and tools are given none), or the kind of run.
    """
    if name:
        return clip(str(name), MAX_NAME_LENGTH)
    if serialized:
        own = serialized.get("name")
        if own:
            return clip(str(own), MAX_NAME_LENGTH)
        path = serialized.get("id")
        if isinstance(path, list) and path:
            return clip(str(path[-1]), MAX_NAME_LENGTH)
    return run_type


def add_model(
    run: OpenRun, serialized: Mapping[str, Any] | None, metadata: Mapping[str, Any], invocation: Mapping[str, Any]
) -> None:
    """
    Adds what the request says of the model: provider, name and service tier.
    """
    arguments = (serialized or {}).get("kwargs") or {}
    run.provider = name_of(metadata.get("ls_provider") or invocation.get("_type"))
    run.request_model = name_of(
        metadata.get("ls_model_name") or _first(invocation, _MODEL_KEYS) or _first(arguments, _MODEL_KEYS)
    )
    tier = invocation.get("service_tier")
    run.request_tier = _word(tier) if tier != "auto" else None


def add_response(outcome: Outcome, response: LLMResult, was_streamed: bool) -> None:
    """
    Adds what a model's answer says: model, service tier, finish reason, usage and cost.
    """
    output = response.llm_output or {}
    generations = [generation for prompt in response.generations for generation in prompt]
    messages = [message for g in generations if (message := getattr(g, "message", None)) is not None]
    places: list[Mapping[str, Any]] = [message.response_metadata or {} for message in messages]
    places += [generation.generation_info or {} for generation in generations]
    places.append(output)
    outcome.model = _without_repeats(name_of(_first_of(places, _MODEL_KEYS)))
    outcome.provider = name_of(_first_of(places, ("model_provider",)))
    outcome.finish_reason = _finish_reason(places)
    raw_usage = _first_of(places, ("token_usage", "usage"))
    raw_usage = raw_usage if isinstance(raw_usage, Mapping) else {}
    outcome.service_tier = _word(_first_of(places, ("service_tier",)) or raw_usage.get("service_tier"))
    outcome.reported_cost_usd = _cost(raw_usage.get("cost"))
    # With several answers each message repeats the usage of the whole call: the first says it all.
    counted = next((usage for message in messages if (usage := getattr(message, "usage_metadata", None))), None)
    if counted is not None:
        outcome.usage = _usage_of_metadata(counted, raw_usage, messages)
        source: UsageSource = "stream" if was_streamed else "response"
        outcome.usage_source = "cache" if counted.get("total_cost") == 0 else source
    elif raw_usage:
        outcome.usage = _usage_of_raw(raw_usage)
        if outcome.usage is not None:
            outcome.usage_source = "stream" if was_streamed else "response"


def _usage_of_metadata(counted: Mapping[str, Any], raw: Mapping[str, Any], messages: Iterable[Any]) -> Usage:
    inputs = counted.get("input_token_details") or {}
    outputs = counted.get("output_token_details") or {}
    write_5m, write_1h = _cache_writes(
        _detail(inputs, "cache_creation"),
        _tokens(inputs.get("ephemeral_5m_input_tokens")),
        _tokens(inputs.get("ephemeral_1h_input_tokens")),
    )
    return Usage(
        input_tokens=_tokens(counted.get("input_tokens")),
        output_tokens=_tokens(counted.get("output_tokens")),
        cache_read_tokens=_detail(inputs, "cache_read"),
        cache_write_5m_tokens=write_5m,
        cache_write_1h_tokens=write_1h,
        input_audio_tokens=_detail(inputs, "audio"),
        input_image_tokens=_detail(inputs, "image"),
        reasoning_tokens=_detail(outputs, "reasoning"),
        output_audio_tokens=_detail(outputs, "audio"),
        web_searches=_web_searches(raw, messages),
    )


def _usage_of_raw(raw: Mapping[str, Any]) -> Usage | None:
    """
    Usage as completion models of OpenAI's kind report it, and older integrations.
    """
    input_tokens = _tokens(_first(raw, ("prompt_tokens", "input_tokens", "inputTokens", "input_token_count")))
    output_tokens = _tokens(
        _first(raw, ("completion_tokens", "output_tokens", "outputTokens", "candidates_token_count"))
    )
    if input_tokens is None and output_tokens is None:
        return None
    inputs = raw.get("prompt_tokens_details") or raw.get("input_tokens_details") or {}
    outputs = raw.get("completion_tokens_details") or raw.get("output_tokens_details") or {}
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=_tokens(inputs.get("cached_tokens")),
        cache_write_5m_tokens=_tokens(inputs.get("cache_write_tokens")),
        input_audio_tokens=_tokens(inputs.get("audio_tokens")),
        reasoning_tokens=_tokens(outputs.get("reasoning_tokens")),
        output_audio_tokens=_tokens(outputs.get("audio_tokens")),
    )


def _cache_writes(total: int | None, for_5m: int | None, for_1h: int | None) -> tuple[int | None, int | None]:
    """
    Tokens written to caches of 5 minutes and 1 hour.

    langchain-anthropic sets the total to 0 where it gives the parts; others give a total alone, which is the cache of
    5 minutes everywhere.
    """
    if total is None and for_5m is None:
        return None, for_1h
    known = (for_5m or 0) + (for_1h or 0)
    return (for_5m or 0) + max(0, (total or 0) - known), for_1h


def _web_searches(raw: Mapping[str, Any], messages: Iterable[Any]) -> int | None:
    on_server = raw.get("server_tool_use")
    if isinstance(on_server, Mapping):
        return _tokens(on_server.get("web_search_requests"))
    count = 0
    for message in messages:
        content = message.content
        if isinstance(content, list):
            count += sum(1 for block in content if isinstance(block, dict) and block.get("type") == "web_search_call")
    return count or None


def _detail(details: Mapping[str, Any], name: str) -> int | None:
    value = details.get(name)
    if value is None:
        value = next((details[prefix + name] for prefix in _TIER_PREFIXES if prefix + name in details), None)
    return _tokens(value)


def _tokens(value: object) -> int | None:
    """
    A count that the contract takes. What is none (negative, absurd, text) is unknown.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TOKENS:
        return None
    return value


def _finish_reason(places: list[Mapping[str, Any]]) -> str | None:
    reason = _first_of(places, _FINISH_KEYS)
    if reason is None:
        # OpenAI's Responses API has a status, and a reason only where the answer is incomplete.
        details = _first_of(places, ("incomplete_details",))
        reason = (details.get("reason") if isinstance(details, Mapping) else None) or _first_of(places, ("status",))
    return _without_repeats(name_of(reason))


def _cost(value: object) -> str | None:
    """
    What the provider says the call cost, in dollars, as a plain decimal.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        cost = Decimal(str(value))
    except InvalidOperation:
        return None
    if not cost.is_finite() or not 0 <= cost < 1_000_000:
        return None
    # The contract takes 30 decimals.
    return format(cost, ".30f").rstrip("0").rstrip(".")


def _word(value: object) -> str | None:
    text = _without_repeats(name_of(value))
    return text[:_MAX_WORD_LENGTH] if text else None


def _without_repeats(text: str | None) -> str | None:
    """
    A name that a stream's chunks each carried and LangChain's merging joined: "gpt-4gpt-4" is "gpt-4".
    """
    if text is None or len(text) < 6:
        return text
    period = (text + text).find(text, 1)
    return text[:period] if period >= 3 else text


def _first(place: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((value for key in keys if (value := place.get(key))), None)


def _first_of(places: list[Mapping[str, Any]], keys: tuple[str, ...]) -> Any:
    return next((value for place in places if (value := _first(place, keys)) is not None), None)
