"""`topics create`, `doctor`, `tail` and `alerts tail` as processes, against real Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from command_line import call_command
from langsmith_server import langsmith_server
from runtap_collector import RunTap
from runtap_consumers.kafka.client import Publisher
from runtap_consumers.kafka.topics import check_topics, create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import open_store
from runtap_schemas import encode_alert, encode_event
from samples import an_alert, chain_end, failure, framed, model_call, session_start
from worker_process import WorkerSetting, numbered, produce

MakeTopic = Callable[..., Awaitable[str]]


class Command:
    """Runs `runtap` with the addresses of one test."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self.settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=prefix)
        self._folder = folder
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("RUNTAP_", "LANGSMITH", "LANGCHAIN"))
        }
        self._environment = {**inherited, "RUNTAP_BOOTSTRAP_SERVERS": kafka, "RUNTAP_TOPIC_PREFIX": prefix}

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return call_command(words, {**self._environment, **variables}, self._folder)

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtap_consumers", *words],
            env=self._environment,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=10)


@pytest.fixture
def command(kafka: str, topic_prefix: str, tmp_path: Path) -> Command:
    return Command(kafka, topic_prefix, tmp_path)


def event(number: int, **changes: Any) -> bytes:
    return framed([model_call(**changes)], "emitter-1", number)


async def publish(command: Command, topic: str, *values: bytes) -> None:
    async with Publisher(command.settings) as publisher:
        for value in values:
            await publisher.publish(topic, b"key", value)


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


def test_topics_are_made_once_and_differences_are_told(command: Command, topic_prefix: str) -> None:
    refused = command.run("topics", "create")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"runtap: topic {topic_prefix}.events was not made: 3 replicas need as many brokers")
    assert "On a single broker give --replication-factor 1: one copy of each record, which is lost with" in line
    made = command.run("topics", "create", "--replication-factor", "1", "--partitions", "4")
    assert (made.returncode, made.stderr) == (0, "")
    assert [line.split(":")[1].split()[0] for line in made.stdout.splitlines()] == ["made"] * 4
    again = command.run("topics", "create", "--replication-factor", "1", "--partitions", "8")
    assert again.returncode == 0
    assert [line.split(":")[1].split()[0] for line in again.stdout.splitlines()] == ["exists"] * 4
    assert again.stderr == f"warning: {topic_prefix}.events: partitions is 4, not 8\n"
    cluster = asyncio.run(check_topics(command.settings))
    assert [state.partitions for state in cluster.topics] == [4, 1, 1, 1]
    assert {state.settings["message.timestamp.type"] for state in cluster.topics} == {"LogAppendTime"}
    assert cluster.topics[0].settings["retention.ms"] == str(8 * 86_400_000)


async def test_topics_of_three_replicas_need_two_in_sync(command: Command) -> None:
    printed = command.run("topics", "create", "--print", "--partitions", "12").stdout.splitlines()
    words = [shlex.split(line) for line in printed]
    assert [line[0] for line in words] == ["kafka-topics.sh"] * 4
    assert [line[line.index("--partitions") + 1] for line in words] == ["12", "1", "1", "1"]
    assert all("min.insync.replicas=2" in line for line in words)
    # Nothing was made.
    assert not any(state.exists for state in (await check_topics(command.settings)).topics)


def test_doctor_fails_where_topics_are_missing_and_says_what_to_do(command: Command, topic_prefix: str) -> None:
    examined = command.run("doctor")
    assert examined.returncode == 1
    lines = examined.stdout.splitlines()
    assert lines[1].startswith("OK   Kafka: ")
    assert "1 broker" in lines[1]
    failed = [line for line in lines if line.startswith("FAIL")]
    assert [line.split()[2] for line in failed] == [
        f"{topic_prefix}.{name}:" for name in ("events", "alerts", "alerts.state", "dead-letters")
    ]
    advice = f"→ runtap topics create --topic-prefix {topic_prefix} --replication-factor 1"
    assert advice in examined.stdout
    followed = command.run(*shlex.split(advice)[2:])
    assert followed.returncode == 0


