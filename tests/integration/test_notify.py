"""The notifier on real Kafka, with receivers that fail in every way: each alert once after deduplication by its id."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faststream import Context
from faststream.kafka import KafkaBroker
from standardwebhooks import Webhook

from alert_samples import AlertLog, make_alert
from command_line import call_command
from kafka_proxy import proxied_kafka
from notifier import await_groups, notifying
from runtap_consumers.alerts.channels import Channel
from runtap_consumers.alerts.subscription import subscribe
from runtap_consumers.errors import KafkaUnavailableError
from runtap_consumers.kafka import group_reader as group_reader_module
from runtap_consumers.kafka.group_reader import group_reader
from runtap_consumers.kafka.topics import create_topics
from runtap_consumers.notify import target
from runtap_consumers.settings import ConsumerSettings
from runtap_demo.kafka.ports import free_ports
from runtap_schemas import Alert, encode_alert
from runtap_schemas.topics import alerts_topic
from webhook_receiver import Answer, Receiver, receiving
from worker_process import (
    WorkerSetting,
    ask_health,
    ask_metrics,
    produce,
    produce_with_odd_header,
    wait_until,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ON_CALL", SECRET)


@pytest.fixture
async def log(kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]]) -> AlertLog:
    """The empty alert topics of this test."""
    await events_topic(1)
    return AlertLog(
        ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix, session_timeout_seconds=3.0)
    )


def webhook(name: str, url: str, allow_private: bool = True) -> Channel:
    return Channel(id=name, kind="webhook", url=url, secret_env="ON_CALL", allow_private=allow_private)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    await asyncio.to_thread(wait_until, condition, seconds)


async def test_each_alert_is_delivered_once_and_no_bad_channel_holds_another_back(
    log: AlertLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "TIMEOUT_SECONDS", 1.0)

    def answer(path: str, number: int) -> Answer:
        if path == "/hangs":
            return receiver.hang()
        if path == "/elsewhere":
            return 307, {"location": receiver.url("/caught")}
        return (500 if path == "/fails" and number <= 2 else 200), {}

    with receiving(answer) as receiver:
        channels = [
            webhook("good", receiver.url("/good")),
            webhook("fails", receiver.url("/fails")),
            webhook("hangs", receiver.url("/hangs")),
            webhook("elsewhere", receiver.url("/elsewhere")),
            webhook("inside", receiver.url("/inside"), allow_private=False),
        ]
        alerts = [make_alert(number) for number in range(5)]
        async with notifying(log.settings, *channels) as health:
            await log.publish(*alerts)
            await until(lambda: len(receiver.ids("/good")) == 5, 5)
            await until(lambda: len(set(receiver.ids("/fails"))) == 5)
            await until(lambda: health.notifications.get(("elsewhere", "given_up")) == 5)
            await until(lambda: len(receiver.ids("/hangs")) >= 2 and len(health.channels) == 2)
            await asyncio.sleep(0.5)
            counted = dict(health.notifications)
            waiting = {name: reason for name, (_, reason) in health.channels.items()}
    ids = [alert.id for alert in alerts]
    assert receiver.ids("/good") == ids
    assert receiver.ids("/fails") == [ids[0], ids[0], *ids]
    assert set(receiver.ids("/hangs")) == {ids[0]}
    assert receiver.ids("/elsewhere") == ids
    assert receiver.at("/caught") == receiver.at("/inside") == []
    assert waiting["hangs (alerts)"] == "no answer within 1 s"
    assert "allow_private = true" in waiting["inside (alerts)"]
    assert {name: number for name, number in counted.items() if name[1] != "failed"} == {
        ("good", "delivered"): 5,
        ("fails", "delivered"): 5,
        ("elsewhere", "given_up"): 5,
    }
    assert counted["fails", "failed"] == 2
    for (headers, body), alert in zip(receiver.at("/good"), alerts, strict=True):
        assert body == encode_alert(alert)
        assert headers["content-type"] == "application/json"
        assert headers["idempotency-key"] == alert.id
        assert Webhook(SECRET).verify(body, headers)["summary"] == alert.summary


async def test_a_new_channel_begins_with_the_next_alert_and_goes_on_where_it_was(log: AlertLog) -> None:
    with receiving() as receiver:
        channel = webhook("good", receiver.url("/"))
        await log.publish(make_alert(1))
        async with notifying(log.settings, channel):
            await log.publish(make_alert(2))
            await until(lambda: len(receiver.ids("/")) == 1)
        await log.publish(make_alert(3))
        async with notifying(log.settings, channel):
            await until(lambda: len(receiver.ids("/")) == 2)
    assert receiver.ids("/") == ["spend/2/1", "spend/3/1"]


async def test_kafka_that_goes_away_under_a_request_repeats_none_and_loses_none(
    topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver has the alert, Kafka never gets to know it: the record comes again, the request does not."""
    monkeypatch.setattr(group_reader_module, "_COMMIT_SECONDS", 1.0)
    is_published = threading.Event()

    def answer(path: str, number: int) -> Answer:
        if number == 1:
            assert is_published.wait(10)
            proxied.proxy.set_mode("refuse")
        return 200, {}

    with proxied_kafka() as proxied, receiving(answer) as receiver:
        log = AlertLog(
            ConsumerSettings.load(
                bootstrap_servers=proxied.bootstrap_servers, topic_prefix=topic_prefix, session_timeout_seconds=3.0
            )
        )
        await create_topics(log.settings, partitions=1, replication_factor=1)
        async with notifying(log.settings, webhook("good", receiver.url("/"))) as health:
            await log.publish(make_alert(1))
            is_published.set()
            await until(lambda: "good (kafka)" in health.channels)
            proxied.proxy.set_mode("pass")
            await until(lambda: not health.channels)
            # One that is just back may not know its topics yet.
            for _ in range(10):
                with suppress(KafkaUnavailableError):
                    await log.publish(make_alert(2))
                    break
                await asyncio.sleep(1)
            await until(lambda: len(receiver.ids("/")) >= 2)
    assert receiver.ids("/") == ["spend/1/1", "spend/2/1"]


