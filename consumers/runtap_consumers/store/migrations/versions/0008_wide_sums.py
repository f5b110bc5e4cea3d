"""Sums of money and of durations are two columns each, since one would pass 64 bits."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer

revision = "0008"
down_revision = "0007"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_COSTS = (
    *("cost_minute", "cost_hour", "cost_day", "cost_total"),
    *("cost_by_attribute_hour", "cost_by_attribute_day", "session_costs"),
)
_PERFORMANCE = tuple(f"performance_{grain}" for grain in ("minute", "hour", "day", "total"))


def upgrade() -> None:
    """Divides what was summed."""
    for table in _COSTS:
        _divide(table, {"cost_picodollars": "cost_microdollars"}, 10**6)
    for table in _PERFORMANCE:
        _divide(table, {"total_ns": "total_seconds", "output_ns": "output_seconds"}, 10**9)


def _divide(table: str, names: dict[str, str], unit: int) -> None:
    for whole in names.values():
        op.add_column(table, Column(whole, _INTEGER))
    changes = (f"{whole} = {name} / {unit}, {name} = {name} % {unit}" for name, whole in names.items())
    op.execute(f"UPDATE {table} SET {', '.join(changes)}")
