"""The notifier and a real Alertmanager: what fires stays, whoever dies meanwhile, and is over soon after its end."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from alert_samples import AlertLog, make_alert
from notifier import await_groups, notifying
from prometheus_tools import installed, running
from runtap_consumers.alerts.channels import Channel
from runtap_consumers.notify import alertmanager
from runtap_consumers.settings import ConsumerSettings
from runtap_demo.kafka.ports import free_ports
from runtap_schemas import AlertRule
from webhook_receiver import Receiver, receiving
from worker_process import WorkerSetting, wait_until

INTERVAL_SECONDS = 1.0


@dataclass
class Alertmanager:
    """A real one, which tells a receiver at once of what fires and what is over."""

    folder: Path
    receiver: Receiver
    port: int

    @contextmanager
    def running(self, data: str = "data") -> Iterator[None]:
        """While the block runs. `data`: its folder; another one has forgotten everything."""
        config = self.folder / "alertmanager.yml"
        hook = {"url": self.receiver.url("/"), "send_resolved": True}
        route = {"receiver": "people", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"}
        config.write_text(
            yaml.safe_dump({"route": route, "receivers": [{"name": "people", "webhook_configs": [hook]}]})
        )
        command = [
            installed("prometheus-alertmanager"),
            f"--config.file={config}",
            f"--storage.path={self.folder / data}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]
        with running(command, f"http://127.0.0.1:{self.port}/-/ready", self.folder / "alertmanager.log"):
            yield

    def channel(self) -> Channel:
        return Channel(id="am", kind="alertmanager", url=f"http://127.0.0.1:{self.port}/", allow_private=True)

    def alerts(self) -> dict[str, dict[str, Any]]:
        """What is active there, by name."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v2/alerts", timeout=5) as answer:
            return {alert["labels"]["alertname"]: alert for alert in json.load(answer)}

    def told(self) -> list[tuple[str, str]]:
        """Name and status of what its receiver was told, in order, without repeats in a row."""
        found: dict[str, list[str]] = {}
        for _, body in self.receiver.at("/"):
            for alert in json.loads(body)["alerts"]:
                statuses = found.setdefault(alert["labels"]["alertname"], [])
                if statuses[-1:] != [alert["status"]]:
                    statuses.append(alert["status"])
        return [(name, status) for name, statuses in found.items() for status in statuses]


@pytest.fixture
def alerts_there(tmp_path: Path) -> Iterator[Alertmanager]:
    with receiving() as receiver:
        (port,) = free_ports(1)
        yield Alertmanager(tmp_path, receiver, port)


@pytest.fixture
async def log(kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]]) -> AlertLog:
    await events_topic(1)
    return AlertLog(
        ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix, session_timeout_seconds=3.0)
    )


async def until(condition: Callable[[], bool], seconds: float = 10) -> float:
    """Seconds until it was so."""
    began = time.monotonic()
    await asyncio.to_thread(wait_until, condition, seconds)
    return time.monotonic() - began


async def test_what_fires_is_there_until_it_is_over_whoever_dies(
    log: AlertLog, alerts_there: Alertmanager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alertmanager, "INTERVAL_SECONDS", INTERVAL_SECONDS)
    there, channel = alerts_there, alerts_there.channel()
    # Fired, and over, before anybody listened: no news.
    old = make_alert(9, rule=AlertRule("old", "r"))
    await log.publish(make_alert(1), old, make_alert(9, id="9/2", status="resolved", rule=old.rule))
    with there.running():
        async with notifying(log.settings, channel) as health:
            await until(lambda: "spend" in there.alerts())
            noticed = make_alert(3, status="noticed", rule=AlertRule("new-group", "r"), value=None)
            await log.publish(noticed)
            await until(lambda: "new-group" in there.alerts())
            # Many leases later.
            await asyncio.sleep(8 * INTERVAL_SECONDS)
            assert there.alerts().keys() == {"spend", "new-group"}
        # Nobody for two intervals.
        await asyncio.sleep(2 * INTERVAL_SECONDS)
        assert there.alerts().keys() == {"spend", "new-group"}
        assert there.told() == [("spend", "firing"), ("new-group", "firing")]
        found = there.alerts()["spend"]
        assert found["labels"] == {
            "alertname": "spend",
            "severity": "critical",
            "user": "u-1",
            "team": "red",
        }
        assert found["annotations"].keys() == {"summary", "query", "runbook", "value", "threshold"}
        before = datetime.fromisoformat(found["updatedAt"])
        async with notifying(log.settings, channel):
            await until(lambda: datetime.fromisoformat(there.alerts()["spend"]["updatedAt"]) > before)
            await log.publish(make_alert(1, id="spend/1/2", status="resolved"))
            assert await until(lambda: "spend" not in there.alerts()) < 10
            await until(lambda: there.told()[1] == ("spend", "resolved"))
    assert health.notifications["am", "delivered"] >= 8
    assert ("am", "given_up") not in health.notifications
    assert there.told() == [("spend", "firing"), ("spend", "resolved"), ("new-group", "firing")]


