"""The contract of the alert topics: one record of `runtap.alerts` is one JSON object, a CloudEvent in Kafka's binary
mode.

Instants are RFC 3339 in UTC, amounts and shares decimal text. Only what a subscriber needs to read is here: the
compacted twin `runtap.alerts.state` holds the same records by the same keys, and null once they are resolved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from runtap_schemas.events import MAX_NAME_LENGTH, MAX_TEXT_LENGTH

MAX_ID_LENGTH = 300
Status = Literal["firing", "resolved", "noticed"]
Severity = Literal["info", "warning", "critical"]
_Instant = Annotated[str, Meta(max_length=40, extra_json_schema={"format": "date-time"})]
_Decimal = Annotated[str, Meta(pattern=r"^-?[0-9]+(\.[0-9]+)?$", max_length=60)]
_Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)]
_Name = Annotated[str, Meta(max_length=MAX_NAME_LENGTH)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)]
_Facts = Annotated[dict[_Name, Annotated[str, Meta(max_length=500)]], Meta(max_length=32)]


class AlertRule(Struct, frozen=True):
    """The rule that raised an alert."""

    id: Annotated[_Id, Meta(description="The rule's id in the file of alert rules.")]
    revision: Annotated[_Name, Meta(description="Hash of the rule as it was: another one means that it was edited.")]


class AlertWindow(Struct, frozen=True, rename={"from_": "from"}):
    """The stretch of time that was judged."""

    from_: Annotated[_Instant, Meta(description="Its first moment.")]
    to: Annotated[_Instant, Meta(description="The moment after its last one.")]


class Alert(Struct, kw_only=True, omit_defaults=False):
    """One record of the alerts topic. `firing` and `resolved` mark a condition's begin and end, `noticed` is said once
    and has no end.
    """

    schema: Annotated[
        Literal["runtap.alert.v1"], Meta(description="Version of this format; fields are only ever added to it.")
    ] = "runtap.alert.v1"
    id: Annotated[_Id, Meta(description="Names this record; a repeat of the record has the same one.")]
    incident_id: Annotated[
        _Id, Meta(description="Names what is wrong: the same from `firing` over repeats and rises to `resolved`.")
    ]
    status: Annotated[Status, Meta(description="`firing`, `resolved`, or `noticed` for what happens and has no end.")]
    severity: Annotated[Severity, Meta(description="How bad it is, by the rule.")]
    rule: Annotated[AlertRule, Meta(description="The rule that raised it.")]
    group: Annotated[_Facts, Meta(description="What it is about: the values of the rule's `group_by`; empty for all.")]
    at: Annotated[_Instant, Meta(description="When it was raised.")]
    value: Annotated[_Decimal | None, Meta(description="The figure that was judged; null where there is none.")] = None
    threshold: Annotated[_Decimal | None, Meta(description="What it was compared with, in the same unit.")] = None
    unit: Annotated[_Name, Meta(description="Unit of both: `USD`, `share` (0 to 1), `s`, `tokens`, `calls`, …")]
    window: Annotated[
        AlertWindow | None, Meta(description="The stretch of time that was judged; null where there is none.")
    ] = None
    complete_to: Annotated[
        _Instant | None,
        Meta(description="Before this instant nothing was missing when it was raised; null where that is unknown."),
    ] = None
    trace_id: Annotated[_Name | None, Meta(description="A trace to look at first.")] = None
    sample_run_ids: Annotated[
        Annotated[list[_Name], Meta(max_length=10)],
        Meta(description="Runs that show it; `runtap trace` finds the trace of each."),
    ] = []
    error_type: Annotated[_Name | None, Meta(description="The most frequent error in the window.")] = None
    error_place: Annotated[_Text | None, Meta(description="Where in the code that was raised.")] = None
    change: Annotated[
        Annotated[dict[_Name, _Decimal], Meta(max_length=10)] | None,
        Meta(
            description="Of costs: what the window cost more than the one before it, in USD, split exactly into "
            "volume, mix, tokens, cached share, price and the rest."
        ),
    ] = None
    summary: Annotated[_Text, Meta(description="All of it in one line, for people.")]
    query: Annotated[_Text, Meta(description="The command that shows the same figure.")]
    labels: Annotated[_Facts, Meta(description="The rule's own labels.")] = {}
    runbook: Annotated[_Text | None, Meta(description="What to do, by the rule.")] = None

    @property
    def key(self) -> str:
        """The Kafka key of its records."""
        return alert_key(self.rule.id, self.group)


_decoder = msgspec.json.Decoder(Alert)
_encoder = msgspec.json.Encoder()


def alert_key(rule: str, group: Mapping[str, str]) -> str:
    """The key of both alert topics: `RULE?k=v&k=v`, keys sorted, percent-encoded; of no group, the rule alone."""
    facts = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(group.items()))
    return f"{quote(rule, safe='')}?{facts}" if facts else quote(rule, safe="")


def encode_alert(alert: Alert) -> bytes:
    """The JSON of an alert."""
    return _encoder.encode(alert)


def decode_alert(value: bytes) -> Alert:
    """Reads a record of the alerts topic; fields of a later version are ignored.

    Raises:
        msgspec.DecodeError: it is not an alert of this version.
    """
    return _decoder.decode(value)


def alert_headers(alert: Alert, store_id: str) -> Sequence[tuple[str, bytes]]:
    """The headers of an alert's record: a CloudEvent 1.0 in binary mode, and the incident that it belongs to."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": alert.id,
        "ce_source": f"/runtap/{store_id}",
        "ce_type": f"runtap.alert.{alert.status}",
        "ce_subject": alert.key,
        "ce_time": alert.at,
        # Exactly this: FastStream takes no parameter after it.
        "content-type": "application/json",
        "correlation_id": alert.incident_id,
    }
    # Header values of Kafka are bytes; ids and keys are percent-encoded.
    return [(name, value.encode()) for name, value in headers.items()]
