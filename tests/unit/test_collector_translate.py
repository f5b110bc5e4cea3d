"""Usage, models and finish reasons, from wherever a provider's integration puts them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from runtap_collector.capture.translate import add_response, has_preview_search, host_of, request_of, run_name
from runtap_collector.send.records import OpenRun, Outcome, Trace, View
from runtap_schemas import Usage

_BASE: Any = {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110}


def _outcome(
    *messages: AIMessage,
    llm_output: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    streamed: bool = False,
) -> Outcome:
    generations = [ChatGeneration(message=message, generation_info=info) for message in messages]
    outcome = Outcome("ok")
    add_response(outcome, LLMResult(generations=[generations], llm_output=llm_output), streamed)  # type: ignore[list-item]
    return outcome


def _usage(**details: Any) -> Usage:
    usage = _outcome(AIMessage("x", usage_metadata={**_BASE, **details})).usage
    assert usage is not None
    return usage


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, {}),
        ({"cache_read": 40, "audio": 3}, {"cache_read_tokens": 40, "input_audio_tokens": 3}),
        ({"cache_creation": 30}, {"cache_write_5m_tokens": 30}),
        ({"priority_cache_read": 40, "priority": 60}, {"cache_read_tokens": 40}),
        ({"flex_cache_creation": 5, "flex": 60}, {"cache_write_5m_tokens": 5}),
        # langchain-anthropic: the parts, and 0 in place of their sum.
        (
            {"cache_creation": 0, "ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 7},
            {"cache_write_5m_tokens": 20, "cache_write_1h_tokens": 7},
        ),
        (
            {"cache_creation": 27, "ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 7},
            {"cache_write_5m_tokens": 20, "cache_write_1h_tokens": 7},
        ),
        ({"cache_creation": 0}, {"cache_write_5m_tokens": 0}),
    ],
)
def test_parts_of_the_input_are_told_apart(details: dict[str, Any], expected: dict[str, int]) -> None:
    assert _usage(input_token_details=details) == Usage(input_tokens=100, output_tokens=10, **expected)


def test_parts_of_the_output_are_told_apart() -> None:
    assert _usage(output_token_details={"flex_reasoning": 6, "audio": 1}) == Usage(
        input_tokens=100, output_tokens=10, reasoning_tokens=6, output_audio_tokens=1
    )


@pytest.mark.parametrize("value", [-1, 10**9 + 1, "12", None, True, 1.5])
def test_impossible_counts_are_unknown(value: Any) -> None:
    message = AIMessage("x", usage_metadata=_BASE)
    assert message.usage_metadata is not None
    message.usage_metadata["input_tokens"] = value
    outcome = _outcome(message)
    assert outcome.usage == Usage(output_tokens=10)


def test_several_answers_of_one_call_count_once() -> None:
    outcome = _outcome(AIMessage("a", usage_metadata=_BASE), AIMessage("b", usage_metadata=_BASE))
    assert outcome.usage == Usage(input_tokens=100, output_tokens=10)


def test_usage_of_a_langchain_cache_hit_is_said_to_be_one() -> None:
    outcome = _outcome(AIMessage("x", usage_metadata={**_BASE, "total_cost": 0}))
    assert outcome.usage_source == "cache"


@pytest.mark.parametrize(("streamed", "source"), [(True, "stream"), (False, "response")])
def test_source_tells_streams_from_responses(streamed: bool, source: str) -> None:
    assert _outcome(AIMessage("x", usage_metadata=_BASE), streamed=streamed).usage_source == source


def test_answer_without_usage_has_none() -> None:
    outcome = _outcome(AIMessage("x"), streamed=True)
    assert (outcome.usage, outcome.usage_source) == (None, "none")


def test_usage_of_completion_models_is_in_the_output() -> None:
    outcome = Outcome("ok")
    output = {
        "token_usage": {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 2},
            "cost": 0.00012,
        },
        "model_name": "gpt-x",
    }
    add_response(outcome, LLMResult(generations=[[Generation(text="x")]], llm_output=output), was_streamed=False)
    assert outcome.usage == Usage(input_tokens=9, output_tokens=4, cache_read_tokens=2)
    assert (outcome.model, outcome.reported_cost_usd, outcome.usage_source) == ("gpt-x", "0.00012", "response")


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(1e-07, "0.0000001"), (0, "0"), ("0.25", "0.25"), (-1, None), ("dear", None), (True, None), (10**7, None)],
)
def test_reported_cost_is_a_plain_decimal(cost: Any, expected: str | None) -> None:
    assert _outcome(AIMessage("x", response_metadata={"token_usage": {"cost": cost}})).reported_cost_usd == expected


@pytest.mark.parametrize(
    ("metadata", "model", "reason"),
    [
        ({"model_name": "gpt-4", "finish_reason": "stop"}, "gpt-4", "stop"),
        ({"model": "claude", "stop_reason": "end_turn"}, "claude", "end_turn"),
        # Joined by LangChain from a stream's chunks.
        ({"model_name": "gpt-4ogpt-4ogpt-4o", "finish_reason": "stopstop"}, "gpt-4o", "stop"),
        (
            {"model_name": "m", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "m",
            "max_output_tokens",
        ),
        ({"model_name": "m", "status": "completed", "incomplete_details": None}, "m", "completed"),
        ({}, None, None),
    ],
)
def test_model_and_finish_reason_are_found(metadata: dict[str, Any], model: str | None, reason: str | None) -> None:
    outcome = _outcome(AIMessage("x", response_metadata=metadata))
    assert (outcome.model, outcome.finish_reason) == (model, reason)


def test_web_searches_are_counted() -> None:
    searched = AIMessage([{"type": "web_search_call"}, {"type": "text", "text": "x"}], usage_metadata=_BASE)
    metadata = {"usage": {"server_tool_use": {"web_search_requests": 3}}}
    counted = AIMessage("x", usage_metadata=_BASE, response_metadata=metadata)
    calls: list[Any] = [
        {"type": "web_search_call", "action": {"type": kind}} for kind in ("search", "open_page", "find", "search")
    ]
    # A stream of Anthropic's has no count, but the results.
    results: list[Any] = [[{"type": "web_search_result"}], {"type": "web_search_tool_result_error"}, []]
    streamed: list[Any] = [{"type": "web_search_tool_result", "content": each} for each in results]
    messages = (searched, counted, AIMessage(calls, usage_metadata=_BASE), AIMessage(streamed, usage_metadata=_BASE))
    assert [usage.web_searches for m in messages if (usage := _outcome(m).usage)] == [1, 3, 2, 2]


def _run(**facts: Any) -> OpenRun:
    run_id = uuid4()
    run = OpenRun(run_id, None, "chain", None, View("s", "e", {}, captures_content=False), Trace(run_id))
    for name, value in facts.items():
        setattr(run, name, value)
    return run


def test_request_says_provider_model_tier_and_host() -> None:
    told = _run(metadata={"ls_provider": "openai", "ls_model_name": "gpt-4"}, invocation={"service_tier": "flex"})
    assert request_of(told) == ("openai", "gpt-4", "flex", None)
    kwargs = {"model": "local", "openai_api_base": "http://127.0.0.1:8000/v1"}
    local = _run(serialized={"kwargs": kwargs}, invocation={"_type": "fake", "service_tier": "auto"})
    assert request_of(local) == ("fake", "local", None, "127.0.0.1")


def test_the_address_that_openais_client_reads_itself_is_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.groq.com/openai/v1")
    assert request_of(_run(metadata={"ls_provider": "openai"}))[3] == "api.groq.com"
    told = _run(metadata={"ls_provider": "openai"}, invocation={"base_url": "https://api.openai.com/v1"})
    assert request_of(told)[3] == "api.openai.com"
    assert request_of(_run(metadata={"ls_provider": "anthropic"}))[3] is None


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://user:secret@Proxy.example.com:8443/key/v1?token=x", "proxy.example.com"),
        ("my-account.openai.azure.com/", "my-account.openai.azure.com"),
        ("http://[::1]:11434", "::1"),
        ("http://[broken", None),
        ("", None),
        (7, None),
    ],
)
def test_of_a_url_the_host_alone_is_kept(url: object, host: str | None) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("serialized", "name", "expected"),
    [
        (None, "given", "given"),
        ({"name": "own", "id": ["a", "B"]}, None, "own"),
        ({"id": ["a", "B"]}, None, "B"),
        (None, None, "chain"),
    ],
)
def test_runs_are_named(serialized: dict[str, Any] | None, name: str | None, expected: str) -> None:
    assert run_name(_run(serialized=serialized, given_name=name)) == expected


def test_words_of_the_answer_that_change_its_price_are_kept() -> None:
    usage = {"input_tokens": 3, "inference_geo": "us", "speed": "fast"}
    message = AIMessage("x", response_metadata={"usage": usage, "region": "eu-west-1", "batch": True})
    outcome = Outcome("ok")
    add_response(outcome, LLMResult(generations=[[ChatGeneration(message=message)]], llm_output={"speed": 7}), False)
    assert outcome.price_facts == {"inference_geo": "us", "speed": "fast", "region": "eu-west-1", "batch": "true"}


def test_answer_without_such_words_has_none() -> None:
    outcome = Outcome("ok")
    add_response(outcome, LLMResult(generations=[[ChatGeneration(message=AIMessage("x"))]]), False)
    assert outcome.price_facts == {}


@pytest.mark.parametrize(
    ("tools", "is_preview"),
    [
        ([{"type": "function"}, {"type": "web_search_preview_2025_03_11"}], True),
        ([{"type": "web_search_preview"}], True),
        ([{"type": "web_search"}], False),
        ([{"type": 5}, "web_search_preview", None], False),
        ("web_search_preview", False),
        (None, False),
    ],
)
def test_a_preview_search_is_told_by_the_tools_of_the_request(tools: object, is_preview: bool) -> None:
    assert has_preview_search(_run(invocation={"tools": tools})) is is_preview