async def test_an_alertmanager_gets_its_bearer_token_and_a_refusal_is_waited_out(
    log: AlertLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AM_TOKEN", "t0ken")
    monkeypatch.setattr(alertmanager, "INTERVAL_SECONDS", INTERVAL_SECONDS)
    with receiving(lambda path, number: (401 if number == 1 else 200, {})) as receiver:
        url = receiver.url("/prefix")
        channel = Channel(id="am", kind="alertmanager", url=url, secret_env="AM_TOKEN", allow_private=True)
        await log.publish(make_alert())
        async with notifying(log.settings, channel) as health:
            await until(lambda: health.notifications.get(("am", "delivered"), 0) >= 2)
            assert health.notifications["am", "given_up"] == 1
            assert health.channels == {}
    requests = receiver.at("/prefix/api/v2/alerts")
    assert {headers["authorization"] for headers, _ in requests} == {"Bearer t0ken"}
    assert [alert["labels"]["user"] for _, body in requests for alert in json.loads(body)] == ["u-1"] * len(requests)


async def test_an_alertmanager_that_was_away_and_forgot_all_is_told_again(
    log: AlertLog, alerts_there: Alertmanager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alertmanager, "INTERVAL_SECONDS", INTERVAL_SECONDS)
    there = alerts_there
    one, two = make_alert(1), make_alert(2, rule=AlertRule("two", "r"))
    async with notifying(log.settings, there.channel()) as health:
        await log.publish(one, two)
        await until(lambda: "am (lease)" in health.channels)
        with there.running():
            await until(lambda: there.alerts().keys() == {"spend", "two"}, 15)
            assert health.channels == {}
        # What ends while it is away does not come back.
        await log.publish(make_alert(2, id="two/2", status="resolved", rule=two.rule))
        await until(lambda: "am (lease)" in health.channels)
        with there.running(data="forgotten"):
            await until(lambda: there.alerts().keys() == {"spend"}, 15)
            await asyncio.sleep(3 * INTERVAL_SECONDS)
            assert there.alerts().keys() == {"spend"}


@pytest.mark.long
@pytest.mark.timeout(1500)
async def test_a_quarter_of_an_hour_with_two_minutes_without_a_notifier(
    log: AlertLog, alerts_there: Alertmanager, tmp_path: Path
) -> None:
    """With the real interval, and a process that is killed."""
    there = alerts_there
    (tmp_path / "alerts.toml").write_text(
        f'[[channel]]\nid = "am"\nkind = "alertmanager"\nurl = "http://127.0.0.1:{there.port}"\nallow_private = true\n'
    )
    setting = WorkerSetting(
        log.settings.bootstrap_servers,
        log.settings.topic_prefix,
        f"sqlite:///{tmp_path}/none.db",
        {"RUNTAP_ALERTS": str(tmp_path / "alerts.toml")},
    )

    async def stays(seconds: float) -> None:
        until_then = time.monotonic() + seconds
        while time.monotonic() < until_then:
            assert there.alerts().keys() == {"spend"}
            assert there.told() == [("spend", "firing")]
            await asyncio.sleep(1)

    with there.running():
        process = setting.start(tmp_path / "log", "notify")
        try:
            await await_groups(log.settings, ["am"])
            await log.publish(make_alert())
            fired = await until(lambda: "spend" in there.alerts())
            await stays(390)
            process.kill()
            process.wait(10)
            await stays(120)
            killed_until = datetime.now().astimezone()
            process = setting.start(tmp_path / "log", "notify")
            again = await until(lambda: datetime.fromisoformat(there.alerts()["spend"]["updatedAt"]) > killed_until, 70)
            await stays(390)
            await log.publish(make_alert(id="spend/1/2", status="resolved"))
            over = await until(lambda: "spend" not in there.alerts())
            told_over = await until(lambda: there.told() == [("spend", "firing"), ("spend", "resolved")])
        finally:
            process.terminate()
            process.wait(10)
    # What it took, for whoever runs it with -s.
    print(f"fired after {fired:.2f} s, told again {again:.1f} s after the restart, over {over + told_over:.2f} s")  # noqa: T201
