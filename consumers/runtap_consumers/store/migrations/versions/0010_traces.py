"""Runs are found by the beginning of their ids, and name their trace's root; contents have a table."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Text

revision = "0010"
down_revision = "0009"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Adds the columns, the index and the table."""
    for name in ("root_name", "model_source"):
        op.add_column("runs", Column(name, Text))
    op.create_index("runs_run", "runs", ["run_id"], postgresql_ops={"run_id": "text_pattern_ops"})
    keys: dict[str, Any] = {"run_id": Text, "partition": _INTEGER, "generation": _INTEGER}
    op.create_table(
        "contents",
        *(Column(name, kind, primary_key=True, nullable=False, autoincrement=False) for name, kind in keys.items()),
        Column("log_time_ns", _INTEGER),
        Column("content", LargeBinary),
        sqlite_strict=True,
    )
    op.create_index("contents_age", "contents", ["partition", "log_time_ns"])
