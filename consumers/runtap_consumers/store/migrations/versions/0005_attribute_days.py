"""Costs by attribute become hours (two days) and days (400) with the service; repricings count what they kept."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from alembic import op
from sqlalchemy import BigInteger, Column, Connection, Integer, Text, text

revision = "0005"
down_revision = "0004"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_HOURS_KEPT_NS = 48 * 3_600 * 10**9
_COUNTS = (
    *("calls", "priced_calls", "unpriced_calls", "unmetered_calls", "cached_calls", "input_tokens"),
    *("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "input_audio_tokens"),
    *("input_image_tokens", "output_tokens", "reasoning_tokens", "output_audio_tokens", "web_searches"),
    "cost_picodollars",
)
_NAMES = ("attribute", "value", "provider", "model")
_PRICES = ("price_set", "price_class", "partition", "generation")


def upgrade() -> None:
    """Moves the rows: nobody knows of which service they were, so it is ''. A day gets the hours that begin in it."""
    for grain in ("hour", "day"):
        keys: list[Column[Any]] = [
            Column(
                name,
                _INTEGER if name in ("bucket_ns", "partition", "generation") else Text,
                primary_key=True,
                nullable=False,
                autoincrement=False,
            )
            for name in ("bucket_ns", *_NAMES, "service", *_PRICES)
        ]
        op.create_table(
            f"cost_by_attribute_{grain}",
            *keys,
            *(Column(name, _INTEGER) for name in _COUNTS),
            sqlite_with_rowid=False,
            sqlite_strict=True,
        )
    for name in ("kept_calls", "kept_session_calls", "kept_attribute_calls"):
        # Earlier repricings were refused where they could not tell.
        op.add_column("repricings", Column(name, _INTEGER, nullable=False, server_default="0"))
    connection = op.get_bind()
    newest = connection.execute(text("SELECT max(log_time_ns) FROM positions WHERE projection = 'cost'")).scalar()
    _move(connection, "hour", "bucket_ns", ", ".join(_COUNTS), f"WHERE bucket_ns >= {(newest or 0) - _HOURS_KEPT_NS}")
    zone = ZoneInfo(connection.execute(text("SELECT timezone FROM store")).scalar_one())
    # One pass over the rows, which are as many as there are users and hours: a statement a day would take 400.
    op.execute("CREATE TEMPORARY TABLE days_of_hours (hour_ns BIGINT PRIMARY KEY, day_ns BIGINT NOT NULL)")
    hours = list(connection.execute(text("SELECT DISTINCT bucket_ns FROM cost_by_attribute")).scalars())
    if hours:
        connection.execute(
            text("INSERT INTO days_of_hours VALUES (:hour, :day)"),
            [{"hour": hour, "day": _day_of(hour, zone)} for hour in hours],
        )
    _move(
        connection,
        "day",
        "day_ns",
        ", ".join(f"sum({name})" for name in _COUNTS),
        f"JOIN days_of_hours ON hour_ns = bucket_ns GROUP BY day_ns, {', '.join((*_NAMES, *_PRICES))}",
    )
    op.execute("DROP TABLE days_of_hours")
    op.drop_table("cost_by_attribute")


def _move(connection: Connection, grain: str, bucket: str, counts: str, chosen: str) -> None:
    columns = ", ".join(("bucket_ns", *_NAMES, "service", *_PRICES, *_COUNTS))
    source = ", ".join((bucket, *_NAMES, "''", *_PRICES, counts))
    connection.execute(
        text(f"INSERT INTO cost_by_attribute_{grain} ({columns}) SELECT {source} FROM cost_by_attribute {chosen}")
    )


def _day_of(at_ns: int, zone: ZoneInfo) -> int:
    local = datetime.fromtimestamp(at_ns // 10**9, zone)
    return int(local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).timestamp()) * 10**9
