"""One exception that passes through every ancestor is one error."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from worker_process import WorkerSetting

MakeTopic = Callable[..., Awaitable[str]]

# The tool fails once; its node and the agent end with the same exception, and so does the chain that calls the agent.
_AGENT = """
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from runtap_collector import RunTap

class PaymentError(Exception):
    pass

calls = 0

@tool
def refund(order: int) -> str:
    "Refunds an order."
    global calls
    calls += 1
    if calls == 1:
        raise PaymentError(f"order {order} was never paid")
    return "refunded"

def agent():
    call = {"name": "refund", "args": {"order": 7}, "id": "call-1"}
    model = GenericFakeChatModel(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("done")]))
    graph = StateGraph(MessagesState)
    graph.add_node("think", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([refund], handle_tool_errors=False))
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", tools_condition)
    graph.add_edge("tools", "think")
    return (RunnableLambda(lambda text: {"messages": [HumanMessage(text)]}) | graph.compile(name="agent"))

with RunTap.from_env(service="desk") as tap:
    config = {"callbacks": [tap.handler], "metadata": {"session_id": "s-1"}, "run_name": "help_desk"}
    for attempt in range(4):
        try:
            agent().invoke("refund it", config)
        except PaymentError as error:
            print(error)
"""


async def test_a_tool_that_fails_once_is_one_error_though_three_ancestors_ended_with_it(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, store_url: str, tmp_path: Path
) -> None:
    setting = WorkerSetting(kafka, topic_prefix, store_url)
    await events_topic()
    app = [sys.executable, "-c", _AGENT]
    done = await asyncio.to_thread(
        subprocess.run, app, env=setting.environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "order 7 was never paid\n", "")
    await asyncio.to_thread(setting.drain)
    report: dict[str, Any] = json.loads((await asyncio.to_thread(setting.run, "report", "--json", "-")).stdout)

    failed = {row["name"]: row["errors"] for row in report["performance"] if row["errors"]}
    assert failed == {"refund": 1, "tools": 1, "agent": 1, "help_desk": 1}
    errors = report["errors"]
    assert errors["total"] == 1
    # Four conversations, one of them failed.
    assert errors["by_type"] == [{"type": "PaymentError", "category": "tool", "count": 1, "rate": 0.25}]
    (group,) = errors["groups"]
    assert (group["type"], group["run_type"], group["service"], group["count"]) == ("PaymentError", "tool", "desk", 1)
    (recent,) = errors["recent"]
    assert (recent["run_id"], recent["name"]) == (group["sample_run_id"], "refund")
    (session,) = report["sessions"]
    assert (session["errors"], session["traces"], session["tool_calls"]) == (1, 4, 4)

    lines = (await asyncio.to_thread(setting.run, "runs", "--json", "--status", "error", "--limit", "0")).stdout
    runs = [json.loads(line) for line in lines.splitlines()]
    assert {run["name"]: run["error_origin"] for run in runs} == {
        "refund": True,
        "tools": False,
        "agent": False,
        "help_desk": False,
    }
    assert {run["error_type"] for run in runs} == {"PaymentError"}
    assert report["performance_by_run_type"]["tool"]["success_rate"] == pytest.approx(0.75)
