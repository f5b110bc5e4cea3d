"""What an Alertmanager is told: a lease on what fires, renewed every minute.

Nobody who has died says "resolved": an alert stays for as long as its last lease. Whoever comes back reads what fires
from the compacted topic, and has no memory to lose.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from runtap_schemas import Alert

INTERVAL_SECONDS, INTERVALS_AHEAD = 60.0, 4
PATH = "/api/v2/alerts"
# For how long that is shown which has happened and has no end.
_NOTICED = timedelta(minutes=5)


class Told(NamedTuple):
    """An alert, and whether it is to be told as over."""

    alert: Alert
    is_over: bool


class FiringLease:
    """What fires, by key, and what of it Alertmanager is to be told. `changed`: there is something to tell."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._firing: dict[bytes, Alert] = {}
        self._untold: dict[frozenset[tuple[str, str]], Told] = {}

    def replace(self, firing: Mapping[bytes, Alert]) -> None:
        """Takes in all that fires; what fired before and is not in it is over."""
        for key in self._firing.keys() | firing.keys():
            self.apply(key, firing.get(key))
        self.changed.set()

    def apply(self, key: bytes, alert: Alert | None) -> None:
        """Takes in what has become of a key; `None`: it does not fire any more."""
        # With other labels (more severe, say) it is another alert over there.
        if (before := self._firing.pop(key, None)) is not None:
            self._note(Told(before, True))
        if alert is not None:
            self._firing[key] = alert
            self._note(Told(alert, False))
        self.changed.set()

    def renew(self) -> None:
        """All that fires is to be told again."""
        for alert in self._firing.values():
            self._note(Told(alert, False))

    def untold(self) -> list[Told]:
        """What is to be told."""
        self.changed.clear()
        return list(self._untold.values())

    def was_told(self, told: Sequence[Told]) -> None:
        """Alertmanager knows of these; what has changed meanwhile is still to be told."""
        for one in told:
            if self._untold.get(_identity(one.alert)) is one:
                del self._untold[_identity(one.alert)]

    def _note(self, one: Told) -> None:
        self._untold[_identity(one.alert)] = one


def _identity(alert: Alert) -> frozenset[tuple[str, str]]:
    return frozenset(labels_of(alert).items())


def labels_of(alert: Alert) -> dict[str, str]:
    """The labels, by which Alertmanager tells alerts apart."""
    labels = {"alertname": alert.rule.id, "severity": alert.severity}
    for given, value in (*sorted(alert.group.items()), *sorted(alert.labels.items())):
        name = label_name(given)
        while name in labels:
            name += "_"
        labels[name] = value
    return labels


def label_name(name: str) -> str:
    """A name that every version of Alertmanager takes."""
    return re.sub(r"^(?=[0-9]|$)", "_", re.sub(r"[^a-zA-Z0-9_]", "_", name))


def lease_body(told: Sequence[Told]) -> bytes:
    """The request that tells what fires, for four intervals, and what is over as of now."""
    now = datetime.now(UTC)
    ahead = timedelta(seconds=INTERVAL_SECONDS * INTERVALS_AHEAD)
    return msgspec.json.encode([_posted(one.alert, now, now if one.is_over else now + ahead) for one in told])


def noticed_body(alert: Alert) -> bytes:
    """The request that tells what has happened and has no end."""
    now = datetime.now(UTC)
    return msgspec.json.encode([_posted(alert, now, now + _NOTICED)])


def _posted(alert: Alert, now: datetime, ends_at: datetime) -> dict[str, Any]:
    facts = {name: getattr(alert, name) for name in ("summary", "query", "runbook", "value", "threshold")}
    try:
        # What ends before it begins is refused, and the evaluator's clock may be ahead.
        starts_at = min(datetime.fromisoformat(alert.at), now)
    except (ValueError, TypeError):
        starts_at = now
    return {
        "labels": labels_of(alert),
        "annotations": {name: value for name, value in facts.items() if value},
        "startsAt": starts_at.isoformat(),
        "endsAt": ends_at.isoformat(),
    }
