"""How long after its event was appended a figure is in the store, while events come at a steady rate.

An event is in the store once every projection's position has passed it, since positions and figures are one
transaction. A thread reads the positions every few milliseconds, which adds that much to what is measured. The append
time is the broker's, in whole milliseconds, read from the log afterwards.
"""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_right
from collections import defaultdict
from pathlib import Path

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import func, select
from worker_setting import Lane, new_producer, start_worker
from worker_streams import PARTITIONS, make_events

from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.store.tables import positions
from runtap_schemas import Frame, decode_frame
from runtap_schemas.topics import events_topic

_LOOK_EVERY_SECONDS = 0.005
# An emitter's linger at a rate like this.
_SEND_EVERY_SECONDS = 0.05


class _Watch(threading.Thread):
    """Notes when which position was seen, by partition."""

    def __init__(self, store: Store, projections: tuple[str, ...]) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._projections = projections
        self.offsets: dict[int, list[int]] = defaultdict(list)
        self.seen_at: dict[int, list[float]] = defaultdict(list)
        self.stopped = threading.Event()

    def run(self) -> None:
        statement = select(
            positions.c.partition, func.count().label("projections"), func.min(positions.c.next_offset).label("reached")
        ).group_by(positions.c.partition)
        while not self.stopped.wait(_LOOK_EVERY_SECONDS):
            with self._store.read() as connection:
                rows = connection.execute(statement).all()
            now = time.time()
            for row in rows:
                offsets = self.offsets[row.partition]
                if row.projections == len(self._projections) and (not offsets or row.reached > offsets[-1]):
                    offsets.append(row.reached)
                    self.seen_at[row.partition].append(now)


async def _send(settings: ConsumerSettings, stream: str, topic: str, rate: int, seconds: float) -> None:
    producer = new_producer(settings)
    await producer.start()
    events = make_events(stream, int(rate * seconds), rate)
    lanes = [Lane(partition) for partition in range(PARTITIONS)]
    try:
        began, sent = time.monotonic(), 0
        while sent < int(rate * seconds):
            while sent < min((time.monotonic() - began) * rate, rate * seconds):
                partition, event = next(events)
                lanes[partition].events.append(event)
                sent += 1
            await asyncio.gather(*(lane.send(producer, topic) for lane in lanes))
            await asyncio.sleep(_SEND_EVERY_SECONDS)
    finally:
        await producer.stop()


async def _append_times(settings: ConsumerSettings, topic: str) -> dict[int, list[tuple[float, int]]]:
    """When the broker appended each frame, in seconds, and how many events it has, by partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers)
    await consumer.start()
    try:
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        times: dict[int, list[tuple[float, int]]] = {number: [] for number in range(PARTITIONS)}
        while any(len(times[place.partition]) < ends[place] for place in places):
            for place, records in (await consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    frame = decode_frame(record.value)
                    assert isinstance(frame, Frame), frame
                    times[place.partition].append((record.timestamp / 1_000, frame.count))
        return times
    finally:
        await consumer.stop()


def measure_latency(
    settings: ConsumerSettings,
    store_url: str,
    stream: str,
    projections: tuple[str, ...],
    folder: Path,
    rate: int,
    seconds: float,
) -> tuple[list[float], float, float]:
    """Sends events of a stream at a rate while a worker runs; the topic must be empty.

    Returns:
        Each event's seconds from append to being seen in the store; the worker's share of a core; its peak MiB.
    """
    topic = events_topic(settings.topic_prefix)
    store = open_store(store_url, topic)
    watch = _Watch(store, projections)
    worker = start_worker(settings, store_url, projections, folder)
    began = time.monotonic()
    watch.start()
    try:
        # Its positions are there once it reads.
        while len(watch.offsets) < PARTITIONS:
            if worker.process.poll() is not None or time.monotonic() - began > 60:
                raise SystemExit(f"the worker does not read:\n{worker.log.read_text()[-3_000:]}")
            time.sleep(0.05)
        asyncio.run(_send(settings, stream, topic, rate, seconds))
        appended = asyncio.run(_append_times(settings, topic))
        deadline = time.monotonic() + 30
        while any(watch.offsets[number][-1] < len(times) for number, times in appended.items()):
            if time.monotonic() > deadline:
                raise SystemExit(f"the worker fell behind:\n{worker.log.read_text()[-3_000:]}")
            time.sleep(0.05)
    finally:
        watch.stopped.set()
        watch.join()
        worker.process.terminate()
        cpu, peak = worker.wait()
        store.close()
    latencies = [
        latency
        for number, times in appended.items()
        for offset, (at, count) in enumerate(times)
        for latency in [watch.seen_at[number][bisect_right(watch.offsets[number], offset)] - at] * count
    ]
    return latencies, cpu / (time.monotonic() - began), peak


def percentile(latencies: list[float], percent: float) -> float:
    """Seconds within which that many of a hundred are."""
    return float(np.percentile(latencies, percent))
