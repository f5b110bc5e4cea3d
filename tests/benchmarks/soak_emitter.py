"""An outage at a steady rate: what the app feels, what memory it costs, and how soon everything is there afterwards.

    python soak_emitter.py --seconds 600 --rate 1000

Events are captured while a real broker is stopped; then it goes on, and the topic is counted. Exits with 1 where a bar
is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from measurement import print_machine
from rich.console import Console

from runtap_collector import RunTap
from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_schemas import EmitterReported, Frame, RunEnded, RunStarted, decode_frame

_MEMORY_BYTES = 32 * 1024 * 1024
_DRAIN_SECONDS = 60.0
_P99_MICROSECONDS = 100.0
_PARTITIONS = 6


def memory_bytes() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def capture_runs(tap: RunTap, seconds: float, rate: float) -> tuple[int, list[float], int]:
    """Starts and ends runs at a steady rate.

    Returns:
        How many, the seconds of every callback, and the most memory that the process held.
    """
    handler: Any = tap.handler
    took: list[float] = []
    began = time.perf_counter()
    runs, most_bytes = 0, 0
    while (elapsed := time.perf_counter() - began) < seconds:
        while runs < elapsed * rate:
            run_id = uuid.uuid4()
            at = time.perf_counter()
            handler.on_chain_start(None, {}, run_id=run_id, name="soaked", metadata={"session_id": f"s-{runs % 50}"})
            between = time.perf_counter()
            handler.on_chain_end({}, run_id=run_id)
            if not runs % 8:
                took += [between - at, time.perf_counter() - between]
            runs += 1
        most_bytes = max(most_bytes, memory_bytes()) if not runs % 50 else most_bytes
        time.sleep(0.005)
    return runs, took, most_bytes


async def count_runs(bootstrap_servers: str) -> tuple[int, int, int]:
    """Ended runs in the topic, how many different ones, and starts."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    partitions = [TopicPartition("soak.events", number) for number in range(_PARTITIONS)]
    consumer.assign(partitions)
    ends = await consumer.end_offsets(partitions)
    ended, starts = 0, 0
    run_ids: set[int] = set()
    while any([await consumer.position(partition) < end for partition, end in ends.items()]):
        for records in (await consumer.getmany(timeout_ms=1_000)).values():
            for record in records:
                frame = decode_frame(record.value)
                assert isinstance(frame, Frame), frame
                for event in frame.events():
                    assert isinstance(event, (RunEnded, RunStarted, EmitterReported)), event
                    ended += isinstance(event, RunEnded)
                    starts += isinstance(event, RunStarted)
                    if isinstance(event, RunEnded):
                        run_ids.add(uuid.UUID(event.run_id).int)
    await consumer.stop()
    return ended, len(run_ids), starts


def main() -> int:
    """Soaks, and judges."""
    parser = argparse.ArgumentParser(description="An outage at a steady rate")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=1_000, help="ended runs a second")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=150)
    print_machine(console, "runtap", "aiokafka")
    with EmbeddedKafka() as kafka, tempfile.TemporaryDirectory() as spool:
        settings = ConsumerSettings.load(bootstrap_servers=kafka.bootstrap_servers, topic_prefix="soak")
        asyncio.run(create_topics(settings, partitions=_PARTITIONS, replication_factor=1))
        tap = RunTap.from_env(bootstrap_servers=kafka.bootstrap_servers, topic_prefix="soak", spool_dir=spool)
        up_runs, up, _ = capture_runs(tap, min(20.0, arguments.seconds / 8), arguments.rate)
        tap.flush(10)
        before_bytes = memory_bytes()
        kafka.nodes[0].suspend()
        away_runs, away, most_bytes = capture_runs(tap, arguments.seconds, arguments.rate)
        spool_bytes = sum(path.stat().st_size for path in Path(spool).rglob("*") if path.is_file())
        kafka.nodes[0].resume()
        began = time.perf_counter()
        delivery = tap.flush(2 * _DRAIN_SECONDS)
        drained_seconds = time.perf_counter() - began
        tap.close(10)
        ended, different, starts = asyncio.run(count_runs(kafka.bootstrap_servers))
    lost = up_runs + away_runs - different
    p50, p99 = (sorted(away)[int(len(away) * share)] * 1e6 for share in (0.5, 0.99))
    up_p99 = sorted(up)[int(len(up) * 0.99)] * 1e6
    console.print(f"{away_runs:,} runs in {arguments.seconds:.0f} s without Kafka, {up_runs:,} before")
    console.print(f"lost {lost}, repeats {ended - different}, starts {starts:,}, {delivery}")
    console.print(f"callback: p50 {p50:.1f} µs, p99 {p99:.1f} µs; with Kafka p99 {up_p99:.1f} µs")
    console.print(f"memory +{(most_bytes - before_bytes) / 2**20:.1f} MiB at most, spool {spool_bytes / 2**20:.1f} MiB")
    console.print(f"drained {drained_seconds:.1f} s after the return")
    missed = [
        name
        for name, is_met in (
            ("nothing lost", lost == 0 and not delivery.dropped),
            ("memory", most_bytes - before_bytes <= _MEMORY_BYTES),
            ("drained", drained_seconds <= _DRAIN_SECONDS),
            # A busy machine is slow with Kafka too.
            ("callback p99", p99 <= max(_P99_MICROSECONDS, 1.5 * up_p99)),
        )
        if not is_met
    ]
    console.print(f"missed: {', '.join(missed)}" if missed else "every bar met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