async def test_doctor_is_content_with_what_runtap_made(command: Command, topic_prefix: str, store_url: str) -> None:
    await create_topics(command.settings, 6, 1)
    open_store(store_url, f"{topic_prefix}.events").close()
    with langsmith_server() as server:
        variables = {"LANGSMITH_TRACING": "true", "LANGSMITH_API_KEY": "k" * 20, "LANGSMITH_ENDPOINT": server.url}
        examined = await asyncio.to_thread(command.run, "doctor", "--database-url", store_url, **variables)
    assert server.requests == {"/info": 1}
    assert (examined.returncode, examined.stderr) == (0, "")
    levels = [line.split()[0] for line in examined.stdout.splitlines()]
    assert levels == ["OK"] * 11, examined.stdout
    subjects = [line.split()[1].rstrip(":") for line in examined.stdout.splitlines()]
    assert subjects == ["settings", "Kafka", *["topic"] * 4, "rights", "store", "prices", "LangSmith", "LangSmith"]
    assert "k" * 20 not in examined.stdout


async def test_doctor_names_projections_that_stand(
    command: Command, topic_prefix: str, events_topic: MakeTopic, store_url: str, kafka: str
) -> None:
    topic = await events_topic(partitions=2)
    await produce(kafka, topic, numbered([model_call(run_id=f"r-{number}") for number in range(10)], partitions=2))
    setting = WorkerSetting(kafka, topic_prefix, store_url)
    await asyncio.to_thread(setting.drain, "cost", "runs")
    moving = command.run("doctor", "--database-url", store_url)
    assert "stands" not in moving.stdout
    more = [model_call(run_id=f"r-{number}") for number in range(10, 13)]
    await produce(kafka, topic, numbered(more, partitions=1, emitter="e2"))
    await asyncio.to_thread(setting.drain, "runs")
    standing = command.run("doctor", "--database-url", store_url)
    assert standing.returncode == 1
    assert "FAIL projection cost: stands in partition 0, 3 records behind" in standing.stdout
    assert "projection runs" not in standing.stdout


def test_doctor_without_kafka_looks_at_the_rest_and_fails_fast(command: Command) -> None:
    began = time.monotonic()
    examined = command.run("doctor", "--bootstrap-servers", "127.0.0.1:1")
    assert time.monotonic() - began < 8
    assert examined.returncode == 1
    assert "FAIL Kafka: cannot reach Kafka at 127.0.0.1:1" in examined.stdout
    assert "OK   prices" in examined.stdout
    assert examined.stderr == ""


def test_doctor_with_a_wrong_setting_names_it(command: Command) -> None:
    examined = command.run("doctor", RUNTAP_BOOTSTRAP_SERVERS="kafka")
    assert examined.returncode == 2
    assert "RUNTAP_BOOTSTRAP_SERVERS='kafka'" in examined.stderr


async def test_tail_prints_events_as_they_come_and_ends_cleanly(command: Command, events_topic: MakeTopic) -> None:
    topic = await events_topic(partitions=1)
    failed = framed([chain_end(status="error", error=failure())], "emitter-1", 2)
    with command.started("tail", "--from-beginning", "--timezone", "Europe/Berlin") as process:
        await publish(command, topic, event(1), failed, b"not json")
        lines = await asyncio.to_thread(lines_of, process, 3)
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.to_thread(process.communicate, timeout=5)
    assert lines[0].startswith("11:00:00.000  checkout  llm        ChatOpenAI  ok  2.00 s  1,000 → 100 tokens")
    assert lines[1].endswith("error  3.00 s  ToolException: no such order  trace trace-1\n")
    assert "unreadable  partition 0, offset 2  no readable header" in lines[2]
    assert (process.returncode, errors) == (0, "")


async def test_tail_as_json_filters_by_session_and_type(command: Command, events_topic: MakeTopic) -> None:
    topic = await events_topic(partitions=1)
    wanted = model_call(session_id="s-1", run_id="wanted")
    values = [
        event(1, session_id="s-2"),
        framed([wanted], "emitter-1", 2),
        framed([session_start()], "emitter-1", 3),
        b"not json",
        event(4, session_id="s-1", run_type="chain"),
        event(5, session_id="s-1", run_id="another"),
    ]
    await publish(command, topic, *values)
    with command.started("tail", "--from-beginning", "--json", "--session", "s-1", "--type", "llm") as process:
        lines = await asyncio.to_thread(lines_of, process, 2)
    assert lines[0].encode() == encode_event(wanted) + b"\n"
    assert [json.loads(line)["run_id"] for line in lines] == ["wanted", "another"]


