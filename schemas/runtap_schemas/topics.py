"""The topics: their names and the settings that runtap relies on."""

from __future__ import annotations

from dataclasses import dataclass, field

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Topic:
    """A topic as `runtap topics create` makes it. `partitions` of `None`: the number that the operator chose."""

    name: str
    purpose: str
    partitions: int | None
    settings: dict[str, str] = field(default_factory=dict)


def events_topic(prefix: str) -> str:
    """Name of the topic that emitters write."""
    return f"{prefix}.events"


def alerts_topic(prefix: str) -> str:
    """Name of the topic that subscribers read."""
    return f"{prefix}.alerts"


def alerts_state_topic(prefix: str) -> str:
    """Name of the compacted topic that holds what fires now."""
    return f"{prefix}.alerts.state"


def dead_letters_topic(prefix: str) -> str:
    """Name of the topic that holds what could not be read."""
    return f"{prefix}.dead-letters"


def all_topics(prefix: str) -> list[Topic]:
    """Every topic of one installation, with its settings."""
    # Log time is the broker's: a wrong clock in a service must not decide where, or whether, its events count.
    common = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete"}
    return [
        Topic(events_topic(prefix), "events of runs", None, {**common, "retention.ms": str(8 * DAY_MS)}),
        Topic(alerts_topic(prefix), "alerts", 1, {**common, "retention.ms": str(30 * DAY_MS)}),
        Topic(alerts_state_topic(prefix), "what fires now", 1, {**common, "cleanup.policy": "compact"}),
        Topic(dead_letters_topic(prefix), "unreadable records", 1, {**common, "retention.ms": str(30 * DAY_MS)}),
    ]
