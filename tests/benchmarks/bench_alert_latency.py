"""How long after a callback the alert about it is in Kafka, for costs and for counts, at a steady rate of events.

    python tests/benchmarks/bench_alert_latency.py [--rate 1000] [--seconds 90]

One process calls the handler as LangChain does, another is `runtap worker` on SQLite, Kafka a third. Every 1.5 s a user
and a model are called for that were not before: a rule about each fires at once. What is measured ends with the
broker's append time of the alert.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from rich.console import Console

from runtap_collector import RunTap
from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.settings import ConsumerSettings
from runtap_demo.kafka.broker import EmbeddedKafka
from runtap_schemas import decode_alert

RULES = """
[[rule]]
id = "cost"
what = "cost"
window = "1h"
above = "0.000001"
group_by = ["user"]

[[rule]]
id = "calls"
what = "calls"
window = "5m"
above = "1"
group_by = ["model"]
"""
_EVERY_SECONDS = 1.5
console = Console(highlight=False, width=150)


def call(handler: Any, model: str, user: str | None) -> None:
    """One model call, by the callbacks that LangChain makes."""
    run_id = uuid.uuid4()
    metadata = {"ls_provider": "openai", "ls_model_name": model, **({"user_id": user} if user else {})}
    handler.on_chat_model_start({"name": "ChatOpenAI"}, [[]], run_id=run_id, metadata=metadata)
    usage = {"input_tokens": 200, "output_tokens": 50, "total_tokens": 250}
    message = AIMessage("ok", usage_metadata=usage, response_metadata={"model_name": model})
    handler.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=run_id)


def drive(tap: RunTap, rate: int, seconds: float, first: str) -> dict[str, float]:
    """Calls at a rate; returns when each name that was new, beginning with `first`, had been called, Unix seconds."""
    handler, called = tap.handler, dict[str, float]()
    began, done, due = time.monotonic(), 0, 0.0
    while (elapsed := time.monotonic() - began) < seconds:
        while done < elapsed * rate:
            call(handler, "gpt-4o-mini", None)
            done += 1
        if elapsed >= due:
            due += _EVERY_SECONDS
            name = f"{first}-{len(called):04}"
            call(handler, "gpt-4o-mini", name)
            called[f"cost?user={name}"] = time.time()
            call(handler, name, None)
            called[f"calls?model={name}"] = time.time()
        time.sleep(0.002)
    return called


async def read_alerts(settings: ConsumerSettings) -> dict[str, float]:
    """When each alert was appended, by its key, Unix seconds."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers)
    await consumer.start()
    try:
        partition, found = TopicPartition(f"{settings.topic_prefix}.alerts", 0), dict[str, float]()
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        while await consumer.position(partition) < end:
            for record in (await consumer.getmany(partition, timeout_ms=500)).get(partition, []):
                alert = decode_alert(record.value)
                if alert.status == "firing":
                    found.setdefault(alert.key, record.timestamp / 1_000)
        return found
    finally:
        await consumer.stop()


def say(title: str, seconds: list[float], wanted: int) -> None:
    shares = {f"p{percent}": float(np.percentile(seconds, percent)) for percent in (50, 90, 95, 99)}
    shown = ", ".join(f"{name} {value:.2f}" for name, value in shares.items())
    console.print(f"{title:6} {len(seconds)} of {wanted}: {shown}, {min(seconds):.2f} to {max(seconds):.2f} s")


def run(kafka: str, folder: Path, rate: int, seconds: float) -> None:
    rules = folder / "alerts.toml"
    rules.write_text(RULES)
    prefix = f"bench-{uuid.uuid4().hex[:8]}"
    url = f"sqlite:///{folder / 'runtap.db'}"
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=prefix, database_url=url)
    asyncio.run(create_topics(settings, 6, 1))
    environment = {
        **os.environ,
        "RUNTAP_BOOTSTRAP_SERVERS": kafka,
        "RUNTAP_TOPIC_PREFIX": prefix,
        "RUNTAP_DATABASE_URL": url,
        "RUNTAP_ALERTS": str(rules),
    }
    log = (folder / "worker.log").open("wb")
    with (
        closing(log),
        subprocess.Popen(
            [sys.executable, "-m", "runtap_consumers", "worker"], env=environment, stdout=log, stderr=log
        ) as worker,
    ):
        try:
            spool = str(folder / "spool")
            with closing(RunTap.from_env(bootstrap_servers=kafka, topic_prefix=prefix, spool_dir=spool)) as tap:
                # Until the worker reads and the alert evaluator judges.
                drive(tap, rate, 15, "early")
                called = drive(tap, rate, seconds, "new")
                time.sleep(5)
                found = asyncio.run(read_alerts(settings))
        finally:
            worker.terminate()
    for rule in ("cost", "calls"):
        keys = [key for key in called if key.startswith(rule)]
        say(rule, [found[key] - called[key] for key in keys if key in found], len(keys))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=90)
    arguments = parser.parse_args()
    console.print(f"Python {platform.python_version()}; {arguments.rate:,} events/s, seconds from callback to alert")
    with EmbeddedKafka() as kafka, tempfile.TemporaryDirectory() as folder:
        run(kafka.bootstrap_servers, Path(folder), arguments.rate, arguments.seconds)


if __name__ == "__main__":
    main()
