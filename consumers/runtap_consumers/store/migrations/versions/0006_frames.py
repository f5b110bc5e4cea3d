"""Frames: an emitter is one lane, with the instant that its newest frame claims, and its reports are one row. What was
known of emitters of the old wire format goes: none of their records can be read any more.
"""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0006"
down_revision = "0005"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")


def _make(name: str, keys: dict[str, Any], columns: dict[str, Any], *, nullable: bool = True, **options: Any) -> None:
    op.create_table(
        name,
        *(Column(key, kind, primary_key=True, nullable=False, autoincrement=False) for key, kind in keys.items()),
        *(Column(column, kind, nullable=nullable) for column, kind in columns.items()),
        sqlite_strict=True,
        **options,
    )


def upgrade() -> None:
    """Makes the tables and columns."""
    for table in ("emitter_reports", "report_chains", "lane_marks"):
        op.drop_table(table)
    rollup = {"partition": _INTEGER, "generation": _INTEGER}
    texts = dict.fromkeys(("service", "environment", "skipped"), Text)
    _make(
        "emitter_reports",
        {"emitter": Text, "host": Text, "process_id": _INTEGER, **rollup},
        {**dict.fromkeys(("number", "log_time_ns", "closing"), _INTEGER), **texts},
    )
    without_rowid = {"sqlite_with_rowid": False}
    counted = {"total": _INTEGER, "log_time_ns": _INTEGER}
    _make("emitter_counts", {"emitter": Text, "kind": Text, "reason": Text, **rollup}, counted, **without_rowid)
    numbers = {"first_number": _INTEGER, "last_number": _INTEGER}
    abandoned = {"reason": Text, "log_time_ns": _INTEGER}
    _make("abandoned_lanes", {"emitter": Text, **numbers, **rollup}, abandoned, **without_rowid)
    _make("report_minutes", {"bucket_ns": _INTEGER, **rollup}, {"tens": _INTEGER}, **without_rowid)
    _make("strays", {"kind": Text, **rollup}, {"count": _INTEGER}, **without_rowid)
    lane = ("before", "forgotten", "quarantined", "repeats", "first_at_ns", "log_time_ns", "at_ns", "is_shared")
    _make(
        "lane_marks",
        {"projection": Text, "partition": _INTEGER, "emitter": Text},
        {"mark": _INTEGER, "gaps": Text, **dict.fromkeys(lane, _INTEGER)},
        nullable=False,
        **without_rowid,
    )
    _make("forgotten_emitters", {"emitter": Text}, {"heard_at_ns": _INTEGER}, nullable=False)
    op.add_column("positions", Column("caught_up_at_ns", _INTEGER, nullable=False, server_default="0"))
    op.add_column("dead_letters", Column("events", _INTEGER, nullable=False, server_default="1"))
