"""A worker process: what it opens, what runs side by side in it, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from runtap_consumers.errors import KafkaAwayError, StoreAwayError
from runtap_consumers.kafka.client import TopicEnds
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_consumers.kafka.topics import check_times
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store
from runtap_consumers.worker.health import Health, serve_health
from runtap_consumers.worker.worker import PriceFeed, SideTask, Worker
from runtap_schemas import SettingsError
from runtap_schemas.topics import events_topic

logger = structlog.get_logger(__name__)

# How long `--drain` waits for Kafka and the store, and how often they are asked.
_DRAIN_WAITS_SECONDS, _ASK_AGAIN_SECONDS = 30.0, 1.0
_LOOK_AT_FILE_SECONDS = 5.0

Companion = Callable[[Store, asyncio.Event, Callable[[], None]], Coroutine[Any, Any, None]]


async def run_worker(
    settings: ConsumerSettings,
    projections: tuple[str, ...],
    prices: PriceFeed,
    *,
    companion: Companion | None = None,
    side_tasks: Sequence[SideTask] = (),
    drain: bool = False,
    health_at: tuple[str, int] | None = None,
) -> int:
    """Runs projections, and a companion if there is one, until SIGTERM or SIGINT.

    Args:
        settings: where Kafka and the store are.
        projections: names of `runtap_consumers.projections.PROJECTIONS`; empty for the companion alone.
        prices: what calls cost.
        companion: what runs beside the projections, such as the alert evaluator: gets the store, what stops it, and
            what to call after each of its rounds.
        side_tasks: what runs for as long as the projections do.
        drain: stop when every partition is applied up to the end that it had at the start. Kafka and the store are
            waited for, for half a minute then, else for as long as it takes.
        health_at: host and port of health, `None` for nowhere.

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
    health = Health(projections)
    server = serve_health(health, *health_at) if health_at is not None else None
    store: Store | None = None
    try:
        store = await _wait_for_servers(settings, health, stop, _DRAIN_WAITS_SECONDS if drain else math.inf)
        if store is not None:
            # From here on only the client's log says why Kafka cannot be reached.
            watch_client_log(is_silent=False)
            tasks = [asyncio.create_task(_watch_file(store, stop), name="file")]
            if projections:
                worker = Worker(settings, projections, store, prices, health, stop, side_tasks)
                tasks.append(asyncio.create_task(worker.run(drain), name="projections"))
            if companion is not None:
                health.evaluated = time.monotonic()
                on_round = partial(_note_round, health)
                tasks.append(asyncio.create_task(companion(store, stop, on_round), name="companion"))
            await _run_together(tasks, stop, health)
    finally:
        if server is not None:
            server.should_exit = True
        if store is not None:
            store.close()
        logger.info("worker_stopped", projections=projections, events_applied=health.events_applied)
    return 1 if health.failed else 0


async def _wait_for_servers(
    settings: ConsumerSettings, health: Health, stop: asyncio.Event, seconds: float
) -> Store | None:
    """The open store, once it and the topic are there; `None` where `stop` came first.

    What waiting cannot cure (credentials, rights, another store's topic, an older schema) is raised at once.
    """
    topic, until = events_topic(settings.topic_prefix), time.monotonic() + seconds
    while not stop.is_set():
        try:
            # Before the store is made: one that was made for a misspelt topic would refuse the right one.
            async with TopicEnds(settings, topic) as ends:
                await ends.read()
            await check_times(settings)
            store = await asyncio.to_thread(open_store, settings.database_url, topic, settings.timezone)
        except (KafkaAwayError, StoreAwayError) as error:
            if time.monotonic() > until:
                raise
            if health.waiting_for != str(error):
                logger.warning("worker_waits", reason=str(error))
            health.waiting_for = str(error)
            health.iterated()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _ASK_AGAIN_SECONDS)
        else:
            health.waiting_for = "it joins its group" if health.projections else None
            health.iterated()
            return store
    return None


def _note_round(health: Health) -> None:
    health.evaluated = time.monotonic()
    # Where there are projections, their loop is the one that is watched.
    if not health.projections:
        health.lag = 0
        health.iterated()


async def _watch_file(store: Store, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await asyncio.to_thread(store.check_file)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _LOOK_AT_FILE_SECONDS)


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
