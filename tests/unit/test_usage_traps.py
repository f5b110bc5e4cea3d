"""Usage as providers really report it: what would be counted twice, as zero, or under another price."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from langchain_anthropic.chat_models import _create_usage_metadata as anthropic_usage
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_openai.chat_models.base import _create_usage_metadata as openai_usage
from pydantic import BaseModel, ConfigDict

from captured_events import Captured
from runtap_collector import RunTap
from runtap_collector.capture.capture import Capture
from runtap_collector.capture.translate import add_response
from runtap_collector.send.records import Outcome, View
from runtap_consumers.pricing import PriceTable
from runtap_consumers.projections.batch import price_call
from runtap_consumers.projections.rollups import COST_MEASURES
from runtap_schemas import RunEnded, Usage

PRICES = PriceTable.load()
# 2026-11-20, UTC.
NOW = 1_795_132_800 * 10**9


class AnthropicUsage(BaseModel):
    """The SDK's object, which keeps what it does not know."""

    model_config = ConfigDict(extra="allow")


def answered(message: Any, streamed: bool = False, **output: Any) -> Outcome:
    messages = message if isinstance(message, list) else [message]
    outcome = Outcome("ok")
    generations = [ChatGeneration(message=each) for each in messages]
    add_response(outcome, LLMResult(generations=[generations], llm_output=output or None), streamed)  # type: ignore[list-item]
    return outcome


def called(provider: str, outcome: Outcome, request_model: str | None = None) -> dict[str, Any]:
    """The measures that a worker makes of it, with price class and price set."""
    event = RunEnded(
        at_ns=NOW,
        run_id="r",
        trace_id="t",
        service="s",
        environment="e",
        run_type="llm",
        name="n",
        status="ok",
        started_at_ns=NOW,
        duration_ns=0,
        provider=provider,
        request_model=request_model,
        model=outcome.model or request_model,
        service_tier=outcome.service_tier,
        usage=outcome.usage,
        usage_source=outcome.usage_source,
        reported_cost_usd=outcome.reported_cost_usd,
    )
    call = price_call(event, event, NOW, PRICES)
    measures = dict(zip((measure.name for measure in COST_MEASURES), call.measures, strict=True))
    return {**measures, "price_class": call.price_class, "price_set": call.price_set, "cost": call.cost_picodollars}


# 1. Streams without usage, and streams cut short.


def test_a_stream_without_usage_is_unmetered_and_not_free() -> None:
    outcome = answered(AIMessage("x"), streamed=True)
    assert (outcome.usage, outcome.usage_source, outcome.model) == (None, "none", None)
    call = called("openai", outcome, "gpt-4o-mini")
    assert (call["cost"], call["unmetered_calls"], call["priced_calls"], call["input_tokens"]) == (None, 1, 0, 0)


def test_a_stream_cut_short_names_the_requested_model() -> None:
    captured = Captured()
    run_id = uuid4()
    captured.call(
        "on_chat_model_start", {}, [[]], run_id=run_id, metadata={"ls_provider": "openai", "ls_model_name": "gpt-4o"}
    )
    captured.call("on_llm_error", GeneratorExit(), run_id=run_id)
    (run,) = captured.ended()
    assert (run.status, run.model, run.usage, run.usage_source) == ("cancelled", "gpt-4o", None, "none")


# 2. Anthropic.


def test_an_input_of_zero_with_an_answer_is_unknown() -> None:
    outcome = answered(
        AIMessage("x", usage_metadata={"input_tokens": 0, "output_tokens": 9, "total_tokens": 9}), streamed=True
    )
    assert outcome.usage == Usage(output_tokens=9)
    call = called("anthropic", outcome, "claude-sonnet-4-5")
    assert (call["cost"], call["unmetered_calls"], call["output_tokens"]) == (None, 1, 9)


@pytest.mark.parametrize("reported", [{}, {"prompt_tokens": 0, "completion_tokens": 0}, {"completion_tokens": 0}])
def test_zeros_that_an_integration_fills_in_are_no_usage(reported: dict[str, Any]) -> None:
    outcome = answered(AIMessage("x", usage_metadata=openai_usage(reported)))
    assert (outcome.usage, outcome.usage_source) == (None, "none")


def test_cache_writes_of_both_lives_are_told_apart() -> None:
    reported = AnthropicUsage.model_validate(
        {
            "input_tokens": 5,
            "output_tokens": 7,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        }
    )
    metadata = anthropic_usage(reported)
    assert metadata["input_token_details"].get("cache_creation") == 0
    usage = answered(AIMessage("x", usage_metadata=metadata)).usage
    assert usage == Usage(
        input_tokens=135,
        output_tokens=7,
        cache_read_tokens=100,
        cache_write_5m_tokens=10,
        cache_write_1h_tokens=20,
    )


