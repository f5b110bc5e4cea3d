"""A service with runtap attached, for the whole pipeline: 500 mixed runs, and books of its own about them.

    OPENAI_BASE_URL=… python mixed_service.py BOOK_FILE SEED

The books are kept without runtap: what each operation is planned to bring is written by hand beside it, and a plain
LangChain handler writes down every run. Halfway it says so on standard output and waits for a line on standard input.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import gc
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableParallel, RunnablePassthrough
from langchain_core.tools import ToolException, tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt
from openai import APIError, Timeout

from runtap_collector import RunTap, RunTapHandler

SERVICES = ("checkout", "billing")
ROOTS = 500
_MODELS = ("gpt-4o-mini", "gpt-4.1", "o4-mini", "house-model-7b")
_ERRORS = {
    400: ("OpenAIInvalidRequestError", "bad_request"),
    401: ("OpenAIAuthenticationError", "auth"),
    429: ("OpenAIRateLimitError", "rate_limit"),
    500: ("OpenAIAPIError", "server"),
}


class Shadow(BaseCallbackHandler):
    """Writes down every run that it is told of, once."""

    run_inline = True
    raise_error = True

    def __init__(self) -> None:
        self.open: dict[UUID, dict[str, Any]] = {}
        self.ended: dict[UUID, dict[str, Any]] = {}

    def _begin(
        self, kind: str, serialized: dict[str, Any] | None, run_id: UUID, parent: UUID | None, more: dict[str, Any]
    ) -> None:
        if run_id in self.open or run_id in self.ended:
            return
        named = serialized or {}
        name = more.get("name") or named.get("name") or named.get("id", [kind])[-1]
        self.open[run_id] = {
            "run_id": str(run_id),
            "parent": parent,
            "kind": kind,
            "name": name,
            "is_interrupted": False,
            "begun": time.monotonic(),
        }

    def _end(self, run_id: UUID, error: BaseException | None = None) -> None:
        run = self.open.pop(run_id, None)
        if run is None:
            return
        status = "interrupted" if run["is_interrupted"] else "ok"
        if error is not None:
            status = _status_of(error)
        above = self.open.get(run["parent"])
        while status == "interrupted" and above is not None:
            above["is_interrupted"] = True
            above = self.open.get(above["parent"])
        run["seconds"] = time.monotonic() - run.pop("begun")
        run["parent"] = run["parent"] and str(run["parent"])
        self.ended[run_id] = {**run, "status": status, "error": error and type(error).__name__}

    def on_chat_model_start(self, serialized: Any, messages: Any, **more: Any) -> None:
        self._begin("llm", serialized, more.pop("run_id"), more.pop("parent_run_id", None), more)

    def on_chain_start(self, serialized: Any, inputs: Any, **more: Any) -> None:
        self._begin("chain", serialized, more.pop("run_id"), more.pop("parent_run_id", None), more)

    def on_tool_start(self, serialized: Any, input_str: Any, **more: Any) -> None:
        self._begin("tool", serialized, more.pop("run_id"), more.pop("parent_run_id", None), more)

    def on_retriever_start(self, serialized: Any, query: Any, **more: Any) -> None:
        self._begin("retriever", serialized, more.pop("run_id"), more.pop("parent_run_id", None), more)

    def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:
        self._end(run_id)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **_: Any) -> None:
        self._end(run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        self._end(run_id)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **_: Any) -> None:
        self._end(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._end(run_id, error)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._end(run_id, error)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._end(run_id, error)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        self._end(run_id, error)


def _status_of(error: BaseException) -> str:
    kind = type(error).__name__
    if kind == "GraphInterrupt":
        return "interrupted"
    if kind == "ParentCommand":
        return "ok"
    return "cancelled" if kind in ("CancelledError", "GeneratorExit") else "error"


class Book:
    """What the operations were planned to bring."""

    def __init__(self) -> None:
        self.roots: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.tools: list[dict[str, Any]] = []
        self.sessions: list[dict[str, Any]] = []


class Ask:
    """One operation within a session: the words for the model, and what it is planned to bring."""

    def __init__(self, book: Book, session: dict[str, Any], number: int, handlers: list[Any]) -> None:
        self._book = book
        self._session = session
        self._number = number
        self._texts = 0
        self.config: RunnableConfig = {"callbacks": handlers}
        if not session["by_block"]:
            self.config["metadata"] = {"session_id": session["session_id"], "user_id": session["user_id"]}

    def text(self, do: str = "answer") -> str:
        self._texts += 1
        return f"question {self._number}.{self._texts} session={self._session['session_id']} do={do}"

    def question(self, do: str = "answer") -> dict[str, str]:
        return {"question": self.text(do)}

    def plan(self, *statuses: str, tools: int = 0) -> None:
        """Root runs with these statuses, and calls of tools."""
        place = {"session": self._session["session_id"], "service": self._session["service"]}
        self._book.roots += [{**place, "status": status} for status in statuses]
        self._book.tools += [place] * tools

    def plan_error(self, kind: str, category: str, run_type: str, group: str) -> None:
        """One error. Those of one `group` are the same failure at the same place."""
        place = {"session": self._session["session_id"], "service": self._session["service"]}
        self._book.errors.append(
            {**place, "type": kind, "category": category, "run_type": run_type, "group": f"{kind} {group}"}
        )


class BlockingCaller:
    """Calls as synchronous code does."""

    way = "sync"

    async def invoke(self, runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> Any:
        return runnable.invoke(value, config)

    async def batch(self, runnable: Runnable[Any, Any], values: list[Any], config: RunnableConfig) -> None:
        runnable.batch(values, config, return_exceptions=True)

    async def stream(self, runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> None:
        for _ in runnable.stream(value, config):
            pass

    async def hang_up(self, runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> None:
        stream = runnable.stream(value, config)
        next(stream)
        stream.close()  # type: ignore[attr-defined]


class AsyncCaller:
    """Calls as asynchronous code does."""

    way = "async"

    async def invoke(self, runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> Any:
        return await runnable.ainvoke(value, config)

    async def batch(self, runnable: Runnable[Any, Any], values: list[Any], config: RunnableConfig) -> None:
        await runnable.abatch(values, config, return_exceptions=True)

    async def stream(self, runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> None:
        async for _ in runnable.astream(value, config):
            pass

    async def hang_up(self, runnable: Runnable[Any, Any], value: Any, config: RunnableConfig) -> None:
        stream = runnable.astream(value, config)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]


Caller = BlockingCaller | AsyncCaller


class Shelf(BaseRetriever):
    """A retriever of two documents; none where it is told to fail."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        if "shelf-falls" in query:
            raise LookupError("the shelf has fallen")
        return [Document("a policy"), Document("another policy")]


