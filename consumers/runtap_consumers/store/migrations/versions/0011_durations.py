"""How long model calls and chains took, as a histogram; what ended before is in none."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0011"
down_revision = "0010"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_BUCKETS = ("to_100ms", "to_500ms", "to_1s", "to_2s", "to_5s", "to_10s", "to_30s", "to_60s", "above_60s")


def upgrade() -> None:
    """Adds the table."""
    keys: dict[str, Any] = dict.fromkeys(("service", "environment", "run_type", "model"), Text)
    keys |= dict.fromkeys(("partition", "generation"), _INTEGER)
    op.create_table(
        "run_durations",
        *(Column(name, kind, primary_key=True, nullable=False, autoincrement=False) for name, kind in keys.items()),
        *(Column(name, _INTEGER) for name in (*_BUCKETS, "total_seconds", "total_ns")),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