async def test_what_is_no_alert_is_counted_and_passed_over(log: AlertLog) -> None:
    kafka, topic = log.settings.bootstrap_servers, alerts_topic(log.settings.topic_prefix)
    with receiving() as receiver:
        async with notifying(log.settings, webhook("good", receiver.url("/"))) as health:
            forged = encode_alert(make_alert(id="a\r\nb: c"))
            await produce(kafka, topic, [(0, value, []) for value in (None, b"\xff", b"{}", forged)])
            await log.publish(make_alert(1))
            await produce_with_odd_header(kafka, topic, encode_alert(make_alert(2)))
            await log.publish(make_alert(3))
            await until(lambda: len(receiver.ids("/")) == 2)
            assert health.notifications == {("good", "unreadable"): 5, ("good", "delivered"): 2}
    assert receiver.ids("/") == ["spend/1/1", "spend/3/1"]


def write_channels(folder: Path, receiver: Receiver) -> Path:
    file = folder / "alerts.toml"
    file.write_text(
        f'[[channel]]\nid = "on-call"\nkind = "webhook"\nurl = "{receiver.url("/")}"\n'
        'secret_env = "ON_CALL"\nallow_private = true\n'
    )
    return file


async def test_a_notifier_that_is_killed_again_and_again_loses_no_alert(log: AlertLog, tmp_path: Path) -> None:
    """Killed three times while it tries to deliver an alert that is not taken, and is taken afterwards."""
    alerts = [make_alert(number) for number in range(60)]
    refused = {alerts[number].id for number in (10, 30, 50)}
    taken: list[str] = []

    def answer(path: str, number: int) -> Answer:
        alert_id = receiver.ids(path)[-1]
        if alert_id in refused:
            return 503, {}
        taken.append(alert_id)
        return 200, {}

    with receiving(answer) as receiver:
        setting = WorkerSetting(
            log.settings.bootstrap_servers,
            log.settings.topic_prefix,
            f"sqlite:///{tmp_path}/none.db",
            {"RUNTAP_ALERTS": str(write_channels(tmp_path, receiver)), "RUNTAP_SESSION_TIMEOUT_SECONDS": "1"},
        )
        process = setting.start(tmp_path / "log", "notify")
        try:
            await await_groups(log.settings, ["on-call"])
            await log.publish(*alerts)
            for alert_id in sorted(refused):
                await until(lambda tried=alert_id: tried in receiver.ids("/"))  # type: ignore[misc]
                process.kill()
                process.wait(10)
                refused.remove(alert_id)
                process = setting.start(tmp_path / "log", "notify")
            await until(lambda: len(set(taken)) == len(alerts))
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(10)
    assert code == 0
    assert not (tmp_path / "none.db").exists()
    assert list(dict.fromkeys(taken)) == [alert.id for alert in alerts]
    # At most what was under way at a kill is taken twice.
    assert len(taken) <= len(alerts) + 3


def test_the_command_says_what_it_misses(tmp_path: Path) -> None:
    environment = {"RUNTAP_ALERTS": "x.toml", "RUNTAP_BOOTSTRAP_SERVERS": "127.0.0.1:1", "PATH": os.environ["PATH"]}

    def refused(*words: str) -> str:
        done = call_command(("worker", *words), environment, tmp_path)
        assert done.returncode == 2, done.stderr
        return done.stderr

    assert "cannot read the alert rules x.toml" in refused("notify")
    assert "a process of its own" in refused("notify", "cost")
    assert "a process of its own" in refused("notify", "--drain")
    (tmp_path / "x.toml").write_text("")
    assert "x.toml: there is no channel: write [[channel]]" in refused("notify")
    (tmp_path / "x.toml").write_text("[[channel]\n")
    assert "x.toml: Expected" in refused("notify")


