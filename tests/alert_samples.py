"""Alerts as the evaluator makes them, and the records that it writes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from runtap_consumers.kafka.client import Publisher
from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import Alert, AlertRule, encode_alert
from runtap_schemas.alerts import alert_headers
from runtap_schemas.topics import alerts_state_topic, alerts_topic


def make_alert(number: int = 1, **changes: Any) -> Alert:
    """One of a rule on costs by user; what is not named is as always."""
    facts: dict[str, Any] = {
        "id": f"spend/{number}/1",
        "incident_id": f"spend/{number}",
        "status": "firing",
        "severity": "critical",
        "rule": AlertRule("spend", "r1"),
        "group": {"user": f"u-{number}"},
        "at": datetime.now(UTC).isoformat(),
        "value": "12.50",
        "threshold": "10",
        "unit": "USD",
        "summary": f"u-{number} spent 12.50 USD in an hour, more than 10 — “zu viel”",
        "query": f"runtap costs --user u-{number} --since 1h",
        "labels": {"team": "red"},
        "runbook": "https://example.com/spend",
    }
    return Alert(**{**facts, **changes})


class AlertLog:
    """Writes the alert topics as the evaluator does."""

    def __init__(self, settings: ConsumerSettings) -> None:
        self.settings = settings

    async def publish(self, *alerts: Alert) -> None:
        """Each to both topics, as its status says."""
        prefix = self.settings.topic_prefix
        async with Publisher(self.settings) as publisher:
            for alert in alerts:
                key, value = alert.key.encode(), encode_alert(alert)
                await publisher.publish(alerts_topic(prefix), key, value, alert_headers(alert, "s1"))
                if alert.status != "noticed":
                    state = value if alert.status == "firing" else None
                    await publisher.publish(alerts_state_topic(prefix), key, state)
