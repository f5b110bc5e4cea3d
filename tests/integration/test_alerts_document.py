"""The examples of docs/alerts.md, as they stand there."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.routing import Route

from alert_samples import AlertLog, make_alert
from prometheus_tools import run_tool
from runtap_consumers.alerts.channels import Channel
from runtap_consumers.alerts.rule_file import OCCURRENCES, parse_rules
from runtap_consumers.alerts.rules import make_rule
from runtap_consumers.figures.quantities import PRESENT_QUANTITIES, QUANTITIES
from runtap_consumers.notify.webhook import signed_headers, signer_of
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import encode_alert
from runtap_schemas.topics import alerts_topic
from webhook_receiver import receiving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TEXT = (Path(__file__).parents[2] / "docs/alerts.md").read_text()


def example(language: str, word: str) -> str:
    """The one example of a language that has a word in it."""
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if word in text)
    return textwrap.dedent(found)


def test_rules_are_read() -> None:
    spend, month = parse_rules(example("toml", "[[budget]]"), "alerts.toml", ()).rules
    assert (spend.id, month.id, make_rule(spend).projection) == ("user_spend", "month", "cost")
    named = set(re.findall(r"`([a-z][a-z_0-9]+)`", TEXT))
    families = {name.rpartition("_")[0] for name in QUANTITIES if name.startswith(("latency", "time_to"))}
    for name in (*QUANTITIES, *PRESENT_QUANTITIES, *OCCURRENCES):
        assert name in named or name.rpartition("_")[0] in families, name


def test_channels_are_read() -> None:
    channels = parse_rules(example("toml", "[[channel]]"), "alerts.toml", ()).channels
    assert [(channel.id, channel.kind, channel.allow_private) for channel in channels] == [
        ("on-call", "webhook", False),
        ("alertmanager", "alertmanager", True),
    ]


def test_alertmanager_takes_the_routes(tmp_path: Path) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(example("yaml", "slack_configs"))
    run_tool("amtool", "check-config", file)
    routes = ("config", "routes", "test", f"--config.file={file}", "alertname=spend")
    assert run_tool("amtool", *routes, "severity=critical").splitlines()[0] == "feishu,slack"
    assert run_tool("amtool", *routes, "severity=warning").splitlines()[0] == "slack"


async def ask(app: Any, body: bytes, headers: dict[str, str]) -> int:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://receiver") as client:
        return (await client.post("/", content=body, headers=headers)).status_code


async def test_the_receiver_of_webhooks_verifies_and_knows_a_repeat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ON_CALL_SECRET", SECRET)
    names: dict[str, Any] = {"seen": set()}
    exec(example("python", "WebhookVerificationError"), names)
    app = Starlette(routes=[Route("/", names["receive"], methods=["POST"])])
    channel = Channel(id="x", kind="webhook", url="https://x.example/", secret_env="ON_CALL_SECRET")
    alert = make_alert()
    body = encode_alert(alert)
    headers = signed_headers(signer_of(channel), alert.id, body)
    assert [await ask(app, body, headers) for _ in range(2)] == [204, 204]
    assert await ask(app, body + b" ", headers) == 401
    forged = signed_headers(Webhook(b"another secret of somebody"), alert.id, body)
    assert await ask(app, body, forged) == 401
    assert capsys.readouterr().out == f"{alert.summary}\n"


async def test_the_bridge_tells_a_feishu_bot(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(example("python", "FEISHU_URL"), names)
    answers = iter([b'{"code": 0}', b'{"code": 9499}', b"{}"])
    told = [
        {"status": status, "labels": {}, "annotations": {"summary": f"{status} of u-1"}}
        for status in ("firing", "resolved")
    ]
    body = httpx2.Request("POST", "http://x", json={"alerts": told, "commonLabels": {"alertname": "spend"}}).content
    with receiving(lambda path, number: (200, {}, next(answers))) as receiver:
        monkeypatch.setenv("FEISHU_URL", receiver.url("/hook"))
        assert [await ask(names["app"], body, {}) for _ in range(3)] == [200, 502, 200]
        ((_, message), *_) = receiver.at("/hook")
    assert httpx2.Response(200, content=message).json() == {
        "msg_type": "text",
        "content": {"text": "runtap spend\nfiring: firing of u-1\nresolved: resolved of u-1"},
    }


async def test_ten_lines_of_aiokafka_read_alerts(
    kafka: str, topic_prefix: str, events_topic: Callable[..., Awaitable[str]]
) -> None:
    await events_topic(1)
    settings = ConsumerSettings.load(bootstrap_servers=kafka, topic_prefix=topic_prefix)
    script = example("python", "AIOKafkaConsumer").replace('"runtap.alerts"', repr(alerts_topic(topic_prefix)))
    # From the oldest: it may join its group after the alert is there.
    script = script.replace('"127.0.0.1:9092"', f'{kafka!r}, auto_offset_reset="earliest"')
    assert len([line for line in script.splitlines() if line]) <= 10
    await AlertLog(settings).publish(make_alert())
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
    finally:
        process.kill()
        await process.communicate()
    assert line.decode() == f"firing critical {make_alert().summary}\n"
