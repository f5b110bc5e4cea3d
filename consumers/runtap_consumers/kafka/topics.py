"""Making runtap's topics, and telling how those that exist differ from what it relies on."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidReplicationFactorError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from runtap_consumers.errors import KafkaUnavailableError
from runtap_consumers.kafka.client import client_options, running, translated, within
from runtap_schemas import ConnectionSettings
from runtap_schemas.topics import Topic, all_topics, events_topic

DEFAULT_PARTITIONS = 6
DEFAULT_REPLICATION_FACTOR = 3
# With three replicas: what is acknowledged is on two machines, and one may be down.
_MIN_INSYNC = "min.insync.replicas"
_TIMES, _APPEND_TIME = "message.timestamp.type", "LogAppendTime"
_CALL_SECONDS = 15.0
# The emitter's batches are at most a quarter of this, before compression.
LEAST_MESSAGE_BYTES = 1_048_576


class SettingDifference(NamedTuple):
    """A setting of a topic that is not what runtap would have made."""

    setting: str
    found: str
    wanted: str


@dataclass(frozen=True)
class TopicState:
    """A topic on Kafka. `partitions` is 0 where there is none; `settings` is empty where they may not be read."""

    topic: Topic
    created: bool = False
    partitions: int = 0
    replication_factor: int = 0
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether it is there."""
        return self.partitions > 0

    def differences(
        self, replication_factor: int | None = None, partitions: int | None = None
    ) -> list[SettingDifference]:
        """Settings that differ from those that runtap would have made. Longer retention is no difference.

        Args:
            replication_factor: the wished one; `None`: that of the topic is right.
            partitions: likewise, of the events topic.
        """
        wanted = wanted_settings(self.topic, replication_factor or self.replication_factor)
        found = [
            SettingDifference(name, self.settings[name], value)
            for name, value in wanted.items()
            if name in self.settings and self.settings[name] != value and not self._keeps_longer(name, value)
        ]
        largest = int(self.settings.get("max.message.bytes", LEAST_MESSAGE_BYTES))
        if largest < LEAST_MESSAGE_BYTES:
            found.append(SettingDifference("max.message.bytes", str(largest), f"at least {LEAST_MESSAGE_BYTES}"))
        if replication_factor and self.replication_factor != replication_factor:
            found.append(SettingDifference("replication factor", str(self.replication_factor), str(replication_factor)))
        if partitions and self.topic.partitions is None and self.partitions != partitions:
            found.append(SettingDifference("partitions", str(self.partitions), str(partitions)))
        return found

    def _keeps_longer(self, name: str, wanted: str) -> bool:
        found = self.settings[name]
        return name == "retention.ms" and (found == "-1" or int(found) > int(wanted))


@dataclass(frozen=True)
class ClusterState:
    """What Kafka says of itself and of runtap's topics."""

    brokers: int
    version: str
    topics: list[TopicState]


def wanted_settings(topic: Topic, replication_factor: int) -> dict[str, str]:
    """The settings of a topic that has so many replicas."""
    return {**topic.settings, **({_MIN_INSYNC: "2"} if replication_factor >= 3 else {})}


async def create_topics(
    settings: ConnectionSettings,
    partitions: int = DEFAULT_PARTITIONS,
    replication_factor: int = DEFAULT_REPLICATION_FACTOR,
) -> list[TopicState]:
    """Makes the topics that do not exist, the events topic with so many partitions; the others do not change.

    Returns:
        All of them as they are now; `differences` tells how that is not as wished.
    """
    async with running(AIOKafkaAdminClient(**client_options(settings)), settings) as admin:
        with translated(settings):
            existing = set(await within(_CALL_SECONDS, admin.list_topics()))
        missing = [topic for topic in all_topics(settings.topic_prefix) if topic.name not in existing]
        created = await _create(admin, settings, missing, partitions, replication_factor)
        states = await _read_topics(admin, settings, created)
        return [replace(state, created=state.topic.name in created) for state in states]


async def _create(
    admin: Any, settings: ConnectionSettings, missing: list[Topic], partitions: int, replication_factor: int
) -> set[str]:
    if not missing:
        return set()
    wished = [
        NewTopic(
            topic.name,
            topic.partitions or partitions,
            replication_factor,
            topic_configs=wanted_settings(topic, replication_factor),
        )
        for topic in missing
    ]
    with translated(settings):
        response = await within(_CALL_SECONDS, admin.create_topics(wished))
    created = set()
    for name, code, message in response.topic_errors:
        error = for_code(code)
        if code == 0:
            created.add(name)
        elif error is not TopicAlreadyExistsError:
            raise KafkaUnavailableError(_explain_refusal(settings, name, error, message, replication_factor))
    return created


