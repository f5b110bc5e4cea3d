"""Taps on real Kafka: what arrives, in which order, and whether the ledger balances."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.partitioner import DefaultPartitioner
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda

from runtap_collector import ConnectionConflictError, RunTap, SettingsError
from runtap_schemas import RunEnded, RunStarted, SessionEnded, SessionStarted
from topic_log import check_ledger, read_topic

MakeTopic = Callable[..., Awaitable[str]]


def _chain() -> Runnable[Any, Any]:
    usage: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    model = GenericFakeChatModel(messages=iter([AIMessage("two words", usage_metadata=usage) for _ in range(1_000)]))
    return ChatPromptTemplate.from_template("say {what}") | model | RunnableLambda(lambda message: message.content)


def _tap(kafka: str, prefix: str, **settings: Any) -> RunTap:
    return RunTap.from_env(bootstrap_servers=kafka, topic_prefix=prefix, **{"service": "tested", **settings})


async def test_mixed_runs_arrive_once_in_order_and_the_ledger_balances(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    async with _tap(kafka, topic_prefix) as tap:
        config: Any = {"callbacks": [tap.handler], "metadata": {"session_id": "s-1"}}
        for _ in range(20):
            _chain().invoke({"what": "hi"}, config)
        await _chain().abatch([{"what": "hi"}] * 20, config)
        delivery = await tap.aflush()
        # A start goes out where its run was open when the frame was closed.
        assert 160 <= delivery.sent <= 320
        assert (delivery.waiting, delivery.dropped) == (0, {})
        async for _ in _chain().astream({"what": "hi"}, config):
            pass
        failing: Runnable[int, float] = RunnableLambda(lambda x: 1 / x, name="divides")
        with pytest.raises(ZeroDivisionError):
            failing.invoke(0, config)
    logged = await read_topic(kafka, topic)
    report = check_ledger(logged)
    ended = [entry for entry in logged if isinstance(entry.event, RunEnded)]
    assert len(ended) == 41 * 4 + 1 == len({entry.event.run_id for entry in ended if isinstance(entry.event, RunEnded)})
    assert report.superseded + sum(isinstance(entry.event, RunStarted) for entry in logged) == len(ended)
    # Where every Kafka client would put it.
    assert {entry.partition for entry in logged} == {DefaultPartitioner()(logged[0].emitter.encode(), [*range(6)], [])}
    assert {entry.event.root_name for entry in ended if isinstance(entry.event, RunEnded)} == {
        "RunnableSequence",
        "divides",
    }
    assert Counter(entry.event.status for entry in ended if isinstance(entry.event, RunEnded)) == {
        "ok": 164,
        "error": 1,
    }
    stats = tap.stats()
    assert (stats.held_bytes, stats.waiting, stats.open_runs) == (0, 0, 0)
    assert stats.captured == stats.numbered + report.superseded == stats.acknowledged + stats.superseded


async def test_session_gives_its_runs_an_id_and_emits_start_and_end(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    step = RunnableLambda(lambda x: x)
    with _tap(kafka, topic_prefix) as tap:
        config: Any = {"callbacks": [tap.handler]}
        with tap.session("s-1", user_id="u-7", tags=["vip"], metadata={"plan": "gold"}):
            await asyncio.gather(*(step.ainvoke(1, config) for _ in range(3)))
            step.batch([1, 2], config)
            own: Any = {**config, "metadata": {"session_id": "own"}}
            step.invoke(1, own)
        step.invoke(1, config)
        tap.start_session("s-2")
        step.invoke(1, config)
        tap.end_session("s-2")
    logged = await read_topic(kafka, topic)
    check_ledger(logged)
    runs = [entry.event for entry in logged if isinstance(entry.event, RunEnded)]
    assert Counter((run.session_id, run.user_id) for run in runs) == {
        ("s-1", "u-7"): 5,
        ("own", "u-7"): 1,
        (None, None): 1,
        ("s-2", None): 1,
    }
    assert {(tuple(run.tags), run.metadata.get("plan")) for run in runs if run.session_id == "s-1"} == {
        (("vip",), "gold")
    }
    sessions = [entry for entry in logged if isinstance(entry.event, (SessionStarted, SessionEnded))]
    assert [(getattr(entry.event, "session_id", None), type(entry.event).__name__) for entry in sessions] == [
        ("s-1", "SessionStarted"),
        ("s-1", "SessionEnded"),
        ("s-2", "SessionStarted"),
        ("s-2", "SessionEnded"),
    ]


async def test_several_taps_share_one_emitter_and_the_last_close_ends_it(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    first, second = _tap(kafka, topic_prefix, service="a"), _tap(kafka, topic_prefix, service="b")
    with pytest.raises(ConnectionConflictError) as conflict:
        _tap(kafka, "another")
    assert conflict.value.differences == ["topic_prefix"]
    step = RunnableLambda(lambda x: x)
    for tap in (first, second):
        step.invoke(1, {"callbacks": [tap.handler]})
    first.close()
    step.invoke(1, {"callbacks": [second.handler]})
    delivery = second.close()
    assert second.close() == delivery
    logged = await read_topic(kafka, topic)
    check_ledger(logged)
    services = [entry.event.service for entry in logged if isinstance(entry.event, RunEnded)]
    assert sorted(services) == ["a", "b", "b"]
    captured = second.stats().captured
    step.invoke(1, {"callbacks": [second.handler]})
    # Nobody could be told any more.
    assert (second.stats().captured, second.stats().dropped) == (captured, {})
    assert len(await read_topic(kafka, topic)) == len(logged)


async def test_tap_made_after_the_last_close_is_a_new_emitter(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic()
    for _ in range(2):
        with _tap(kafka, topic_prefix) as tap:
            RunnableLambda(lambda x: x).invoke(1, {"callbacks": [tap.handler]})
    logged = await read_topic(kafka, topic)
    by_emitter: dict[str, list[Any]] = {}
    for entry in logged:
        by_emitter.setdefault(entry.emitter, []).append(entry)
    assert len(by_emitter) == 2
    for entries in by_emitter.values():
        check_ledger(entries)


async def test_open_run_is_seen_as_started(kafka: str, topic_prefix: str, events_topic: MakeTopic) -> None:
    topic = await events_topic(1)
    async with _tap(kafka, topic_prefix) as tap:

        async def look(x: int) -> int:
            await tap.aflush()
            return x

        await RunnableLambda(look, name="looks").ainvoke(1, {"callbacks": [tap.handler]})
    kinds = [type(entry.event).__name__ for entry in await read_topic(kafka, topic)]
    assert kinds[:2] == ["RunStarted", "RunEnded"]


async def test_events_wait_for_a_topic_that_is_made_later(
    kafka: str, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    tap = _tap(kafka, topic_prefix)
    RunnableLambda(lambda x: x).invoke(1, {"callbacks": [tap.handler]})
    delivery = await tap.aflush(6)
    assert (delivery.sent, delivery.waiting, delivery.spooled) == (0, 0, 1)
    (missing,) = [record.getMessage() for record in caplog.records if record.name.startswith("runtap")]
    assert "events_topic_missing" in missing
    assert "runtap topics create" in missing
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"{topic_prefix}.events", 2, 1)])
        delivery = await tap.aflush(15)
        assert (delivery.sent, delivery.waiting) == (1, 0)
        await tap.aclose()
        check_ledger(await read_topic(kafka, f"{topic_prefix}.events"))
        await admin.delete_topics([f"{topic_prefix}.events"])
    finally:
        await admin.close()


def test_unreadable_certificate_is_an_error_where_the_tap_is_made() -> None:
    with pytest.raises(SettingsError, match="RUNTAP_SSL_CAFILE"):
        RunTap.from_env(security_protocol="SSL", ssl_cafile="/nowhere/ca.pem")
