"""Datasets in versions, experiments over them, and what each answer scored."""

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text, UniqueConstraint

revision = "0016"
down_revision = "0015"

_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_OPTIONAL = (
    *("source_run_id", "user_id", "session_id", "git_commit", "finished_at_ns", "error"),
    *("cost_picodollars", "evaluator_cost_picodollars"),
)


def upgrade() -> None:
    """Adds the tables."""
    _make("dataset_versions", {"dataset": Text, "version": _INTEGER}, created_at_ns=_INTEGER, source=Text)
    _make(
        "dataset_examples",
        {"dataset": Text, "version": _INTEGER, "number": _INTEGER},
        **dict.fromkeys(
            ("example_id", "inputs", "outputs", "metadata", "source_run_id", "user_id", "session_id"), Text
        ),
    )
    _make(
        "experiments",
        {"experiment": Text},
        UniqueConstraint("prefix", "number"),
        prefix=Text,
        number=_INTEGER,
        dataset=Text,
        version=_INTEGER,
        target=Text,
        evaluators=Text,
        repetitions=_INTEGER,
        git_commit=Text,
        started_at_ns=_INTEGER,
        finished_at_ns=_INTEGER,
    )
    _make(
        "experiment_results",
        {"experiment": Text, "example_id": Text, "repetition": _INTEGER},
        session_id=Text,
        run_id=Text,
        scores=Text,
        error=Text,
        models=Text,
        **dict.fromkeys(("latency_ns", "input_tokens", "output_tokens"), _INTEGER),
        cost_picodollars=_INTEGER,
        evaluator_cost_picodollars=_INTEGER,
    )


def _make(name: str, keys: dict[str, Any], *more: Any, **others: Any) -> None:
    op.create_table(
        name,
        *(Column(key, kind, primary_key=True, nullable=False, autoincrement=False) for key, kind in keys.items()),
        *(Column(other, kind, nullable=other in _OPTIONAL) for other, kind in others.items()),
        *more,
        sqlite_strict=True,
    )
