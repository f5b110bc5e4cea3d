"""
Whatever LangChain calls, in whatever order and with whatever values: no exception, and no event uncounted.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
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


@settings(max_examples=300, deadline=None)
@given(st.lists(_calls, max_size=25), st.booleans())
def test_no_sequence_of_callbacks_raises_or_loses_count(calls: list[Any], captures_content: bool) -> None:
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
    ring = captured.emitter.ring
    waiting = ring.count_waiting()
    assert ring.captured == waiting + sum(ring.dropped.values())
    assert not ring.dropped
    # Every one of them is an event that a worker can read.
    captured.events()
