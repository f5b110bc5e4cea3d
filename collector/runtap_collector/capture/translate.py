"""LangChain's objects to facts: names, models, usage and finish reasons, from where they really are.

The response is asked first, the request where it is silent. Everything here reads and copies; nothing is kept of a
foreign object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from langchain_core.outputs import LLMResult
from msgspec import structs

from runtap_collector.capture.text import let_signals_pass, name_of
from runtap_collector.send.records import OpenRun, Outcome
from runtap_schemas import Usage
from runtap_schemas.events import MAX_TOKENS

_MODEL_KEYS = ("model_name", "model", "model_id")
# What clients call the URL of a seller's own, of a proxy or of a model at home.
_HOST_KEYS = (
    "openai_api_base",
    "base_url",
    "azure_endpoint",
    "endpoint",
    "endpoint_url",
    "anthropic_api_url",
    "api_base",
)
# Words of an answer that change its price, beside the service tier.
_PRICE_KEYS = ("inference_geo", "region", "speed", "batch")
_FINISH_KEYS = ("finish_reason", "stop_reason", "done_reason", "finishReason")
_MAX_WORD_LENGTH = 32
_NOTHING: Mapping[str, Any] = {}
# Tiers that langchain-openai puts before the names of details.
_TIER_PREFIXES = ("priority_", "flex_")


def run_name(run: OpenRun) -> str:
    """Name of a run: given, or the class's (models and tools are given none), or the kind of run."""
    name, serialized = name_of(run.given_name), run.serialized
    if name is None and serialized:
        name = name_of(serialized.get("name"))
        if name is None:
            path = serialized.get("id")
            name = name_of(path[-1]) if isinstance(path, list) and path else None
    return name or run.run_type


def request_of(run: OpenRun) -> tuple[str | None, str | None, str | None, str | None]:
    """What the request of a model's run says of it: provider, name, service tier, and the host that is called."""
    metadata, invocation = run.metadata or _NOTHING, run.invocation or _NOTHING
    kwargs = (run.serialized or _NOTHING).get("kwargs") or _NOTHING
    try:
        return _request_of(metadata, invocation, kwargs)
    except BaseException as error:  # noqa: BLE001 - a foreign object's methods raise what they like
        let_signals_pass(error)
        return _request_of(_plain(metadata), _plain(invocation), _plain(kwargs))


