"""LangGraph: interrupts, hand-offs, agents whose tools fail."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt

from captured_events import Captured


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


class Count(TypedDict):
    count: int


def _config(captured: Captured, **configurable: Any) -> Any:
    return {"callbacks": [captured.handler], "configurable": configurable}


@tool
def weather(city: str) -> str:
    """Weather of a city."""
    return f"fine in {city}"


@tool
def broken(city: str) -> str:
    """Fails."""
    raise ValueError(f"no weather for {city}")


def _agent(tool_name: str, *, handles_errors: bool) -> Any:
    call = {"name": tool_name, "args": {"city": "Bern"}, "id": "call-1"}
    answers = [AIMessage("", tool_calls=[call]), AIMessage("it is fine")]
    model = GenericFakeChatModel(messages=iter(answers))
    graph = StateGraph(State)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([weather, broken], handle_tool_errors=handles_errors))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(checkpointer=InMemorySaver())


def test_agent_with_a_tool_is_one_trace_with_its_threads_session() -> None:
    captured = Captured()
    _agent("weather", handles_errors=True).invoke({"messages": ["weather?"]}, _config(captured, thread_id="t-1"))
    runs = captured.ended()
    assert {run.status for run in runs} == {"ok"}
    assert {run.session_id for run in runs} == {"t-1"}
    assert len({run.trace_id for run in runs}) == 1
    assert [run.run_type for run in runs].count("llm") == 2
    assert [run.name for run in runs if run.run_type == "tool"] == ["weather"]
    assert not any(key.startswith(("langgraph_", "checkpoint_")) for run in runs for key in run.metadata)
    assert [run.name for run in runs if run.is_root] == ["LangGraph"]


def test_tool_error_that_the_agent_handles_is_one_error_and_leaves_the_rest_ok() -> None:
    captured = Captured()
    _agent("broken", handles_errors=True).invoke({"messages": ["weather?"]}, _config(captured, thread_id="t-1"))
    assert [(run.name, run.error and run.error.origin) for run in captured.ended() if run.status == "error"] == [
        ("broken", True)
    ]


def test_tool_error_through_three_ancestors_has_one_origin() -> None:
    captured = Captured()
    with pytest.raises(ValueError, match="no weather"):
        _agent("broken", handles_errors=False).invoke({"messages": ["weather?"]}, _config(captured, thread_id="t-1"))
    failed = [run for run in captured.ended() if run.error is not None]
    assert [run.name for run in failed if run.error is not None and run.error.origin] == ["broken"]
    assert [run.name for run in failed] == ["broken", "tools", "LangGraph"]
    assert {run.status for run in failed} == {"error"}


def _asking_graph() -> Any:
    def ask(state: Count) -> Count:
        return {"count": interrupt("how many?")}

    inner = StateGraph(Count)
    inner.add_node("ask", ask)
    inner.add_edge(START, "ask")
    outer = StateGraph(Count)
    outer.add_node("inner", inner.compile())
    outer.add_edge(START, "inner")
    return outer.compile(checkpointer=InMemorySaver())


def test_interrupt_makes_its_run_and_every_open_ancestor_interrupted_then_resumes_ok() -> None:
    captured = Captured()
    graph = _asking_graph()
    graph.invoke({"count": 0}, _config(captured, thread_id="t-1"))
    first = captured.ended()[:]
    assert {run.name: run.status for run in first} == dict.fromkeys(("ask", "inner", "LangGraph"), "interrupted")
    assert [run.error for run in first] == [None] * len(first)
    graph.invoke(Command(resume=3), _config(captured, thread_id="t-1"))
    resumed = captured.ended()[len(first) :]
    assert {run.status for run in resumed} == {"ok"}
    assert {run.session_id for run in resumed} == {"t-1"}


async def test_interrupt_in_an_async_graph_is_the_same() -> None:
    captured = Captured()
    await _asking_graph().ainvoke({"count": 0}, _config(captured, thread_id="t-1"))
    assert {run.status for run in captured.ended()} == {"interrupted"}


def test_hand_off_to_the_parent_graph_is_ok() -> None:
    captured = Captured()

    def leave(state: Count) -> Command[Any]:
        return Command(graph=Command.PARENT, goto="other", update={"count": 5})

    inner = StateGraph(Count)
    inner.add_node("leave", leave)
    inner.add_edge(START, "leave")
    outer = StateGraph(Count)
    outer.add_node("inner", inner.compile(), destinations=("other",))
    outer.add_node("other", lambda state: {"count": state["count"] + 1})
    outer.add_edge(START, "inner")
    outer.add_edge("other", END)
    assert outer.compile().invoke({"count": 0}, _config(captured))["count"] == 6
    assert {run.status for run in captured.ended()} == {"ok"}
    assert {run.error for run in captured.ended()} == {None}