async def test_tail_prints_streamed_text_while_the_model_is_still_talking(
    command: Command, kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    await events_topic(partitions=1)
    may_go_on = asyncio.Event()

    async def talk(_: object) -> AsyncIterator[AIMessageChunk]:
        yield AIMessageChunk(content="Hello there")
        await may_go_on.wait()
        yield AIMessageChunk(content=", world")

    settings: Any = {"bootstrap_servers": kafka, "topic_prefix": topic_prefix, "service": "talks"}
    async with RunTap.from_env(**settings, capture_content=True, stream_tokens=True) as tap:
        with command.started("tail", "--tokens", "--from-beginning") as process:
            assert process.stdout is not None
            answer = asyncio.create_task(_stream(TalkingModel(talk=talk), tap))
            head = await asyncio.to_thread(process.stdout.readline)
            said = await asyncio.to_thread(process.stdout.read, len("Hello there"))
            assert (said, answer.done()) == ("Hello there", False)
            may_go_on.set()
            await answer
            assert await asyncio.to_thread(process.stdout.readline) == ", world\n"
    assert re.search(r"talks  llm        TalkingModel  trace [0-9a-f-]{36}\n$", head)


class TalkingModel(BaseChatModel):
    """A chat model that streams what `talk` says."""

    talk: Any

    @property
    def _llm_type(self) -> str:
        return "talking"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError

    async def _astream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        async for message in self.talk(messages):
            yield ChatGenerationChunk(message=message)


async def _stream(model: TalkingModel, tap: RunTap) -> None:
    async for _ in model.astream("say", {"callbacks": [tap.handler]}):
        pass


async def test_tail_whose_reader_left_ends_without_a_word(command: Command, events_topic: MakeTopic) -> None:
    topic = await events_topic(partitions=1)
    await publish(command, topic, event(1))
    for options in (["--json"], []):
        with command.started("tail", "--from-beginning", *options) as process:
            await asyncio.to_thread(lines_of, process, 1)
            assert process.stdout is not None
            process.stdout.close()
            await publish(command, topic, event(2), event(3))
            assert process.stderr is not None
            assert await asyncio.to_thread(process.stderr.read) == ""
            assert await asyncio.to_thread(process.wait, 10) == 0
            # What `communicate` would read is closed.
            process.stdout = None


def test_tail_of_a_missing_topic_says_how_to_make_it(command: Command, topic_prefix: str) -> None:
    for words in (["tail"], ["alerts", "tail"]):
        ended = command.run(*words)
        assert ended.returncode == 1
        assert f"there is no topic {topic_prefix}." in ended.stderr
        assert "runtap topics create" in ended.stderr
    refused = command.run("tail", "--type", "run.finished")
    assert refused.returncode == 2
    assert "'run.finished'" in refused.stderr
    both = command.run("tail", "--tokens", "--json")
    assert (both.returncode, "do not go together" in both.stderr) == (2, True)


async def test_alerts_are_tailed(command: Command, topic_prefix: str, events_topic: MakeTopic) -> None:
    await events_topic(partitions=1)
    alert = an_alert()
    await publish(command, f"{topic_prefix}.alerts", encode_alert(alert), b"not an alert")
    with command.started("alerts", "tail", "--from-beginning") as process:
        lines = await asyncio.to_thread(lines_of, process, 2)
    assert lines[0] == (
        "10:00:00.000  firing    critical  service checkout: 20 of 30 root runs failed  trace trace-1\n"
    )
    assert "unreadable  partition 0, offset 1" in lines[1]
    with command.started("alerts", "tail", "--from-beginning", "--json") as process:
        lines = await asyncio.to_thread(lines_of, process, 2)
    assert json.loads(lines[0])["id"] == alert.id
    assert json.loads(lines[1])["type"] == "unreadable"
