"""Incidents of different kinds at one offset of a log are each kept."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text, text

revision = "0012"
down_revision = "0011"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Makes the table anew, with `kind` in its key: SQLite changes no key."""
    rows = [dict(row) for row in op.get_bind().execute(text("SELECT * FROM log_incidents")).mappings()]
    op.drop_table("log_incidents")
    keys: dict[str, Any] = {"projection": Text, "partition": _INTEGER, "incarnation": _INTEGER}
    keys |= {"first_offset": _INTEGER, "kind": Text}
    made = op.create_table(
        "log_incidents",
        *(Column(name, kind, primary_key=True, nullable=False, autoincrement=False) for name, kind in keys.items()),
        *(Column(name, _INTEGER, nullable=False) for name in ("last_offset", "at_ns")),
        sqlite_strict=True,
    )
    op.bulk_insert(made, rows)
