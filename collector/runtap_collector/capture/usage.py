"""What a model's answer says it used: tokens by class, and searches; from where each provider's client puts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import structs

from runtap_collector.capture.text import first_value
from runtap_collector.send.records import OpenRun
from runtap_schemas import Usage
from runtap_schemas.events import MAX_TOKENS

# Tiers that langchain-openai puts before the names of details.
_TIER_PREFIXES = ("priority_", "flex_")


def note_usage(run: OpenRun, usage: Mapping[str, Any]) -> None:
    """Keeps the usage of a stream's chunk: some providers send the usage so far with each of them."""
    last, run.streamed_usage = run.streamed_usage, usage
    if last is not None and run.has_running_usage is not False:
        (before, was_out), (after, is_out) = (
            [tokens_of(each.get(name)) or 0 for name in ("input_tokens", "output_tokens")] for each in (last, usage)
        )
        run.has_running_usage = before == after > 0 and is_out >= was_out


def has_other_models(raw: Mapping[str, Any], messages: Iterable[Any], model: str | None) -> bool:
    """Whether other models had a part in an answer, as Anthropic's advisor: a pass names its own, a stream shows only
    the block of its result.
    """
    passes = raw.get("iterations")
    if isinstance(passes, list):
        named = {each.get("model") for each in passes if isinstance(each, Mapping)}
        return not named <= {None, model}
    return any(block.get("type") == "advisor_tool_result" for block in _blocks(messages))


def _blocks(messages: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        content = message.content
        if isinstance(content, list):
            for block in content:
                if isinstance(block, dict):
                    yield block


def tier_of(counted: Mapping[str, Any]) -> str | None:
    """The service tier in the names of the details: a stream says it nowhere else."""
    details = counted.get("input_token_details")
    if not details:
        return None
    return next((prefix[:-1] for prefix in _TIER_PREFIXES if prefix[:-1] in details), None)


def usage_of_metadata(counted: Mapping[str, Any], raw: Mapping[str, Any], messages: Iterable[Any]) -> Usage:
    iterations = raw.get("iterations")
    reasoning = _detail(counted.get("output_token_details") or {}, "reasoning")
    # A pass alone is what the total says, unless it compacted, which the total leaves out.
    if isinstance(iterations, list) and (len(iterations) > 1 or (iterations and not counted.get("input_tokens"))):
        return _usage_of_iterations(iterations, reasoning, _web_searches(raw, messages))
    usage = Usage(
        input_tokens=tokens_of(counted.get("input_tokens")),
        output_tokens=tokens_of(counted.get("output_tokens")),
        web_searches=_web_searches(raw, messages),
    )
    inputs, outputs = counted.get("input_token_details"), counted.get("output_token_details")
    if not inputs and not outputs:
        return usage
    inputs, outputs = inputs or {}, outputs or {}
    write_5m, write_1h = _cache_writes(
        _detail(inputs, "cache_creation"),
        tokens_of(inputs.get("ephemeral_5m_input_tokens")),
        tokens_of(inputs.get("ephemeral_1h_input_tokens")),
    )
    return structs.replace(
        usage,
        cache_read_tokens=_detail(inputs, "cache_read"),
        cache_write_5m_tokens=write_5m,
        cache_write_1h_tokens=write_1h,
        input_audio_tokens=_detail(inputs, "audio"),
        input_image_tokens=_detail(inputs, "image"),
        reasoning_tokens=reasoning,
        output_audio_tokens=_detail(outputs, "audio"),
    )


def _usage_of_iterations(iterations: list[Any], reasoning: int | None, web_searches: int | None) -> Usage:
    """Anthropic's usage with compaction: every pass is billed, but its total does not include compacting ones."""
    total = {name: 0 for name in Usage.__struct_fields__ if name.startswith(("input_t", "output_t", "cache_"))}
    for each in iterations:
        if not isinstance(each, Mapping):
            continue
        read = tokens_of(each.get("cache_read_input_tokens")) or 0
        parts = each.get("cache_creation") or {}
        write_5m, write_1h = _cache_writes(
            tokens_of(each.get("cache_creation_input_tokens")),
            tokens_of(parts.get("ephemeral_5m_input_tokens")),
            tokens_of(parts.get("ephemeral_1h_input_tokens")),
        )
        total["cache_read_tokens"] += read
        total["cache_write_5m_tokens"] += write_5m or 0
        total["cache_write_1h_tokens"] += write_1h or 0
        total["output_tokens"] += tokens_of(each.get("output_tokens")) or 0
        # Anthropic counts cached tokens beside its input.
        total["input_tokens"] += (tokens_of(each.get("input_tokens")) or 0) + read + (write_5m or 0) + (write_1h or 0)
    known = {name: tokens_of(count) for name, count in total.items()}
    return Usage(**known, reasoning_tokens=reasoning, web_searches=web_searches)


def usage_of_raw(raw: Mapping[str, Any]) -> Usage | None:
    """Usage as completion models of OpenAI's kind report it, and older integrations."""
    input_tokens = tokens_of(first_value(raw, ("prompt_tokens", "input_tokens", "inputTokens", "input_token_count")))
    output_tokens = tokens_of(
        first_value(raw, ("completion_tokens", "output_tokens", "outputTokens", "candidates_token_count"))
    )
    if input_tokens is None and output_tokens is None:
        return None
    inputs = raw.get("prompt_tokens_details") or raw.get("input_tokens_details") or {}
    outputs = raw.get("completion_tokens_details") or raw.get("output_tokens_details") or {}
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cache_read_tokens=tokens_of(inputs.get("cached_tokens")),
        cache_write_5m_tokens=tokens_of(inputs.get("cache_write_tokens")),
        input_audio_tokens=tokens_of(inputs.get("audio_tokens")),
        reasoning_tokens=tokens_of(outputs.get("reasoning_tokens")),
        output_audio_tokens=tokens_of(outputs.get("audio_tokens")),
    )


def _cache_writes(total: int | None, for_5m: int | None, for_1h: int | None) -> tuple[int | None, int | None]:
    """Tokens written to caches of 5 minutes and 1 hour.

    langchain-anthropic sets the total to 0 where it gives the parts; others give a total alone, which is the cache of
    5 minutes everywhere.
    """
    if total is None and for_5m is None:
        return None, for_1h
    known = (for_5m or 0) + (for_1h or 0)
    return (for_5m or 0) + max(0, (total or 0) - known), for_1h


def _web_searches(raw: Mapping[str, Any], messages: Iterable[Any]) -> int | None:
    on_server = raw.get("server_tool_use")
    if on_server and isinstance(on_server, Mapping):
        return tokens_of(on_server.get("web_search_requests"))
    return sum(map(_is_search, _blocks(messages))) or None


def _is_search(block: Mapping[str, Any]) -> bool:
    """Whether a block of an answer stands for a search that is billed: of OpenAI's calls those that search, not those
    that open a page; of Anthropic's results, in a stream, those that are no error.
    """
    kind = block.get("type")
    if kind == "web_search_call":
        action = block.get("action")
        return not isinstance(action, Mapping) or action.get("type") in (None, "search")
    return kind == "web_search_tool_result" and isinstance(block.get("content"), list)


def _detail(details: Mapping[str, Any], name: str) -> int | None:
    value = details.get(name)
    if value is None and details:
        value = next((details[prefix + name] for prefix in _TIER_PREFIXES if prefix + name in details), None)
    return tokens_of(value)


def tokens_of(value: object) -> int | None:
    """A count that the contract takes. What is none (negative, absurd, text) is unknown."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TOKENS:
        return None
    return value
