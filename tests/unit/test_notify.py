"""What a notifier decides without a server: channels, addresses, signatures, pauses, and what Alertmanager is told."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from alert_samples import make_alert
from runtap_consumers.alerts.channels import Channel
from runtap_consumers.alerts.rule_file import parse_rules
from runtap_consumers.errors import AlertFileError
from runtap_consumers.notify import alertmanager
from runtap_consumers.notify.alertmanager import FiringLease, Told
from runtap_consumers.notify.target import Target, is_public
from runtap_consumers.notify.webhook import signed_headers, signer_of
from runtap_consumers.replies import LONGEST_ASKED_SECONDS, Reply, pause_seconds
from runtap_schemas import SettingsError, encode_alert

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WEBHOOK = {"id": "on-call", "kind": "webhook", "url": "https://hooks.example.com/x", "secret_env": "ON_CALL"}


def channels_in(*tables: dict[str, Any]) -> Sequence[Channel]:
    lines = [
        "[[channel]]\n" + "".join(f"{key} = {json.dumps(of)}\n" for key, of in each.items() if of) for each in tables
    ]
    return parse_rules("".join(lines), "alerts.toml", ()).channels


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "On call"}, "channel 'On call': id: String should match pattern"),
        ({"kind": "smoke"}, "channel 'on-call': kind: Input should be 'webhook' or 'alertmanager'"),
        ({"url": "ftp://x/"}, "url: expected http://HOST"),
        ({"url": "https:///x"}, "url: expected http://HOST"),
        ({"url": "https://host/ö"}, "url: expected http://HOST"),
        ({"url": "https://host:port/"}, "url: expected http://HOST"),
        ({"url": "https://u:p@host/"}, "url: leave user and password out"),
        ({"secret_env": None}, "secret_env is missing"),
        ({"secret": SECRET}, "secret: there is no such key"),
    ],
)
def test_a_wrong_channel_is_refused_by_file_channel_and_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AlertFileError, match=r"^alerts\.toml: channel") as refused:
        channels_in({**WEBHOOK, **changes})
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)
    assert "u:p" not in str(refused.value)


def test_two_channels_of_one_id_are_refused() -> None:
    assert [channel.id for channel in channels_in(WEBHOOK, {**WEBHOOK, "id": "other"})] == ["on-call", "other"]
    with pytest.raises(AlertFileError, match="'on-call' is the id of more than one channel"):
        channels_in(WEBHOOK, WEBHOOK)


def test_a_secret_is_that_of_the_environment_or_of_dot_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ON_CALL", raising=False)
    channel = Channel.model_validate(WEBHOOK)
    with pytest.raises(SettingsError, match="channel on-call: ON_CALL is not set"):
        signer_of(channel)
    Path(".env").write_text(f"ON_CALL={SECRET}\n")
    assert channel.read_secret() == SECRET
    for wrong in ("secret", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64, but long enough to be", SECRET[6:]):
        monkeypatch.setenv("ON_CALL", wrong)
        with pytest.raises(SettingsError, match="ON_CALL is no secret of Standard Webhooks") as refused:
            signer_of(channel)
        assert wrong not in str(refused.value) or wrong in ("secret", "whsec_")


def test_a_request_is_verified_by_the_library_and_no_other_body_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ON_CALL", SECRET)
    alert = make_alert()
    body = encode_alert(alert)
    headers = signed_headers(signer_of(Channel.model_validate(WEBHOOK)), alert.id, body)
    assert headers["webhook-id"] == headers["idempotency-key"] == alert.id
    assert Webhook(SECRET).verify(body, headers)["id"] == alert.id
    for tampered in (body.replace(b"12.50", b"12.51"), body + b" "):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(tampered, headers)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("0.0.0.0", False),
        ("127.0.0.1", False),
        ("127.255.0.9", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("172.32.0.1", True),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("224.0.1.1", False),
        ("239.1.1.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%2", False),
        ("fc00::1", False),
        ("fd12:3456::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("2001:db8::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2002:5db8:d822::1", True),
    ],
)
def test_an_address_is_one_of_the_internet(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0"])
async def test_no_spelling_of_this_machine_is_connected_to(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        target = Target(Channel.model_validate({**WEBHOOK, "url": f"http://{host}:{port}/"}))
        answer = await target.post(b"{}", {})
        await target.close()
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert answer.status is None
    assert "allow_private = true" in answer.reason
    assert answer.is_transient


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere when it is asked for the second time."""
    asked: list[str] = []

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(asked) == 1 else "127.0.0.2", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        url = f"http://hooks.example.com:{port}/a?b=c"
        target = Target(Channel.model_validate({**WEBHOOK, "url": url, "allow_private": True}))
        got = await target.post(b"{}", {"webhook-id": "1"})
        await target.close()
    assert got.is_delivered
    assert asked == ["hooks.example.com"]
    assert heads[0].startswith(b"POST /a?b=c HTTP/1.1\r\n")
    assert f"host: hooks.example.com:{port}\r\n".encode() in heads[0].lower()