def test_compaction_is_billed_pass_by_pass() -> None:
    # The total beside the passes leaves the compacting one out.
    passes = [
        {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500},
        {
            "type": "message",
            "input_tokens": 23_000,
            "output_tokens": 1_000,
            "cache_read_input_tokens": 500,
            "cache_creation_input_tokens": 40,
        },
    ]
    reported = {"input_tokens": 23_000, "output_tokens": 1_000, "cache_read_input_tokens": 500, "iterations": passes}
    metadata = anthropic_usage(AnthropicUsage.model_validate(reported))
    message = AIMessage("x", usage_metadata=metadata)
    outcome = answered(message, usage=reported, model_name="claude-opus-4-6")
    assert outcome.usage == Usage(
        input_tokens=180_000 + 23_000 + 500 + 40,
        output_tokens=4_500,
        cache_read_tokens=500,
        cache_write_5m_tokens=40,
        cache_write_1h_tokens=0,
    )


def test_a_pass_that_compacted_alone_is_billed_though_the_total_is_nothing() -> None:
    passes = [{"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500}]
    reported = {"input_tokens": 0, "output_tokens": 0, "iterations": passes}
    message = AIMessage("x", usage_metadata=anthropic_usage(AnthropicUsage.model_validate(reported)))
    usage = answered(message, usage=reported, model_name="claude-opus-4-6").usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (180_000, 3_500)


def test_reasoning_is_known_beside_passes() -> None:
    passes = [{"type": "message", "input_tokens": 10, "output_tokens": 40} for _ in range(2)]
    metadata = {"input_tokens": 20, "output_tokens": 80, "total_tokens": 100, "output_token_details": {"reasoning": 30}}
    message = AIMessage("x", usage_metadata=metadata)
    usage = answered(message, usage={"iterations": passes}, model_name="claude-opus-4-6").usage
    assert usage is not None
    assert (usage.output_tokens, usage.reasoning_tokens) == (80, 30)


def test_what_another_model_advised_makes_the_cost_unknown() -> None:
    passes = [
        {"type": "message", "model": "claude-sonnet-4-5", "input_tokens": 10, "output_tokens": 40},
        {"type": "advisor_message", "model": "claude-opus-4-6", "input_tokens": 900, "output_tokens": 700},
    ]
    totals = {"input_tokens": 10, "output_tokens": 40, "total_tokens": 50}
    message = AIMessage("x", usage_metadata=totals)
    outcome = answered(message, usage={"iterations": passes}, model_name="claude-sonnet-4-5")
    assert (outcome.usage, outcome.usage_source) == (None, "none")
    # A stream drops the passes, and has the advice.
    blocks: list[Any] = [{"type": "advisor_tool_result", "content": {"type": "advisor_result", "text": "x"}}]
    streamed = AIMessage(blocks, usage_metadata=totals)
    assert answered(streamed, streamed=True, model_name="claude-sonnet-4-5").usage is None
    # The same model twice is no other.
    same = [{**each, "model": "claude-sonnet-4-5"} for each in passes]
    usage = answered(message, usage={"iterations": same}, model_name="claude-sonnet-4-5").usage
    assert usage is not None
    assert usage.input_tokens == 910


# 3. OpenAI's service tiers.


@pytest.mark.parametrize(("tier", "share"), [("flex", 0.5), ("priority", 5 / 3)])
def test_service_tiers_keep_their_parts_and_change_the_price(tier: str, share: float) -> None:
    reported = {
        "prompt_tokens": 1_000,
        "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 400},
        "completion_tokens_details": {"reasoning_tokens": 60},
    }
    plain = answered(AIMessage("x", usage_metadata=openai_usage(reported)), model_name="gpt-4o-mini")
    message = AIMessage("x", usage_metadata=openai_usage(reported, tier), response_metadata={"service_tier": tier})
    outcome = answered(message, model_name="gpt-4o-mini")
    assert outcome.usage == plain.usage
    standard, tiered = called("openai", plain), called("openai", outcome)
    assert tiered["price_class"] == tier
    assert round(tiered["cost"] / standard["cost"], 6) == round(share, 6)
    # A stream names the tier in the details alone.
    streamed = answered(AIMessage("x", usage_metadata=openai_usage(reported, tier)), streamed=True)
    assert streamed.service_tier == tier


def test_the_tier_that_answered_beats_the_one_that_was_asked_for() -> None:
    captured = Captured()
    run_id = uuid4()
    captured.call(
        "on_chat_model_start", {}, [[]], run_id=run_id, invocation_params={"model": "gpt-5", "service_tier": "flex"}
    )
    message = AIMessage("x", response_metadata={"service_tier": "default"})
    captured.call("on_llm_end", LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=run_id)
    assert captured.ended()[0].service_tier == "default"


# 4. Several answers of one call.


def test_several_answers_are_one_usage_and_joined_names_are_one_name() -> None:
    metadata = {
        "model_name": "gpt-4o-mini-2024-07-18" * 2,
        "finish_reason": "stop" * 2,
        "service_tier": "default" * 2,
    }
    usage = openai_usage({"prompt_tokens": 50, "completion_tokens": 20})
    outcome = answered([AIMessage("a", usage_metadata=usage, response_metadata=metadata)] * 2)
    assert outcome.usage is not None
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (50, 20)
    assert (outcome.model, outcome.finish_reason) == ("gpt-4o-mini-2024-07-18", "stop")
    call = called("openai", outcome)
    assert (call["price_class"], call["priced_calls"]) == ("standard", 1)


# 5. Running usage in every chunk.


def stream(captured: Captured, chunks: list[AIMessageChunk]) -> RunEnded:
    run_id = uuid4()
    captured.call("on_chat_model_start", {}, [[]], run_id=run_id, metadata={"ls_provider": "deepseek"})
    whole = chunks[0]
    for chunk in chunks:
        captured.call("on_llm_new_token", chunk.text, chunk=ChatGenerationChunk(message=chunk), run_id=run_id)
        whole = whole + chunk if chunk is not chunks[0] else whole
    captured.call("on_llm_end", LLMResult(generations=[[ChatGenerationChunk(message=whole)]]), run_id=run_id)
    return captured.ended()[-1]


def chunk(text: str, input_tokens: int | None, output_tokens: int = 0, cached: int | None = None) -> AIMessageChunk:
    if input_tokens is None:
        return AIMessageChunk(content=text)
    details: Any = {} if cached is None else {"input_token_details": {"cache_read": cached}}
    total = input_tokens + output_tokens
    usage: Any = {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": total, **details}
    return AIMessageChunk(content=text, usage_metadata=usage)


def test_of_running_usage_the_last_counts() -> None:
    run = stream(Captured(), [chunk("a", 100, 1, 40), chunk("b", 100, 2, 40), chunk("", 100, 3, 40)])
    assert run.usage == Usage(input_tokens=100, output_tokens=3, cache_read_tokens=40)
    assert run.usage_source == "stream"


def test_usage_that_comes_in_parts_is_added() -> None:
    run = stream(Captured(), [chunk("a", 100, 0), chunk("b", 0, 2), chunk("c", 0, 3), chunk("d", None)])
    assert run.usage == Usage(input_tokens=100, output_tokens=5)


def test_usage_in_the_last_chunk_alone_is_taken_as_it_is() -> None:
    run = stream(Captured(), [chunk("a", None), chunk("b", None), chunk("", 100, 7)])
    assert run.usage == Usage(input_tokens=100, output_tokens=7)


# 6. Errors inside of a 200 stream.


def test_usage_that_was_said_before_an_error_is_kept() -> None:
    captured = Captured()
    run_id = uuid4()
    captured.call("on_chat_model_start", {}, [[]], run_id=run_id, metadata={"ls_model_name": "claude-sonnet-4-5"})
    usage = openai_usage({"prompt_tokens": 50, "completion_tokens": 3})
    partial = LLMResult(generations=[[ChatGeneration(message=AIMessage("x", usage_metadata=usage))]])
    captured.call("on_llm_error", RuntimeError("overloaded"), run_id=run_id, response=partial)
    (run,) = captured.ended()
    assert (run.status, run.model) == ("error", "claude-sonnet-4-5")
    assert run.usage is not None
    assert (run.usage.input_tokens, run.usage.output_tokens) == (50, 3)


# 7. What a router billed.


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"token_usage": {"cost": 0.00123, "cost_details": {"upstream_inference_cost": None}}}, "0.00123"),
        ({"cost": 1.5e-06, "model_provider": "openrouter"}, "0.0000015"),
        ({"cost": 3, "model_provider": "another"}, None),
        # The owner's own key pays the model: the router's fee is not what the call cost.
        ({"token_usage": {"cost": 0.0001, "is_byok": True}}, None),
        ({"token_usage": {"cost": {"total_cost": 0.006, "input_tokens_cost": 0.001}}}, "0.006"),
        ({"token_usage": {"cost": 10_000}}, None),
        ({"token_usage": {"cost": -0.0}}, "0"),
    ],
)
def test_a_billed_cost_is_reported(metadata: dict[str, Any], expected: str | None) -> None:
    usage = openai_usage({"prompt_tokens": 50, "completion_tokens": 3})
    outcome = answered(AIMessage("x", usage_metadata=usage, response_metadata=metadata))
    assert outcome.reported_cost_usd == expected
    if expected:
        call = called("openrouter", outcome, "gpt-4o-mini")
        assert (call["price_set"], call["price_class"]) == ("provider", "reported")
        assert call["cost"] == int(float(expected) * 10**12 + 0.5)


