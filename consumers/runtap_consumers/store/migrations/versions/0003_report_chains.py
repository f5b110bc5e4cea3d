"""The table of the reports' ids; one index of runs less."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0003"
down_revision = "0002"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Makes the table, and changes the index."""
    keys = (("emitter", Text), ("number", _INTEGER), ("report_id", Text), ("partition", _INTEGER))
    op.create_table(
        "report_chains",
        *(
            Column(name, kind, primary_key=True, nullable=False, autoincrement=False)
            for name, kind in (*keys, ("generation", _INTEGER))
        ),
        *(Column(name, Text) for name in ("previous_report_id", "host")),
        *(Column(name, _INTEGER) for name in ("process_id", "log_time_ns")),
        sqlite_with_rowid=False,
        sqlite_strict=True,
    )
    op.drop_index("runs_run", "runs")
    op.drop_index("runs_trace", "runs")
    op.create_index("runs_trace", "runs", ["trace_id", "run_id"])
