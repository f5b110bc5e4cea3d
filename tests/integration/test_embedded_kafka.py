"""The embedded Kafka is a real one, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from runtap_demo.errors import ChildEndedError, KafkaJarsMissingError, PortTakenError
from runtap_demo.kafka import kafka_cache
from runtap_demo.kafka.broker import EmbeddedKafka


async def _create_topic(servers: str, replicas: int = 1) -> str:
    name = f"t-{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, replicas)])
    finally:
        await admin.close()
    return name


async def _produce(servers: str, topic: str, *values: bytes) -> list[int]:
    async with AIOKafkaProducer(bootstrap_servers=servers, acks="all", request_timeout_ms=4_000) as producer:
        return [(await producer.send_and_wait(topic, value)).offset for value in values]


async def _produce_whatever_it_takes(servers: str, topic: str, value: bytes) -> None:
    """A broker that is suspended or was killed may cost a client its whole timeout, and the attempt with it; what timed
    out may have been written all the same.
    """
    for _ in range(12):
        try:
            await _produce(servers, topic, value)
        except KafkaError as error:
            if not error.retriable:
                raise
        else:
            return
    pytest.fail("the two nodes left took nothing")


async def _read(servers: str, topic: str, count: int) -> list[bytes]:
    partition = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(bootstrap_servers=servers) as consumer:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        return [(await consumer.getone()).value for _ in range(count)]


async def _read_until(servers: str, topic: str, last: bytes) -> list[bytes]:
    partition = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(bootstrap_servers=servers) as consumer:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        found: list[bytes] = []
        while last not in found:
            found.append((await consumer.getone()).value)
        return found


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody has waited for yet is over all the same.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_acknowledged_records_are_read_back_with_the_brokers_time(kafka: str) -> None:
    topic = await _create_topic(kafka)
    assert await _produce(kafka, topic, b"one", b"two") == [0, 1]
    partition = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(bootstrap_servers=kafka) as consumer:
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        record = await consumer.getone()
    assert record.value == b"one"
    assert record.timestamp_type == 1  # LogAppendTime


async def test_a_topic_nobody_made_is_not_made_by_producing(kafka: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        name = f"unmade-{uuid.uuid4().hex}"
        await admin.describe_topics([name])
        assert name not in await admin.list_topics()
    finally:
        await admin.close()


async def test_log_in_a_folder_survives_stop_and_kill(tmp_path: Path) -> None:
    with EmbeddedKafka(tmp_path) as kafka:
        topic = await _create_topic(kafka.bootstrap_servers)
        await _produce(kafka.bootstrap_servers, topic, b"first")
        kafka.nodes[0].kill()
        with pytest.raises(ChildEndedError, match="exit code -9"):
            kafka.check()
        kafka.nodes[0].start()
        await _produce(kafka.bootstrap_servers, topic, b"second")
    with EmbeddedKafka(tmp_path) as kafka:
        assert await _produce(kafka.bootstrap_servers, topic, b"third") == [2]
        assert await _read(kafka.bootstrap_servers, topic, 3) == [b"first", b"second", b"third"]


async def test_temporary_folder_is_thrown_away() -> None:
    with EmbeddedKafka() as kafka:
        folder = kafka.nodes[0].folder
        pid = kafka.nodes[0].pid
        assert folder.exists()
    assert not folder.parent.exists()
    assert not _is_running(pid)


@pytest.mark.long
async def test_three_nodes_replicate_and_outlive_the_loss_of_one() -> None:
    with EmbeddedKafka(nodes=3) as kafka:
        topic = await _create_topic(kafka.bootstrap_servers, replicas=3)
        await _produce(kafka.bootstrap_servers, topic, b"with three")
        kafka.nodes[0].kill()
        await _produce_whatever_it_takes(kafka.bootstrap_servers, topic, b"with two")
        kafka.nodes[0].start()
        kafka.nodes[1].suspend()
        await _produce_whatever_it_takes(kafka.bootstrap_servers, topic, b"one suspended")
        kafka.nodes[1].resume()
        found = await _read_until(kafka.bootstrap_servers, topic, b"one suspended")
        assert list(dict.fromkeys(found)) == [b"with three", b"with two", b"one suspended"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("in_a_thread", [False, True])
def test_broker_dies_with_a_killed_parent_and_not_with_the_thread_that_started_it(in_a_thread: bool) -> None:
    program = f"""
import threading, time
from runtap_demo.kafka.broker import EmbeddedKafka
kafka = EmbeddedKafka()
if {in_a_thread}:
    thread = threading.Thread(target=kafka.start)
    thread.start()
    thread.join()
else:
    kafka.start()
time.sleep(0.3)
kafka.check()
print(kafka.nodes[0].pid, kafka.nodes[0].folder.parent, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split(maxsplit=1)
        assert "kafka.Kafka" in Path(f"/proc/{pid}/cmdline").read_text()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while _is_running(int(pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _is_running(int(pid))
        subprocess.run(["rm", "-rf", folder.strip()], check=True)
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()


@pytest.mark.alone
def test_starts_within_two_seconds() -> None:
    with EmbeddedKafka():
        pass  # whatever is made once is there now
    times = []
    for _ in range(3):
        begin = time.monotonic()
        with EmbeddedKafka():
            times.append(time.monotonic() - begin)
    assert min(times) < 2


def test_a_setting_that_kafka_refuses_fails_with_the_end_of_its_log() -> None:
    with pytest.raises(ChildEndedError) as caught:
        EmbeddedKafka(settings={"num.io.threads": "many"}).start()
    assert str(caught.value).startswith("Kafka node 1 ended with exit code")
    assert "Invalid value many for configuration num.io.threads" in str(caught.value)


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            EmbeddedKafka(port=port).start()
    assert caught.value.port == port


def test_without_cache_and_without_a_way_to_the_jars_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTAP_KAFKA_CACHE", str(tmp_path / "cache"))
    # Nothing listens on port 1: a machine without a network.
    monkeypatch.setattr(kafka_cache, "MAVEN_CENTRAL_URL", "http://127.0.0.1:1")
    with pytest.raises(KafkaJarsMissingError) as caught:
        EmbeddedKafka().start()
    assert caught.value.version == kafka_cache.KAFKA_VERSION
    for advice in ("jgo", "RUNTAP_KAFKA_CACHE", "--bootstrap-servers"):
        assert advice in str(caught.value)
    assert os.listdir(tmp_path / "cache") == []
