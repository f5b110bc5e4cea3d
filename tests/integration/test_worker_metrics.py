"""What Prometheus scrapes of a worker, over HTTP."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import pytest
from aiokafka import TopicPartition

from partition_setting import WorkerTools
from prometheus_tools import check_with_promtool
from runtap_consumers.kafka import partition_reader
from runtap_consumers.pricing.source import PriceSource
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_consumers.worker.assigned import Assigned
from runtap_consumers.worker.health import Health, serve_health
from runtap_consumers.worker.worker import Worker
from runtap_demo.kafka.ports import free_ports
from samples import START_NS, Log, model_call
from simulation import SimulatedClient, World


def scrape(health: Health) -> str:
    (port,) = free_ports(1)
    server = serve_health(health, "127.0.0.1", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            return str(answer.read().decode())
    finally:
        server.should_exit = True


def samples_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_worker_tells_its_lag_its_work_and_its_waits() -> None:
    health = Health(("cost", "runs"), waiting_for=None)
    health.lags = {0: {"cost": 3, "runs": 0}, 7: {}}
    health.committed(records=2, events=20, dead_letters=1, seconds=0.25)
    health.committed(records=3, events=30, dead_letters=0, seconds=0.5)
    health.fenced, health.backoffs = 4, 5
    text = scrape(health)
    assert samples_of(text) == [
        'runtap_worker_lag_records{partition="0",projection="cost"} 3.0',
        'runtap_worker_lag_records{partition="0",projection="runs"} 0.0',
        "runtap_worker_ready 1.0",
        "runtap_worker_commit_seconds_count 2.0",
        "runtap_worker_commit_seconds_sum 0.75",
        "runtap_worker_records_total 5.0",
        "runtap_worker_events_total 50.0",
        "runtap_worker_dead_letters_total 1.0",
        "runtap_worker_fenced_total 4.0",
        "runtap_worker_backoffs_total 5.0",
    ]
    check_with_promtool(text.encode())


def test_one_that_does_not_work_is_not_ready_and_knows_no_lag() -> None:
    samples = samples_of(scrape(Health(("cost",))))
    assert "runtap_worker_ready 0.0" in samples
    assert not any("lag" in sample for sample in samples)


def test_projections_that_are_apart_have_lags_of_their_own(tools: WorkerTools) -> None:
    log = Log()
    for number in range(1, 6):
        log.append(model_call(START_NS + number), "e", number)
    tools.apply(log, projections=["cost", "ledger"])
    partition = tools.apply(Log(), projections=["cost", "ledger", "runs"])
    assert Assigned(partition).lags(7) == {"cost": 2, "ledger": 2, "runs": 7}
    assert Assigned(partition).lags(None) == Assigned().lags(7) == {}


async def test_commits_dead_letters_and_lag_are_counted_as_they_come(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_reader, "AIOKafkaConsumer", SimulatedClient)
    world = SimulatedClient.world = World(1)
    log = world.logs[0]
    log.append_frame([model_call(START_NS + number) for number in range(4)], "e", 1)
    log.append_value(b"no frame")
    log.append(model_call(START_NS + 9), "e", 5)
    projections = ("cost", "ledger")
    # A record a commit.
    settings = ConsumerSettings.load(commit_events=1)
    health = Health(projections, waiting_for=None)
    worker = Worker(settings, projections, store, PriceSource(settings), health, asyncio.Event())
    place = TopicPartition(store.events_topic, 0)
    client: Any = worker._reader._consumer
    client.assign([place])
    worker._reader._listener.on_partitions_assigned({place})
    worker._take_assignment()
    worker._update_health()
    assert (health.lags, health.lag) == ({0: {}}, None)
    seen = []
    for _ in range(3):
        await worker._work_on(0, worker._assigned[0])
        worker._update_health()
        seen.append((health.records_applied, health.events_applied, health.dead_letters, health.commits, health.lag))
        assert health.lags == {0: dict.fromkeys(projections, health.lag)}
    # What cannot be read counts as an event of its record.
    assert seen == [(1, 4, 0, 1, 2), (2, 5, 1, 2, 1), (3, 6, 1, 3, 0)]
    assert health.commit_seconds > 0
    client.fails_next_poll = True
    log.append(model_call(START_NS + 10), "e", 6)
    await worker._work_on(0, worker._assigned[0])
    worker._update_health()
    assert (health.backoffs, health.commits, health.lags) == (1, 3, {0: {}})
    worker._thread.shutdown(wait=True)
    worker._writer.close()
