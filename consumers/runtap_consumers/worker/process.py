"""A worker process: what it opens, what runs side by side in it, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from runtap_consumers.kafka.client import TopicEnds
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.worker.health import Health, serve_health
from runtap_consumers.worker.worker import PriceFeed, SideTask, Worker
from runtap_schemas import SettingsError
from runtap_schemas.topics import events_topic

logger = structlog.get_logger(__name__)

Companion = Callable[[Store, asyncio.Event, Callable[[], None]], Coroutine[Any, Any, None]]


async def run_worker(
    settings: ConsumerSettings,
    projections: tuple[str, ...],
    prices: PriceFeed,
    *,
    companion: Companion | None = None,
    side_tasks: Sequence[SideTask] = (),
    drain: bool = False,
    health_port: int | None = None,
) -> int:
    """Runs projections, and a companion if there is one, until SIGTERM or SIGINT.

    Args:
        settings: where Kafka and the store are.
        projections: names of `runtap_consumers.projections.PROJECTIONS`; empty for the companion alone.
        prices: what calls cost.
        companion: what runs beside the projections, such as the alert evaluator: gets the store, what stops it, and
            what to call after each of its rounds.
        side_tasks: what runs for as long as the projections do.
        drain: stop when every partition is applied up to the end that it had at the start.
        health_port: where to serve health, `None` for nowhere.

    Returns:
        The process's exit code.

    Raises:
        SettingsError: a projection of that name does not exist.
        StoreError: the store cannot be used.
        KafkaUnavailableError: Kafka, or the events topic, cannot be used.
        HealthPortError: health cannot be served at that port.
        WorkerStoppedError: nothing makes progress any more.
    """
    unknown = sorted(set(projections) - set(PROJECTIONS))
    if unknown:
        raise SettingsError(f"there is no projection {', '.join(unknown)}: expected of {', '.join(PROJECTIONS)}")
    # A batch keeps 100,000 objects alive and makes no cycles; looking for some takes a third of the fold by default.
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    topic = events_topic(settings.topic_prefix)
    # Before the store is made: one that was made for a misspelt topic would refuse the right one.
    async with TopicEnds(settings, topic) as ends:
        await ends.read()
    # From here on only the client's log says why Kafka cannot be reached.
    watch_client_log(is_silent=False)
    health = Health(projections)
    server = serve_health(health, health_port) if health_port is not None else None
    store = open_store(settings.database_url, topic, settings.timezone)
    try:
        tasks = []
        if projections:
            worker = Worker(settings, projections, store, prices, health, stop, side_tasks)
            tasks.append(asyncio.create_task(worker.run(drain), name="projections"))
        if companion is not None:
            # Health watches one loop: that of the projections where there are some.
            on_round = (lambda: None) if projections else health.iterated
            tasks.append(asyncio.create_task(companion(store, stop, on_round), name="companion"))
        await _run_together(tasks, stop, health)
    finally:
        if server is not None:
            server.should_exit = True
        store.close()
        logger.info("worker_stopped", projections=projections, events_applied=health.events_applied)
    return 1 if health.failed else 0


async def _run_together(tasks: list[asyncio.Task[None]], stop: asyncio.Event, health: Health) -> None:
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    # Whichever ends, drained or failed, ends the other.
    stop.set()
    if others:
        health.last_iteration = time.monotonic()
        await asyncio.wait(others, timeout=4)
    for task in (*done, *others):
        if not task.done():
            task.cancel()
        elif task.exception() is not None:
            raise task.exception()  # type: ignore[misc]