# 8. Parents, and LangChain's own cache.


def test_usage_counts_on_model_runs_alone() -> None:
    captured = Captured()
    chain, model = uuid4(), uuid4()
    message = AIMessage("x", usage_metadata=openai_usage({"prompt_tokens": 50, "completion_tokens": 3}))
    captured.call("on_chain_start", {}, {}, run_id=chain)
    captured.call("on_chat_model_start", {}, [[]], run_id=model, parent_run_id=chain)
    captured.call("on_llm_end", LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=model)
    captured.call("on_chain_end", {"messages": [message]}, run_id=chain)
    assert [run.usage is not None for run in captured.ended()] == [True, False]


def test_a_cache_hit_costs_nothing_and_is_counted_as_one() -> None:
    usage: Any = {**openai_usage({"prompt_tokens": 50, "completion_tokens": 3}), "total_cost": 0}
    call = called("openai", answered(AIMessage("x", usage_metadata=usage)), "gpt-4o-mini")
    assert (call["cached_calls"], call["cost"], call["input_tokens"]) == (1, 0, 0)


# 9. Names.


@pytest.mark.parametrize(
    ("provider", "asked", "answering", "like"),
    [
        ("azure", "my-deployment", "gpt-4o-mini-2024-07-18", ("azure", "gpt-4o-mini")),
        ("openai", "gpt-4o", "gpt-4o-mini", ("openai", "gpt-4o-mini")),
        (
            "bedrock_converse",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            None,
            ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ),
        ("google_genai", "models/gemini-2.5-pro", None, ("google", "gemini-2.5-pro")),
    ],
)
def test_the_answering_model_is_priced_whatever_it_was_called(
    provider: str, asked: str, answering: str | None, like: tuple[str, str]
) -> None:
    usage = openai_usage({"prompt_tokens": 50, "completion_tokens": 3})
    metadata = {"model_name": answering} if answering else {}
    call = called(provider, answered(AIMessage("x", usage_metadata=usage, response_metadata=metadata)), asked)
    assert call["cost"] is not None
    assert call["cost"] == PRICES.price(*like, Usage(input_tokens=50, output_tokens=3), NOW).cost_picodollars


