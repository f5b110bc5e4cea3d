"""Streamed text as it comes: whole, in order, and only where it was asked for."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from captured_events import Captured
from runtap_schemas import RunEnded, RunStreamed


def _model(text: str) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage(text)]))


def _pieces(captured: Captured) -> list[RunStreamed]:
    return captured.of(RunStreamed)


async def test_text_is_whole_in_order_and_before_the_end() -> None:
    captured = Captured(capture_content=True, stream_tokens=True)
    text = " ".join(f"word{number}" for number in range(100))
    config: Any = {"callbacks": [captured.handler]}
    async for _ in _model(text).astream("hi", config):
        pass
    pieces = _pieces(captured)
    assert "".join(piece.text for piece in pieces) == text
    assert len(pieces) < 10
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)
    assert pieces[0].index == 0
    kinds = [type(event).__name__ for event in captured.events()]
    assert kinds.index("RunEnded") > max(place for place, kind in enumerate(kinds) if kind == "RunStreamed")
    (ended,) = captured.ended()
    assert {piece.run_id for piece in pieces} == {ended.run_id}


@pytest.mark.parametrize(
    "settings", [{}, {"stream_tokens": True}, {"capture_content": True}], ids=["neither", "no-content", "no-stream"]
)
def test_nothing_is_streamed_unless_both_were_asked_for(settings: dict[str, Any]) -> None:
    captured = Captured(**settings)
    for _ in _model("a few words").stream("hi", {"callbacks": [captured.handler]}):
        pass
    assert _pieces(captured) == []
    assert len(captured.of(RunEnded)) == 1


@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_v3_event_stream_streams_its_text_once() -> None:
    captured = Captured(capture_content=True, stream_tokens=True)
    config: Any = {"callbacks": [captured.handler]}
    model: Any = _model("some more words")
    stream = await model.astream_events("hi", config, version="v3")
    async for _ in stream:
        pass
    while captured.emitter.open_runs:  # noqa: ASYNC110
        # The end is called a moment after the last event.
        await asyncio.sleep(0)
    assert "".join(piece.text for piece in _pieces(captured)) == "some more words"


def test_what_comes_after_a_pause_is_sent_at_once_and_the_rest_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = Captured(capture_content=True, stream_tokens=True)
    now_ns = [10**12]
    monkeypatch.setattr("time.monotonic_ns", lambda: now_ns[0])
    run_id = uuid.uuid4()
    captured.call("on_llm_start", {}, ["hi"], run_id=run_id)
    for token, wait_ms in (("a", 0), ("b", 10), ("c", 10), ("d", 200), ("e", 5)):
        now_ns[0] += wait_ms * 1_000_000
        captured.call("on_llm_new_token", token, run_id=run_id)
    captured.call("on_llm_error", GeneratorExit(), run_id=run_id)
    assert [(piece.index, piece.text) for piece in _pieces(captured)] == [(0, "a"), (1, "bcd"), (4, "e")]


def test_tokens_of_blocks_odd_values_and_huge_ones_do_no_harm() -> None:
    captured = Captured(capture_content=True, stream_tokens=True)
    run_id = uuid.uuid4()
    captured.call("on_llm_start", {}, ["hi"], run_id=run_id)
    for token in ([{"type": "text", "text": "x"}, "y", 5], None, 7, "\ud800", "z" * 100_000):
        captured.call("on_llm_new_token", token, run_id=run_id)
    captured.call("on_llm_error", GeneratorExit(), run_id=run_id)
    pieces = _pieces(captured)
    assert pieces[0].text == "xy"
    assert max(len(piece.text) for piece in pieces) <= 16 * 1024
    assert captured.emitter.buffer.content_dropped == 1
    assert not captured.emitter.buffer.dropped
