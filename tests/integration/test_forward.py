"""The forwarder on real Kafka, towards a LangSmith of this machine that LangSmith's own client reads back."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from langsmith_server import KEY, LangSmithServer, langsmith_server
from runtap_collector import RunTap
from runtap_consumers.forward.account import Account
from runtap_consumers.forward.choice import RunChoice
from runtap_consumers.forward.loop import run_forwarder
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.worker.health import Health
from worker_process import WorkerSetting, wait_until

# What is there until 2027 is what the tests and the people of today call.
pytestmark = pytest.mark.filterwarnings(r"ignore:\w+\(\) is deprecated:DeprecationWarning")
MakeTopic = Callable[..., Awaitable[str]]
ZSTD = {"instance_flags": {"zstd_compression_enabled": True}, "batch_ingest_config": {"size_limit": 100}}


@pytest.fixture
async def settings(kafka: str, topic_prefix: str, events_topic: MakeTopic) -> ConsumerSettings:
    """Of a forwarder whose topic is there and empty."""
    await events_topic(3)
    return ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix, session_timeout_seconds=3.0)


@asynccontextmanager
async def forwarding(
    settings: ConsumerSettings, server: LangSmithServer, wanted: RunChoice | None = None, key: str = KEY
) -> AsyncIterator[Health]:
    """A forwarder in this process, while the block runs."""
    stop, health = asyncio.Event(), Health((), waiting_for=None)
    account = Account(server.url, key, None)
    running = asyncio.create_task(run_forwarder(settings, account, wanted or RunChoice(), True, stop, health))
    try:
        yield health
    finally:
        stop.set()
        await asyncio.wait_for(running, 20)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    await asyncio.to_thread(wait_until, condition, seconds)


def chain(calls: int = 1) -> Runnable[Any, Any]:
    """A chain in a chain, with calls that have a price."""
    usage: Any = {
        "input_tokens": 1_003,
        "output_tokens": 107,
        "total_tokens": 1_110,
        "input_token_details": {"cache_read": 301},
    }
    facts = {"model_name": "gpt-4o-mini-2024-07-18", "model_provider": "openai", "finish_reason": "stop"}
    messages = [AIMessage("two words", usage_metadata=usage, response_metadata=facts) for _ in range(1_000)]
    model = GenericFakeChatModel(messages=iter(messages), name="gpt")
    inner: Any = ChatPromptTemplate.from_template("say {what}") | model
    for _ in range(calls - 1):
        again: Any = RunnableLambda(lambda message: {"what": message.content}, name="again")
        inner = inner | again | ChatPromptTemplate.from_template("say {what}") | model
    inner = inner.with_config(run_name="inner")
    takes: Any = RunnableLambda(lambda message: {"answer": message.content}, name="takes")
    outer: Runnable[Any, Any] = (inner | takes).with_config(run_name="outer")
    return outer


def tap_of(settings: ConsumerSettings, **more: Any) -> RunTap:
    return RunTap.from_env(
        bootstrap_servers=settings.bootstrap_servers,
        topic_prefix=settings.topic_prefix,
        **{"service": "shop", "environment": "tests", "capture_content": True, "error_messages": True, **more},
    )


async def run_chains(settings: ConsumerSettings, count: int, calls: int = 2, **more: Any) -> list[str]:
    """Runs chains, and returns their ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    async with tap_of(settings, **more) as tap:
        for run_id in ids:
            config: Any = {"callbacks": [tap.handler], "run_id": run_id, "tags": ["vip"]}
            config["metadata"] = {"session_id": "s-1", "user_id": "u-1", "team": "search"}
            chain(calls).invoke({"what": "hi"}, config)
    return ids


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("info", [{}, ZSTD], ids=["plain", "zstd"])
async def test_langsmiths_client_reads_back_what_runtap_shows(
    settings: ConsumerSettings, setting: WorkerSetting, info: dict[str, Any]
) -> None:
    with langsmith_server(info=info) as server:
        async with forwarding(settings, server) as health:
            ids = await run_chains(settings, 5)
            await until(lambda: len(server.runs) == 5 * 8)
            await until(lambda: all(run.get("end_time") for run in server.runs.values()))
        assert health.forwarded["delivered"] >= 40
        assert {name: count for name, count in health.forwarded.items() if name != "delivered"} == {}
        encodings = {headers.get("content-encoding") for headers in server.headers if "content-type" in headers}
        assert encodings == {"zstd" if info else None}
        await asyncio.to_thread(setting.drain)
        done = await asyncio.to_thread(setting.run, "runs", "--json", "--limit", "0")
        shown = {run["run_id"]: run for run in map(json.loads, done.stdout.splitlines())}
        client = server.client()
        found = {str(run.id): run for run in client.list_runs(project_name="shop")}
        assert found.keys() == shown.keys()
        calls = {run_id: run for run_id, run in found.items() if run.run_type == "llm"}
        assert len(calls) == 10
        for run_id, run in calls.items():
            assert run.total_cost == Decimal(shown[run_id]["cost_usd"]) > 0
            assert run.prompt_cost is not None
            assert run.prompt_cost + (run.completion_cost or 0) == run.total_cost
            assert (run.prompt_tokens, run.completion_tokens, run.total_tokens) == (1_003, 107, 1_110)
            assert run.metadata["usage_metadata"]["input_token_details"] == {"cache_read": 301}
            assert run.metadata["ls_model_name"] == "gpt-4o-mini-2024-07-18"
            assert run.inputs["messages"][0][0]["content"].startswith("say ")
            assert run.outputs is not None
            assert run.outputs["generations"][0][0]["message"]["content"] == "two words"
        for root_id in ids:
            root = client.read_run(root_id)
            assert (root.name, root.run_type, root.status, root.parent_run_id) == ("outer", "chain", "success", None)
            of_trace = [run for run in found.values() if run.trace_id == root.id]
            own = [Decimal(shown[str(run.id)]["cost_usd"] or 0) for run in of_trace]
            assert root.total_cost == sum(own)
            assert "usage_metadata" not in root.metadata
            assert root.tags == ["vip"]
            assert root.metadata.items() >= {"session_id": "s-1", "thread_id": "s-1", "team": "search"}.items()
            assert (root.inputs, root.outputs) == ({"what": "hi"}, {"answer": "two words"})
        for run_id, run in found.items():
            above = None if run.parent_run_id is None else found[str(run.parent_run_id)]
            assert run.dotted_order.rpartition(".")[0] == ("" if above is None else above.dotted_order)
            assert (run.end_time - run.start_time).total_seconds() == pytest.approx(
                shown[run_id]["duration_seconds"], abs=2e-6
            )