# 10. What LangChain has no callback for.


def test_a_call_made_by_hand_is_a_run_of_its_own() -> None:
    captured = Captured()
    tap = RunTap.__new__(RunTap)
    tap._view = View.of(captured.settings)
    tap._capture = Capture(captured.emitter, tap._view)
    tap.record_usage(
        model="text-embedding-3-small",
        provider="openai",
        input_tokens=1_000,
        output_tokens=0,
        cache_read_tokens=-1,
        duration_seconds=2.5,
        # What LangChain's own key says of another call is not said of this one.
        metadata={"session_id": "s-1", "user_id": "ann", "team": "red", "ls_provider": "anthropic"},
        tags=["batch"],
    )
    (run,) = captured.ended()
    assert (run.run_type, run.name, run.is_root, run.status) == ("llm", "recorded", True, "ok")
    assert (run.provider, run.model, run.usage_source) == ("openai", "text-embedding-3-small", "recorded")
    assert run.request_model == run.model
    assert run.usage == Usage(input_tokens=1_000, output_tokens=0)
    assert (run.session_id, run.user_id, run.metadata["team"], run.tags) == ("s-1", "ann", "red", ["batch"])
    assert 2.5e9 <= run.duration_ns < 3e9
    assert 0 <= run.at_ns - run.started_at_ns - 2_500_000_000 < 10**9
    call = price_call(run, run, NOW, PRICES)
    assert call.cost_picodollars == 1_000 * 20_000
    with pytest.raises(ValueError, match="model"):
        tap.record_usage(model="", input_tokens=1)
    with pytest.raises(ValueError, match="duration_seconds"):
        tap.record_usage(model="m", duration_seconds=-1)
    with pytest.raises(TypeError):
        tap.record_usage(model="m", input_tokns=1)  # type: ignore[call-arg]


# Invariants.


def test_parts_beyond_their_total_are_kept_flagged_and_counted() -> None:
    usage: Any = {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
        "input_token_details": {"cache_read": 11},
    }
    outcome = answered(AIMessage("x", usage_metadata=usage))
    assert outcome.usage == Usage(input_tokens=10, output_tokens=5, cache_read_tokens=11)
    call = called("openai", outcome, "gpt-4o-mini")
    assert (call["price_class"], call["unpriced_calls"], call["cost"]) == ("impossible", 1, None)
    assert (call["input_tokens"], call["cache_read_tokens"]) == (10, 11)