@tool
def look_up_order(order: int) -> str:
    """Looks up an order."""
    return f"order {order} is on its way"


@tool
def refund_charge(order: int) -> str:
    """Refunds an order; never can."""
    raise ToolException(f"order {order} was never paid")


_PROMPT = ChatPromptTemplate.from_messages([("system", "Answer briefly."), ("human", "{question}")])


def _model(name: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=name, **{"timeout": 60, "max_retries": 0, "stream_usage": True, **options})


def _chain(name: str, **options: Any) -> Runnable[Any, Any]:
    return _PROMPT | _model(name, **options) | StrOutputParser()


def _agent(name: str, **tool_node: Any) -> Runnable[Any, Any]:
    tools = [look_up_order, refund_charge]
    model = _model(name).bind_tools(tools)

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode(tools, **tool_node))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    return graph.compile(name="order_agent")


def _asking_graph(name: str) -> Runnable[Any, Any]:
    """Asks a model, then a person; and leaves the inner graph by a hand-off."""
    model = _model(name)

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    def ask_person(state: MessagesState) -> Command[Any]:
        interrupt("may I?")
        return Command(goto="finish", graph=Command.PARENT)

    inner = StateGraph(MessagesState)
    inner.add_node("think", think)
    inner.add_node("ask_person", ask_person)
    inner.add_edge(START, "think")
    inner.add_edge("think", "ask_person")
    outer = StateGraph(MessagesState)
    outer.add_node("inner", inner.compile())
    outer.add_node("finish", lambda state: {"messages": []})
    outer.add_edge(START, "inner")
    return outer.compile(checkpointer=InMemorySaver(), name="asking_graph")


