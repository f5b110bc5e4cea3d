"""A process beside the workers that needs no store: it takes what Kafka has to somebody else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from runtap_consumers.errors import KafkaUnavailableError
from runtap_consumers.kafka.client_log import watch_client_log
from runtap_consumers.replies import pause_seconds
from runtap_consumers.worker.health import Health, serve_health

_ROUND_SECONDS = 1.0


async def run_side_process(
    work: Callable[[asyncio.Event, Health], Awaitable[None]], health_at: tuple[str, int] | None
) -> None:
    """Runs work, which gets what stops it and where it notes its health, until SIGTERM or SIGINT.

    Raises:
        HealthPortError: health cannot be served there.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health = Health((), waiting_for=None)
    server = None if health_at is None else serve_health(health, *health_at)
    watch_client_log(is_silent=False)
    try:
        await work(stop, health)
    finally:
        if server is not None:
            server.should_exit = True


async def work_until(stop: asyncio.Event, health: Health, works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs side by side what never ends by itself, until `stop` is set; raises what one of them dies of."""
    tasks = [asyncio.create_task(work) for work in works]
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            done, _ = await asyncio.wait({*tasks, stopping}, timeout=_ROUND_SECONDS, return_when="FIRST_COMPLETED")
            for task in done:
                task.result()
            health.iterated()
    finally:
        for task in (*tasks, stopping):
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)


async def outlast(work: Callable[[], Awaitable[None]], note: Callable[[str], None]) -> None:
    """Begins work again whenever Kafka was away, and notes why."""
    while True:
        try:
            await work()
        except KafkaUnavailableError as error:
            note(str(error))
        await asyncio.sleep(pause_seconds(3))
