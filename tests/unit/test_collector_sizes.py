"""Sizes, from one byte to 50 MB: every event fits, and what was cut says so."""

from __future__ import annotations

import base64
import gc
import hashlib
import sys
import tracemalloc
import uuid
from typing import Any

import cramjam
import orjson
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from msgspec import UNSET

from captured_events import Captured
from runtap_collector.capture.content import content_of
from runtap_collector.send import encoding
from runtap_collector.send.encoding import MAX_EVENT_BYTES
from runtap_schemas import encode_event


@pytest.mark.parametrize("size", [1, 1_000, 95_000, 97_000, 200_000, 1_000_000, 50_000_000])
def test_event_of_any_value_fits_and_says_what_was_cut(size: int) -> None:
    captured = Captured(capture_content=True, buffer_bytes=64 * 1024 * 1024)
    run_id = uuid.uuid4()
    captured.call("on_chain_start", None, {"text": "x" * size}, run_id=run_id, name="n")
    captured.call("on_chain_end", "y" * size, run_id=run_id)
    (run,) = captured.ended()
    assert len(encode_event(run)) <= MAX_EVENT_BYTES
    kept = size < 96 * 1024 - 20
    assert isinstance(run.inputs, bytes) == kept or bool(run.inputs) == kept
    if kept:
        assert run.content_bytes is None
    else:
        assert run.content_bytes is not None
        assert 2 * size <= run.content_bytes <= 2 * size + 50


def test_facts_at_their_limits_push_content_out_and_never_themselves() -> None:
    captured = Captured(capture_content=True, error_messages=True)
    run_id = uuid.uuid4()
    wide = "\U0001f600"
    captured.call(
        "on_chain_start",
        None,
        {"text": "x" * 90_000},
        run_id=run_id,
        name=wide * 300,
        tags=[f"{number}{wide * 300}" for number in range(40)],
        metadata={f"{number}{wide * 300}": wide * 300 for number in range(40)},
    )
    captured.call("on_chain_error", ValueError(wide * 5_000), run_id=run_id)
    (run,) = captured.ended()
    assert len(encode_event(run)) <= MAX_EVENT_BYTES
    assert run.error is not None
    assert (len(run.tags), len(run.metadata), len(run.error.message or "")) == (32, 32, 2_000)


@pytest.mark.parametrize("value", ["x" * 9_000_000, {"text": "x" * 9_000_000, "number": 1}], ids=["text", "dict"])
def test_what_is_surely_too_large_is_not_even_written(value: object) -> None:
    # Its JSON would be larger by quotes, names and numbers.
    assert content_of(value) == (None, 9_000_000)


def test_objects_are_written_only_until_they_are_too_large() -> None:
    asked = 0

    class Thing:
        def __str__(self) -> str:
            nonlocal asked
            asked += 1
            return "a thing of forty letters, more or less.."

    json, size_bytes = content_of({"things": [Thing() for _ in range(200_000)]})
    assert json is None
    assert 96 * 1024 < size_bytes < 100 * 1024
    assert asked < 96 * 1024 / 40
    kept, size_bytes = content_of([Thing() for _ in range(2_000)])
    assert kept is not None
    assert len(kept) == size_bytes == 2_000 * 43 + 1
    images: list[Any] = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 400_000}"}}]
    kept, _ = content_of([AIMessage(images), HumanMessage("what is it?")])
    assert kept is not None
    assert b"image/png, 300000 bytes" in kept


def test_content_that_leaves_no_room_for_the_facts_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = Captured(capture_content=True)
    monkeypatch.setattr(encoding, "MAX_EVENT_BYTES", 150_000)
    run_id = uuid.uuid4()
    captured.call("on_chain_start", None, "x" * 90_000, run_id=run_id, name="n")
    captured.call("on_chain_end", "y" * 90_000, run_id=run_id)
    (run,) = captured.ended()
    assert (run.inputs, run.outputs, run.content_bytes) == (UNSET, UNSET, 2 * 90_002)
    assert captured.emitter.buffer.content_dropped == 1


def test_ten_thousand_messages_are_one_event_without_content() -> None:
    captured = Captured(capture_content=True)
    run_id = uuid.uuid4()
    messages = [HumanMessage(f"message {number}") for number in range(10_000)]
    captured.call("on_chat_model_start", {}, [messages], run_id=run_id)
    captured.call("on_llm_error", GeneratorExit(), run_id=run_id)
    (run,) = captured.ended()
    assert not run.inputs
    assert run.content_bytes is not None
    # At least: the rest is not written.
    assert run.content_bytes > 96 * 1024


_IMAGE = bytes(range(256)) * 2_000
_TEXT = base64.b64encode(_IMAGE).decode()


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_TEXT}"}}, "image/png"),
        ({"type": "image", "base64": _TEXT, "mime_type": "image/png"}, "base64"),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _TEXT}}, "base64"),
        ({"type": "input_audio", "input_audio": {"data": _TEXT, "format": "wav"}}, "base64"),
    ],
)
def test_image_is_replaced_by_type_size_and_hash(block: dict[str, Any], kind: str) -> None:
    captured = Captured(capture_content=True)
    run_id = uuid.uuid4()
    message = HumanMessage([{"type": "text", "text": "what is this?"}, block])
    captured.call("on_chat_model_start", {}, [[message]], run_id=run_id)
    captured.call("on_llm_error", GeneratorExit(), run_id=run_id)
    (run,) = captured.ended()
    digest = hashlib.sha256(_IMAGE).hexdigest()[:16]
    kept = orjson.dumps(orjson.loads(bytes(run.inputs))).decode()  # type: ignore[arg-type]
    assert f"<{kind}, {len(_IMAGE)} bytes, sha256 {digest}>" in kept
    assert "what is this?" in kept
    assert run.content_bytes is None


def test_open_run_holds_at_most_a_kilobyte() -> None:
    captured = Captured()
    ids = [uuid.uuid4() for _ in range(2_000)]
    gc.collect()
    tracemalloc.start()
    for run_id in ids:
        captured.call("on_chain_start", None, {}, run_id=run_id, name="n", metadata={"session_id": "s", "team": "blue"})
    captured.emitter.outbox.close_frames()
    captured.emitter.outbox.lane.frames.clear()
    gc.collect()
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(captured.emitter.open_runs) == 2_000
    assert held_bytes / 2_000 < 1_000, sys.version


def test_run_of_three_steps_is_small_on_the_wire() -> None:
    captured = Captured()
    usage: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    model = GenericFakeChatModel(messages=iter([AIMessage("two words", usage_metadata=usage)]))
    chain = ChatPromptTemplate.from_template("say {what}") | model | StrOutputParser()
    chain.invoke({"what": "hi"}, {"callbacks": [captured.handler], "metadata": {"session_id": "s-1", "team": "blue"}})
    captured.emitter.outbox.close_frames()
    (frame,) = captured.emitter.outbox.lane.frames
    assert frame.count == 4
    assert len(cramjam.zstd.compress(frame.value, 3)) <= 1_200


def test_answer_is_captured_once_and_by_what_it_says() -> None:
    captured = Captured(capture_content=True)
    model = GenericFakeChatModel(messages=iter([AIMessage("two words", response_metadata={"model_name": "m-1"})]))
    model.invoke("hi", {"callbacks": [captured.handler]})
    (run,) = captured.ended()
    assert bytes(run.inputs) == b'[[{"type":"human","content":"hi"}]]'  # type: ignore[arg-type]
    assert bytes(run.outputs).count(b"two words") == 1  # type: ignore[arg-type]
    assert b"additional_kwargs" not in bytes(run.outputs)  # type: ignore[arg-type]
