"""What the handler costs: CPU a callback event, against no handler and against an empty one, on real Kafka.

Rounds are interleaved, so that whatever else the machine does meets all alike; ratios are taken within a round. "App"
is the CPU of the calling thread, "process" also that of the sender thread until Kafka has acknowledged everything.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseCallbackHandler, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from measurement import print_machine, spread
from rich.console import Console
from rich.table import Table

from runtap_collector import RunTap
from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_demo.kafka.broker import EmbeddedKafka

VARIANTS = ("none", "empty", "runtap")
_PREFIX = "bench"


class EmptyHandler(BaseCallbackHandler):
    """Called inline, does nothing."""

    run_inline = True

    def on_chat_model_start(self, *_: Any, **__: Any) -> None: ...


class CountingHandler(EmptyHandler):
    """Counts the starts and ends that a workload brings."""

    def __init__(self) -> None:
        self.events = 0

    def _count(self, *_: Any, **__: Any) -> None:
        self.events += 1

    on_chat_model_start = on_chain_start = on_tool_start = _count
    on_llm_end = on_chain_end = on_tool_end = _count


class OrderModel(BaseChatModel):
    """Calls a tool, and answers once it has the result; no network, no delay."""

    @property
    def _llm_type(self) -> str:
        return "order-model"

    def _answer(self, messages: Sequence[BaseMessage]) -> ChatResult:
        usage: Any = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
        calls: Any = [] if isinstance(messages[-1], ToolMessage) else [_TOOL_CALL]
        message = AIMessage("It is so.", tool_calls=calls, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        return self._answer(messages)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        return self._answer(messages)


_TOOL_CALL = {"name": "look_up_order", "args": {"order": 7}, "id": "call-1"}


@tool
async def look_up_order(order: int) -> str:
    """Looks up an order."""
    return f"order {order} is on its way"


def make_chain() -> Callable[[RunnableConfig, int], None]:
    """A synchronous chain of three steps."""
    steps = [RunnableLambda(lambda text: text, name=f"step {number}") for number in range(3)]
    chain = steps[0] | steps[1] | steps[2]

    def run(config: RunnableConfig, times: int) -> None:
        for _ in range(times):
            chain.invoke("text", config)

    return run


def make_agent() -> Callable[[RunnableConfig, int], None]:
    """An asynchronous LangGraph agent: model, tool, model."""
    model = OrderModel()

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("tools", ToolNode([look_up_order]))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    agent = graph.compile()

    async def run_async(config: RunnableConfig, times: int) -> None:
        for _ in range(times):
            await agent.ainvoke({"messages": [HumanMessage("Where is order 7?")]}, config)

    def run(config: RunnableConfig, times: int) -> None:
        asyncio.run(run_async(config, times))

    return run


@dataclass
class Measured:
    """Seconds of CPU a run, by variant, one value a round."""

    events: int
    app: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in VARIANTS})
    process: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in VARIANTS})

    def added_microseconds(self, seconds: dict[str, list[float]], variant: str) -> list[float]:
        """What a handler adds an event, a round each."""
        pairs = zip(seconds[variant], seconds["none"], strict=True)
        return [(with_it - without) / self.events * 1e6 for with_it, without in pairs]


def measure(run: Callable[[RunnableConfig, int], None], tap: RunTap, rounds: int, round_seconds: float) -> Measured:
    """Runs a workload with each variant in turns."""
    counting = CountingHandler()
    run({"callbacks": [counting]}, 1)
    measured = Measured(counting.events)
    configs: dict[str, RunnableConfig] = {
        "none": {},
        "empty": {"callbacks": [EmptyHandler()]},
        "runtap": {"callbacks": [tap.handler]},
    }
    for config in configs.values():
        run(config, 20)
    began = time.perf_counter()
    run({}, 50)
    times = max(10, int(50 * round_seconds / (time.perf_counter() - began)))
    for number in range(rounds):
        tap.flush(10)
        for place in range(len(VARIANTS)):
            # Each comes first, second and last equally often.
            variant = VARIANTS[(place + number) % len(VARIANTS)]
            app, process = time.thread_time(), time.process_time()
            run(configs[variant], times)
            measured.app[variant].append((time.thread_time() - app) / times)
            if variant == "runtap":
                tap.flush(10)
            measured.process[variant].append((time.process_time() - process) / times)
    return measured


def print_measured(console: Console, title: str, measured: Measured) -> None:
    """A table a workload: median, and in brackets minimum and maximum of the rounds."""
    table = Table(
        title=f"{title}: {measured.events} events a run", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for heading in ("handler", "app µs a run", "app µs an event", "process µs an event", "app, times no handler"):
        table.add_column(heading, justify="left" if heading == "handler" else "right")
    for variant in VARIANTS:
        ratios = [a / b for a, b in zip(measured.app[variant], measured.app["none"], strict=True)]
        is_none = variant == "none"
        table.add_row(
            variant,
            spread([seconds * 1e6 for seconds in measured.app[variant]], ",.0f"),
            "" if is_none else spread(measured.added_microseconds(measured.app, variant)),
            "" if is_none else spread(measured.added_microseconds(measured.process, variant)),
            "" if is_none else spread(ratios),
        )
    console.print(table)
    pairs = zip(
        measured.added_microseconds(measured.app, "runtap"),
        measured.added_microseconds(measured.app, "empty"),
        strict=True,
    )
    ratios = [tapped / empty for tapped, empty in pairs if empty > 0]
    console.print(f"runtap adds {spread(ratios)} times what an empty handler adds\n")


def main() -> None:
    """Measures both workloads."""
    parser = argparse.ArgumentParser(description="CPU a callback event")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--round-seconds", type=float, default=0.25, help="length of one round of one variant")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=150)
    print_machine(console, "runtap", "langchain-core", "langgraph", "aiokafka", "orjson")
    with EmbeddedKafka() as kafka:
        settings = ConsumerSettings.load(bootstrap_servers=kafka.bootstrap_servers, topic_prefix=_PREFIX)
        asyncio.run(create_topics(settings, partitions=6, replication_factor=1))
        with RunTap.from_env(service="bench", bootstrap_servers=kafka.bootstrap_servers, topic_prefix=_PREFIX) as tap:
            for title, run in (("Chain of three steps, sync", make_chain()), ("LangGraph agent, async", make_agent())):
                measured = measure(run, tap, arguments.rounds, arguments.round_seconds)
                print_measured(console, title, measured)
            delivery = tap.close(10)
    console.print(f"sent {delivery.sent:,} events, dropped {delivery.dropped or 'none'}")


if __name__ == "__main__":
    main()
