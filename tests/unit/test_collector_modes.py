"""Every way of running x every promise: complete, once, right parents, one trace a root, its session, its status."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict

from captured_events import Captured
from runtap_schemas import RunEnded, RunStarted

_USAGE: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}


class Expected(NamedTuple):
    """What a mode gives: how many roots, and how many runs of a status and a name, where the name matters."""

    roots: int
    statuses: dict[str, int]
    names: dict[str, int] = {}  # noqa: RUF012


Config = dict[str, Any]
Mode = Callable[[Config], Awaitable[Expected]]
MODES: dict[str, Mode] = {}


def mode(function: Mode) -> Mode:
    MODES[getattr(function, "__name__", "")] = function
    return function


def _model() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage("two words", usage_metadata=_USAGE) for _ in range(50)]))


def _chain(model: Any = None) -> Runnable[Any, Any]:
    return ChatPromptTemplate.from_template("say {what}") | (model or _model()) | StrOutputParser()


_HI = {"what": "hi"}
_ONE = Expected(1, {"ok": 4}, {"GenericFakeChatModel": 1, "ChatPromptTemplate": 1, "StrOutputParser": 1})


@mode
async def invoke(config: Config) -> Expected:
    _chain().invoke(_HI, config)  # type: ignore[arg-type]
    return _ONE


@mode
async def ainvoke(config: Config) -> Expected:
    await _chain().ainvoke(_HI, config)  # type: ignore[arg-type]
    return _ONE


@mode
async def batch(config: Config) -> Expected:
    _chain().batch([_HI] * 3, config)  # type: ignore[arg-type]
    return Expected(3, {"ok": 12})


@mode
async def abatch(config: Config) -> Expected:
    await _chain().abatch([_HI] * 3, config)  # type: ignore[arg-type]
    return Expected(3, {"ok": 12})


@mode
async def stream(config: Config) -> Expected:
    assert "".join(_chain().stream(_HI, config)) == "two words"  # type: ignore[arg-type]
    return _ONE


@mode
async def astream(config: Config) -> Expected:
    async for _ in _chain().astream(_HI, config):  # type: ignore[arg-type]
        pass
    return _ONE


@mode
async def astream_events_v2(config: Config) -> Expected:
    chain: Any = _chain()
    async for _ in chain.astream_events(_HI, config, version="v2"):
        pass
    return _ONE


@mode
async def astream_events_v3(config: Config) -> Expected:
    model: Any = _model()
    events = await model.astream_events("hi", config, version="v3")
    async for _ in events:
        pass
    # The end is called a moment after the last event.
    await asyncio.sleep(0.01)
    return Expected(1, {"ok": 1}, {"GenericFakeChatModel": 1})


@mode
async def transform(config: Config) -> Expected:
    parser = StrOutputParser()
    assert list(parser.transform(iter([AIMessage("a")]), config)) == ["a"]  # type: ignore[arg-type]
    return Expected(1, {"ok": 1}, {"StrOutputParser": 1})


@mode
async def atransform(config: Config) -> Expected:
    async def messages() -> AsyncIterator[AIMessage]:
        yield AIMessage("a")

    async for _ in StrOutputParser().atransform(messages(), config):  # type: ignore[arg-type]
        pass
    return Expected(1, {"ok": 1})


@mode
async def completion_model(config: Config) -> Expected:
    model = FakeListLLM(responses=["a", "b", "c", "d"])
    model.invoke("hi", config)  # type: ignore[arg-type]
    await model.ainvoke("hi", config)  # type: ignore[arg-type]
    list(model.stream("hi", config))  # type: ignore[arg-type]
    return Expected(3, {"ok": 3}, {"FakeListLLM": 3})


@mode
async def completion_model_with_many_prompts(config: Config) -> Expected:
    FakeListLLM(responses=["a"] * 9).generate(["x", "y"], callbacks=config["callbacks"], metadata=config["metadata"])
    return Expected(2, {"ok": 2})


@mode
async def structured_output(config: Config) -> Expected:
    parse: Runnable[Any, Any] = RunnableLambda(lambda message: {"answer": message.content}, name="parse")
    chain = RunnableParallel(raw=_model()) | RunnableLambda(lambda found: found["raw"], name="pick") | parse
    assert (await chain.ainvoke("hi", config))["answer"] == "two words"  # type: ignore[arg-type]
    return Expected(1, {"ok": 5}, {"parse": 1})


@mode
async def fallbacks(config: Config) -> Expected:
    broken: Runnable[Any, Any] = RunnableLambda(_fail, name="broken")
    chain = broken.with_fallbacks([RunnableLambda(lambda x: x, name="spare")])
    assert await chain.ainvoke(1, config) == 1  # type: ignore[arg-type]
    assert chain.invoke(1, config) == 1  # type: ignore[arg-type]
    # langchain-core 1.7 gives what it falls back to the caller's callbacks, so for every handler each is a root.
    return Expected(6, {"ok": 4, "error": 2}, {"broken": 2, "spare": 2})


@mode
async def retries(config: Config) -> Expected:
    tries = iter([True, True, False])
    flaky: Runnable[Any, Any] = RunnableLambda(lambda x: _fail(x) if next(tries) else x, name="flaky")
    chain = flaky.with_retry(wait_exponential_jitter=False)
    assert await chain.ainvoke(1, config) == 1  # type: ignore[arg-type]
    return Expected(1, {"ok": 2, "error": 2}, {})


@mode
async def parallel_branches(config: Config) -> Expected:
    branches = RunnableParallel(a=_chain(), b=_chain())
    await branches.ainvoke(_HI, config)  # type: ignore[arg-type]
    branches.invoke(_HI, config)  # type: ignore[arg-type]
    return Expected(2, {"ok": 18})


class _Shelf(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document("page")]


@mode
async def retriever(config: Config) -> Expected:
    _Shelf().invoke("hi", config)  # type: ignore[arg-type]
    await _Shelf().ainvoke("hi", config)  # type: ignore[arg-type]
    return Expected(2, {"ok": 2}, {"_Shelf": 2})


@tool
async def weather(place: str) -> str:
    """Tells the weather."""
    await asyncio.sleep(0)
    return f"sun in {place}"


@tool
async def broken_tool(place: str) -> str:
    """Fails."""
    raise ValueError(place)


def _call(*names: str) -> dict[str, Any]:
    calls: Any = [{"name": name, "args": {"place": "here"}, "id": f"call-{place}"} for place, name in enumerate(names)]
    return {"messages": [AIMessage("", tool_calls=calls)]}


def _tools_graph(handles_errors: bool) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([weather, broken_tool], handle_tool_errors=handles_errors))
    graph.add_edge(START, "tools")
    return graph.compile()


@mode
async def parallel_tools(config: Config) -> Expected:
    await _tools_graph(True).ainvoke(_call("weather", "weather", "weather"), config)
    return Expected(1, {"ok": 5}, {"weather": 3})


@mode
async def failing_tool_that_is_handled(config: Config) -> Expected:
    await _tools_graph(True).ainvoke(_call("weather", "broken_tool"), config)
    return Expected(1, {"ok": 3, "error": 1}, {"broken_tool": 1})


@mode
async def failing_tool(config: Config) -> Expected:
    with pytest.raises(ValueError, match="here"):
        await _tools_graph(False).ainvoke(_call("broken_tool"), config)
    return Expected(1, {"error": 3})


class _State(TypedDict, total=False):
    n: int


def _graph(*nodes: tuple[str, Any], destinations: tuple[str, ...] = ()) -> Any:
    graph = StateGraph(_State)
    for name, action in nodes:
        graph.add_node(name, action, destinations=destinations or None)
    graph.add_edge(START, nodes[0][0])
    return graph


@mode
async def subgraph(config: Config) -> Expected:
    inner = _graph(("leaf", lambda state: {"n": 1})).compile()
    outer = _graph(("inner", inner)).compile()
    await outer.ainvoke({"n": 0}, config)
    outer.invoke({"n": 0}, config)
    return Expected(2, {"ok": 8}, {"leaf": 2})


@mode
async def send(config: Config) -> Expected:
    graph = _graph(("split", lambda state: {}), ("work", lambda state: {}))
    graph.add_conditional_edges("split", lambda state: [Send("work", {"n": n}) for n in range(4)], ["work"])
    await graph.compile().ainvoke({"n": 0}, config)
    return Expected(1, {"ok": 7}, {"work": 4})


@mode
async def hand_off_by_command(config: Config) -> Expected:
    graph = _graph(
        ("first", lambda state: Command(goto="second", update={"n": 1})),
        ("second", lambda state: {"n": 2}),
        destinations=("second",),
    )
    assert (await graph.compile().ainvoke({"n": 0}, config))["n"] == 2
    return Expected(1, {"ok": 3}, {"first": 1, "second": 1})


@mode
async def interrupt_and_resume(config: Config) -> Expected:
    graph = _graph(("ask", lambda state: {"n": interrupt("how many?")})).compile(InMemorySaver())
    config = {**config, "configurable": {"thread_id": "t-1"}}
    await graph.ainvoke({"n": 0}, config)
    assert (await graph.ainvoke(Command(resume=5), config))["n"] == 5
    return Expected(2, {"interrupted": 2, "ok": 2}, {"ask": 2})


@mode
async def nested_in_a_thread(config: Config) -> Expected:
    inner = RunnableLambda(lambda x: x, name="inner")

    def outer(x: int, config: Any) -> int:
        thread = threading.Thread(target=inner.invoke, args=(x, config))
        thread.start()
        thread.join()
        return x

    RunnableLambda(outer).invoke(1, config)  # type: ignore[arg-type]
    return Expected(1, {"ok": 2}, {"inner": 1})


@mode
async def nested_in_tasks(config: Config) -> Expected:
    inner = RunnableLambda(lambda x: x, name="inner")

    async def outer(x: int) -> int:
        await asyncio.gather(*(asyncio.create_task(inner.ainvoke(x)) for _ in range(5)))
        return x

    await RunnableLambda(outer).ainvoke(1, config)  # type: ignore[arg-type]
    return Expected(1, {"ok": 6}, {"inner": 5})


@mode
async def several_loops(config: Config) -> Expected:
    def run() -> None:
        asyncio.run(_ainvoke_once(config))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    return Expected(4, {"ok": 16})


async def _ainvoke_once(config: Config) -> None:
    await _chain().ainvoke(_HI, config)  # type: ignore[arg-type]


@mode
async def handler_on_constructor_and_config(config: Config) -> Expected:
    model = GenericFakeChatModel(messages=iter([AIMessage("x")]), callbacks=config["callbacks"])
    await _chain(model).ainvoke(_HI, config)  # type: ignore[arg-type]
    return Expected(1, {"ok": 4})


@mode
async def thousands_open_at_once(config: Config) -> Expected:
    async def wait(x: int) -> int:
        await asyncio.sleep(0.05)
        return x

    step = RunnableLambda(wait)
    await asyncio.gather(*(step.ainvoke(number, config) for number in range(2_000)))  # type: ignore[arg-type]
    return Expected(2_000, {"ok": 2_000})


@mode
async def generator_closed_early(config: Config) -> Expected:
    pieces: Iterator[Any] = _model().stream("hi", config)  # type: ignore[arg-type]
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    return Expected(1, {"cancelled": 1})


@mode
async def async_generator_closed_early(config: Config) -> Expected:
    pieces: Any = _model().astream("hi", config)  # type: ignore[arg-type]
    await anext(pieces)
    await pieces.aclose()
    return Expected(1, {"cancelled": 1})


@mode
async def cancelled_task(config: Config) -> Expected:
    async def wait(x: int) -> int:
        await asyncio.sleep(60)
        return x

    step = RunnableLambda(wait, name="waits") | RunnableLambda(lambda x: x)
    task = asyncio.create_task(step.ainvoke(1, config))  # type: ignore[arg-type]
    await asyncio.sleep(0.02)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return Expected(1, {"cancelled": 2}, {"waits": 1})


class _Raises(BaseCallbackHandler):
    """Somebody else's, broken."""

    def on_chain_start(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("not ours")

    on_chain_end = on_chat_model_start = on_llm_end = on_chain_start


@mode
async def anothers_callback_raises(config: Config) -> Expected:
    config = {**config, "callbacks": [_Raises(), *config["callbacks"], _Raises()]}
    _chain().invoke(_HI, config)  # type: ignore[arg-type]
    await _chain().ainvoke(_HI, config)  # type: ignore[arg-type]
    return Expected(2, {"ok": 8})


def _fail(x: object) -> object:
    raise ValueError(x)


def _complete(captured: Captured, expected: Expected) -> None:
    assert len(captured.emitter.open_runs) == 0
    assert Counter(run.status for run in captured.ended()) == expected.statuses
    names = Counter(run.name for run in captured.ended())
    assert {name: names[name] for name in expected.names} == expected.names


def _once(captured: Captured, expected: Expected) -> None:
    ended = [run.run_id for run in captured.ended()]
    assert len(ended) == len(set(ended))
    assert {run.run_id for run in captured.of(RunStarted)} <= set(ended)


def _parents(captured: Captured, expected: Expected) -> None:
    by_id = {run.run_id: run for run in captured.ended()}
    assert sum(run.is_root for run in by_id.values()) == expected.roots
    for run in by_id.values():
        assert run.is_root == (run.parent_run_id is None)
        assert run.parent_run_id is None or run.parent_run_id in by_id


def _trace(captured: Captured, expected: Expected) -> None:
    by_id = {run.run_id: run for run in captured.ended()}
    for run in by_id.values():
        root = run
        while root.parent_run_id is not None:
            root = by_id[root.parent_run_id]
        assert run.trace_id == root.run_id


def _session(captured: Captured, expected: Expected) -> None:
    assert {(run.session_id, run.user_id, run.metadata["team"]) for run in captured.ended()} == {("s-1", "u-1", "blue")}


def _times(captured: Captured, expected: Expected) -> None:
    by_id: dict[str, RunEnded] = {run.run_id: run for run in captured.ended()}
    for run in by_id.values():
        assert 0 <= run.duration_ns < 60 * 10**9
        if run.parent_run_id is not None:
            assert by_id[run.parent_run_id].started_at_ns <= run.started_at_ns


CHECKS = {
    "complete": _complete, "once": _once, "parents": _parents, "trace": _trace, "session": _session, "times": _times,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The method .* is in beta")
@pytest.mark.parametrize("content", [False, True], ids=["facts", "content"])
@pytest.mark.parametrize("name", sorted(MODES))
async def test_every_mode_keeps_every_promise(name: str, content: bool) -> None:
    captured = Captured(capture_content=content, stream_tokens=content)
    metadata = {"session_id": "s-1", "user_id": "u-1", "team": "blue"}
    expected = await MODES[name]({"callbacks": [captured.handler], "metadata": metadata})
    for check in CHECKS.values():
        check(captured, expected)
    buffer = captured.emitter.buffer
    assert not buffer.dropped
