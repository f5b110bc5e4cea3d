"""What the doctor makes of what it sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtap_consumers.cli.doctor import (
    Finding,
    Level,
    check_endpoint,
    check_langsmith,
    check_prices,
    check_settings,
    check_store,
    check_topic,
    masked,
)
from runtap_consumers.kafka.topics import ClusterState, TopicState
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import open_store
from runtap_schemas.topics import all_topics

SETTINGS = ConsumerSettings.load(bootstrap_servers="kafka-1:9092")
EVENTS = all_topics("runtap")[0]
GOOD = {**EVENTS.settings, "min.insync.replicas": "2", "max.message.bytes": "1048588"}


def judged(state: TopicState, brokers: int = 3) -> list[Finding]:
    return list(check_topic(state, ClusterState(brokers, "4.1 or later", [state]), SETTINGS))


def test_good_topic_is_one_finding() -> None:
    (finding,) = judged(TopicState(EVENTS, partitions=6, replication_factor=3, settings=GOOD))
    assert finding.level is Level.OK


def test_missing_topic_names_the_command_that_fits_the_cluster() -> None:
    (finding,) = judged(TopicState(EVENTS), brokers=1)
    assert (finding.level, finding.advice) == (Level.FAIL, "runtap topics create --replication-factor 1")
    assert judged(TopicState(EVENTS))[0].advice == "runtap topics create"


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({"message.timestamp.type": "CreateTime"}, "message.timestamp.type"),
        ({"min.insync.replicas": "1"}, "min.insync.replicas"),
        ({"max.message.bytes": "1000"}, "max.message.bytes"),
        ({"retention.ms": "3600000"}, "retention.ms"),
        ({"cleanup.policy": "compact"}, "cleanup.policy"),
    ],
)
def test_differing_setting_comes_with_the_command_that_cures_it(changed: dict[str, str], setting: str) -> None:
    (finding,) = judged(TopicState(EVENTS, partitions=6, replication_factor=3, settings={**GOOD, **changed}))
    assert finding.level is Level.WARN
    assert finding.detail.startswith(f"{setting} is {changed[setting]}, wanted ")
    assert "kafka-configs.sh --bootstrap-server kafka-1:9092 --alter" in finding.advice
    assert f"--add-config {setting}=" in finding.advice


@pytest.mark.parametrize("retention", ["-1", "99999999999"])
def test_longer_retention_is_no_difference(retention: str) -> None:
    (finding,) = judged(
        TopicState(EVENTS, partitions=6, replication_factor=3, settings={**GOOD, "retention.ms": retention})
    )
    assert finding.level is Level.OK


def test_single_replica_is_a_warning_only_where_there_could_be_more() -> None:
    state = TopicState(EVENTS, partitions=6, replication_factor=1, settings={**GOOD, "min.insync.replicas": "1"})
    assert [finding.level for finding in judged(state, brokers=1)] == [Level.OK]
    assert [finding.level for finding in judged(state, brokers=3)] == [Level.WARN]


def test_settings_show_no_password() -> None:
    settings = ConsumerSettings.load(
        database_url="postgresql://runtap:secret@db/runtap",
        security_protocol="SASL_PLAINTEXT",
        sasl_username="worker",
        sasl_password="secret",
    )
    findings = list(check_settings(settings))
    assert [finding.level for finding in findings] == [Level.OK, Level.WARN]
    assert not any("secret" in text for finding in findings for text in finding[1:])


def test_store_that_no_worker_made_yet_is_a_warning(tmp_path: Path) -> None:
    (finding,) = check_store(ConsumerSettings.load(database_url=f"sqlite:///{tmp_path / 'none.db'}"))
    assert finding.level is Level.WARN
    assert finding.detail.endswith(": start `runtap worker` first, or set RUNTAP_DATABASE_URL")


def test_store_of_another_topic_and_zone_is_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runtap.db'}"
    open_store(url, "other.events", "Europe/Berlin").close()
    findings = list(check_store(ConsumerSettings.load(database_url=url, timezone="Asia/Tokyo")))
    assert [finding.level for finding in findings] == [Level.OK, Level.FAIL, Level.WARN]
    assert "Europe/Berlin" in findings[0].detail
    assert "SQLite 3." in findings[0].detail


def test_prices_name_their_version() -> None:
    finding = check_prices(ConsumerSettings.load())
    assert finding.level is Level.OK
    assert finding.detail.startswith("genai-prices ")


def test_unset_langsmith_is_not_mentioned() -> None:
    assert list(check_langsmith({"LANGSMITH_TRACING": ""})) == []


def test_langsmith_shows_only_the_ends_of_its_key() -> None:
    variables = {"LANGCHAIN_TRACING_V2": "true", "LANGSMITH_API_KEY": "lsv2_pt_0123456789abcdef"}
    (finding,) = check_langsmith({**variables, "LANGCHAIN_PROJECT": "checkout", "LANGSMITH_TRACING": "false"})
    assert finding.level is Level.OK
    assert "key lsv2…cdef, project checkout, endpoint https://api.smith.langchain.com" in finding.detail
    assert "0123" not in finding.detail


@pytest.mark.parametrize(
    ("tracing", "level", "advice"),
    [("true", Level.WARN, "LANGSMITH_API_KEY"), ("yes", Level.WARN, "LANGSMITH_TRACING=true"), ("false", Level.OK, "")],
)
def test_langsmith_without_key_or_with_another_word_than_true_is_a_warning(
    tracing: str, level: Level, advice: str
) -> None:
    (finding,) = check_langsmith({"LANGSMITH_TRACING": tracing})
    assert finding.level is level
    assert advice in finding.advice


async def test_langsmith_is_asked_only_where_its_variables_are_set_and_its_absence_is_no_failure() -> None:
    assert await check_endpoint({"LANGSMITH_TRACING": "true"}) == []
    (odd,) = await check_endpoint({"LANGSMITH_ENDPOINT": "ftp://SECRET@host"})
    (away,) = await check_endpoint({"LANGSMITH_ENDPOINT": "http://127.0.0.1:1", "LANGSMITH_API_KEY": "SECRET"})
    assert (odd.level, away.level) == (Level.WARN, Level.WARN)
    assert away.detail.startswith("http://127.0.0.1:1/info: ")
    assert "SECRET" not in odd.detail + away.detail


@pytest.mark.parametrize("secret", ["", "12345678", "123456789012345"])
def test_short_secret_is_not_shown_at_all(secret: str) -> None:
    assert masked(secret) == "…"
