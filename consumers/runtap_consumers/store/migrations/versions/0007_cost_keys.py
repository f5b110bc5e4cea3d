"""Costs of attributes and sessions hold a number for what was called at which price; a call is in an hour or a day of
its attribute, not in both; and a session has a row for each of its users.
"""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from alembic import op
from sqlalchemy import BigInteger, Column, Connection, Integer, Text, UniqueConstraint, text

revision = "0007"
down_revision = "0006"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_KEY = ("provider", "model", "service", "environment", "price_set", "price_class")
_COUNTS = (
    *("calls", "priced_calls", "unpriced_calls", "unmetered_calls", "cached_calls", "input_tokens"),
    *("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "input_audio_tokens"),
    *("input_image_tokens", "output_tokens", "reasoning_tokens", "output_audio_tokens", "web_searches"),
    "cost_picodollars",
)
_TAIL = {"partition": _INTEGER, "generation": _INTEGER}
_OF_ATTRIBUTES = {"bucket_ns": _INTEGER, "attribute": Text, "value": Text}
_SESSION_COUNTS = ("starts", "ends", "traces", "llm_calls", "tool_calls", "errors", "input_tokens", "output_tokens")


def _make(name: str, keys: dict[str, Any], columns: dict[str, Any]) -> None:
    op.create_table(
        name,
        *(Column(key, kind, primary_key=True, nullable=False, autoincrement=False) for key, kind in keys.items()),
        *(Column(column, kind) for column, kind in columns.items()),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )


def upgrade() -> None:
    """Numbers what was called, takes the hours out of the days, and writes the rows anew."""
    op.create_table(
        "cost_keys",
        Column("id", _INTEGER, primary_key=True),
        *(Column(name, Text, nullable=False) for name in _KEY),
        UniqueConstraint(*_KEY),
        sqlite_strict=True,
    )
    connection = op.get_bind()
    _take_hours_out_of_days(connection)
    for table in ("cost_by_attribute_hour", "cost_by_attribute_day"):
        _number(table, _OF_ATTRIBUTES, "service")
    _number("session_costs", {"session_id": Text}, "''")
    _move_sessions()


def _take_hours_out_of_days(connection: Connection) -> None:
    zone = ZoneInfo(connection.execute(text("SELECT timezone FROM store")).scalar_one())
    key = ("attribute", "value", "provider", "model", "service", "price_set", "price_class", *_TAIL)
    columns, taken = ", ".join((*key, *_COUNTS)), ", ".join((*key, *(f"-{name}" for name in _COUNTS)))
    sums = ", ".join(f"{name} = cost_by_attribute_day.{name} + excluded.{name}" for name in _COUNTS)
    for hour in list(connection.execute(text("SELECT DISTINCT bucket_ns FROM cost_by_attribute_hour")).scalars()):
        connection.execute(
            text(
                f"INSERT INTO cost_by_attribute_day (bucket_ns, {columns}) SELECT CAST(:day AS BIGINT), {taken} "
                "FROM cost_by_attribute_hour WHERE bucket_ns = :hour "
                f"ON CONFLICT (bucket_ns, {', '.join(key)}) DO UPDATE SET {sums}"
            ),
            {"day": _day_of(hour, zone), "hour": hour},
        )
    op.execute("DELETE FROM cost_by_attribute_day WHERE calls = 0")


def _number(table: str, keys: dict[str, Any], service: str) -> None:
    """Writes a table of costs anew, with numbers of cost keys. Nobody knows of which environment they were."""
    key = ("provider", "model", service, "''", "price_set", "price_class")
    op.execute(
        f"INSERT INTO cost_keys ({', '.join(_KEY)}) SELECT DISTINCT {', '.join(key)} FROM {table} WHERE true "
        "ON CONFLICT DO NOTHING"
    )
    _make(f"{table}_new", {**keys, "cost_key": _INTEGER, **_TAIL}, dict.fromkeys(_COUNTS, _INTEGER))
    same = " AND ".join(
        f"cost_keys.{name} = {value if value.startswith(chr(39)) else f'old.{value}'}"
        for name, value in zip(_KEY, key, strict=True)
    )
    columns = (*keys, "cost_key", *_TAIL, *_COUNTS)
    source = ("cost_keys.id" if name == "cost_key" else f"old.{name}" for name in columns)
    op.execute(
        f"INSERT INTO {table}_new ({', '.join(columns)}) SELECT {', '.join(source)} FROM {table} AS old "
        f"JOIN cost_keys ON {same}"
    )
    op.drop_table(table)
    op.rename_table(f"{table}_new", table)


def _move_sessions() -> None:
    """What a session has counted goes to the first of its users; the others have rows of nothing."""
    columns: dict[str, Any] = {
        **dict.fromkeys(("first_at_ns", "last_at_ns", *_SESSION_COUNTS), _INTEGER),
        "service": Text,
        "last_log_time_ns": _INTEGER,
    }
    _make("sessions_new", {"session_id": Text, "user_id": Text, **_TAIL}, columns)
    names = ", ".join(("session_id", "user_id", *_TAIL, *columns))
    same = "partition = old.partition AND generation = old.generation AND session_id = old.session_id"
    first = f"SELECT min(user_id) FROM session_users WHERE {same}"
    whole = ", ".join(f"old.{name}" for name in (*_TAIL, *columns))
    op.execute(
        f"INSERT INTO sessions_new ({names}) SELECT old.session_id, coalesce(({first}), ''), {whole} "
        "FROM sessions AS old"
    )
    empty = ", ".join("0" if name in _SESSION_COUNTS else f"old.{name}" for name in (*_TAIL, *columns))
    joined = " AND ".join(f"users.{name} = old.{name}" for name in ("session_id", *_TAIL))
    op.execute(
        f"INSERT INTO sessions_new ({names}) SELECT old.session_id, users.user_id, {empty} FROM sessions AS old "
        f"JOIN session_users AS users ON {joined} WHERE users.user_id > ({first})"
    )
    op.drop_table("session_users")
    op.drop_table("sessions")
    op.rename_table("sessions_new", "sessions")
    op.create_index("sessions_last", "sessions", ["last_at_ns"])


def _day_of(at_ns: int, zone: ZoneInfo) -> int:
    local = datetime.fromtimestamp(at_ns // 10**9, zone)
    return int(local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).timestamp()) * 10**9
