"""Publishing, tailing, and what the client's errors become, on real Kafka."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.record.util import calc_crc32c

from runtap_consumers.errors import KafkaUnavailableError, RecordTooLargeError
from runtap_consumers.kafka.client import Publisher, TopicEnds, check_reading, within
from runtap_consumers.kafka.record_tail import TailedRecord, tail_records
from runtap_consumers.kafka.topics import check_topics, create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_demo.kafka.broker import EmbeddedKafka

MakeTopic = Callable[..., Awaitable[str]]


@asynccontextmanager
async def tailing(
    settings: ConsumerSettings, topic: str, from_beginning: bool = False
) -> AsyncIterator[list[TailedRecord]]:
    """The records that a tail has handed out so far; its error, if it had one, is raised at the end."""
    seen: list[TailedRecord] = []

    async def follow() -> None:
        async with aclosing(tail_records(settings, topic, from_beginning)) as records:  # type: ignore[type-var]
            async for record in records:
                seen.append(record)

    task = asyncio.create_task(follow())
    # It begins at the end that the topic has once it is connected.
    await asyncio.sleep(1)
    try:
        yield seen
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def settings_of(kafka: str) -> ConsumerSettings:
    return ConsumerSettings.load(bootstrap_servers=kafka)


async def test_published_records_are_tailed_with_key_headers_and_log_time(kafka: str, events_topic: MakeTopic) -> None:
    topic, settings = await events_topic(partitions=3), settings_of(kafka)
    async with Publisher(settings) as publisher, TopicEnds(settings, topic) as ends:
        await publisher.publish(topic, b"before", b"not seen")
        before_ns = time.time_ns()
        async with tailing(settings, topic) as seen:
            for number in range(10):
                await publisher.publish(topic, str(number).encode(), b"value", [("id", b"x")])
            await until(lambda: len(seen) == 10)
            assert sorted(int(record.key or b"") for record in seen) == list(range(10))
            assert {record.headers for record in seen} == {(("id", b"x"),)}
            assert all(before_ns - 10**9 < record.log_time_ns < time.time_ns() + 10**9 for record in seen)
        assert sum((await ends.read()).values()) == 11
    async with tailing(settings, topic, from_beginning=True) as seen:
        await until(lambda: len(seen) == 11)


async def add_partitions(kafka: str, topic: str) -> None:
    """Makes them 4, and writes a record into each."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_partitions({topic: NewPartitions(4)})
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for partition in range(4):
        await producer.send_and_wait(topic, b"value", key=b"added", partition=partition)
    await producer.stop()


async def test_tail_follows_partitions_that_are_added(kafka: str, events_topic: MakeTopic) -> None:
    topic, settings = await events_topic(partitions=1), settings_of(kafka)
    async with tailing(settings, topic) as seen, Publisher(settings) as publisher:
        await publisher.publish(topic, b"first", b"value")
        await add_partitions(kafka, topic)
        await until(lambda: {record.partition for record in seen} == {0, 1, 2, 3})
        assert len(seen) == 5


async def test_tail_of_a_topic_that_is_deleted_ends_with_its_name(kafka: str, events_topic: MakeTopic) -> None:
    topic, settings = await events_topic(partitions=2), settings_of(kafka)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        async with aclosing(tail_records(settings, topic)) as records:  # type: ignore[type-var]
            waiting = asyncio.ensure_future(anext(records))
            await asyncio.sleep(1)
            await admin.delete_topics([topic])
            with pytest.raises(KafkaUnavailableError, match=f"no topic {topic}"):
                await asyncio.wait_for(waiting, 20)
    finally:
        await admin.close()


