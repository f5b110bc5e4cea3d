"""Histograms of how long it took until the first token stand beside those until the end; older calls are in none."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0013"
down_revision = "0012"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_BUCKETS = ("to_100ms", "to_500ms", "to_1s", "to_2s", "to_5s", "to_10s", "to_30s", "to_60s", "above_60s")


def upgrade() -> None:
    """Writes the table anew, with `until` in its key."""
    keys: dict[str, Any] = dict.fromkeys(("service", "environment", "run_type", "model", "until"), Text)
    keys |= dict.fromkeys(("partition", "generation"), _INTEGER)
    measures = (*_BUCKETS, "total_seconds", "total_ns")
    op.create_table(
        "run_durations_new",
        *(Column(name, kind, primary_key=True, nullable=False, autoincrement=False) for name, kind in keys.items()),
        *(Column(name, _INTEGER) for name in measures),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
    columns = ", ".join((*keys, *measures))
    source = columns.replace("until", "'end'")
    op.execute(f"INSERT INTO run_durations_new ({columns}) SELECT {source} FROM run_durations")
    op.drop_table("run_durations")
    op.rename_table("run_durations_new", "run_durations")