def _explain_refusal(
    settings: ConnectionSettings, name: str, error: type[Exception], message: str | None, replication_factor: int
) -> str:
    said = f"Kafka at {settings.bootstrap_servers} did not make topic {name}: {(message or error.__name__).rstrip('.')}"
    if error is InvalidReplicationFactorError:
        return (
            f"topic {name} was not made: {replication_factor} replicas need as many brokers, and Kafka at "
            f"{settings.bootstrap_servers} has fewer. On a single broker give --replication-factor 1: one copy of each "
            f"record, which is lost with that broker. Kafka says: {(message or error.__name__).rstrip('.')}"
        )
    if error in (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
        return (
            f"{said}. {settings.sasl_username or 'The anonymous user'} may not make topics: "
            "give `runtap topics create --print` to whoever may"
        )
    return f"{said}. `runtap topics create --print` shows what was wished"


async def _read_topics(admin: Any, settings: ConnectionSettings, created: Collection[str] = ()) -> list[TopicState]:
    """The state of all topics. What does not exist is not asked for by name: that could make it."""
    with translated(settings):
        existing = set(await within(_CALL_SECONDS, admin.list_topics()))
        deadline = time.monotonic() + _CALL_SECONDS
        # The broker that answers may not have heard yet of topics that another one made.
        while not existing.issuperset(created) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            existing = set(await within(_CALL_SECONDS, admin.list_topics()))
        wanted = all_topics(settings.topic_prefix)
        names = [topic.name for topic in wanted if topic.name in existing]
        described = await within(_CALL_SECONDS, admin.describe_topics(names)) if names else []
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        responses = await within(_CALL_SECONDS, admin.describe_configs(resources)) if names else []
    layouts = {layout["topic"]: layout["partitions"] for layout in described}
    # Entries are name, value and what depends on the protocol's version; a refused resource has no entries.
    configurations = {
        resource[3]: {entry[0]: entry[1] or "" for entry in resource[4]}
        for response in responses
        for resource in response.resources
    }
    return [
        TopicState(
            topic,
            partitions=len(layouts.get(topic.name, [])),
            replication_factor=min((len(part["replicas"]) for part in layouts.get(topic.name, [])), default=0),
            settings=configurations.get(topic.name, {}),
        )
        for topic in wanted
    ]


# Kafka does not tell its version, but how much of the fetch protocol it speaks.
_FETCH_VERSIONS = ((18, "4.1 or later"), (17, "3.9 or 4.0"), (16, "3.7 or 3.8"), (15, "3.5 or 3.6"), (13, "3.1 to 3.4"))
_FETCH_KEY = 1


async def check_topics(settings: ConnectionSettings, start_seconds: float = 5.0) -> ClusterState:
    """Reads what there is, and changes nothing."""
    async with running(AIOKafkaAdminClient(**client_options(settings)), settings, start_seconds) as admin:
        with translated(settings):
            cluster = await within(_CALL_SECONDS, admin.describe_cluster())
        topics = await _read_topics(admin, settings)
        connections = admin._client._conns.values()
        newest = max((open_one._versions.get(_FETCH_KEY, (0, 0))[1] for open_one in connections), default=0)
    version = next((name for least, name in _FETCH_VERSIONS if newest >= least), "older than 3.1")
    return ClusterState(len(cluster["brokers"]), version, topics)


async def check_times(settings: ConnectionSettings) -> None:
    """Raises KafkaUnavailableError where the events topic keeps the times that its producers claim."""
    async with running(AIOKafkaAdminClient(**client_options(settings)), settings) as admin:
        topics = await _read_topics(admin, settings)
    events = next(state for state in topics if state.topic.name == events_topic(settings.topic_prefix))
    # Nobody knows where it may not be read.
    if events.settings.get(_TIMES, _APPEND_TIME) != _APPEND_TIME:
        command = [
            *("kafka-configs.sh", "--bootstrap-server", settings.bootstrap_servers, "--alter"),
            *("--entity-type", "topics", "--entity-name", events.topic.name),
            *("--add-config", f"{_TIMES}={_APPEND_TIME}"),
        ]
        raise KafkaUnavailableError(
            f"topic {events.topic.name} keeps the times that its producers claim ({_TIMES} is "
            f"{events.settings[_TIMES]}), by which a wrong clock would delete figures: run {shlex.join(command)}"
        )


def print_topics(
    settings: ConnectionSettings,
    partitions: int = DEFAULT_PARTITIONS,
    replication_factor: int = DEFAULT_REPLICATION_FACTOR,
) -> list[str]:
    """The commands of Kafka's own tool that make the topics, for where others make them."""
    return [
        shlex.join(
            [
                *("kafka-topics.sh", "--bootstrap-server", settings.bootstrap_servers, "--create", "--if-not-exists"),
                *("--topic", topic.name, "--partitions", str(topic.partitions or partitions)),
                *("--replication-factor", str(replication_factor)),
                *(
                    word
                    for name, value in wanted_settings(topic, replication_factor).items()
                    for word in ("--config", f"{name}={value}")
                ),
            ]
        )
        for topic in all_topics(settings.topic_prefix)
    ]
