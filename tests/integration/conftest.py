"""What many of these tests begin with: a store, what folds into it, where processes find their servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from partition_setting import WorkerTools
from runtap_consumers.store.engine import Store, open_store
from worker_process import WorkerSetting


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An empty store, once on SQLite and once on PostgreSQL."""
    opened = open_store(store_url, "runtap.events", "UTC")
    yield opened
    opened.close()


@pytest.fixture
def tools(store: Store) -> Iterator[WorkerTools]:
    """What workers on that store need; each call of its `make` stands for another process."""
    made = WorkerTools(store)
    yield made
    made.close()


@pytest.fixture
def setting(kafka: str, topic_prefix: str, store_url: str) -> WorkerSetting:
    """Where `runtap` commands of this test find Kafka and an empty store."""
    return WorkerSetting(kafka, topic_prefix, store_url)


@pytest.fixture
def processes() -> Iterator[list[Any]]:
    """Processes to be killed at the test's end."""
    started: list[Any] = []
    yield started
    for process in started:
        process.kill()
        process.wait(10)