async def make_again(settings: ConsumerSettings, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([topic])
    await admin.close()
    for _ in range(100):
        # For a moment the deleted one is still in the way.
        if (await create_topics(settings, 1, 1))[0].created:
            return
        await asyncio.sleep(0.1)


async def test_tail_goes_on_from_the_beginning_of_a_topic_that_was_made_again(
    kafka: str, topic_prefix: str, events_topic: MakeTopic
) -> None:
    topic = await events_topic(partitions=1)
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    async with Publisher(settings) as publisher:
        for number in range(10):
            await publisher.publish(topic, b"key", b"old-%d" % number)
    async with tailing(settings, topic, from_beginning=True) as seen:
        await until(lambda: len(seen) == 10)
        await make_again(settings, topic)
        async with Publisher(settings) as publisher:
            await publisher.publish(topic, b"key", b"new")
        await until(lambda: len(seen) == 11)
        assert (seen[-1].offset, seen[-1].value) == (0, b"new")


async def test_record_that_the_client_cannot_decode_is_shown_and_stepped_over(
    kafka: str, events_topic: MakeTopic
) -> None:
    topic, settings = await events_topic(partitions=1), settings_of(kafka)
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    await producer.send_and_wait(topic, b"good-0")
    batch = producer.create_batch()
    batch.append(key=b"key", value=b"odd", timestamp=None, headers=[("odd-name", b"x")])
    batch.close()
    raw = bytearray(bytes(batch._build()).replace(b"odd-name", b"odd-\xff\xfe\xfd\xfc"))
    # Bytes 17 to 20 are the checksum of all that follows.
    raw[17:21] = struct.pack(">I", calc_crc32c(bytes(raw[21:])))
    batch._buffer = raw
    await (await producer.send_batch(batch, topic, partition=0))
    await producer.send_and_wait(topic, b"good-2")
    await producer.stop()
    async with tailing(settings, topic, from_beginning=True) as seen:
        await until(lambda: len(seen) == 3)
        assert [(record.offset, record.value) for record in seen] == [(0, b"good-0"), (1, None), (2, b"good-2")]


async def test_unreachable_kafka_is_named_with_reason_and_remedy_at_once() -> None:
    settings = settings_of("127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(
        KafkaUnavailableError,
        match=r"cannot reach Kafka at 127\.0\.0\.1:1: .*Connect call failed.*RUNTAP_BOOTSTRAP_SERVERS",
    ):
        async with Publisher(settings):
            pass
    assert time.monotonic() - began < 2


async def test_silent_server_takes_five_seconds_at_most() -> None:
    held: list[asyncio.StreamWriter] = []
    # It takes connections and never answers.
    server = await asyncio.start_server(lambda _reader, writer: held.append(writer), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    began = time.monotonic()
    try:
        with pytest.raises(KafkaUnavailableError, match="RUNTAP_BOOTSTRAP_SERVERS"):
            await check_topics(settings_of(",".join([address] * 3)))
        assert time.monotonic() - began < 6
    finally:
        for writer in held:
            writer.close()
        server.close()


async def test_missing_topic_and_oversized_record_are_told_apart(kafka: str, events_topic: MakeTopic) -> None:
    topic, settings = await events_topic(), settings_of(kafka)
    async with Publisher(settings) as publisher:
        with pytest.raises(RecordTooLargeError, match=r"max\.message\.bytes"):
            await publisher.publish(topic, b"key", bytes(17 * 1024 * 1024))
        with pytest.raises(KafkaUnavailableError, match=r"no topic missing-1 .*runtap topics create"):
            await publisher.publish("missing-1", b"key", b"value")
        await publisher.publish(topic, b"key", b"and it still works")
    async with TopicEnds(settings, "missing-1") as ends:
        with pytest.raises(KafkaUnavailableError, match="no topic missing-1"):
            await ends.read()


async def test_wrong_password_is_told_although_the_client_hides_it() -> None:
    password_check = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    secured = {
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:SASL_PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config": (
            f'{password_check} username="broker" password="broker-pw" user_broker="broker-pw" user_worker="right";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:broker;User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
    }

    def settings(password: str, user: str = "worker") -> ConsumerSettings:
        return ConsumerSettings.load(
            bootstrap_servers=secure.bootstrap_servers,
            security_protocol="SASL_PLAINTEXT",
            sasl_username=user,
            sasl_password=password,
        )

    secure = EmbeddedKafka(settings=secured)
    await asyncio.to_thread(secure.start)
    try:
        with pytest.raises(KafkaUnavailableError, match="refused the credentials of worker") as caught:
            async with Publisher(settings("wrong")):
                pass
        assert "RUNTAP_SASL_PASSWORD" in str(caught.value)
        assert "wrong" not in str(caught.value)
        cluster = await check_topics(settings("right"))
        # What it may not see does not exist for it.
        assert not any(state.exists for state in cluster.topics)
        with pytest.raises(KafkaUnavailableError, match=r"worker has no right to use runtap\.events"):
            await check_reading(settings("right"), "runtap.events", "group")
        assert (await check_topics(settings("broker-pw", "broker"))).brokers == 1
    finally:
        await asyncio.to_thread(secure.stop)


async def test_a_client_that_cancels_its_own_call_does_not_cancel_the_caller() -> None:
    async def stop() -> None:
        # As aiokafka's consumer does with its fetches, where Kafka is away.
        fetch = asyncio.create_task(asyncio.sleep(10))
        await asyncio.sleep(0)
        fetch.cancel()
        await fetch

    with pytest.raises(TimeoutError):
        await within(5, stop())