@pytest.mark.parametrize(("name", "delivered"), [("hooks.example.com", True), ("other.example.com", False)])
async def test_a_certificate_is_checked_for_the_name_and_not_for_the_address(
    name: str, delivered: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=x", "-addext", f"subjectAltName=DNS:{name}"]
    process = await asyncio.create_subprocess_exec(
        *command, *names, "-keyout", str(key), "-out", str(cert), stderr=subprocess.DEVNULL
    )
    assert await process.wait() == 0
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        url = f"https://hooks.example.com:{server.sockets[0].getsockname()[1]}/"
        target = Target(Channel.model_validate({**WEBHOOK, "url": url, "allow_private": True}))
        got = await target.post(b"{}", {})
        await target.close()
    assert got.is_delivered is delivered, got
    if not delivered:
        assert "certificate is not valid for 'hooks.example.com'" in got.reason


@pytest.mark.parametrize(
    ("status", "delivered", "transient"),
    [
        *((status, True, False) for status in (200, 202, 204)),
        *((status, False, False) for status in (301, 302, 307, 400, 401, 404, 410, 413, 422)),
        *((status, False, True) for status in (408, 425, 429, 500, 502, 503, 504, None)),
    ],
)
def test_what_an_answer_means(status: int | None, delivered: bool, transient: bool) -> None:
    answer = Reply(status, "")
    assert (answer.is_delivered, answer.is_transient) == (delivered, transient)


def test_pauses_double_up_to_a_minute_and_half_of_them_is_chance() -> None:
    for failures, longest in ((1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1_000_000, 60)):
        pauses = [pause_seconds(failures) for _ in range(200)]
        assert longest / 2 <= min(pauses) < 0.7 * longest
        assert 0.8 * longest < max(pauses) <= longest


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("120", 120, 120),
        ("0", 0.5, 1),
        ("-5", 0.5, 1),
        ("soon", 0.5, 1),
        ("", 0.5, 1),
        ("²", 0.5, 1),
        ("9" * 400, LONGEST_ASKED_SECONDS, LONGEST_ASKED_SECONDS),
        pytest.param(
            format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 2_400, 3_600, id="in an hour"
        ),
        pytest.param(format_datetime(datetime.now(UTC) - timedelta(days=9), usegmt=True), 0.5, 1, id="past"),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 0.5, 1),
    ],
)
def test_a_receiver_may_ask_for_a_longer_pause(retry_after: str, least: float, most: float) -> None:
    assert least <= pause_seconds(1, retry_after) <= most


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ("user", "user"),
        ("metadata.team", "metadata_team"),
        ("7d", "_7d"),
        ("", "_"),
        ("größe", "gr__e"),
        ("a-b", "a_b"),
    ],
)
def test_label_names_become_valid(given: str, valid: str) -> None:
    assert alertmanager.label_name(given) == valid


def test_no_label_takes_the_place_of_another() -> None:
    alert = make_alert(group={"a.b": "1", "a_b": "2", "severity": "mine"}, labels={"alertname": "x", "a-b": "3"})
    assert alertmanager.labels_of(alert) == {
        "alertname": "spend",
        "severity": "critical",
        "a_b": "1",
        "a_b_": "2",
        "severity_": "mine",
        "a_b__": "3",
        "alertname_": "x",
    }


def posted(lease: FiringLease) -> list[dict[str, Any]]:
    told = lease.untold()
    lease.was_told(told)
    found: list[dict[str, Any]] = json.loads(alertmanager.lease_body(told))
    return found


def seconds_left(alert: dict[str, Any]) -> float:
    return (datetime.fromisoformat(alert["endsAt"]) - datetime.now(UTC)).total_seconds()


def test_what_fires_is_told_again_with_four_intervals_ahead_and_what_is_over_once() -> None:
    lease = FiringLease()
    lease.replace({b"1": make_alert(1), b"2": make_alert(2)})
    assert [round(seconds_left(alert)) for alert in posted(lease)] == [240, 240]
    assert posted(lease) == []
    lease.renew()
    assert {alert["labels"]["user"] for alert in posted(lease)} == {"u-1", "u-2"}
    lease.apply(b"1", None)
    (over,) = posted(lease)
    assert (over["labels"]["user"], round(seconds_left(over))) == ("u-1", 0)
    lease.renew()
    assert [alert["labels"]["user"] for alert in posted(lease)] == ["u-2"]
    # Read anew, after Kafka was away: 2 was resolved meanwhile, 3 began.
    lease.replace({b"3": make_alert(3)})
    assert {alert["labels"]["user"]: round(seconds_left(alert)) for alert in posted(lease)} == {"u-2": 0, "u-3": 240}


def test_more_severe_is_another_alert_and_the_one_before_is_over() -> None:
    lease = FiringLease()
    lease.apply(b"1", make_alert(severity="warning"))
    posted(lease)
    lease.apply(b"1", make_alert(severity="critical"))
    told = {alert["labels"]["severity"]: round(seconds_left(alert)) for alert in posted(lease)}
    assert told == {"warning": 0, "critical": 240}


def test_what_changes_while_it_is_told_is_still_to_be_told() -> None:
    lease = FiringLease()
    lease.apply(b"1", make_alert())
    told = lease.untold()
    lease.apply(b"1", None)
    lease.was_told(told)
    assert [one.is_over for one in lease.untold()] == [True]
    lease.apply(b"1", make_alert())
    assert [one.is_over for one in lease.untold()] == [False]


def test_an_alert_never_begins_after_its_end() -> None:
    ahead = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    for at in (ahead, "2020-01-02T03:04:05Z", "yesterday", "2020-01-02T03:04:05"):
        (alert,) = json.loads(alertmanager.lease_body([Told(make_alert(at=at), True)]))
        assert datetime.fromisoformat(alert["startsAt"]) <= datetime.fromisoformat(alert["endsAt"])
    assert alert["annotations"] == {
        "summary": make_alert().summary,
        "query": "runtap costs --user u-1 --since 1h",
        "runbook": "https://example.com/spend",
        "value": "12.50",
        "threshold": "10",
    }
