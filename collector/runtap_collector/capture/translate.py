"""LangChain's objects to facts: names, models, usage and finish reasons, from where they really are.

The response is asked first, the request where it is silent. Everything here reads and copies; nothing is kept of a
foreign object.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from langchain_core.outputs import LLMResult
from msgspec import structs

from runtap_collector.capture.text import first_value, let_signals_pass, name_of
from runtap_collector.capture.usage import has_other_models, tier_of, usage_of_metadata, usage_of_raw
from runtap_collector.send.records import OpenRun, Outcome
from runtap_schemas import Usage

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
    model = metadata.get("ls_model_name") or first_value(invocation, _MODEL_KEYS) or first_value(kwargs, _MODEL_KEYS)
    tier, provider = invocation.get("service_tier"), metadata.get("ls_provider") or invocation.get("_type")
    address = first_value(invocation, _HOST_KEYS) or first_value(kwargs, _HOST_KEYS)
    if address is None and provider == "openai":
        # Read by OpenAI's own client, behind LangChain's back.
        address = os.environ.get("OPENAI_BASE_URL")
    return (
        name_of(provider),
        name_of(model),
        word_of(tier) if tier and tier != "auto" else None,
        host_of(address),
    )


def has_preview_search(run: OpenRun) -> bool:
    """Whether the searches that a model was offered are OpenAI's `web_search_preview`, whose price is another."""
    tools = (run.invocation or _NOTHING).get("tools")
    kinds = [tool.get("type") for tool in tools if type(tool) is dict] if type(tools) is list else []
    return any(type(kind) is str and kind.startswith("web_search_preview") for kind in kinds)


def host_of(url: object) -> str | None:
    """The host of a URL, and nothing else of it, which may be secret. `None`: it names none."""
    return _host_of(url) if type(url) is str else None


@lru_cache(maxsize=1_024)
def _host_of(url: str) -> str | None:
    try:
        return name_of(urlsplit(url if "://" in url else f"//{url}").hostname)
    except ValueError:
        return None


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
    if has_other_models(raw_usage, messages, outcome.model):
        # What they asked and answered is billed at their prices, and not all of it is said.
        return
    if counted:
        usage = outcome.usage = usage_of_metadata(counted, raw_usage, messages)
        outcome.service_tier = outcome.service_tier or tier_of(counted)
        if counted.get("total_cost") == 0:
            outcome.usage_source = "cache"
            return
    elif raw_usage:
        usage = usage_of_raw(raw_usage)
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
