"""Who was forgotten when, emitters that are none of ours, and the names that asked-for models answer under."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0009"
down_revision = "0008"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Adds the columns and the table; what was forgotten before is of no known time."""
    for name in ("forgotten_at_ns", "is_struck"):
        op.add_column("forgotten_emitters", Column(name, _INTEGER, nullable=False, server_default="0"))
    keys: dict[str, Any] = {"request_model": Text, "model": Text, "partition": _INTEGER, "generation": _INTEGER}
    op.create_table(
        "model_names",
        *(Column(name, kind, primary_key=True, nullable=False, autoincrement=False) for name, kind in keys.items()),
        Column("count", _INTEGER),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
