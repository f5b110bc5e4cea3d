"""One process of the emitter's benchmark: one workload under one handler, and the CPU that an invocation took.

    python emitter_modes.py MODE VARIANT INVOCATIONS

Prints as JSON the callback events of an invocation, of chains the time of the slowest hundredth, and the seconds of CPU
that an invocation took: in the main thread and in all others, the flush included. Turns with the handler and without
follow each other, and of the differences in the main thread the middle half counts: what a shared machine does in
between is left out. An instrumentation that is in every run, whoever asks for it, has no turns without, nor has a bare
process: theirs are whole times, for the caller to subtract.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

Run = Callable[[Any, int], None]
Flush = Callable[[], None]

TOKENS = 100
_USAGE: Any = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}


class Inline(BaseCallbackHandler):
    """Called inline, does nothing: the floor."""

    run_inline = True

    def _nothing(self, *_: Any, **__: Any) -> None: ...

    on_chat_model_start = on_chain_start = on_tool_start = on_llm_new_token = _nothing
    on_llm_end = on_chain_end = on_tool_end = _nothing


class Counting(Inline):
    """Counts the callbacks of a run, tokens apart."""

    def __init__(self) -> None:
        self.events = 0

    def _count(self, *_: Any, **__: Any) -> None:
        self.events += 1

    on_chat_model_start = on_chain_start = on_tool_start = _count
    on_llm_end = on_chain_end = on_tool_end = _count


class Model(BaseChatModel):
    """Answers at once: what it was made with, or calls of three tools before the answer."""

    answer: str = "It is so."
    tools: tuple[str, ...] = ()

    @property
    def _llm_type(self) -> str:
        return "bench-model"

    def _result(self, messages: Sequence[BaseMessage]) -> ChatResult:
        calls: Any = []
        if self.tools and not isinstance(messages[-1], ToolMessage):
            calls = [{"name": name, "args": {"order": 7}, "id": f"call-{name}"} for name in self.tools]
        message = AIMessage(
            self.answer,
            tool_calls=calls,
            usage_metadata=_USAGE,
            response_metadata={"model_name": "bench-1", "finish_reason": "stop"},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return self._result(messages)

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return self._result(messages)


class StreamingModel(Model):
    """Answers in a hundred chunks."""

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for number in range(TOKENS):
            last = number == TOKENS - 1
            chunk = ChatGenerationChunk(
                message=AIMessageChunk(content="word ", usage_metadata=_USAGE if last else None)
            )
            if run_manager is not None:
                await run_manager.on_llm_new_token("word ", chunk=chunk)
            yield chunk


def _chain(model: BaseChatModel) -> Any:
    return ChatPromptTemplate.from_template("say {what}") | model | StrOutputParser()


def _looped(invoke: Callable[[Any], Awaitable[Any]]) -> Run:
    async def many(config: Any, times: int) -> None:
        for _ in range(times):
            await invoke(config)

    return lambda config, times: asyncio.run(many(config, times))


def sync_chain() -> Run:
    chain = _chain(Model())

    def run(config: Any, times: int) -> None:
        for _ in range(times):
            chain.invoke({"what": "hello"}, config)

    return run


def hundred_at_once() -> Run:
    chain = _chain(Model())

    async def many(config: Any, times: int) -> None:
        for _ in range(times // 100):
            await asyncio.gather(*(chain.ainvoke({"what": "hello"}, config) for _ in range(100)))

    return lambda config, times: asyncio.run(many(config, times))


def stream() -> Run:
    chain = _chain(StreamingModel())

    async def once(config: Any) -> None:
        async for _ in chain.astream({"what": "hello"}, config):
            pass

    return _looped(once)


@tool
async def look_up_order(order: int) -> str:
    """Looks up an order."""
    return f"order {order} is on its way"


@tool
async def look_up_stock(order: int) -> str:
    """Looks up what is in stock."""
    return f"{order} pieces"


@tool
async def look_up_price(order: int) -> str:
    """Looks up a price."""
    return f"{order} dollars"


def agent() -> Run:
    tools = [look_up_order, look_up_stock, look_up_price]
    model = Model(tools=tuple(one.name for one in tools))

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    async def decide(state: Any) -> str:
        # In the loop's thread, where its time is the run's: LangGraph hands plain functions to another one.
        return tools_condition(state)

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", decide, ["tools", END])
    graph.add_edge("tools", "think")
    compiled = graph.compile()
    return _looped(lambda config: compiled.ainvoke({"messages": [HumanMessage("Where is order 7?")]}, config))


def large() -> Run:
    chain = _chain(Model(answer="a word " * 1_430))
    question = "some text " * 5_000

    def run(config: Any, times: int) -> None:
        for _ in range(times):
            chain.invoke({"what": question}, config)

    return run


MODES: dict[str, Callable[[], Run]] = {
    "a": sync_chain,
    "b": hundred_at_once,
    "c": stream,
    "d": agent,
    "e": large,
    "p": sync_chain,
}
_TURNS = 20
# An app that mostly waits, as most do, and begins another run so often.
_PACES_SECONDS = {"a": 0.0, "p": 0.005}


def _no_flush() -> None:
    return


def _runtap(*, content: bool) -> tuple[Any, Flush]:
    from runtap_collector import RunTap

    tap = RunTap.from_env(service="bench", capture_content=content, spool_dir="off")

    def flush() -> None:
        delivery = tap.flush(60)
        assert (delivery.waiting, delivery.dropped) == (0, {}), delivery

    return {"callbacks": [tap.handler]}, flush


def _runtap_away() -> tuple[Any, Flush]:
    from runtap_collector import RunTap

    # Nothing listens there; into a folder of its own, which no other process finds.
    folder = os.path.join(os.environ["SPOOL"], str(os.getpid()))
    tap = RunTap.from_env(service="bench", bootstrap_servers="127.0.0.1:1", spool_dir=folder)
    return {"callbacks": [tap.handler]}, _no_flush


def _langsmith() -> tuple[Any, Flush]:
    from langchain_core.tracers import LangChainTracer
    from langsmith import Client

    client = Client(api_url=os.environ["SINK"], api_key="none")
    return {"callbacks": [LangChainTracer(client=client)]}, client.flush


def _langfuse() -> tuple[Any, Flush]:
    from langfuse import Langfuse
    from langfuse.langchain import CallbackHandler

    client = Langfuse(public_key="pk-lf-none", secret_key="sk-lf-none", base_url=os.environ["SINK"])
    return {"callbacks": [CallbackHandler()]}, client.flush


def _open_telemetry() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    exporter = OTLPSpanExporter(endpoint=os.environ["SINK"] + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=1_000_000))
    return provider


def _openinference() -> tuple[Any, Flush]:
    from openinference.instrumentation.langchain import LangChainInstrumentor

    provider = _open_telemetry()
    LangChainInstrumentor().instrument(tracer_provider=provider)
    return {}, provider.force_flush


def _openllmetry() -> tuple[Any, Flush]:
    from opentelemetry.instrumentation.langchain import LangchainInstrumentor

    provider = _open_telemetry()
    LangchainInstrumentor().instrument(tracer_provider=provider)
    return {}, provider.force_flush


VARIANTS: dict[str, Callable[[], tuple[Any, Flush]]] = {
    "none": lambda: ({}, _no_flush),
    "floor": lambda: ({"callbacks": [Inline()]}, _no_flush),
    "empty-async": lambda: ({"callbacks": [AsyncCallbackHandler()]}, _no_flush),
    "runtap": lambda: _runtap(content=False),
    "runtap-content": lambda: _runtap(content=True),
    "runtap-away": _runtap_away,
    "langsmith": _langsmith,
    "langfuse": _langfuse,
    "openinference": _openinference,
    "openllmetry": _openllmetry,
}
PEERS = ("langsmith", "langfuse", "openinference", "openllmetry")


def _count_events(run: Run) -> int:
    counting = Counting()
    run({"callbacks": [counting]}, 100)
    return counting.events // 100


def main(mode: str, variant: str, invocations: int) -> None:
    """Measures, and prints a line of JSON."""
    run = MODES[mode]()
    events = _count_events(run)
    config, flush = VARIANTS[variant]()
    run(config, 100)
    flush()
    each = max(invocations // _TURNS, 100 if mode == "b" else 1)
    pace_seconds = _PACES_SECONDS.get(mode)

    def turn(its_config: Any) -> tuple[float, list[float]]:
        began = time.thread_time()
        latencies = []
        if pace_seconds is None:
            run(its_config, each)
        else:
            latencies = list(_timed(run, its_config, each, pace_seconds))
        return time.thread_time() - began, latencies

    turns: list[float] = []
    latencies: list[float] = []
    began, main_began = time.process_time(), time.thread_time()
    for _ in range(invocations // each):
        bare_seconds = turn({})[0] if config else 0.0
        seconds, its_latencies = turn(config)
        turns.append(seconds - bare_seconds)
        latencies += its_latencies
    at = time.thread_time()
    flush()
    flushed = time.thread_time()
    others = (time.process_time() - began) - (flushed - main_began)
    turns.sort()
    middle = turns[len(turns) // 4 : len(turns) - len(turns) // 4]
    latencies.sort()
    measured = {
        "main": sum(middle) / len(middle) / each + (flushed - at) / invocations,
        "others": others / invocations,
        "is_added": bool(config),
        "events": events,
        "p99": latencies[int(len(latencies) * 0.99)] if latencies else 0.0,
    }
    sys.stdout.write(json.dumps(measured) + "\n")


def _timed(run: Run, config: Any, invocations: int, pace_seconds: float) -> Iterator[float]:
    for _ in range(invocations):
        began = time.perf_counter()
        run(config, 1)
        took = time.perf_counter() - began
        yield took
        if took < pace_seconds:
            time.sleep(pace_seconds - took)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    # Whatever a peer still does at its exit is not what is measured.
    sys.stdout.flush()
    os._exit(0)