async def test_the_command_serves_its_health_and_metrics(log: AlertLog, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with receiving() as receiver:
        setting = WorkerSetting(
            log.settings.bootstrap_servers,
            log.settings.topic_prefix,
            "sqlite:///none.db",
            {"RUNTAP_ALERTS": str(write_channels(tmp_path, receiver)), "ON_CALL": ""},
        )
        done = setting.run("worker", "notify")
        assert (done.returncode, "channel on-call: ON_CALL is not set" in done.stderr) == (2, True), done.stderr
        setting.more["ON_CALL"] = SECRET
        process = setting.start(tmp_path / "log", "notify", "--health", str(port))
        try:
            await await_groups(log.settings, ["on-call"])
            await log.publish(make_alert())
            await until(lambda: len(receiver.ids("/")) == 1)
            await until(lambda: ask_health(port)[0] == 200)
            series = 'runtap_notify_requests_total{channel="on-call",outcome="delivered"}'
            await until(lambda: ask_metrics(port).get(series) == 1)
        finally:
            process.terminate()
            process.wait(10)
        # In whose path a secret may stand, as in Slack's.
        assert receiver.url("") not in (tmp_path / "log").read_text()


async def take(number: int, alerts: AsyncIterator[Alert]) -> list[str]:
    async with asyncio.timeout(30):
        return [(await anext(alerts)).id for _ in range(number)]


async def test_a_subscriber_gets_each_alert_once(log: AlertLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTAP_BOOTSTRAP_SERVERS", log.settings.bootstrap_servers)
    monkeypatch.setenv("RUNTAP_TOPIC_PREFIX", log.settings.topic_prefix)
    one, two, three = (make_alert(number) for number in (1, 2, 3))
    over = make_alert(1, id="spend/1/2", status="resolved")
    await log.publish(one, one, two, over)
    async with aclosing(subscribe(from_beginning=True)) as alerts:  # type: ignore[type-var]
        assert await take(3, alerts) == [one.id, two.id, over.id]
        await log.publish(two, three)
        assert await take(1, alerts) == [three.id]
    async with aclosing(subscribe(firing_now=True)) as alerts:  # type: ignore[type-var]
        assert sorted(await take(2, alerts)) == [two.id, three.id]
        await log.publish(three, make_alert(4))
        assert await take(1, alerts) == ["spend/4/1"]


async def test_a_subscriber_of_a_group_goes_on_where_it_was(log: AlertLog) -> None:
    servers, prefix = log.settings.bootstrap_servers, log.settings.topic_prefix
    mine = partial(subscribe, bootstrap_servers=servers, topic_prefix=prefix, group=f"{prefix}.mine")
    await log.publish(make_alert(1), make_alert(2), make_alert(3))
    async with aclosing(mine(from_beginning=True)) as alerts:  # type: ignore[type-var]
        assert await take(2, alerts) == ["spend/1/1", "spend/2/1"]
    # The second was not done: nothing was asked for after it.
    async with aclosing(mine()) as alerts:  # type: ignore[type-var]
        assert await take(2, alerts) == ["spend/2/1", "spend/3/1"]


async def test_a_member_that_loses_its_partition_leaves_the_record_to_the_next(log: AlertLog) -> None:
    topic, group = alerts_topic(log.settings.topic_prefix), f"{log.settings.topic_prefix}.pair"
    await log.publish(make_alert(1))
    async with group_reader(log.settings, topic, group, from_beginning=True) as first:
        record = await asyncio.wait_for(first.read(), 20)
        async with group_reader(log.settings, topic, group, from_beginning=True) as second:
            readings = [asyncio.create_task(reader.read()) for reader in (first, second)]
            done, waiting = await asyncio.wait(readings, timeout=20, return_when="FIRST_COMPLETED")
            assert {task.result().offset for task in done} == {record.offset}
            for task in waiting:
                task.cancel()
            await asyncio.wait(readings)
            # Of whichever member: acknowledged, or left to the other, but never an error.
            await first.commit(record)
            await second.commit(record)


async def test_faststream_reads_an_alert_as_json(log: AlertLog) -> None:
    """A subscriber of FastStream: the body is decoded by its content-type, the incident is its correlation id."""
    topic = alerts_topic(log.settings.topic_prefix)
    await log.publish(make_alert())
    got: asyncio.Queue[tuple[dict[str, Any], str, str]] = asyncio.Queue()
    broker = KafkaBroker(log.settings.bootstrap_servers, logger=None)

    @broker.subscriber(topic, auto_offset_reset="earliest")
    async def handle(
        body: dict[str, Any],
        correlation_id: str = Context("message.correlation_id"),
        kind: str = Context("message.headers.ce_type"),
    ) -> None:
        got.put_nowait((body, correlation_id, kind))

    await broker.start()
    try:
        body, correlation_id, kind = await asyncio.wait_for(got.get(), 30)
    finally:
        await broker.stop()
    assert body == json.loads(encode_alert(make_alert(at=body["at"])))
    assert (correlation_id, kind) == ("spend/1", "runtap.alert.firing")