class Operations:
    """What the service does, one method a way of using LangChain."""

    def __init__(self, extra_handlers: dict[str, Any], shadow: Shadow) -> None:
        self._constructed = {
            service: {name: _model(name, callbacks=[handler, shadow]) for name in _MODELS}
            for service, handler in extra_handlers.items()
        }
        self._models = {name: _model(name) for name in _MODELS}
        self.chains = {name: _chain(name) for name in _MODELS}
        self._frugal = {name: _chain(name, stream_usage=False) for name in _MODELS}
        # The request itself always reaches the model, which writes it down.
        self._hasty = {name: _chain(name, timeout=Timeout(60, read=0.3)) for name in _MODELS}
        self._stubborn = {name: _chain(name, max_retries=2) for name in _MODELS}
        self._retrieving = {
            name: {"question": RunnablePassthrough(), "shelf": Shelf()} | self.chains[name] for name in _MODELS
        }
        self._agents = {name: _agent(name, handle_tool_errors=False) for name in _MODELS}
        self._patient_agents = {name: _agent(name, handle_tool_errors=True) for name in _MODELS}
        self._asking = {name: _asking_graph(name) for name in _MODELS}

    def all(self) -> list[Callable[..., Coroutine[Any, Any, None]]]:
        often = [self.invoke, self.invoke, self.stream, self.batch, self.use_two_handlers, self.call_agent]
        rare = [
            self.stream_without_usage,
            self.hang_up,
            self.answer_without_usage,
            self.call_model,
            self.call_tool,
            self.call_failing_tool,
            self.retrieve,
            self.fail_to_retrieve,
            self.fail,
            self.time_out,
            self.retry_inside,
            self.retry_as_runs,
            self.fall_back,
            self.ask_twice_at_once,
            self.call_agent_that_fails,
            self.call_agent_that_is_told,
            self.be_interrupted,
            self.be_interrupted,
        ]
        return often + rare

    async def invoke(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        await call.invoke(self.chains[model], ask.question(), ask.config)

    async def stream(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        await call.stream(self.chains[model], ask.question(), ask.config)

    async def stream_without_usage(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        await call.stream(self._frugal[model], ask.question(), ask.config)

    async def hang_up(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("cancelled")
        if isinstance(call, AsyncCaller):
            await call.hang_up(self.chains[model], ask.question("endless"), ask.config)
        else:
            # A synchronous sequence that is closed early reads on to the end of its model's stream.
            await call.hang_up(self._models[model], ask.text("endless"), ask.config)

    async def answer_without_usage(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        await call.invoke(self.chains[model], ask.question("unmetered"), ask.config)

    async def batch(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok", "error", "ok")
        ask.plan_error(*_ERRORS[500], "llm", "500")
        questions = [ask.question(), ask.question("fail:500"), ask.question()]
        await call.batch(self.chains[model], questions, ask.config)

    async def call_model(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        # Attached on the constructor alone.
        config: RunnableConfig = {"metadata": ask.config.get("metadata", {})}
        await call.invoke(self._constructed[service][model], [HumanMessage(ask.text())], config)

    async def use_two_handlers(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        chain = _PROMPT | self._constructed[service][model] | StrOutputParser()
        await call.invoke(chain, ask.question(), ask.config)

    async def call_tool(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok", tools=1)
        await call.invoke(look_up_order, {"order": 7}, ask.config)

    async def call_failing_tool(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("error", tools=1)
        ask.plan_error("ToolException", "tool", "tool", "refund")
        with suppress(ToolException):
            await call.invoke(refund_charge, {"order": dice.randrange(1_000)}, ask.config)

    async def retrieve(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        await call.invoke(self._retrieving[model], ask.text(), ask.config)

    async def fail_to_retrieve(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("error")
        ask.plan_error("LookupError", "other", "retriever", "shelf")
        with suppress(LookupError):
            await call.invoke(Shelf(), "shelf-falls", ask.config)

    async def fail(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        status = dice.choice(sorted(_ERRORS))
        ask.plan("error")
        ask.plan_error(*_ERRORS[status], "llm", str(status))
        with suppress(APIError):
            await call.invoke(self.chains[model], ask.question(f"fail:{status}"), ask.config)

    async def time_out(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("error")
        ask.plan_error("OpenAITimeoutError", "timeout", "llm", "silent")
        with suppress(APIError):
            await call.invoke(self._hasty[model], ask.question("silent"), ask.config)

    async def retry_inside(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        # The SDK tries again by itself: one call of LangChain's.
        ask.plan("ok")
        await call.invoke(self._stubborn[model], ask.question("fail-once:429"), ask.config)

    async def retry_as_runs(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        ask.plan_error(*_ERRORS[500], "llm", "500")
        chain = self.chains[model].with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
        await call.invoke(chain, ask.question("fail-once:500"), ask.config)

    async def fall_back(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        # LangChain gives the alternatives no parent: they are roots beside the one that chooses between them.
        ask.plan("ok", "error", "ok")
        ask.plan_error(*_ERRORS[429], "llm", "429")
        chain = self.chains[model].with_fallbacks([self._frugal[model]])
        await call.invoke(chain, ask.question("fail-once:429"), ask.config)

    async def ask_twice_at_once(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok")
        first, second = ask.text(), ask.text()
        both = RunnableParallel(
            one=(lambda _: {"question": first}) | self.chains[model],
            other=(lambda _: {"question": second}) | self.chains["gpt-4.1"],
        )
        await call.invoke(both, "go", ask.config)

    async def call_agent(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("ok", tools=2)
        text = ask.text("tools:look_up_order,look_up_order")
        await call.invoke(self._agents[model], {"messages": [HumanMessage(text)]}, ask.config)

    async def call_agent_that_fails(
        self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random
    ) -> None:
        ask.plan("error", tools=1)
        ask.plan_error("ToolException", "tool", "tool", "refund")
        text = ask.text("tools:refund_charge")
        with suppress(ToolException):
            await call.invoke(self._agents[model], {"messages": [HumanMessage(text)]}, ask.config)

    async def call_agent_that_is_told(
        self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random
    ) -> None:
        ask.plan("ok", tools=1)
        ask.plan_error("ToolException", "tool", "tool", "refund")
        text = ask.text("tools:refund_charge")
        await call.invoke(self._patient_agents[model], {"messages": [HumanMessage(text)]}, ask.config)

    async def be_interrupted(self, ask: Ask, call: Caller, model: str, service: str, dice: random.Random) -> None:
        ask.plan("interrupted", "ok")
        config: RunnableConfig = {**ask.config, "configurable": {"thread_id": str(dice.getrandbits(60))}}
        graph = self._asking[model]
        await call.invoke(graph, {"messages": [HumanMessage(ask.text())]}, config)
        await call.invoke(graph, Command(resume="yes"), config)


async def cancel(operations: Operations, ask: Ask, model: str) -> None:
    """A task that is cancelled while the model is silent. LangChain tells nobody of the end of the model's run."""
    ask.plan("cancelled")
    task = asyncio.create_task(operations.chains[model].ainvoke(ask.question("unheard"), ask.config))
    await asyncio.sleep(0.3)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def hold_session(session: dict[str, Any], tap: RunTap, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """All operations of one session, within a block or with its name in their metadata."""
    session["begun_ns"] = time.time_ns()
    if session["by_block"]:
        with tap.session(session["session_id"], user_id=session["user_id"]):
            await work()
    else:
        await work()
    session["over_ns"] = time.time_ns()


def run_without_loop(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that never waits: what it calls is synchronous code, in a thread without an event loop."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")


class Service:
    """Sessions, one after the other in several threads and tasks, until there are enough roots."""

    def __init__(self, seed: int) -> None:
        self.book = Book()
        self.shadow = Shadow()
        self._dice = random.Random(seed)
        self.taps = {name: RunTap.from_env(service=name) for name in SERVICES}
        # Another handler of the same service; the one without a tap takes the service from the environment.
        self._another_tap = RunTap.from_env(service="billing")
        extra = {"checkout": RunTapHandler(), "billing": self._another_tap.handler}
        self.operations = Operations(extra, self.shadow)
        self._last_ns = 0

    async def serve(self, roots: int) -> None:
        """Holds sessions until the books have so many root runs: three at a time in threads, six as tasks."""
        with ThreadPoolExecutor(3) as threads:
            loop = asyncio.get_running_loop()
            blocking = [loop.run_in_executor(threads, self._serve_blocking, roots) for _ in range(3)]
            await asyncio.gather(*blocking, *(self._serve_async(roots) for _ in range(6)))

    def _serve_blocking(self, roots: int) -> None:
        while len(self.book.roots) < roots:
            run_without_loop(self._hold_one(BlockingCaller()))

    async def _serve_async(self, roots: int) -> None:
        while len(self.book.roots) < roots:
            await self._hold_one(AsyncCaller())

    async def _hold_one(self, caller: Caller) -> None:
        dice = random.Random(self._dice.getrandbits(60))
        service = dice.choice(SERVICES)
        session = {
            "session_id": f"s-{len(self.book.sessions):03}-{dice.getrandbits(20):05x}",
            "user_id": f"u-{dice.randrange(9)}",
            "service": service,
            "by_block": dice.random() < 0.5,
        }
        self.book.sessions.append(session)

        async def work() -> None:
            for number in range(dice.randint(3, 8)):
                ask = Ask(self.book, session, number, [self.taps[service].handler, self.shadow])
                operation = dice.choice(self.operations.all())
                await operation(ask, caller, dice.choice(_MODELS), service, dice)
            if isinstance(caller, AsyncCaller) and dice.random() < 0.3:
                ask = Ask(self.book, session, 99, [self.taps[service].handler, self.shadow])
                await cancel(self.operations, ask, dice.choice(_MODELS))

        await hold_session(session, self.taps[service], work)

    def fail_in_a_row(self, count: int) -> None:
        """The last errors, one after the other, so that their order is known."""
        session = {"session_id": "s-last", "user_id": "u-last", "service": "billing", "by_block": False}
        self.book.sessions.append(session)

        async def work() -> None:
            for number in range(count):
                ask = Ask(self.book, session, number, [self.taps["billing"].handler, self.shadow])
                await self.operations.call_failing_tool(ask, BlockingCaller(), "", "billing", self._dice)

        run_without_loop(hold_session(session, self.taps["billing"], work))

    def close(self) -> None:
        """Closes all taps; the handler without one keeps the emitter until exit."""
        self._last_ns = time.time_ns()
        for tap in (*self.taps.values(), self._another_tap):
            tap.close(10)

    def write_book(self, path: Path) -> None:
        """Writes plans and runs, and what the closed emitter counted."""
        book = {
            **vars(self.book),
            "runs": list(self.shadow.ended.values()),
            "open": len(self.shadow.open),
            "last_ns": self._last_ns,
            "stats": dataclasses.asdict(self.taps["billing"].stats()),
        }
        path.write_text(json.dumps(book))


async def flush_often(tap: RunTap) -> None:
    """Sends what there is, so that workers have many small records, and commits to be killed in."""
    while True:
        await tap.aflush(10)
        await asyncio.sleep(0.01)


async def serve_both_halves(service: Service) -> None:
    """The model clients belong to one event loop."""
    flushing = asyncio.create_task(flush_often(service.taps["checkout"]))
    await service.serve(ROOTS // 2)
    await service.taps["checkout"].aflush(10)
    print("half", flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.readline)
    await service.serve(ROOTS - 10)
    flushing.cancel()
    gc.collect()


def main() -> None:
    """Serves both halves; writes the books last of all, when the emitter was closed at exit."""
    # What the app itself has to say is not what the test looks for on standard error.
    logging.getLogger("openai").setLevel(logging.CRITICAL)
    begun: list[Service] = []
    # Exit functions run in reverse: this one, being the first, after the collector's.
    atexit.register(lambda: begun[0].write_book(Path(sys.argv[1])))
    begun.append(Service(int(sys.argv[2])))
    asyncio.run(serve_both_halves(begun[0]))
    begun[0].fail_in_a_row(10)
    begun[0].close()


if __name__ == "__main__":
    main()
