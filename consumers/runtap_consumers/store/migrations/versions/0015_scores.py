"""What was thought of runs: sums by what was judged, and each by itself."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0015"
down_revision = "0014"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_OF_PARTITION = dict.fromkeys(("partition", "generation"), _INTEGER)


def upgrade() -> None:
    """Adds the tables."""
    of = dict.fromkeys(("service", "environment", "key", "value"), Text)
    for grain in ("minute", "hour", "day", "total"):
        bucket = {} if grain == "total" else {"bucket_ns": _INTEGER}
        measures = dict.fromkeys(("count", "score_wholes", "score_billionths"), _INTEGER)
        _make(f"scores_{grain}", {**bucket, **of, **_OF_PARTITION}, measures, sqlite_with_rowid=False)
    keys = {**dict.fromkeys(("run_id", "key", "source"), Text), "at_ns": _INTEGER, **_OF_PARTITION}
    facts = dict.fromkeys(("score", "value", "comment", "service", "environment"), Text)
    _make("run_scores", keys, {**facts, "log_time_ns": _INTEGER})
    op.create_index("run_scores_age", "run_scores", ["partition", "log_time_ns"])


def _make(name: str, keys: dict[str, Any], measures: dict[str, Any], **options: Any) -> None:
    op.create_table(
        name,
        *(Column(key, kind, primary_key=True, nullable=False, autoincrement=False) for key, kind in keys.items()),
        *(Column(measure, kind) for measure, kind in measures.items()),
        sqlite_strict=True,
        **options,
    )
