"""The handler on real chains, without Kafka: what each way of running gives."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol
from uuid import UUID

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.callbacks.manager import adispatch_custom_event, dispatch_custom_event
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel
from langchain_core.tools import tool

from captured_events import Captured
from runtap_collector import RunTapHandler
from runtap_schemas import RunEnded, RunNoted, RunStarted, Usage

_USAGE: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}


def _answers(count: int = 50) -> Iterator[AIMessage]:
    return iter([AIMessage("two words", usage_metadata=_USAGE) for _ in range(count)])


def _chain() -> Runnable[Any, Any]:
    prompt = ChatPromptTemplate.from_template("say {what}")
    return prompt | GenericFakeChatModel(messages=_answers()) | RunnableLambda(_content, name="read")


def _content(message: BaseMessage) -> Any:
    return message.content


def _config(captured: Captured, **config: Any) -> Any:
    return {"callbacks": [captured.handler], **config}


class Way(Protocol):
    async def __call__(self, chain: Runnable[Any, Any], config: Any) -> int: ...


async def _invoke(chain: Runnable[Any, Any], config: Any) -> int:
    chain.invoke({"what": "hi"}, config)
    return 1


async def _ainvoke(chain: Runnable[Any, Any], config: Any) -> int:
    await chain.ainvoke({"what": "hi"}, config)
    return 1


async def _stream(chain: Runnable[Any, Any], config: Any) -> int:
    for _ in chain.stream({"what": "hi"}, config):
        pass
    return 1


async def _astream(chain: Runnable[Any, Any], config: Any) -> int:
    async for _ in chain.astream({"what": "hi"}, config):
        pass
    return 1


async def _astream_events(chain: Runnable[Any, Any], config: Any) -> int:
    async for _ in chain.astream_events({"what": "hi"}, config, version="v2"):
        pass
    return 1


async def _batch(chain: Runnable[Any, Any], config: Any) -> int:
    chain.batch([{"what": "hi"}] * 3, config)
    return 3


async def _abatch(chain: Runnable[Any, Any], config: Any) -> int:
    await chain.abatch([{"what": "hi"}] * 3, config)
    return 3


@pytest.mark.parametrize("way", [_invoke, _ainvoke, _stream, _astream, _astream_events, _batch, _abatch])
async def test_every_way_of_running_gives_each_run_once_with_its_parent(way: Way) -> None:
    captured = Captured()
    traces = await way(_chain(), _config(captured, metadata={"session_id": "s-1", "user_id": "u-7"}))
    runs = captured.ended()
    assert len(runs) == 4 * traces == len({run.run_id for run in runs})
    roots = [run for run in runs if run.is_root]
    assert len(roots) == traces
    for root in roots:
        children = [run for run in runs if run.trace_id == root.run_id and not run.is_root]
        assert sorted(run.name for run in children) == ["ChatPromptTemplate", "GenericFakeChatModel", "read"]
        assert {run.parent_run_id for run in children} == {root.run_id}
    assert {(run.status, run.session_id, run.user_id) for run in runs} == {("ok", "s-1", "u-7")}
    assert {(run.service, run.environment) for run in runs} == {("tested", "tests")}
    models = [run for run in runs if run.run_type == "llm"]
    assert [run.usage for run in models if way in (_invoke, _ainvoke, _batch, _abatch)] == [
        Usage(input_tokens=7, output_tokens=2)
    ] * (traces if way in (_invoke, _ainvoke, _batch, _abatch) else 0)
    assert not captured.of(RunStarted)
    assert not captured.emitter.open_runs


@pytest.mark.parametrize("way", [_stream, _astream, _astream_events])
async def test_streamed_model_has_a_time_to_first_token(way: Way) -> None:
    captured = Captured()
    await way(_chain(), _config(captured))
    run = captured.ended_named("GenericFakeChatModel")
    assert run.time_to_first_token_ns is not None
    assert 0 < run.time_to_first_token_ns <= run.duration_ns


@pytest.mark.filterwarnings("ignore:The method .* is in beta")
async def test_v3_event_stream_is_one_run_with_one_first_token() -> None:
    captured = Captured()
    model = GenericFakeChatModel(messages=_answers())
    stream = await model.astream_events("hi", _config(captured), version="v3")
    async for _ in stream:
        pass
    while captured.emitter.open_runs:  # noqa: ASYNC110
        # The end is called a moment after the last event.
        await asyncio.sleep(0)
    (run,) = captured.ended()
    assert (run.status, run.time_to_first_token_ns is not None) == ("ok", True)


async def test_invoked_model_has_no_time_to_first_token() -> None:
    captured = Captured()
    _chain().invoke({"what": "hi"}, _config(captured))
    assert captured.ended_named("GenericFakeChatModel").time_to_first_token_ns is None


@pytest.mark.parametrize("name", sorted({n for n in dir(AsyncCallbackHandler) if n.startswith("on_")}))
def test_every_callback_is_a_plain_function_with_a_finished_awaitable(name: str) -> None:
    assert name in vars(RunTapHandler), "langchain-core has a callback that the handler leaves as async def"
    method = getattr(Captured().handler, name)
    assert not inspect.iscoroutinefunction(method)
    arguments = [None] * (2 if "start" in name or name == "on_custom_event" else 1)
    result = method(*arguments, run_id=uuid.uuid4())
    assert not asyncio.iscoroutine(result)
    assert asyncio.run(_await(result)) is None


async def _await(awaitable: Any) -> Any:
    return await awaitable


def test_handler_runs_inline_and_copies_to_itself() -> None:
    handler = Captured().handler
    assert handler.run_inline
    assert handler.__copy__() is handler
    assert handler.__deepcopy__({}) is handler


def test_two_handlers_report_each_run_and_note_once() -> None:
    captured = Captured()
    config: Any = {"callbacks": [captured.handler, captured.another_handler()]}

    def note(x: int) -> int:
        dispatch_custom_event("step", x)
        return x

    chain = RunnableLambda(note, name="noting")
    chain.invoke(1, config)
    assert [run.name for run in captured.ended()] == ["noting"]
    assert [note.note for note in captured.of(RunNoted)] == ["step"]
    assert captured.emitter.buffer.captured == 3


def test_same_run_id_used_again_is_another_run() -> None:
    captured = Captured()
    run_id = uuid.uuid4()
    for _ in range(2):
        RunnableLambda(lambda x: x).invoke(1, _config(captured, run_id=run_id))
    assert [run.run_id for run in captured.ended()] == [str(run_id)] * 2


def test_late_second_end_of_a_run_is_ignored() -> None:
    captured = Captured()
    run_id = uuid.uuid4()
    captured.call("on_chat_model_start", {}, [[]], run_id=run_id)
    captured.call("on_llm_end", LLMResult(generations=[]), run_id=run_id)
    captured.call("on_llm_error", asyncio.CancelledError(), run_id=run_id)
    assert [run.status for run in captured.ended()] == ["ok"]


def test_start_is_sent_while_its_run_is_open() -> None:
    captured = Captured()
    run_id = uuid.uuid4()
    captured.call("on_chain_start", {}, {}, run_id=run_id, name="long")
    (started,) = captured.of(RunStarted)
    captured.call("on_chain_end", {}, run_id=run_id)
    (ended,) = captured.ended()
    assert (started.run_id, started.name, started.at_ns) == (str(run_id), "long", ended.started_at_ns)
    assert ended.at_ns >= ended.started_at_ns


def test_error_that_passes_three_ancestors_has_one_origin() -> None:
    captured = Captured()

    def fail(x: int) -> int:
        raise ValueError(f"order {x} is not there")

    inner = RunnableLambda(fail, name="fails")
    middle: Runnable[int, int] = RunnableLambda(lambda x: inner.invoke(x), name="middle")
    chain: Runnable[int, int] = RunnableLambda(lambda x: middle.invoke(x), name="outer")
    with pytest.raises(ValueError, match="order 17"):
        chain.invoke(17, _config(captured))
    errors = {run.name: run.error for run in captured.ended() if run.error is not None}
    assert [name for name, error in errors.items() if error.origin] == ["fails"]
    assert set(errors) == {"fails", "middle", "outer"}
    assert {error.fingerprint for error in errors.values()} == {errors["fails"].fingerprint}


def test_another_exception_raised_from_a_childs_is_an_origin_of_its_own() -> None:
    captured = Captured()

    def fail(x: int) -> int:
        raise ValueError(x)

    inner = RunnableLambda(fail, name="fails")

    def wrap(x: int) -> int:
        try:
            return inner.invoke(x)
        except ValueError as error:
            raise LookupError("wrapped") from error

    with pytest.raises(LookupError):
        RunnableLambda(wrap, name="wraps").invoke(1, _config(captured))
    assert {(run.name, run.error.type, run.error.origin) for run in captured.ended() if run.error is not None} == {
        ("fails", "ValueError", True),
        ("wraps", "LookupError", True),
    }


def test_caught_error_leaves_its_parent_ok() -> None:
    captured = Captured()

    def fail(x: int) -> int:
        raise ValueError(x)

    chain = RunnableLambda(fail, name="fails").with_fallbacks([RunnableLambda(lambda x: x, name="works")])
    chain.invoke(1, _config(captured))
    assert {run.name: run.status for run in captured.ended()} == {
        "fails": "error",
        "works": "ok",
        "RunnableWithFallbacks": "ok",
    }


def test_parallel_branches_share_the_trace() -> None:
    captured = Captured()
    RunnableParallel(a=RunnableLambda(lambda x: x), b=RunnableLambda(lambda x: x)).invoke(1, _config(captured))
    assert len({run.trace_id for run in captured.ended()}) == 1
    assert len(captured.ended()) == 3


def test_tool_and_retriever_are_named_and_typed() -> None:
    captured = Captured()

    @tool
    def weather(city: str) -> str:
        """Weather of a city."""
        return "fine"

    class Shelf(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return [Document("found")]

    weather.invoke({"city": "Bern"}, _config(captured))
    Shelf().invoke("books", _config(captured))
    FakeListLLM(responses=["yes"]).invoke("question", _config(captured))
    assert [(run.run_type, run.name) for run in captured.ended()] == [
        ("tool", "weather"),
        ("retriever", "Shelf"),
        ("llm", "FakeListLLM"),
    ]


def test_tools_own_failure_is_of_category_tool_in_every_ancestor() -> None:
    captured = Captured()

    @tool
    def broken(city: str) -> str:
        """Fails."""
        raise RuntimeError("no weather today")

    with pytest.raises(RuntimeError):
        RunnableLambda(lambda city: broken.invoke({"city": city}), name="agent").invoke("Bern", _config(captured))
    assert [(run.name, run.error and run.error.category) for run in captured.ended()] == [
        ("broken", "tool"),
        ("agent", "tool"),
    ]


def test_stream_closed_early_is_cancelled() -> None:
    captured = Captured()
    stream = GenericFakeChatModel(messages=_answers()).stream("hi", _config(captured))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    (run,) = captured.ended()
    assert (run.status, run.error) == ("cancelled", None)


async def test_cancelled_task_is_cancelled() -> None:
    captured = Captured()
    started = asyncio.Event()

    async def wait(x: int) -> int:
        started.set()
        await asyncio.Event().wait()
        return x

    task = asyncio.create_task(RunnableLambda(wait, name="waits").ainvoke(1, _config(captured)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(run.name, run.status) for run in captured.ended()] == [("waits", "cancelled")]


async def test_custom_events_are_noted_without_content() -> None:
    captured = Captured()

    async def step(x: int) -> int:
        await adispatch_custom_event("progress", {"secret": "text"})
        return x

    await RunnableLambda(step, name="steps").ainvoke(1, _config(captured))
    (note,) = captured.of(RunNoted)
    assert (note.kind, note.note, note.name) == ("custom", "progress", "steps")
    assert not isinstance(note.data, bytes)


def test_retry_shows_as_a_tag() -> None:
    captured = Captured()
    calls = iter([1, 2])

    def flaky(_: int) -> int:
        if next(calls) == 1:
            raise ValueError("once")
        return 5

    RunnableLambda(flaky, name="flaky").with_retry(wait_exponential_jitter=False).invoke(1, _config(captured))
    assert any("retry:attempt:2" in run.tags for run in captured.ended())


def test_start_of_a_call_names_its_model_and_a_name_may_be_anything() -> None:
    captured = Captured()
    metadata = {"ls_provider": "openai", "ls_model_name": "gpt-4"}
    captured.call("on_chat_model_start", {"name": "Chat"}, [[]], run_id=uuid.uuid4(), metadata=metadata, name=7)
    (started,) = captured.of(RunStarted)
    assert (started.name, started.provider, started.request_model) == ("7", "openai", "gpt-4")
    run_id = uuid.uuid4()
    captured.call("on_chain_start", None, {}, run_id=run_id, name=7)
    captured.call("on_chain_end", {}, run_id=run_id)
    assert [run.name for run in captured.ended()] == ["7"]


def test_metadata_keeps_the_users_scalars_and_leaves_internal_keys_out() -> None:
    captured = Captured(metadata="team=blue")
    metadata = {
        "plan": "gold",
        "seats": 3,
        "ratio": float("nan"),
        "trial": True,
        "nested": {"a": 1},
        "ls_provider": "x",
        "langgraph_step": 1,
        "checkpoint_ns": "y",
        "long": "x" * 300,
        "odd": "\ud800",
        "large": 2**70,
    }
    RunnableLambda(lambda x: x).invoke(1, _config(captured, metadata=metadata, tags=["a", "b"]))
    (run,) = captured.ended()
    assert run.metadata == {
        "team": "blue",
        "plan": "gold",
        "seats": 3,
        "ratio": "nan",
        "trial": True,
        "long": "x" * 256,
        "odd": "?",
        "large": str(2**70),
    }
    assert run.tags == ["a", "b"]


def test_names_beyond_the_contract_are_clipped() -> None:
    captured = Captured()
    RunnableLambda(lambda x: x).invoke(
        1,
        _config(captured, run_name="n" * 500, metadata={f"key{i}": i for i in range(50)}, tags=["t" * 300] * 50),
    )
    (run,) = captured.ended()
    assert (len(run.name), len(run.metadata), len(run.tags), len(run.tags[0])) == (200, 32, 32, 200)


@pytest.mark.parametrize(
    ("metadata", "session_id"),
    [
        ({"session_id": "s", "conversation_id": "c", "thread_id": "t"}, "s"),
        ({"conversation_id": "c", "thread_id": "t"}, "c"),
        ({"thread_id": "t"}, "t"),
        ({"thread_id": 12}, "12"),
        ({}, None),
    ],
)
def test_session_comes_from_the_first_that_names_one(metadata: dict[str, Any], session_id: str | None) -> None:
    captured = Captured()
    RunnableLambda(lambda x: x).invoke(1, _config(captured, metadata=metadata))
    assert [run.session_id for run in captured.ended()] == [session_id]


def test_child_of_an_unknown_parent_joins_the_trace_of_that_parents_id() -> None:
    captured = Captured()
    parent = uuid.uuid4()
    for _ in range(2):
        run_id = uuid.uuid4()
        captured.call("on_chain_start", {}, {}, run_id=run_id, parent_run_id=parent)
        captured.call("on_chain_end", {}, run_id=run_id)
    runs = captured.ended()
    assert {(run.trace_id, run.parent_run_id, run.is_root) for run in runs} == {(str(parent), str(parent), False)}


def test_child_that_begins_after_its_root_ended_stays_in_the_trace() -> None:
    captured = Captured()
    root, child = uuid.uuid4(), uuid.uuid4()
    captured.call("on_chain_start", {}, {}, run_id=root)
    captured.call("on_chain_end", {}, run_id=root)
    captured.call("on_chain_start", {}, {}, run_id=child, parent_run_id=root)
    captured.call("on_chain_end", {}, run_id=child)
    assert {run.trace_id for run in captured.ended()} == {str(root)}


def _fine(_: Any) -> str:
    return "fine"


def _content_of(run: RunEnded) -> tuple[bytes | None, bytes | None]:
    return tuple(bytes(part) if part else None for part in (run.inputs, run.outputs))  # type: ignore[return-value]


def test_content_is_not_captured_unless_asked_for() -> None:
    captured = Captured()
    _chain().invoke({"what": "secret"}, _config(captured))
    assert {_content_of(run) for run in captured.ended()} == {(None, None)}
    assert captured.emitter.buffer.content_dropped == 0


def test_captured_content_is_what_the_run_got_at_its_start() -> None:
    captured = Captured(capture_content=True)
    question = {"what": "hi"}

    def change(given: dict[str, str]) -> str:
        given["what"] = "changed"
        return "done"

    RunnableLambda(change).invoke(question, _config(captured))
    (run,) = captured.ended()
    assert _content_of(run) == (b'{"what":"hi"}', b'"done"')
    assert run.content_bytes is None


def test_captured_messages_are_readable() -> None:
    captured = Captured(capture_content=True)
    _chain().invoke({"what": "hi"}, _config(captured))
    inputs, outputs = _content_of(captured.ended_named("GenericFakeChatModel"))
    assert inputs is not None
    assert b'"content":"say hi"' in inputs
    assert outputs is not None
    assert b'"content":"two words"' in outputs


def test_content_too_large_is_left_out_and_its_size_kept() -> None:
    captured = Captured(capture_content=True)
    RunnableLambda(_fine).invoke("x" * 1_000_000, _config(captured))
    (run,) = captured.ended()
    assert _content_of(run) == (None, b'"fine"')
    assert run.content_bytes == 1_000_002 + len('"fine"')
    assert captured.emitter.buffer.content_dropped == 1


def test_content_without_room_is_left_out_and_counted_and_its_size_kept() -> None:
    captured = Captured(capture_content=True)
    buffer, note_id = captured.emitter.buffer, uuid.uuid4()
    captured.call("on_chain_start", {}, {"what": "hi"}, run_id=note_id)
    while buffer.has_content_room(90_000):
        captured.call("on_chain_start", {}, "x" * 90_000, run_id=uuid.uuid4())
    assert buffer.content_dropped == 0
    held_bytes = buffer.held_bytes
    captured.call("on_text", "y" * 90_000, run_id=note_id)
    RunnableLambda(lambda text: text).invoke("z" * 90_000, _config(captured))
    assert buffer.content_dropped == 3
    assert buffer.held_bytes < held_bytes + 10_000
    (run,) = captured.ended()
    assert (_content_of(run), run.content_bytes) == ((None, None), 2 * 90_002)


def test_content_that_is_no_json_costs_only_itself() -> None:
    captured = Captured(capture_content=True)
    endless: list[Any] = []
    endless.append(endless)
    RunnableLambda(_fine).invoke(endless, _config(captured))
    (run,) = captured.ended()
    assert _content_of(run) == (None, b'"fine"')
    assert captured.emitter.buffer.content_dropped == 1


def test_failure_of_our_own_is_counted_and_never_the_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = Captured()
    monkeypatch.setattr(captured.emitter.buffer, "offer_start", None)
    captured.call("on_chain_start", {}, {}, run_id=uuid.uuid4())
    assert captured.emitter.buffer.dropped == {("internal_error", "run.started"): 1}
    assert captured.emitter.buffer.captured == 1


def test_event_that_cannot_be_encoded_is_counted_and_the_others_are_sent() -> None:
    captured = Captured()
    run_ids = [uuid.uuid4() for _ in range(5)]
    for run_id in run_ids:
        captured.call("on_chain_start", 7 if run_id in run_ids[1:3] else {}, {}, run_id=run_id)
    for run_id in run_ids[1:]:
        captured.call("on_chain_end", {}, run_id=run_id)
    captured.call("on_chain_start", 7, {}, run_id=uuid.uuid4())
    buffer = captured.emitter.buffer
    assert [event.run_id for event in captured.ended()] == [str(run_id) for run_id in run_ids[3:]]
    assert [event.run_id for event in captured.of(RunStarted)] == [str(run_ids[0])]
    # The starts of the two are not superseded, and cannot be encoded either.
    assert buffer.dropped == {("internal_error", "run.ended"): 2, ("internal_error", "run.started"): 3}
    assert buffer.captured == 10 == 3 + buffer.superseded + 5


def test_metadata_that_is_none_costs_the_start_which_is_counted() -> None:
    captured = Captured()
    run_id = uuid.uuid4()
    captured.call("on_chain_start", {}, {}, run_id=run_id, metadata=7)
    captured.call("on_chain_end", {}, run_id=run_id)
    assert [(event.run_id, event.session_id) for event in captured.ended()] == [(str(run_id), None)]
    buffer = captured.emitter.buffer
    assert (buffer.captured, buffer.dropped) == (2, {("internal_error", "run.started"): 1})


def test_odd_response_costs_its_facts_and_not_the_end() -> None:
    captured = Captured()
    run_id = uuid.uuid4()
    captured.call("on_chat_model_start", {}, [[]], run_id=run_id)
    message = AIMessage("x")
    message.usage_metadata = "odd"  # type: ignore[assignment]
    captured.call("on_llm_end", LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=run_id)
    (run,) = captured.ended()
    assert (run.status, run.usage, run.usage_source) == ("ok", None, "none")


def test_other_handlers_see_all_that_they_saw_without_ours() -> None:
    seen: list[str] = []

    class Other(BaseCallbackHandler):
        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append("start")

        def on_chain_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append("end")

    RunnableLambda(lambda x: x).invoke(1, {"callbacks": [Captured().handler, Other()]})
    assert seen == ["start", "end"]


def test_threads_share_one_table_without_losing_a_run() -> None:
    captured = Captured()
    chain = RunnableLambda(lambda x: x) | RunnableLambda(lambda x: x)
    threads = [
        threading.Thread(target=lambda: [chain.invoke(1, _config(captured)) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.run_id for run in captured.ended()}) == 8 * 50 * 3 == len(captured.ended())
    buffer = captured.emitter.buffer
    assert buffer.captured == 2 * 8 * 50 * 3
    assert len(captured.emitter.open_runs) == 0


def test_generator_closed_by_the_collector_of_garbage_inside_the_ring_does_not_lock_up() -> None:
    captured = Captured()
    run_id: UUID = uuid.uuid4()
    captured.call("on_chain_start", {}, {}, run_id=run_id)
    done = threading.Event()

    def offer_inside() -> None:
        with captured.emitter.buffer.lock:
            captured.call("on_chain_error", GeneratorExit(), run_id=run_id)
        done.set()

    threading.Thread(target=offer_inside, daemon=True).start()
    assert done.wait(5)
    assert [run.status for run in captured.ended()] == ["cancelled"]


def test_an_ended_run_lasts_as_long_as_it_did() -> None:
    captured = Captured()

    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    RunnableLambda(sleep, name="sleeps").invoke(0.01, _config(captured))
    run = captured.ended_named("sleeps")
    assert 10_000_000 <= run.duration_ns < 1_000_000_000


def test_answer_from_langchains_cache_says_so() -> None:
    captured = Captured()
    model = GenericFakeChatModel(messages=_answers(), cache=InMemoryCache())
    for _ in range(2):
        model.invoke("the same", _config(captured))
    assert [(run.usage_source, run.status) for run in captured.ended()] == [("response", "ok"), ("cache", "ok")]


async def test_completion_models_still_hide_from_handlers_that_are_not_inline() -> None:
    """A fault of langchain-core that our README tells of. Should this fail, it was mended: tell nobody any more."""
    seen: list[str] = []

    class Other(AsyncCallbackHandler):
        async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append("start")

    model = FakeListLLM(responses=["yes", "yes"])
    await model.ainvoke("question", {"callbacks": [Other()]})
    assert seen == ["start"]
    await model.ainvoke("question", {"callbacks": [Captured().handler, Other()]})
    assert seen == ["start"]


def test_end_names_its_root_where_the_models_name_is_from_and_which_host_was_called() -> None:
    captured = Captured()
    root, answered, silent = (uuid.uuid4() for _ in range(3))
    captured.call("on_chain_start", {}, {}, run_id=root, name="checkout")
    url = "https://user:secret@models.example.com/v1?key=k"
    for run_id, metadata in ((answered, {"model_name": "m-2"}), (silent, {})):
        parameters = {"model": "m-1", "openai_api_base": url}
        captured.call(
            "on_chat_model_start", {}, [[]], run_id=run_id, parent_run_id=root, name="llm", invocation_params=parameters
        )
        message = AIMessage("x", response_metadata={**metadata, "region": "eu"})
        captured.call("on_llm_end", LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=run_id)
    captured.call("on_chain_end", {}, run_id=root)
    models = captured.ended()[:2]
    assert [(run.model, run.model_source) for run in models] == [("m-2", "answer"), ("m-1", "request")]
    assert {(run.seller_host, run.price_facts["region"]) for run in models} == {("models.example.com", "eu")}
    assert [run.root_name for run in captured.ended()] == ["checkout"] * 3
    assert captured.ended()[2].model_source is None
