"""Who was forgotten when, and emitters that are none of ours."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer

revision = "0009"
down_revision = "0008"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Adds both; what was forgotten before is of no known time."""
    for name in ("forgotten_at_ns", "is_struck"):
        op.add_column("forgotten_emitters", Column(name, _INTEGER, nullable=False, server_default="0"))