def _request_of(
    metadata: Mapping[str, Any], invocation: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> tuple[str | None, str | None, str | None, str | None]:
    model = metadata.get("ls_model_name") or _first(invocation, _MODEL_KEYS) or _first(kwargs, _MODEL_KEYS)
    tier = invocation.get("service_tier")
    return (
        name_of(metadata.get("ls_provider") or invocation.get("_type")),
        name_of(model),
        word_of(tier) if tier and tier != "auto" else None,
        host_of(_first(invocation, _HOST_KEYS) or _first(kwargs, _HOST_KEYS)),
    )


def host_of(url: object) -> str | None:
    """The host of a URL, and nothing else of it, which may be secret. `None`: it names none."""
    return _host_of(url) if type(url) is str else None


@lru_cache(maxsize=1_024)
def _host_of(url: str) -> str | None:
    try:
        return name_of(urlsplit(url if "://" in url else f"//{url}").hostname)
    except ValueError:
        return None


def note_usage(run: OpenRun, usage: Mapping[str, Any]) -> None:
    """Keeps the usage of a stream's chunk: some providers send the usage so far with each of them."""
    last, run.streamed_usage = run.streamed_usage, usage
    if last is not None and run.has_running_usage is not False:
        (before, was_out), (after, is_out) = (
            [tokens_of(each.get(name)) or 0 for name in ("input_tokens", "output_tokens")] for each in (last, usage)
        )
        run.has_running_usage = before == after > 0 and is_out >= was_out


def add_response(
    outcome: Outcome, response: LLMResult, was_streamed: bool, running_usage: Mapping[str, Any] | None = None
) -> None:
    """Adds what a model's answer says: model, service tier, finish reason, usage and cost.

    Args:
        outcome: what is added to.
        response: the answer.
        was_streamed: whether its tokens came one by one.
        running_usage: the last of a stream whose chunks each repeated the usage so far; the answer has their sum.
    """
    messages = []
    sources: list[Mapping[str, Any]] = []
    infos: list[Mapping[str, Any]] = []
    for prompt in response.generations:
        for generation in prompt:
            # Not `getattr`: what one lacks costs microseconds to ask for.
            message = vars(generation).get("message")
            if message is not None:
                messages.append(message)
                if message.response_metadata:
                    sources.append(message.response_metadata)
            if generation.generation_info:
                infos.append(generation.generation_info)
    sources += infos
    if response.llm_output:
        sources.append(response.llm_output)
    raw_usage: Any = None
    if sources:
        outcome.model = _without_repeats(name_of(_first_of(sources, _MODEL_KEYS)))
        outcome.provider = name_of(_first_of(sources, ("model_provider",)))
        outcome.finish_reason = _finish_reason(sources)
        raw_usage = _first_of(sources, ("token_usage", "usage"))
        outcome.service_tier = word_of(_first_of(sources, ("service_tier",)))
    if raw_usage and isinstance(raw_usage, Mapping):
        outcome.service_tier = outcome.service_tier or word_of(raw_usage.get("service_tier"))
        outcome.reported_cost_usd = _billed(raw_usage)
    else:
        raw_usage = {}
    outcome.price_facts = _price_facts([raw_usage, *sources])
    if outcome.provider == "openrouter" and outcome.reported_cost_usd is None:
        outcome.reported_cost_usd = dollars_of(_first_of(sources, ("cost",)))
    # With several answers each message repeats the usage of the whole call: only the first is counted.
    counted = running_usage
    for message in messages:
        if counted:
            break
        counted = getattr(message, "usage_metadata", None)
    usage: Usage | None = None
    if _has_other_models(raw_usage, messages, outcome.model):
        # What they asked and answered is billed at their prices, and not all of it is said.
        return
    if counted:
        usage = outcome.usage = _usage_of_metadata(counted, raw_usage, messages)
        outcome.service_tier = outcome.service_tier or _tier_of(counted)
        if counted.get("total_cost") == 0:
            outcome.usage_source = "cache"
            return
    elif raw_usage:
        usage = _usage_of_raw(raw_usage)
    # Integrations put zeros where a provider reported nothing: every prompt has a token.
    if usage is not None and not usage.input_tokens:
        usage = structs.replace(usage, input_tokens=None) if usage.output_tokens else None
    outcome.usage = usage
    if usage is not None:
        outcome.usage_source = "stream" if was_streamed else "response"


def _price_facts(sources: list[Mapping[str, Any]]) -> dict[str, str]:
    facts = {key: _first_of(sources, (key,)) for key in _PRICE_KEYS}
    return {
        key: name_of(value) or "" if type(value) is str else "true"
        for key, value in facts.items()
        if value is True or type(value) is str
    }


def _billed(raw: Mapping[str, Any]) -> str | None:
    """What a router says it billed; not where the owner's own key pays for the call (its fee alone is no cost)."""
    cost = raw.get("cost")
    if isinstance(cost, Mapping):
        cost = cost.get("total_cost")
    return None if raw.get("is_byok") else dollars_of(cost)


def _tier_of(counted: Mapping[str, Any]) -> str | None:
    """The service tier in the names of the details: a stream says it nowhere else."""
    details = counted.get("input_token_details")
    if not details:
        return None
    return next((prefix[:-1] for prefix in _TIER_PREFIXES if prefix[:-1] in details), None)


def _has_other_models(raw: Mapping[str, Any], messages: Iterable[Any], model: str | None) -> bool:
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


def _usage_of_metadata(counted: Mapping[str, Any], raw: Mapping[str, Any], messages: Iterable[Any]) -> Usage:
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


def _usage_of_raw(raw: Mapping[str, Any]) -> Usage | None:
    """Usage as completion models of OpenAI's kind report it, and older integrations."""
    input_tokens = tokens_of(_first(raw, ("prompt_tokens", "input_tokens", "inputTokens", "input_token_count")))
    output_tokens = tokens_of(
        _first(raw, ("completion_tokens", "output_tokens", "outputTokens", "candidates_token_count"))
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


def _finish_reason(sources: list[Mapping[str, Any]]) -> str | None:
    reason = _first_of(sources, _FINISH_KEYS)
    if reason is None:
        # OpenAI's Responses API has a status, and a reason only where the answer is incomplete.
        details = _first_of(sources, ("incomplete_details",))
        reason = (details.get("reason") if isinstance(details, Mapping) else None) or _first_of(sources, ("status",))
    return _without_repeats(name_of(reason))


def dollars_of(value: object) -> str | None:
    """What the provider says the call cost, in dollars, as a plain decimal."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        cost = Decimal(str(value))
    except (InvalidOperation, ValueError):
        # ValueError: an integer with more digits than Python turns into text.
        return None
    if not cost.is_finite() or not 0 <= cost < 10_000:
        return None
    # The contract takes 4 digits and 30 decimals, and no sign.
    return format(abs(cost), ".30f").rstrip("0").rstrip(".")


def word_of(value: object) -> str | None:
    """A short name, such as a service tier's. `None`: there is none."""
    text = _without_repeats(name_of(value))
    return text[:_MAX_WORD_LENGTH] if text else None


@lru_cache(maxsize=1_024)
def _without_repeats(text: str | None) -> str | None:
    """A name that a stream's chunks each carried and LangChain's merging joined: "gpt-4gpt-4" is "gpt-4"."""
    if text is None or len(text) < 6:
        return text
    period = (text + text).find(text, 1)
    return text[:period] if period >= 3 else text


# Loops rather than generators below: asked for every model call, mostly in vain.


def _first(source: Mapping[str, Any], keys: Iterable[str]) -> Any:
    for key in keys:
        value = source.get(key)
        if value:
            return value
    return None


def _first_of(sources: list[Mapping[str, Any]], keys: tuple[str, ...]) -> Any:
    try:
        for source in sources:
            for key in keys:
                value = source.get(key)
                if value:
                    return value
    except BaseException as error:  # noqa: BLE001 - a foreign object's methods raise what they like
        let_signals_pass(error)
        return _first_of([_plain(source) for source in sources], keys)
    return None


def _plain(source: object) -> dict[str, Any]:
    """The plain values of a foreign mapping: an app's objects may raise even when asked for their truth."""
    if not isinstance(source, dict):
        return {}
    return {key: value for key, value in source.items() if type(value) in (str, int, float, bool, dict, list)}
