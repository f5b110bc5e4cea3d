"""A label that cannot become text costs the label: its event is sent, with the others, and the app notices nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableLambda

from captured_events import Captured
from runtap_collector import RunTap
from runtap_collector.capture.text import text_of
from runtap_schemas import RunEnded, RunNoted, RunStarted, Usage

_ID, _CHILD = UUID(int=1), UUID(int=2)


class OwnError(BaseException):
    """What no `except Exception` sees."""


class Refuses:
    """An object of the app's whose every method raises."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def _raise(self, *_: object) -> Any:
        raise self.error

    __str__ = __repr__ = __bool__ = __len__ = __eq__ = _raise
    __hash__ = object.__hash__


class Text(str):
    """A text that makes no text of itself."""

    def _raise(self, *_: object) -> Any:
        raise OwnError

    __str__ = __repr__ = __len__ = __getitem__ = __bool__ = startswith = isascii = encode = _raise  # type: ignore[assignment]


class Unhashable(str):
    """A text that cannot be looked up."""

    def __hash__(self) -> int:
        raise OwnError


def _nested() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


_ODD: list[Callable[[], Any]] = [
    lambda: 10**5_000,
    _nested,
    *(
        lambda error=error: Refuses(error)
        for error in (ValueError, RecursionError, MemoryError, OwnError, GeneratorExit, asyncio.CancelledError)
    ),
]
odd_values = pytest.mark.parametrize("make", _ODD, ids=lambda make: type(make()).__name__)


def _check_counts(captured: Captured) -> None:
    buffer = captured.emitter.buffer
    assert not buffer.dropped
    assert len(captured.events()) == buffer.captured - buffer.superseded


@odd_values
@pytest.mark.parametrize("is_start", [True, False])
def test_the_labels_of_a_run_are_left_out_and_the_others_stay(make: Callable[[], Any], is_start: bool) -> None:
    captured, odd = Captured(), make()
    metadata = {"session_id": odd, "user_id": odd, "team": odd, "n": 3, "ls_provider": odd, "ls_model_name": odd}
    captured.call(
        "on_chat_model_start",
        {"name": odd, "id": [odd], "kwargs": {"model": odd, "model_name": "gpt-4o"}},
        [],
        run_id=_ID,
        metadata=metadata,
        tags=["a", odd, "b"],
        name=odd,
        invocation_params={"model": odd, "_type": "openai-chat", "service_tier": odd},
    )
    if is_start:
        (event,) = captured.of(RunStarted)
        assert isinstance(event, RunStarted)
        assert (event.name, event.session_id) == ("llm", None)
    else:
        captured.call("on_llm_end", LLMResult(generations=[[]]), run_id=_ID)
        (end,) = captured.ended()
        assert (end.name, end.session_id, end.user_id, end.service_tier) == ("llm", None, None, None)
        assert (end.metadata, end.tags) == ({"n": 3}, ["a", "b"])
    _check_counts(captured)


@odd_values
def test_what_an_answer_says_oddly_costs_it_no_usage(make: Callable[[], Any]) -> None:
    captured, odd = Captured(), make()
    message = AIMessage("hi", usage_metadata={"input_tokens": 5, "output_tokens": 2, "total_tokens": 7})
    message.response_metadata = {
        **dict.fromkeys(("model_name", "model_provider", "finish_reason", "service_tier", "status"), odd),
        "token_usage": {"cost": odd, "prompt_tokens": 5},
    }
    captured.call("on_chat_model_start", {}, [], run_id=_ID, invocation_params={"model": "gpt-4o"})
    captured.call("on_llm_end", LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=_ID)
    (end,) = captured.ended()
    assert end.usage == Usage(input_tokens=5, output_tokens=2)
    assert (end.model, end.finish_reason, end.reported_cost_usd) == ("gpt-4o", None, None)
    _check_counts(captured)


@odd_values
def test_notes_sessions_and_recorded_calls_go_without_them(make: Callable[[], Any]) -> None:
    captured, odd = Captured(), make()
    captured.call("on_chain_start", {}, {}, run_id=_ID)
    captured.call("on_custom_event", odd, {}, run_id=_ID)
    captured.call("on_chain_end", {}, run_id=_ID)
    (note,) = captured.of(RunNoted)
    assert note.note is None
    with RunTap.from_env(spool_dir="off", bootstrap_servers="127.0.0.1:1") as tap:
        tap.start_session("s-1", user_id=odd, tags=[odd], metadata={"team": odd})
        tap.record_usage(model="m", provider=odd, service_tier=odd, cost_usd=odd, metadata={"team": odd}, name=odd)
        tap.end_session("s-1")
        assert (tap.stats().captured, tap.stats().dropped) == (3, {})
        tap.close(0)
    _check_counts(captured)


@pytest.mark.parametrize("kind", [Text, Unhashable])
def test_texts_of_other_classes_are_taken_by_their_characters(kind: type[str]) -> None:
    captured = Captured()
    captured.call(
        "on_chain_start", {}, {}, run_id=_ID, name=kind("step"), tags=["x", kind("tag")], metadata={"team": kind("red")}
    )
    captured.call("on_chain_end", {}, run_id=_ID)
    (end,) = captured.ended()
    assert (end.tags, end.metadata) == (["x", "tag"], {"team": "red"})
    _check_counts(captured)


def test_metadata_keys_that_cannot_be_compared_are_left_out() -> None:
    class Key(str):
        def __eq__(self, other: object) -> bool:
            raise OwnError

        __hash__ = str.__hash__

    for _ in range(2):
        captured = Captured()
        captured.call("on_chain_start", {}, {}, run_id=_ID, metadata={Key("odd"): 1, "team": "red"})
        captured.call("on_chain_end", {}, run_id=_ID)
        (end,) = captured.ended()
        assert end.metadata["team"] == "red"
        _check_counts(captured)


@odd_values
def test_langchain_runs_through_and_says_the_same(make: Callable[[], Any]) -> None:
    captured, odd = Captured(), make()
    chain = RunnableLambda(lambda text: text, name="child")
    answer = chain.invoke("x", {"callbacks": [captured.handler], "metadata": {"team": odd, "thread_id": odd}})
    assert answer == "x"
    (end,) = captured.of(RunEnded)
    assert (end.metadata, end.session_id) == ({}, None)
    _check_counts(captured)


def test_a_signal_that_comes_while_a_text_is_made_is_not_swallowed() -> None:
    for signal in (KeyboardInterrupt, SystemExit):
        with pytest.raises(signal):
            text_of(Refuses(signal))
