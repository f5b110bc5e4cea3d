"""What `runtap doctor` looks at: settings, Kafka, topics, rights, store, prices, LangSmith; and
what to do about each.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Iterator
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from runtap_consumers.errors import KafkaUnavailableError, PriceFileError, StoreError
from runtap_consumers.instants import format_instant
from runtap_consumers.kafka.client import check_reading
from runtap_consumers.kafka.groups import read_groups_at_work
from runtap_consumers.kafka.topics import ClusterState, TopicState, check_topics
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store, open_store, shown_url
from runtap_schemas.masking import without_passwords
from runtap_schemas.topics import events_topic


class Level(Enum):
    """How bad a finding is."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(NamedTuple):
    """The result of one check. `advice` says what to do, where there is something to do."""

    level: Level
    subject: str
    detail: str
    advice: str = ""


class LangSmithVariables(BaseSettings):
    """LangSmith's variables, found where its client finds them. Only shown: runtap does not use them."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True)

    tracing: str | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2", "LANGSMITH_TRACING", "LANGCHAIN_TRACING"
        ),
    )
    api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("LANGSMITH_API_KEY", "LANGCHAIN_API_KEY")
    )
    project: str = Field(default="default", validation_alias=AliasChoices("LANGSMITH_PROJECT", "LANGCHAIN_PROJECT"))
    endpoint: str = Field(
        default="https://api.smith.langchain.com",
        validation_alias=AliasChoices("LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT"),
    )


async def examine(settings: ConsumerSettings) -> AsyncIterator[Finding]:
    """Makes all checks, one after the other; a check that cannot reach Kafka or the store takes about five seconds."""
    for finding in check_settings(settings):
        yield finding
    try:
        cluster = await check_topics(settings)
    except KafkaUnavailableError as error:
        yield Finding(Level.FAIL, "Kafka", str(error))
    else:
        brokers = f"{cluster.brokers} broker{'s' if cluster.brokers != 1 else ''}"
        yield Finding(Level.OK, "Kafka", f"{settings.bootstrap_servers}: version {cluster.version}, {brokers}")
        for topic in cluster.topics:
            for finding in check_topic(topic, cluster, settings):
                yield finding
        if cluster.topics[0].exists:
            yield await _check_rights(settings)
    for finding in await asyncio.to_thread(lambda: list(check_store(settings))):
        yield finding
    for finding in await check_worker_sets(settings):
        yield finding
    yield check_prices(settings)
    for finding in check_langsmith(LangSmithVariables()):
        yield finding


def check_settings(settings: ConsumerSettings) -> Iterator[Finding]:
    """The settings in force. Values that cannot work have stopped the command before."""
    store = shown_url(make_url(settings.database_url))
    shown = f"Kafka {settings.bootstrap_servers} ({settings.security_protocol}), topics {settings.topic_prefix}.*"
    yield Finding(Level.OK, "settings", f"{shown}, store {store}")
    if settings.security_protocol == "SASL_PLAINTEXT" and settings.sasl_mechanism == "PLAIN":
        yield Finding(
            Level.WARN,
            "settings",
            "the password crosses the network in the clear",
            "RUNTAP_SECURITY_PROTOCOL=SASL_SSL, or RUNTAP_SASL_MECHANISM=SCRAM-SHA-512",
        )


def check_topic(topic: TopicState, cluster: ClusterState, settings: ConsumerSettings) -> Iterator[Finding]:
    """Whether a topic exists, and is as runtap would have made it on this cluster."""
    name = topic.topic.name
    if not topic.exists:
        yield Finding(Level.FAIL, f"topic {name}", "does not exist", _create_command(cluster, settings))
        return
    replicas = min(3, cluster.brokers)
    plural = "s" if topic.partitions != 1 else ""
    layout = f"{topic.partitions} partition{plural}, replication factor {topic.replication_factor}"
    if not topic.settings:
        yield Finding(Level.WARN, f"topic {name}", f"{layout}; its settings may not be read", "grant DESCRIBE_CONFIGS")
        return
    differences = topic.differences()
    for difference in differences:
        command = ("kafka-configs.sh", "--bootstrap-server", settings.bootstrap_servers, "--alter", "--entity-type")
        wanted = difference.wanted.removeprefix("at least ")
        yield Finding(
            Level.WARN,
            f"topic {name}",
            f"{difference.setting} is {difference.found}, wanted {difference.wanted}",
            shlex.join([*command, "topics", "--entity-name", name, "--add-config", f"{difference.setting}={wanted}"]),
        )
    if topic.replication_factor < replicas:
        yield Finding(
            Level.WARN,
            f"topic {name}",
            f"{layout}: what one broker loses is lost",
            "kafka-reassign-partitions.sh adds replicas",
        )
    elif not differences:
        least = topic.settings["min.insync.replicas"]
        yield Finding(Level.OK, f"topic {name}", f"{layout}, {least} in sync at least, LogAppendTime")


def _create_command(cluster: ClusterState, settings: ConsumerSettings) -> str:
    words = ["runtap", "topics", "create"]
    if settings.topic_prefix != "runtap":
        words += ["--topic-prefix", settings.topic_prefix]
    if cluster.brokers < 3:
        words += ["--replication-factor", str(cluster.brokers)]
    return shlex.join(words)


async def _check_rights(settings: ConsumerSettings) -> Finding:
    topic = events_topic(settings.topic_prefix)
    try:
        await check_reading(settings, topic, f"{settings.topic_prefix}.doctor")
    except KafkaUnavailableError as error:
        return Finding(Level.FAIL, "rights", str(error))
    return Finding(Level.OK, "rights", f"{topic} can be read in a consumer group (writing shows only by writing)")


def check_store(settings: ConsumerSettings) -> Iterator[Finding]:
    """Whether the store can be opened, and whose it is."""
    try:
        store = open_store(settings.database_url)
    except StoreError as error:
        # A worker makes it at its first start.
        is_missing = str(error).startswith("there is no store")
        yield Finding(Level.WARN if is_missing else Level.FAIL, "store", str(error))
        return
    try:
        yield from _check_open_store(store, settings)
    except SQLAlchemyError as error:
        yield Finding(Level.FAIL, "store", without_passwords(str(error).splitlines()[0]), "see the database's own log")
    finally:
        store.close()


def _check_open_store(store: Store, settings: ConsumerSettings) -> Iterator[Finding]:
    with store.read() as connection:
        version = connection.exec_driver_sql(store.dialect.version_query).scalar_one()
    made = format_instant(store.created_at_ns, store.zone)
    database = f"{store.dialect.title} {version}, store {store.store_id} made {made}"
    detail = f"{database}, topic {store.events_topic}, days of {store.zone.key}"
    yield Finding(Level.OK, "store", detail)
    topic = events_topic(settings.topic_prefix)
    if store.events_topic != topic:
        yield Finding(
            Level.FAIL,
            "store",
            f"it holds the figures of {store.events_topic}, the settings name {topic}",
            "set RUNTAP_TOPIC_PREFIX back, or name another store in RUNTAP_DATABASE_URL",
        )
    if settings.timezone is not None and settings.timezone != store.zone.key:
        yield Finding(
            Level.WARN,
            "store",
            f"RUNTAP_TIMEZONE is {settings.timezone}, but days were fixed to {store.zone.key} when the store was made",
            "reports print times in yours; for other days make another store",
        )


async def check_worker_sets(settings: ConsumerSettings) -> list[Finding]:
    """Whether a projection of the store is moved by more than one set of workers: each then undoes the other's work.

    Nothing where Kafka or the store cannot be reached, which other checks say.
    """
    try:
        store = await asyncio.to_thread(open_store, settings.database_url)
        store.close()
        prefix, suffix = f"{settings.topic_prefix}.", f".{store.store_id}"
        groups = await read_groups_at_work(settings, prefix, suffix)
    except (KafkaUnavailableError, StoreError):
        return []
    sets = [group.removeprefix(prefix).removesuffix(suffix).split("-") for group in groups]
    return [
        Finding(
            Level.WARN,
            f"projection {name}",
            f"{len(movers)} sets of workers move it: {'; '.join(' '.join(each) for each in movers)}",
            "stop one of them, or give each a store of its own",
        )
        for name in PROJECTIONS
        if len(movers := [each for each in sets if name in each]) > 1
    ]


def check_prices(settings: ConsumerSettings) -> Finding:
    """Which prices are in force."""
    try:
        installed = version("genai-prices")
    except PackageNotFoundError:
        return Finding(Level.FAIL, "prices", "genai-prices is not installed", "pip install 'runtap[workers]'")
    from runtap_consumers.pricing.source import load_prices

    try:
        price_set = load_prices(settings).price_set
    except PriceFileError as error:
        return Finding(Level.FAIL, "prices", str(error), "runtap prices check FILE")
    own = f", own prices in {settings.prices}" if settings.prices else ""
    return Finding(
        Level.OK, "prices", f"genai-prices {installed}, price set {price_set}{own}; newer: runtap prices update"
    )


def check_langsmith(variables: LangSmithVariables) -> Iterator[Finding]:
    """What LangSmith's tracer, which works beside runtap, would do in a process with these variables."""
    key = variables.api_key.get_secret_value().strip() if variables.api_key else ""
    if variables.tracing is None:
        if key:
            yield Finding(Level.OK, "LangSmith", f"a key is set ({masked(key)}), tracing is off")
        return
    if variables.tracing != "true":
        is_off = variables.tracing.lower() in ("false", "0", "no", "off")
        yield Finding(
            Level.OK if is_off else Level.WARN,
            "LangSmith",
            f"tracing is off (the variable is {variables.tracing!r})",
            "" if is_off else "only LANGSMITH_TRACING=true turns it on",
        )
        return
    where = f"project {variables.project}, endpoint {variables.endpoint}"
    if key:
        yield Finding(Level.OK, "LangSmith", f"tracing is on beside runtap: key {masked(key)}, {where}")
    else:
        yield Finding(Level.WARN, "LangSmith", f"tracing is on without a key: {where}", "set LANGSMITH_API_KEY")


def masked(secret: str) -> str:
    """The first and last four characters of a secret; none of a short one."""
    return f"{secret[:4]}…{secret[-4:]}" if len(secret) >= 16 else "…"
