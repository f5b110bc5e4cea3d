"""Status code, provider's code and origin of errors, which come without their messages by default."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0004"
down_revision = "0003"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Adds the columns."""
    for table, prefix in (("error_groups", ""), ("recent_errors", ""), ("runs", "error_")):
        op.add_column(table, Column(f"{prefix}status_code", _INTEGER))
        op.add_column(table, Column(f"{prefix}code", Text))
        op.add_column(table, Column(f"{prefix}raised_at", Text))
    op.add_column("recent_errors", Column("category", Text))
