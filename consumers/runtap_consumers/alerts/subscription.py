"""Alerts as an async iterator, for programs in Python."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

import msgspec

from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import Alert, decode_alert
from runtap_schemas.topics import alerts_state_topic, alerts_topic

# A repeat follows its first soon: after a crash of the evaluator.
_REMEMBERED_IDS = 10_000


async def subscribe(
    *,
    bootstrap_servers: str | None = None,
    topic_prefix: str | None = None,
    group: str | None = None,
    from_beginning: bool = False,
    firing_now: bool = False,
) -> AsyncIterator[Alert]:
    """Alerts as they come, each once; never ends by itself.

    Args:
        bootstrap_servers: Kafka; that of the settings (`RUNTAP_…`) where it is `None`, as all others are.
        topic_prefix: first part of the topics' names.
        group: a consumer group: Kafka keeps how far it is, an alert is done when the next one is asked for.
        from_beginning: begin with the oldest alert that is kept; a group that has begun goes on where it was.
        firing_now: begin with what fires now; these alerts may have come before.

    Raises:
        SettingsError: a setting cannot work.
        KafkaUnavailableError: Kafka or the topic cannot be reached.
    """
    # The client need not be loaded by whoever imports this.
    from runtap_consumers.kafka.client import TopicEnds
    from runtap_consumers.kafka.group_reader import group_reader
    from runtap_consumers.kafka.record_tail import TailedRecord, read_compacted, tail_records

    settings = ConsumerSettings.load(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    topic, seen = alerts_topic(settings.topic_prefix), dict[str, None]()

    def new_alerts(records: Iterable[TailedRecord]) -> list[Alert]:
        alerts = [alert for record in records if (alert := read_alert(record.value)) is not None]
        new = [alert for alert in alerts if alert.id not in seen and seen.setdefault(alert.id) is None]
        while len(seen) > _REMEMBERED_IDS:
            del seen[next(iter(seen))]
        return new

    # Before what fires is read, or what begins to fire in between would be missed.
    async with TopicEnds(settings, topic) as ends:
        first = {} if from_beginning else await ends.read()
    if firing_now:
        firing, _ = await read_compacted(settings, alerts_state_topic(settings.topic_prefix))
        for alert in new_alerts(firing.values()):
            yield alert
    if group is not None:
        async with group_reader(settings, topic, group, from_beginning) as reader:
            while True:
                record = await reader.read()
                for alert in new_alerts([record]):
                    yield alert
                await reader.commit(record)
    async with aclosing(tail_records(settings, topic, from_beginning, first)) as records:  # type: ignore[type-var]
        async for record in records:
            for alert in new_alerts([record]):
                yield alert


def read_alert(value: bytes | None) -> Alert | None:
    """The alert of a record of either topic; `None`: a tombstone, or nothing that this version can read."""
    try:
        return None if value is None else decode_alert(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
