"""Alert rules stand in a file: states, marks and history of alerts are by rule and group. Of answers it is counted how
many were cut off or refused, from now on.
"""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Text, text

revision = "0014"
down_revision = "0013"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_GRAINS = ("minute", "hour", "day", "total")


def upgrade() -> None:
    """Carries over what is known, what fires, and what was said."""
    for grain in _GRAINS:
        for name in ("cut_off", "refused"):
            op.add_column(f"performance_{grain}", Column(name, _INTEGER, server_default="0"))
    old = {name: _rows(name) for name in ("alert_lease", "alert_states", "alert_known_groups", "alert_outbox")}
    touched = _rows("touched_minutes")
    for name in (*old, "alert_budgets", "touched_minutes"):
        op.drop_table(name)
    _make(
        "touched_minutes", {"projection": Text, **_integers("bucket_ns", "partition", "generation")}, touches=_INTEGER
    )
    made = _make(
        "alert_lease",
        {"id": Integer},
        holder=Text,
        **_integers("expires_at_ns", "learning_until_ns", "round"),
    )
    marks = _make("alert_marks", {"projection": Text}, **_integers("judged_to_ns", "touched_ns", "early_to_ns"))
    states = _make(
        "alert_states",
        {"rule": Text, "group_values": Text},
        **_integers("level", "transition", "window_to_ns", "since_ns"),
        incident=Text,
        **_integers("said_ns", "seen", "is_withheld"),
    )
    outbox = _make(
        "alert_outbox",
        {"id": Text},
        at_ns=_INTEGER,
        **dict.fromkeys(("rule", "status", "severity", "group_values", "service", "summary"), Text),
        **_integers("window_from_ns", "window_to_ns"),
        payload=LargeBinary,
        **_integers("revised_at_ns", "published"),
    )
    op.create_index("alert_outbox_at", "alert_outbox", ["at_ns"])
    for lease in old["alert_lease"]:
        kept = {name: lease[name] for name in ("id", "holder", "expires_at_ns", "learning_until_ns")}
        op.bulk_insert(made, [{**kept, "round": 0}])
        touched_ns = min((row["bucket_ns"] for row in touched), default=None)
        mark = {"projection": "errors", "judged_to_ns": lease["evaluated_to_ns"], "touched_ns": touched_ns}
        op.bulk_insert(marks, [mark])
    op.bulk_insert(states, [*map(_state, old["alert_states"]), *map(_known, old["alert_known_groups"])])
    op.bulk_insert(outbox, [_outbox(row) for row in old["alert_outbox"]])


def _rows(table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in op.get_bind().execute(text(f"SELECT * FROM {table}")).mappings()]


def _integers(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, _INTEGER)


def _make(name: str, keys: dict[str, Any], **others: Any) -> Any:
    optional = ("touched_ns", "early_to_ns", "touches")
    return op.create_table(
        name,
        *(Column(key, kind, primary_key=True, nullable=False, autoincrement=False) for key, kind in keys.items()),
        *(Column(other, kind, nullable=other in optional) for other, kind in others.items()),
        sqlite_strict=True,
    )


def _group(*values: str) -> str:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def _state(row: dict[str, Any]) -> dict[str, Any]:
    is_firing = row["state"] == "firing"
    return {
        "rule": row["rule"],
        "group_values": _group(row["service"], row["environment"]),
        "level": int(is_firing),
        "transition": row["transition"],
        "window_to_ns": row["window_to_ns"],
        "since_ns": row["window_to_ns"] if is_firing else 0,
        # The old alert's id is that of what fires.
        "incident": _incident(row) if is_firing else "",
        "said_ns": row["window_to_ns"],
        "seen": 0,
        "is_withheld": 0,
    }


def _incident(row: dict[str, Any]) -> str:
    return "/".join(quote(str(row[name]), safe="") for name in ("rule", "service", "environment", "transition"))


def _known(row: dict[str, Any]) -> dict[str, Any]:
    named = {"rule": "new_error_group", "group_values": _group(row["service"], row["fingerprint"])}
    rest = dict.fromkeys(("level", "window_to_ns", "since_ns", "said_ns", "seen", "is_withheld"), 0)
    return {**named, **rest, "transition": 1, "incident": ""}


def _outbox(row: dict[str, Any]) -> dict[str, Any]:
    said = json.loads(row["payload"])
    status, service, environment = row["state"], row["service"], said.get("environment") or ""
    is_rate = row["rule"] == "error_rate"
    group = {"service": service, "environment": environment} if is_rate else {"service": service}
    if said.get("fingerprint"):
        group = {"service": service, "fingerprint": said["fingerprint"]}
    from_ns, to_ns = said.get("window_from_ns") or 0, said.get("window_to_ns") or 0
    value = said.get("rate") if is_rate else said.get("count")
    samples = [said["sample_run_id"]] if said.get("sample_run_id") else []
    severity = "critical" if is_rate else "warning"
    record = {
        "schema": "runtap.alert.v1",
        "id": row["id"],
        "incident_id": row["id"],
        "status": status,
        "severity": severity,
        "rule": {"id": row["rule"], "revision": ""},
        "group": group,
        "at": _instant(row["at_ns"]),
        "value": None if value is None else str(Decimal(str(value))),
        "threshold": None,
        "unit": "share" if is_rate else "errors",
        "window": {"from": _instant(from_ns), "to": _instant(to_ns)} if to_ns else None,
        "sample_run_ids": samples,
        "summary": row["summary"],
        "query": "runtap report",
    }
    return {
        **{name: row[name] for name in ("id", "at_ns", "rule", "service", "summary", "published")},
        "status": status,
        "severity": severity,
        "group_values": _group(*group.values()),
        "window_from_ns": from_ns,
        "window_to_ns": to_ns,
        "payload": json.dumps(record).encode(),
        "revised_at_ns": 0,
    }


def _instant(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // 10**9, UTC).isoformat().replace("+00:00", "Z")
