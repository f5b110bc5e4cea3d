"""The notifier: a task and a consumer group for every channel, so that none waits for another.

Kafka keeps how far a channel is. Its offset moves once the receiver has an alert, or has refused it for good.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import structlog

from runtap_consumers.alerts.channels import Channel
from runtap_consumers.alerts.rule_file import find_rules
from runtap_consumers.alerts.subscription import read_alert
from runtap_consumers.errors import InputError
from runtap_consumers.kafka.group_reader import group_reader
from runtap_consumers.kafka.record_tail import read_compacted, tail_records
from runtap_consumers.notify import alertmanager
from runtap_consumers.notify.target import Target
from runtap_consumers.notify.webhook import signed_headers, signer_of
from runtap_consumers.replies import pause_seconds
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.worker.health import Health
from runtap_consumers.worker.side_process import outlast, run_side_process, work_until
from runtap_schemas import Alert
from runtap_schemas.topics import alerts_state_topic, alerts_topic

_Request = tuple[bytes, dict[str, str]]

_logger = structlog.get_logger(__name__)


def channels_of(settings: ConsumerSettings) -> Sequence[Channel]:
    """The channels of the file of alert rules.

    Raises:
        AlertFileError: it cannot be read, or is wrong.
        InputError: it has no channel.
    """
    found = find_rules(settings.alerts, settings.cost_attributes)
    if not found.channels:
        raise InputError(
            f'{found.name}: there is no channel: write [[channel]], id = "on-call", kind = "webhook", '
            'url = "https://…", secret_env = "ON_CALL_SECRET" into alerts.toml (docs/alerts.md)'
        )
    return found.channels


async def run_notifier(
    settings: ConsumerSettings, channels: Sequence[Channel], health_at: tuple[str, int] | None
) -> None:
    """A process that sends alerts until SIGTERM or SIGINT, and serves its health there.

    Raises:
        SettingsError: a channel's secret is missing, or is none.
        HealthPortError: health cannot be served.
    """
    await run_side_process(partial(run_notify, settings, channels), health_at)


async def run_notify(
    settings: ConsumerSettings, channels: Sequence[Channel], stop: asyncio.Event, health: Health
) -> None:
    """Sends alerts to channels until `stop` is set. An outage of Kafka or of a receiver is logged once and waited out.

    Args:
        settings: how to reach Kafka.
        channels: where to.
        stop: ends it; a request under way is given up, and made again by who runs next.
        health: where deliveries are counted, and what channels wait for is noted.

    Raises:
        SettingsError: a channel's secret is missing, or is none.
    """
    couriers = [_Courier(settings, channel, health) for channel in channels]
    try:
        await work_until(stop, health, [work for courier in couriers for work in courier.works()])
    finally:
        for courier in couriers:
            await courier.close()


class _Courier:
    """Takes alerts to one channel."""

    def __init__(self, settings: ConsumerSettings, channel: Channel, health: Health) -> None:
        self._settings, self._channel, self._health = settings, channel, health
        self._last_id: str | None = None
        if channel.kind == "webhook":
            self._signer, self._target = signer_of(channel), Target(channel)
        else:
            token = channel.read_secret()
            headers = {} if token is None else {"authorization": f"Bearer {token}"}
            self._target = Target(channel, alertmanager.PATH, headers)
        self.close = self._target.close

    def works(self) -> list[Coroutine[Any, Any, None]]:
        """What runs side by side for it."""
        if self._channel.kind == "webhook":
            return [self._outlast(self._follow)]
        lease = alertmanager.FiringLease()
        return [self._outlast(self._follow), self._outlast(lambda: self._read_state(lease)), self._keep(lease)]

    async def _outlast(self, work: Callable[[], Awaitable[None]]) -> None:
        await outlast(work, lambda reason: self._note("kafka", reason))

    async def _follow(self) -> None:
        """Sends alerts one after the other; to an Alertmanager only those that have no end."""
        prefix = self._settings.topic_prefix
        async with group_reader(self._settings, alerts_topic(prefix), f"{prefix}.notify.{self._channel.id}") as reader:
            self._note("kafka", None)
            while True:
                record = await reader.read()
                alert = read_alert(record.value)
                if alert is None or not re.fullmatch(r"[!-~]+", alert.id):
                    self._count("unreadable")
                    _logger.warning("alert_unreadable", partition=record.partition, offset=record.offset)
                # Where Kafka went away before it had the offset, the record comes again.
                elif alert.id != self._last_id and (self._channel.kind == "webhook" or alert.status == "noticed"):
                    await self._send("alerts", partial(self._request, alert, record.value or b""), alert.id)
                    self._last_id = alert.id
                await reader.commit(record)

    def _request(self, alert: Alert, value: bytes) -> _Request:
        if self._channel.kind == "webhook":
            return value, signed_headers(self._signer, alert.id, value)
        return alertmanager.noticed_body(alert), {}

    async def _read_state(self, lease: alertmanager.FiringLease) -> None:
        topic = alerts_state_topic(self._settings.topic_prefix)
        latest, reached = await read_compacted(self._settings, topic)
        found = {key: read_alert(record.value) for key, record in latest.items()}
        lease.replace({key: alert for key, alert in found.items() if alert is not None})
        self._note("kafka", None)
        async with aclosing(tail_records(self._settings, topic, first=reached)) as records:  # type: ignore[type-var]
            async for record in records:
                alert = read_alert(record.value)
                # What cannot be read is no end of anything.
                if record.key is not None and (alert is not None or record.value is None):
                    lease.apply(record.key, alert)

    async def _keep(self, lease: alertmanager.FiringLease) -> None:
        """Tells an Alertmanager what has changed at once, and everything that fires each minute."""
        told: list[alertmanager.Told] = []

        def request() -> _Request:
            told[:] = lease.untold()
            return alertmanager.lease_body(told), {}

        await lease.changed.wait()
        renew_at = 0.0
        while True:
            if time.monotonic() >= renew_at:
                lease.renew()
                renew_at = time.monotonic() + alertmanager.INTERVAL_SECONDS
            if lease.untold():
                await self._send("lease", request)
                lease.was_told(told)
            with suppress(TimeoutError):
                async with asyncio.timeout(renew_at - time.monotonic()):
                    await lease.changed.wait()

    async def _send(self, work: str, request: Callable[[], _Request], alert_id: str | None = None) -> None:
        """Sends until the receiver has answered that it has it, or does not want it."""
        failures = 0
        while (answer := await self._target.post(*request(), failures)).is_transient:
            failures += 1
            self._count("failed")
            self._note(work, answer.reason)
            await asyncio.sleep(pause_seconds(failures, answer.retry_after))
        self._count("delivered" if answer.is_delivered else "given_up")
        # A lease that was refused comes again in a minute.
        self._note(work, None if answer.is_delivered or alert_id is not None else answer.reason)
        if not answer.is_delivered and alert_id is not None:
            _logger.warning("alert_given_up", channel=self._channel.id, id=alert_id, reason=answer.reason)

    def _count(self, outcome: str) -> None:
        counted = self._health.notifications
        counted[self._channel.id, outcome] = counted.get((self._channel.id, outcome), 0) + 1

    def _note(self, work: str, reason: str | None) -> None:
        self._health.waits(f"{self._channel.id} ({work})", reason)
