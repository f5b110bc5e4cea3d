"""The table of repricings."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0002"
down_revision = "0001"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Makes it."""
    op.create_table(
        "repricings",
        Column("id", Text, primary_key=True, nullable=False),
        Column("at_ns", _INTEGER, nullable=False),
        Column("finished_at_ns", _INTEGER),
        *(Column(name, Text, nullable=False) for name in ("requested_by", "price_set")),
        *(Column(name, _INTEGER, nullable=False) for name in ("from_ns", "to_ns")),
        *(Column(name, Text, nullable=False) for name in ("provider", "model", "old_cost_usd", "new_cost_usd")),
        Column("rows_changed", _INTEGER, nullable=False),
        sqlite_strict=True,
    )
