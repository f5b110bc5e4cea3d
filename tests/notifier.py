"""A notifier in the test's own process, and alert topics for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from runtap_consumers.alerts.channels import Channel
from runtap_consumers.notify.loop import run_notify
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.worker.health import Health


@asynccontextmanager
async def notifying(settings: ConsumerSettings, *channels: Channel) -> AsyncIterator[Health]:
    """A notifier whose groups have begun, while the block runs."""
    stop, health = asyncio.Event(), Health((), waiting_for=None)
    running = asyncio.create_task(run_notify(settings, channels, stop, health))
    try:
        await await_groups(settings, [channel.id for channel in channels])
        yield health
    finally:
        stop.set()
        await asyncio.wait_for(running, 20)


async def await_groups(settings: ConsumerSettings, channels: Sequence[str]) -> None:
    """Waits until Kafka knows where each channel begins: what is published from now on is its."""
    admin = AIOKafkaAdminClient(**settings.client_options())
    await admin.start()
    try:
        async with asyncio.timeout(30):
            for channel in channels:
                while not await _offsets_of(admin, f"{settings.topic_prefix}.notify.{channel}"):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
    finally:
        await admin.close()


async def _offsets_of(admin: Any, group: str) -> Any:
    try:
        return await admin.list_consumer_group_offsets(group)
    except GroupCoordinatorNotAvailableError:
        # Kafka makes its topic of groups when it is first asked for one.
        return None
