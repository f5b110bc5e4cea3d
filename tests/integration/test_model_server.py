"""The model server speaks the API that ChatOpenAI expects, and counts exactly what it sent whole."""

from __future__ import annotations

import ast
import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAIError

from runtap_demo import model_server
from runtap_demo.kafka.child_processes import end, spawn
from runtap_demo.kafka.ports import free_ports

Start = Callable[[int], str]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Start]:
    """Starts a server of a seed and returns its address."""
    processes = []

    def start(seed: int) -> str:
        port = free_ports(1)[0]
        command = [sys.executable, "-m", "runtap_demo.model_server", "--port", str(port), "--seed", str(seed)]
        processes.append(spawn(command, log=tmp_path / f"{port}.log"))
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                _totals(address)
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / f"{port}.log").read_text()
                time.sleep(0.05)
            else:
                return address

    yield start
    end(processes, timeout_seconds=5)


def _totals(address: str) -> Any:
    with urllib.request.urlopen(f"{address}/totals", timeout=5) as response:
        return json.load(response)


def _chat(address: str, name: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(**{"model": name, "base_url": f"{address}/v1", "api_key": "none", "timeout": 3, **options})


def _count(message: AIMessage, counts: dict[str, int]) -> None:
    usage = message.usage_metadata
    counts["calls"] += 1
    if usage is None:
        counts["unmetered_calls"] += 1
        return
    counts["input_tokens"] += usage["input_tokens"]
    counts["cached_input_tokens"] += usage["input_token_details"]["cache_read"]
    counts["output_tokens"] += usage["output_tokens"]
    counts["reasoning_tokens"] += usage["output_token_details"]["reasoning"]


async def _ask_everything(address: str, name: str) -> dict[str, int]:
    """Asks 60 questions in three ways at once and counts what a client sees."""
    counts = dict.fromkeys(
        ("calls", "unmetered_calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"), 0
    )

    async def ask(number: int) -> None:
        question = f"question {number} " * (number * 10)
        chat = _chat(address, name, max_retries=number % 2, stream_usage=number % 4 != 0)
        try:
            if number % 3:
                _count(await chat.ainvoke(question), counts)
                return
            parts = [part async for part in chat.astream(question)]
        except OpenAIError:
            return
        whole = parts[0]
        for part in parts[1:]:
            whole = whole + part
        assert isinstance(whole, AIMessageChunk)
        _count(whole, counts)

    await asyncio.gather(*(ask(number) for number in range(60)))
    return counts


async def _first_answered(ask: Callable[[str], Awaitable[Any]]) -> Any:
    """Asks until the server does not refuse: a share of questions it refuses however often they come."""
    for number in range(10):
        try:
            return await ask(f"Please refund order {number}")
        except OpenAIError:
            continue
    pytest.fail("the server refused ten questions")


@pytest.mark.parametrize("name", ["gpt-4.1", "o4-mini"])
async def test_totals_are_what_the_clients_received(start_server: Start, name: str) -> None:
    address = start_server(5)
    received = await _ask_everything(address, name)
    totals = _totals(address)
    assert totals["by_model"] == {model_server.MODELS[name]: received}
    assert received["calls"] >= 40
    assert received["cached_input_tokens"] > 0
    assert (received["reasoning_tokens"] > 0) is (name in model_server.REASONING_MODELS)
    assert totals["not_answered"]


async def test_a_seed_decides_all_figures_and_another_seed_changes_them(start_server: Start) -> None:
    first, again, other = (start_server(seed) for seed in (5, 5, 6))
    await asyncio.gather(*(_ask_everything(address, "gpt-5-mini") for address in (first, again, other)))
    assert _totals(first)["by_model"] == _totals(again)["by_model"]
    assert _totals(first)["by_model"] != _totals(other)["by_model"]


async def test_a_stream_that_the_client_closes_early_is_not_counted(start_server: Start) -> None:
    address = start_server(1)
    chat = _chat(address, "gpt-5-mini", verbosity="high", stream_usage=True, max_retries=2)

    async def hang_up(question: str) -> None:
        stream = chat.astream(question)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

    await _first_answered(hang_up)
    deadline = time.monotonic() + 5
    while not _totals(address)["not_answered"].get("broken_off"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert _totals(address)["by_model"] == {}


async def test_offered_tools_are_called_with_arguments_of_their_schema(start_server: Start) -> None:
    @tool
    def refund_charge(order_number: int, reason: str) -> str:
        """Refunds an order."""
        return f"{order_number} {reason}"

    chat = _chat(start_server(1), "gpt-4.1", max_retries=2).bind_tools([refund_charge])
    message = await _first_answered(chat.ainvoke)
    (call,) = message.tool_calls
    assert call["name"] == "refund_charge"
    assert isinstance(call["args"]["order_number"], int)
    assert isinstance(call["args"]["reason"], str)
    assert message.response_metadata["finish_reason"] == "tool_calls"


async def test_an_unknown_model_is_refused(start_server: Start) -> None:
    address = start_server(1)
    with pytest.raises(OpenAIError, match="does not exist"):
        await _chat(address, "nobodys-model").ainvoke("hello")
    assert _totals(address)["by_model"] == {}


def test_model_server_imports_nothing_of_runtap() -> None:
    tree = ast.parse(Path(model_server.__file__).read_text())
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert modules
    assert [module for module in modules if module.startswith("runtap")] == []
