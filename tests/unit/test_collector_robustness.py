"""Whatever LangChain calls, in whatever order and with whatever values: no exception, and no event uncounted."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult

from captured_events import Captured

_ids = st.integers(1, 6).map(lambda number: UUID(int=number))
_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters(), max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(
    ["session_id", "user_id", "thread_id", "ls_provider", "ls_model_name", "model", "usage", "token_usage", "a", "b"]
)
_mapping = st.dictionaries(_keys | st.text(max_size=300), _json, max_size=6)
_errors = st.sampled_from(
    [ValueError("x\ud800"), asyncio.CancelledError(), GeneratorExit(), TimeoutError(), RuntimeError("y" * 9_000)]
)


def _message(metadata: Any) -> AIMessage:
    message = AIMessage("x")
    message.response_metadata = metadata
    message.usage_metadata = metadata.get("usage")
    return message


_results = st.one_of(
    st.builds(lambda m: LLMResult(generations=[[ChatGeneration(message=_message(m))]], llm_output=m), _mapping),
    st.builds(lambda m: LLMResult(generations=[[Generation(text="x")]], llm_output=m), _mapping),
    st.just(LLMResult(generations=[])),
)
_starts = st.tuples(
    st.sampled_from(["on_chain_start", "on_llm_start", "on_chat_model_start", "on_tool_start", "on_retriever_start"]),
    st.tuples(st.none() | _mapping, _json),
)
_ends = st.one_of(
    st.tuples(st.sampled_from(["on_chain_end", "on_tool_end", "on_retriever_end"]), st.tuples(_json)),
    st.tuples(st.just("on_llm_end"), st.tuples(_results)),
    st.tuples(
        st.sampled_from(["on_chain_error", "on_llm_error", "on_tool_error", "on_retriever_error"]), st.tuples(_errors)
    ),
)
_others = st.one_of(
    st.tuples(st.sampled_from(["on_text", "on_llm_new_token"]), st.tuples(_json)),
    st.tuples(st.just("on_custom_event"), st.tuples(_json, _json)),
    st.tuples(st.just("on_retry"), st.tuples(st.builds(SimpleNamespace, attempt_number=st.integers()))),
)
_calls = st.tuples(
    st.one_of(_starts, _ends, _others), _ids, st.none() | _ids, _mapping, st.lists(st.text(), max_size=3)
)


def _check(captured: Captured) -> None:
    """Checks that every event is counted, and can be read by a worker."""
    buffer = captured.emitter.buffer
    assert not buffer.dropped
    assert len(captured.events()) == buffer.captured - buffer.superseded


@settings(max_examples=100, deadline=None)
@given(st.lists(_calls, max_size=25), st.booleans())
def test_no_values_of_callbacks_raise_or_lose_count(calls: list[Any], captures_content: bool) -> None:
    captured = Captured(capture_content=captures_content)
    for (callback, arguments), run_id, parent_run_id, metadata, tags in calls:
        captured.call(
            callback,
            *arguments,
            run_id=run_id,
            parent_run_id=parent_run_id,
            metadata=metadata,
            tags=tags,
            invocation_params=metadata,
        )
    _check(captured)


# The same with values from a table: a byte chooses each, so that an example costs a millisecond and there can be many.
_VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        2**70,
        float("nan"),
        float("inf"),
        "",
        "text",
        "\ud800",
        "\0",
        "x" * 5_000,
        b"bytes",
        object(),
    ),
    *(
        [],
        [[]],
        {},
        {"messages": [AIMessage("x"), "y"]},
        {"a": {"b": {"c": [1, None]}}},
        {1: 2},
        AIMessage("x"),
        {1, 2},
    ),
    *(
        "data:image/png;base64," + "A" * 3_000,
        [HumanMessage("hi")],
        [[HumanMessage("hi")]],
        ["prompt"],
        ValueError("v"),
    ),
]
_MAPPINGS: list[Any] = [
    *(
        {},
        {"session_id": "s"},
        {"session_id": ""},
        {"user_id": 7, "thread_id": "t"},
        {"ls_provider": None},
        {"a": object()},
    ),
    *(
        {"ls_model_name": "gpt-4o", "ls_provider": "openai"},
        {"model": "m", "stop": ["x"]},
        {"b": "\ud800" * 300},
        {"": ""},
    ),
    *(
        {f"key {n}": "v" * 300 for n in range(40)},
        {"usage": {"input_tokens": -1}},
        {"token_usage": {"prompt_tokens": "1"}},
    ),
]
_USAGES: list[Any] = [
    *(
        None,
        {},
        {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        {"input_tokens": 2**65},
        {"input_tokens": "7"},
    ),
    *(
        {"input_tokens": 5, "input_token_details": {"cache_read": 9}},
        {"output_tokens": None, "total_tokens": 1.5},
        [],
        "u",
    ),
]
_RESULTS = [
    LLMResult(generations=[]),
    LLMResult(generations=[[]]),
    LLMResult(
        generations=[[Generation(text="x", generation_info={"finish_reason": 7})]], llm_output={"token_usage": 1}
    ),
    *(
        LLMResult(generations=[[ChatGeneration(message=_message({"usage": usage, "model_name": name}))]])
        for usage in _USAGES
        for name in ("gpt-4o", None, 7)
    ),
]
_ERRORS = [ValueError("x\ud800"), asyncio.CancelledError(), GeneratorExit(), RuntimeError("y" * 9_000), KeyError()]
_CALLBACKS: list[tuple[str, tuple[list[Any], ...]]] = [
    *(
        (f"on_{kind}_start", ([None, *_MAPPINGS], _VALUES))
        for kind in ("chain", "llm", "chat_model", "tool", "retriever")
    ),
    *((f"on_{kind}_end", (_VALUES,)) for kind in ("chain", "tool", "retriever", "chain", "tool")),
    *((f"on_{kind}_error", (_ERRORS,)) for kind in ("chain", "llm", "tool", "retriever")),
    *(
        ("on_llm_end", (_RESULTS,)),
        ("on_llm_end", (_RESULTS,)),
        ("on_text", (_VALUES,)),
        ("on_llm_new_token", (_VALUES,)),
    ),
    *(("on_custom_event", (_VALUES, _VALUES)), ("on_agent_action", (_VALUES,)), ("on_agent_finish", (_VALUES,))),
    ("on_retry", ([SimpleNamespace(attempt_number=number) for number in (2, -1, 2**53, 2**70)],)),
]
_IDS = [UUID(int=number) for number in range(1, 7)]
_TAGS: list[Any] = [None, [], ["a", "b"], ["\ud800", ""], ["x" * 500] * 50, [None], ["seq:step:1"]]
_CALL_BYTES = 6
_TAPS = [Captured(capture_content=content, stream_tokens=tokens) for content, tokens in ((0, 0), (1, 0), (1, 1))]


# RUNTAP_SEQUENCES=1000000 and --timeout 0 make it the long run, of an hour.
@settings(
    max_examples=int(os.environ.get("RUNTAP_SEQUENCES", "2000")),
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
)
@given(st.binary(min_size=8 * _CALL_BYTES, max_size=24 * _CALL_BYTES), st.sampled_from(_TAPS))
def test_no_sequence_of_callbacks_raises_or_loses_count(choices: bytes, captured: Captured) -> None:
    captured.begin_anew()
    for place in range(0, len(choices) - _CALL_BYTES + 1, _CALL_BYTES):
        which, ids, first, second, metadata, tags = choices[place : place + _CALL_BYTES]
        callback, pools = _CALLBACKS[which % len(_CALLBACKS)]
        mapping = _MAPPINGS[metadata % len(_MAPPINGS)]
        captured.call(
            callback,
            *(pool[choice % len(pool)] for pool, choice in zip(pools, (first, second), strict=False)),
            run_id=_IDS[ids % 6],
            parent_run_id=[None, *_IDS][ids // 6 % 7],
            metadata=mapping,
            tags=_TAGS[tags % len(_TAGS)],
            invocation_params=mapping,
        )
    _check(captured)
