"""What `runtap doctor` looks at: settings, Kafka, topics, rights, store, prices, LangSmith; and what to do about it."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import closing
from enum import Enum
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

from rich.console import Console
from rich.text import Text
from sqlalchemy.engine import make_url

from runtap_consumers.cli.terminal import one_line
from runtap_consumers.errors import KafkaUnavailableError, PriceFileError, StoreError
from runtap_consumers.forward.account import DEFAULT_ENDPOINT, find_account, find_variable
from runtap_consumers.forward.langsmith import LangSmith
from runtap_consumers.instants import format_instant
from runtap_consumers.kafka.client import TopicEnds, check_reading
from runtap_consumers.kafka.groups import read_groups_at_work
from runtap_consumers.kafka.topics import ClusterState, TopicState, check_topics
from runtap_consumers.pricing.source import load_prices
from runtap_consumers.projections import PROJECTIONS
from runtap_consumers.projections.dimensions import cap_of
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.dimension_values import read_full
from runtap_consumers.store.engine import Store, open_store, shown_url
from runtap_consumers.store.read.snapshot import open_snapshot
from runtap_schemas import SettingsError
from runtap_schemas.topics import events_topic

# A worker that is there commits several times a second.
_WATCHED_SECONDS = 3.0
_LANGSMITH_SECONDS = 5.0


class Level(Enum):
    """How bad a finding is, and its colour."""

    OK = "green"
    WARN = "yellow"
    FAIL = "bold red"


class Finding(NamedTuple):
    """The result of one check. `advice` says what to do, where there is something to do."""

    level: Level
    subject: str
    detail: str
    advice: str = ""


_ok, _warn, _fail = (partial(Finding, level) for level in Level)


def print_finding(finding: Finding) -> int:
    """Prints a finding; 1 where it is a failure."""
    console = Console(highlight=False)
    line = Text(f"{finding.level.name:5}", style=finding.level.value)
    line.append(f"{finding.subject}: ", style="bold").append(one_line(finding.detail), style="default")
    console.print(line, soft_wrap=True)
    if finding.advice:
        console.print(Text(f"      → {one_line(finding.advice)}"), soft_wrap=True)
    return int(finding.level is Level.FAIL)


def examine(settings: ConsumerSettings) -> Iterator[Finding]:
    """Makes all checks, one after the other; a check that cannot reach Kafka or the store takes about five seconds."""
    yield from check_settings(settings)
    yield from _check_kafka(settings)
    yield from check_store(settings)
    yield from asyncio.run(check_worker_sets(settings))
    yield from asyncio.run(check_progress(settings))
    yield check_prices(settings)
    yield from check_langsmith(os.environ)
    yield from asyncio.run(check_endpoint(os.environ))


def check_settings(settings: ConsumerSettings) -> Iterator[Finding]:
    """The settings in force. Values that cannot work have stopped the command before."""
    store = shown_url(make_url(settings.database_url))
    shown = f"Kafka {settings.bootstrap_servers} ({settings.security_protocol}), topics {settings.topic_prefix}.*"
    yield _ok("settings", f"{shown}, store {store}")
    if settings.security_protocol == "SASL_PLAINTEXT" and settings.sasl_mechanism == "PLAIN":
        advice = "RUNTAP_SECURITY_PROTOCOL=SASL_SSL, or RUNTAP_SASL_MECHANISM=SCRAM-SHA-512"
        yield _warn("settings", "the password crosses the network in the clear", advice)


def _check_kafka(settings: ConsumerSettings) -> Iterator[Finding]:
    topic = events_topic(settings.topic_prefix)
    try:
        cluster = asyncio.run(check_topics(settings))
    except KafkaUnavailableError as error:
        yield _fail("Kafka", str(error))
        return
    brokers = f"{cluster.brokers} broker{'s' if cluster.brokers != 1 else ''}"
    yield _ok("Kafka", f"{settings.bootstrap_servers}: version {cluster.version}, {brokers}")
    for state in cluster.topics:
        yield from check_topic(state, cluster, settings)
    if not cluster.topics[0].exists:
        return
    try:
        asyncio.run(check_reading(settings, topic, f"{settings.topic_prefix}.doctor"))
        yield _ok("rights", f"{topic} can be read in a consumer group (writing shows only by writing)")
    except KafkaUnavailableError as error:
        yield _fail("rights", str(error))


def check_topic(topic: TopicState, cluster: ClusterState, settings: ConsumerSettings) -> Iterator[Finding]:
    """Whether a topic exists, and is as runtap would have made it on this cluster."""
    name = topic.topic.name
    ok, warn, fail = (partial(finding, f"topic {name}") for finding in (_ok, _warn, _fail))
    if not topic.exists:
        prefix = [] if settings.topic_prefix == "runtap" else ["--topic-prefix", settings.topic_prefix]
        replicas = [] if cluster.brokers >= 3 else ["--replication-factor", str(cluster.brokers)]
        yield fail("does not exist", shlex.join(["runtap", "topics", "create", *prefix, *replicas]))
        return
    plural = "s" if topic.partitions != 1 else ""
    layout = f"{topic.partitions} partition{plural}, replication factor {topic.replication_factor}"
    if not topic.settings:
        yield warn(f"{layout}; its settings may not be read", "grant DESCRIBE_CONFIGS")
        return
    differences = topic.differences()
    for setting, found, wanted in differences:
        entity = ["--alter", "--entity-type", "topics", "--entity-name", name]
        change = ["--add-config", f"{setting}={wanted.removeprefix('at least ')}"]
        advice = ["kafka-configs.sh", "--bootstrap-server", settings.bootstrap_servers, *entity, *change]
        yield warn(f"{setting} is {found}, wanted {wanted}", shlex.join(advice))
    if topic.replication_factor < min(3, cluster.brokers):
        yield warn(f"{layout}: what one broker loses is lost", "kafka-reassign-partitions.sh adds replicas")
    elif not differences:
        yield ok(f"{layout}, {topic.settings['min.insync.replicas']} in sync at least, LogAppendTime")


def check_store(settings: ConsumerSettings) -> Iterator[Finding]:
    """Whether the store can be opened, and whose it is."""
    try:
        store = open_store(settings.database_url)
    except StoreError as error:
        # A worker makes it at its first start.
        is_missing = str(error).startswith("there is no store")
        yield (_warn if is_missing else _fail)("store", str(error))
        return
    with closing(store), store.read() as connection:
        full = read_full(connection)
    made, days = format_instant(store.created_at_ns, store.zone), store.zone.key
    about = f"store {store.store_id} made {made}, topic {store.events_topic}, days of {days}"
    yield _ok("store", f"{store.database}, {about}")
    topic = events_topic(settings.topic_prefix)
    if store.events_topic != topic:
        advice = "set RUNTAP_TOPIC_PREFIX back, or name another store in RUNTAP_DATABASE_URL"
        yield _fail("store", f"it holds the figures of {store.events_topic}, the settings name {topic}", advice)
    if settings.timezone not in (None, days):
        detail = f"RUNTAP_TIMEZONE is {settings.timezone}, but days were fixed to {days} when the store was made"
        yield _warn("store", detail, "reports print times in yours; for other days make another store")
    for dimension in full:
        name, _, service = dimension.partition("/")
        detail = f"{service or 'the store'} has more than {cap_of(dimension):,} a day: the others count as __other__"
        yield _warn(f"values of {name}", detail, "give runs names that do not hold ids or times")


async def check_worker_sets(settings: ConsumerSettings) -> list[Finding]:
    """Whether a projection of the store is moved by more than one set of workers: each then undoes the other's work.

    Nothing where Kafka or the store cannot be reached, which other checks say.
    """
    try:
        with closing(open_store(settings.database_url)) as store:
            prefix, suffix = f"{settings.topic_prefix}.", f".{store.store_id}"
        groups = await read_groups_at_work(settings, prefix, suffix)
    except (KafkaUnavailableError, StoreError):
        return []
    sets = [group.removeprefix(prefix).removesuffix(suffix).split("-") for group in groups]
    return [
        _warn(
            f"projection {name}",
            f"{len(movers)} sets of workers move it: {'; '.join(' '.join(each) for each in movers)}",
            "stop one of them, or give each a store of its own",
        )
        for name in PROJECTIONS
        if len(movers := [each for each in sets if name in each]) > 1
    ]


async def check_progress(settings: ConsumerSettings) -> list[Finding]:
    """Whether projections that have begun move where the log goes on; looked at twice, some seconds apart.

    Nothing where Kafka or the store cannot be reached, which other checks say.
    """
    try:
        with closing(open_store(settings.database_url)) as store:
            async with TopicEnds(settings, store.events_topic) as log:
                ends = await log.read()
            before = _read_offsets(store)
            behind = {key: ends[key[1]] - offset for key, offset in before.items() if offset < ends.get(key[1], 0)}
            if behind:
                await asyncio.sleep(_WATCHED_SECONDS)
            after = _read_offsets(store)
    except (KafkaUnavailableError, StoreError):
        return []
    standing: dict[str, list[tuple[int, int]]] = {}
    for (name, partition), lag in behind.items():
        if after.get((name, partition)) == before[name, partition]:
            standing.setdefault(name, []).append((partition, lag))
    return [
        _fail(
            f"projection {name}",
            f"stands in partition {', '.join(str(partition) for partition, _ in where)}, "
            f"{sum(lag for _, lag in where):,} records behind",
            f"start `runtap worker {name}`, or see in the log and at /readyz of the one that runs what stops it",
        )
        for name, where in standing.items()
    ]


def _read_offsets(store: Store) -> dict[tuple[str, int], int]:
    with open_snapshot(store) as snapshot:
        return {(row.projection, row.partition): row.next_offset for row in snapshot.positions}


def check_prices(settings: ConsumerSettings) -> Finding:
    """Which prices are in force."""
    try:
        price_set = load_prices(settings).price_set
    except PriceFileError as error:
        return _fail("prices", str(error), "runtap prices check FILE")
    own = f", own prices in {settings.prices}" if settings.prices else ""
    return _ok(
        "prices", f"genai-prices {version('genai-prices')}, price set {price_set}{own}; newer: runtap prices update"
    )


def check_langsmith(variables: Mapping[str, str]) -> Iterator[Finding]:
    """What LangSmith's tracer, which works beside runtap, would do in a process with these variables."""

    find = partial(find_variable, variables)
    tracing, key = find("TRACING_V2", "TRACING"), find("API_KEY").strip()
    where = f"project {find('PROJECT') or 'default'}, endpoint {find('ENDPOINT') or DEFAULT_ENDPOINT}"
    if tracing == "true" and key:
        yield _ok("LangSmith", f"tracing is on beside runtap: key {masked(key)}, {where}")
    elif tracing == "true":
        yield _warn("LangSmith", f"tracing is on without a key: {where}", "set LANGSMITH_API_KEY")
    elif tracing or key:
        is_off = tracing.lower() in ("", "false", "0", "no", "off")
        detail = f"tracing is off (the variable is {tracing!r}, the key {masked(key) if key else 'not set'})"
        yield (_ok if is_off else _warn)(
            "LangSmith", detail, "" if is_off else "only LANGSMITH_TRACING=true turns it on"
        )


async def check_endpoint(variables: Mapping[str, str]) -> list[Finding]:
    """Whether LangSmith answers where `runtap forward langsmith` and its own tracer would send runs; nothing is asked
    where neither key nor endpoint is set.
    """
    if not find_variable(variables, "API_KEY", "ENDPOINT"):
        return []
    try:
        langsmith = LangSmith(find_account(variables), seconds=_LANGSMITH_SECONDS)
    except SettingsError as error:
        return [_warn("LangSmith", str(error))]
    try:
        reply = await langsmith.ask_limits()
    finally:
        await langsmith.close()
    if not reply.is_delivered:
        advice = "LANGSMITH_ENDPOINT; runtap forward langsmith waits for it, and loses nothing"
        return [_warn("LangSmith", f"{langsmith.endpoint}/info: {reply.reason}", advice)]
    compressed = "compressed" if langsmith.limits.takes_zstd else "uncompressed"
    detail = f"{langsmith.endpoint} answers: version {langsmith.version or 'unknown'}, takes runs {compressed}"
    return [_ok("LangSmith", detail)]


def masked(secret: str) -> str:
    """The first and last four characters of a secret; none of a short one."""
    return f"{secret[:4]}…{secret[-4:]}" if len(secret) >= 16 else "…"
