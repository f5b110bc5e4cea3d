"""Batches that expand to far more than they weigh: dead letters, and a worker that stays small and goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cramjam
import pytest
from aiokafka import AIOKafkaProducer
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from runtap_consumers.kafka import decompression
from runtap_consumers.kafka.decompression import MAX_BATCH_BYTES, BatchTooLargeError, PollTooLargeError, begin_poll
from samples import framed, model_call
from worker_process import WorkerSetting, wait_until

MakeTopic = Callable[..., Awaitable[str]]
CODECS = ("gzip", "snappy", "lz4", "zstd")


def encoded(codec: str, value: bytes) -> bytes:
    import aiokafka.codec

    return bytes(getattr(aiokafka.codec, f"{codec}_encode")(value))


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_gives_what_is_within_the_limit_and_nothing_beyond(codec: str) -> None:
    decode = getattr(decompression._Decompression(), f"{codec}_decode")
    for value in (b"", b"one", os.urandom(100_000), bytes(MAX_BATCH_BYTES)):
        assert decode(memoryview(encoded(codec, value))) == value
        begin_poll()
    with pytest.raises(BatchTooLargeError):
        decode(encoded(codec, bytes(MAX_BATCH_BYTES + 1)))


def test_snappy_without_blocks_is_read_and_limited() -> None:
    decode = decompression._Decompression().snappy_decode
    assert decode(bytes(cramjam.snappy.compress_raw(b"abc" * 1_000))) == b"abc" * 1_000
    with pytest.raises(BatchTooLargeError):
        decode(bytes(cramjam.snappy.compress_raw(bytes(MAX_BATCH_BYTES + 1))))


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_broken_is_broken(codec: str) -> None:
    decode = getattr(decompression._Decompression(), f"{codec}_decode")
    with pytest.raises(Exception, match=r".") as raised:
        decode(b"\x82SNAPPY\x00 nothing of the kind")
    assert not isinstance(raised.value, BatchTooLargeError | PollTooLargeError)


def test_many_batches_within_the_limit_are_too_much_for_one_poll() -> None:
    limited = decompression._Decompression()
    payload = encoded("zstd", bytes(MAX_BATCH_BYTES))
    for _ in range(4):
        limited.zstd_decode(payload)
    with pytest.raises(PollTooLargeError):
        limited.zstd_decode(payload)


def peak_mib(pid: int) -> float:
    """The most memory that a process had. What `wait4` tells includes what this one had when it forked."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


async def send(kafka: str, topic: str, codec: str | None, values: list[bytes]) -> None:
    options: dict[str, Any] = {"compression_type": codec, "max_request_size": 2**30, "max_batch_size": 2**29}
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=50, **options)
    await producer.start()
    try:
        sent = [await producer.send(topic, value, key=b"key", partition=0) for value in values]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def test_a_worker_stays_small_and_goes_on_behind_bombs(
    kafka: str, topic_prefix: str, events_topic: MakeTopic, tmp_path: Path, processes: list[Any]
) -> None:
    topic = await events_topic(partitions=1)
    honest = [framed([model_call()], "e1", number) for number in range(1, 16)]
    await send(kafka, topic, None, honest[:5])
    # Two of 200 MiB, of one record and of a thousand; and thirty that are within the limit, one after the other.
    await send(kafka, topic, "zstd", [bytes(200 * 2**20)])
    await send(kafka, topic, "gzip", [bytes(200 * 2**10)] * 1_000)
    await send(kafka, topic, None, honest[5:10])
    for _ in range(30):
        await send(kafka, topic, "lz4", [bytes(15 * 2**20)])
    await send(kafka, topic, "zstd", honest[10:])
    end = 15 + 1 + 1_000 + 30
    setting = WorkerSetting(kafka, topic_prefix, f"sqlite:///{tmp_path}/runtap.db")
    worker = setting.start(tmp_path / "log")
    processes.append(worker)
    with create_engine(setting.store_url).connect() as connection:

        def position() -> int:
            try:
                found = connection.execute(text("SELECT min(next_offset) FROM positions")).scalar()
            except OperationalError:
                return 0
            finally:
                connection.rollback()
            return int(found or 0)

        await asyncio.to_thread(wait_until, lambda: position() == end, 60, "the end of the log")
        assert connection.execute(text("SELECT sum(calls) FROM cost_total")).scalar() == 15
        causes = list(connection.execute(text("SELECT cause FROM dead_letters ORDER BY log_offset")).scalars())
    assert peak_mib(worker.pid) <= 512
    assert causes[:2] == [
        f"offsets {first} to {last}: the batch expands to more than 16,777,216 bytes"
        for first, last in ((5, 5), (6, 1_005))
    ]
    assert len(causes) == 2 + 30
