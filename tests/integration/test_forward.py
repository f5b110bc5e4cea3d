"""The forwarder on real Kafka, towards a LangSmith of this machine that LangSmith's own client reads back."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tracers import LangChainTracer
from langsmith import Client
from msgspec import Raw
from starlette.responses import Response

from langsmith_server import KEY, LangSmithServer, langsmith_server
from runtap_collector import RunTap
from runtap_consumers.errors import ForwardRefusedError
from runtap_consumers.forward import langsmith
from runtap_consumers.forward.account import Account
from runtap_consumers.forward.choice import RunChoice
from runtap_consumers.forward.loop import run_forwarder
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.worker.health import Health
from runtap_demo.kafka.ports import free_ports
from runtap_schemas import Event, RunScored
from runtap_schemas.topics import events_topic as events_topic_name
from samples import START_NS, chain_end, framed, model_call
from worker_process import WorkerSetting, ask_health, ask_metrics, produce, wait_until

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


class Away:
    """Something on a port that is no LangSmith: what connects gets these bytes, or none."""

    def __init__(self, port: int, says: bytes) -> None:
        self._port, self._says = port, says
        self.connections = 0

    async def __aenter__(self) -> Away:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self._port)
        return self

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(self._says)
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 200 OK\r\n\r\nnot json"])
async def test_what_is_no_langsmith_yet_is_waited_for(settings: ConsumerSettings, says: bytes) -> None:
    with langsmith_server() as server:
        port = server.port
    later = LangSmithServer(port)
    async with Away(port, says) as away, forwarding(settings, later) as health:
        ids = await run_chains(settings, 3)
        await until(lambda: away.connections >= 2)
        await until(lambda: bool(health.channels))
        assert health.problems() == [] or "langsmith" in health.problems()[0]
        await away.__aexit__()
        with langsmith_server(port) as server:
            await until(lambda: len(server.runs) == 3 * 8, 60)
            await until(lambda: health.channels == {})
    assert {run["trace_id"] for run in server.runs.values()} == set(ids)
    assert health.forwarded["attempts_failed"] >= 2


@pytest.mark.parametrize("status", [429, 500, 503, 408, 302])
async def test_refusals_that_pass_lose_nothing(settings: ConsumerSettings, status: int) -> None:
    async def misbehave(path: str, number: int) -> Response | None:
        if path == "/runs/multipart" and number <= 2:
            return Response(status_code=status, headers={"retry-after": "1", "location": "http://127.0.0.1:1/"})
        return None

    with langsmith_server(misbehave=misbehave) as server:
        async with forwarding(settings, server) as health:
            await run_chains(settings, 3)
            await until(lambda: len(server.runs) == 3 * 8)
            await until(lambda: all(run.get("end_time") for run in server.runs.values()))
    assert health.forwarded["attempts_failed"] == 2
    assert not any(name.startswith("refused") for name in health.forwarded)


async def test_a_server_that_hangs_is_asked_again(settings: ConsumerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(langsmith, "TIMEOUT_SECONDS", 0.5)

    async def misbehave(path: str, number: int) -> Response | None:
        if path == "/runs/multipart" and number <= 2:
            await asyncio.sleep(3)
        return None

    with langsmith_server(misbehave=misbehave) as server:
        async with forwarding(settings, server) as health:
            await run_chains(settings, 3)
            await until(lambda: health.forwarded["delivered"] >= 3 * 8)
    assert len(server.runs) == 3 * 8
    assert health.forwarded["attempts_failed"] == 2


async def test_what_will_not_be_cured_is_counted_and_stepped_over(settings: ConsumerSettings) -> None:
    with langsmith_server(most_bytes=20_000) as server:
        async with forwarding(settings, server) as health, tap_of(settings) as tap:
            for number in range(40):
                step: Any = RunnableLambda(lambda text: text, name="poison" if number % 10 == 5 else "step")
                step.invoke("x" * (30_000 if number % 20 == 7 else 2_000), {"callbacks": [tap.handler]})
            await tap.aflush()
            await until(lambda: health.forwarded["delivered"] >= 34)
            await until(lambda: health.forwarded["refused_422"] == 4)
            await until(lambda: health.forwarded["refused_413"] == 2)
    assert len(server.runs) == 34
    assert {run["name"] for run in server.runs.values()} == {"step"}
    assert health.forwarded["attempts_failed"] == 0


async def test_an_old_langsmith_gets_batches(settings: ConsumerSettings) -> None:
    with langsmith_server(has_multipart=False) as server:
        async with forwarding(settings, server):
            ids = await run_chains(settings, 3)
            await until(lambda: len(server.runs) == 3 * 8)
            await run_chains(settings, 1)
            await until(lambda: len(server.runs) == 4 * 8)
        root = server.client().read_run(ids[0])
    assert (root.inputs, root.outputs) == ({"what": "hi"}, {"answer": "two words"})
    # Asked for once.
    assert server.requests["/runs/multipart"] <= 4


async def test_a_wrong_key_stops_it_at_the_start(settings: ConsumerSettings) -> None:
    await run_chains(settings, 1)
    with langsmith_server() as server:
        account = Account(server.url, "wrong", None)
        running = run_forwarder(settings, account, RunChoice(), True, asyncio.Event(), Health((), waiting_for=None))
        with pytest.raises(ForwardRefusedError, match="LANGSMITH_API_KEY"):
            await asyncio.wait_for(running, 30)
    assert server.runs == {}


async def test_a_key_that_is_withdrawn_later_is_waited_for(settings: ConsumerSettings) -> None:
    refused = False

    async def misbehave(path: str, number: int) -> Response | None:
        return Response(status_code=403) if refused and path != "/info" else None

    with langsmith_server(misbehave=misbehave) as server:
        async with forwarding(settings, server) as health:
            await run_chains(settings, 1)
            await until(lambda: len(server.runs) == 8)
            refused = True
            await run_chains(settings, 1)
            await until(lambda: "langsmith (runs)" in health.channels)
            refused = False
            await until(lambda: len(server.runs) == 16)


async def test_a_run_is_seen_while_it_is_open_and_complete_when_it_has_ended(settings: ConsumerSettings) -> None:
    with langsmith_server() as server:
        async with forwarding(settings, server), tap_of(settings) as tap:

            async def wait(text: str) -> str:
                await until(lambda: len(server.runs) == 1)
                return text.upper()

            run_id = uuid.uuid4()
            slow: Any = RunnableLambda(wait, name="slow")
            await slow.ainvoke("hi", {"callbacks": [tap.handler], "run_id": run_id})
            await tap.aflush()
            await until(lambda: server.sent["patch", str(run_id)] == 1)
            run = server.client().read_run(run_id)
    assert (run.status, run.inputs, run.outputs) == ("success", {"input": "hi"}, {"output": "HI"})
    assert server.sent == {("post", str(run_id)): 1, ("patch", str(run_id)): 1}


async def test_both_attached_at_once_double_nothing(settings: ConsumerSettings) -> None:
    with langsmith_server() as server:
        client = Client(api_url=server.url, api_key=KEY, auto_batch_tracing=True)
        tracer = LangChainTracer(project_name="shop", client=client)
        async with forwarding(settings, server) as health, tap_of(settings) as tap:
            ids = [uuid.uuid4() for _ in range(3)]
            for run_id in ids:
                await asyncio.to_thread(
                    chain(2).invoke, {"what": "hi"}, {"callbacks": [tap.handler, tracer], "run_id": run_id}
                )
            await asyncio.to_thread(client.flush)
            await tap.aflush()
            await until(lambda: health.forwarded["delivered"] >= 3 * 8)
        found = list(server.client().list_runs(project_name="shop"))
        client.cleanup()
    assert len(found) == 3 * 8
    assert {run.trace_id for run in found} == set(ids)
    assert server.conflicts > 0
    assert all(run.status == "success" for run in found)
    assert health.forwarded["attempts_failed"] == 0


async def test_a_sample_is_of_whole_traces_and_filters_are_those_of_runs(settings: ConsumerSettings) -> None:
    with langsmith_server() as sampled, langsmith_server() as filtered:
        async with forwarding(settings, sampled, RunChoice(sample=0.5)) as health:
            ids = await run_chains(settings, 40)
            await until(lambda: health.forwarded["delivered"] + health.forwarded["not_sampled"] >= 40 * 8)
        chosen = {run_id for run_id in ids if RunChoice(sample=0.5).samples(run_id)}
        assert {run["trace_id"] for run in sampled.runs.values()} == chosen
        assert len(sampled.runs) == 8 * len(chosen)
        assert 5 < len(chosen) < 35
        choice = RunChoice(service="shop", run_type="llm", tag="seq:step:2", metadata=("team", "search"), status="ok")
        async with forwarding(settings, filtered, choice) as health:
            await run_chains(settings, 2)
            await run_chains(settings, 1, service="another")
            await until(lambda: health.forwarded["left_out"] >= 22)
        assert [run["name"] for run in filtered.runs.values()] == ["gpt"] * 2


async def test_scores_become_feedback_once(settings: ConsumerSettings, kafka: str) -> None:
    topic = events_topic_name(settings.topic_prefix)
    with langsmith_server() as server:
        async with forwarding(settings, server) as health:
            (run_id,) = await run_chains(settings, 1)
            facts: Any = {"at_ns": START_NS, "service": "shop", "environment": "tests"}
            scores = [
                RunScored(run_id=run_id, key="helpful", score=0.123456, comment="good", user_id="u-1", **facts),
                RunScored(run_id=run_id, key="tone", value="friendly", source="evaluator", **facts),
                RunScored(run_id=str(uuid.uuid4()), key="helpful", score=1.0, **facts),
            ]
            value = framed(scores, "scorer", 1)
            # A service may send a frame again.
            await produce(kafka, topic, [(0, value, []), (0, value, [])])
            await until(lambda: health.forwarded["feedback_delivered"] == 4)
            # LangSmith may find a run later than it takes it: asked for a few times.
            await until(lambda: health.forwarded["refused_feedback_404"] == 2)
        found = {one.key: one for one in server.client().list_feedback(run_ids=[run_id])}
    assert len(server.feedback) == 2
    assert (found["helpful"].score, found["helpful"].comment, str(found["helpful"].run_id)) == (0.1235, "good", run_id)
    assert found["tone"].value == "friendly"
    assert found["tone"].feedback_source is not None
    assert found["tone"].feedback_source.type == "model"
    assert server.requests["/feedback"] == 4 + 2 * 4 + 1


async def test_feedback_on_runs_that_are_left_out_stays_here(settings: ConsumerSettings, kafka: str) -> None:
    with langsmith_server() as server:
        async with forwarding(settings, server, RunChoice(run_type="llm", user_id="u-1")) as health:
            (root_id,) = await run_chains(settings, 1, calls=1)
            await until(lambda: len(server.runs) == 1 and health.lag == 0)
            left_out, (call_id,) = health.forwarded["left_out"], server.runs
            facts: Any = {"at_ns": START_NS, "environment": "tests", "key": "helpful", "score": 1.0}
            scores = [
                RunScored(run_id=root_id, service="shop", user_id="u-1", **facts),
                RunScored(run_id=str(uuid.uuid4()), service="shop", user_id="u-2", comment="secret", **facts),
                # Given in another service, to which nobody told the user.
                RunScored(run_id=call_id, service="web", **facts),
            ]
            await produce(kafka, events_topic_name(settings.topic_prefix), [(0, framed(scores, "scorer", 1), [])])
            await until(lambda: health.forwarded["feedback_delivered"] == 1)
            assert health.forwarded["left_out"] == left_out + 2
    assert server.requests["/feedback"] == 1


def started(setting: WorkerSetting, processes: list[Any], health_port: int) -> subprocess.Popen[bytes]:
    """The command as a process."""
    command = setting.command("forward", "langsmith", "--from-beginning", "--health", str(health_port))
    processes.append(subprocess.Popen(command, env=setting.environment(), stderr=subprocess.DEVNULL))
    process: subprocess.Popen[bytes] = processes[-1]
    return process


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_killed_in_the_middle_it_goes_on_with_the_same_ids(
    settings: ConsumerSettings, setting: WorkerSetting, processes: list[Any]
) -> None:
    async def misbehave(path: str, number: int) -> Response | None:
        if path == "/runs/multipart":
            await asyncio.sleep(0.2)
        return None

    (port,) = free_ports(1)
    info = {"batch_ingest_config": {"size_limit": 5}}
    with langsmith_server(misbehave=misbehave, info=info) as server:
        setting.more.update(LANGSMITH_ENDPOINT=server.url, LANGSMITH_API_KEY=KEY)
        ids = await run_chains(settings, 30)
        for stopped_at in (20, 100):
            process = started(setting, processes, port)
            await until(lambda most=stopped_at: len(server.runs) >= most, 60)  # type: ignore[misc]
            process.kill()
            process.wait(10)
        process = started(setting, processes, port)
        await until(lambda: len(server.runs) == 30 * 8, 60)
        await until(lambda: all(run.get("end_time") for run in server.runs.values()))
        await until(lambda: ask_health(port) == (200, ask_health(port)[1]))
        assert ask_metrics(port)['runtap_forward_events_total{outcome="delivered"}'] > 0
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0
    assert {run["trace_id"] for run in server.runs.values()} == set(ids)
    assert server.sent.total() > 30 * 8


def traffic(second: int, at_ns: int) -> list[tuple[int, bytes | None, list[Any]]]:
    """The records of a second with 1,000 events: 500 traces of a call in a chain, with content."""
    records: list[tuple[int, bytes | None, list[Any]]] = []
    for frame in range(4):
        events: list[Event] = []
        for number in range(125):
            root, call = (str(uuid.UUID(int=(second << 32) + frame * 1_000 + number * 2 + one)) for one in (0, 1))
            content: Any = {"inputs": Raw(b'{"question":"%b"}' % (b"why " * 60)), "outputs": Raw(b'{"answer":"so"}')}
            facts: Any = {"trace_id": root, "root_name": "chain", "service": "shop", **content}
            events.append(model_call(at_ns, run_id=call, parent_run_id=root, **facts))
            events.append(chain_end(at_ns, run_id=root, **facts))
        records.append((frame % 3, framed(events, f"emitter-{frame}", second * 250 + 1, at_ns), []))
    return records


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """The memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seconds", [20, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(3_600)])])
async def test_a_target_that_is_away_loses_nothing_and_holds_little(
    settings: ConsumerSettings, setting: WorkerSetting, processes: list[Any], kafka: str, seconds: int
) -> None:
    port, health_port = free_ports(2)
    setting.more.update(LANGSMITH_ENDPOINT=f"http://127.0.0.1:{port}", LANGSMITH_API_KEY=KEY)
    topic = events_topic_name(settings.topic_prefix)
    with langsmith_server(port, info=ZSTD, keeps_content=False) as server:
        await produce(kafka, topic, traffic(0, time.time_ns()))
        process = started(setting, processes, health_port)
        await until(lambda: len(server.runs) == 1_000, 60)
    seen = server.runs
    before = most = resident_bytes(process)
    began = time.monotonic()
    for second in range(1, seconds + 1):
        await produce(kafka, topic, traffic(second, time.time_ns()))
        await asyncio.sleep(max(began + second - time.monotonic(), 0))
        most = max(most, resident_bytes(process))
    status, body = await asyncio.to_thread(ask_health, health_port)
    assert status == 503
    assert "langsmith (runs)" in body["problems"][0]
    back = time.monotonic()
    with langsmith_server(port, info=ZSTD, keeps_content=False) as server:
        while len(server.runs) < seconds * 1_000:
            await asyncio.sleep(0.2)
            assert time.monotonic() < back + 120 + seconds
            most = max(most, resident_bytes(process))
        took = time.monotonic() - back
        await until(lambda: ask_health(health_port)[0] == 200)
    assert len(seen | server.runs) == (seconds + 1) * 1_000
    assert most < 128 * 2**20
    print(f"{seconds} s away: {most - before:,} bytes more; caught up in {took:.0f} s")  # noqa: T201
