"""Every table, declared once.

The rollups come from `runtap_consumers.projections.rollups`; what stands here besides are the tables that belong to the
store, the worker and the alert evaluator. All instants are `…_ns`, Unix nanoseconds.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text, UniqueConstraint
from sqlalchemy.schema import SchemaItem

from runtap_consumers.projections.rollups import COST_KEY, ROLLUPS, RUN_COLUMNS, Rollup

metadata = MetaData()
# STRICT tables of SQLite know only INTEGER, which holds 64 bits there.
_INTEGER = BigInteger().with_variant(Integer, "sqlite")
_KINDS: dict[str, Any] = {"integer": _INTEGER, "text": Text, "bytes": LargeBinary}
# On SQLite each of these rows, with sketches or long texts, would take an overflow page without a rowid.
_WITH_ROWID = {"performance", "error_groups", "recent_errors", "emitter_reports", "open_runs", "contents", "run_scores"}


def _table(name: str, *parts: SchemaItem, **options: Any) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, **options)


def _rollup_table(rollup: Rollup, grain: str | None) -> Table:
    integers = {"bucket_ns", "partition", "generation", *rollup.integer_keys}
    keys = [
        Column(name, _INTEGER if name in integers else Text, primary_key=True, nullable=False, autoincrement=False)
        for name in rollup.key_columns(grain)
    ]
    measures = []
    for measure in rollup.measures_of(grain):
        info = {"merge": measure.merge, "measure": measure}
        names = (measure.whole, measure.name) if measure.whole else (measure.name,)
        measures += [Column(name, _KINDS[measure.kind], info=info) for name in names]
    return Table(
        rollup.table_name(grain),
        metadata,
        *keys,
        *measures,
        info={"rollup": rollup},
        sqlite_with_rowid=rollup.name in _WITH_ROWID,
    )


for _rollup in ROLLUPS:
    for _grain in _rollup.grains or (None,):
        _rollup_table(_rollup, _grain)

runs = _table(
    "runs",
    *(Column(name, _KINDS[kind]) for name, kind in RUN_COLUMNS),
    # One index for both: each costs 2 µs a run.
    Index("runs_trace", "trace_id", "run_id"),
    # Finds any run by the beginning of its id, whatever the database's collation.
    Index("runs_run", "run_id", postgresql_ops={"run_id": "text_pattern_ops"}),
    # Answers every filter of `runtap runs` inside the index, in time order.
    Index("runs_page", "started_at_ns", "status", "model", "run_type", "session_id"),
)
Index("contents_age", metadata.tables["contents"].c.partition, metadata.tables["contents"].c.log_time_ns)
Index("run_scores_age", metadata.tables["run_scores"].c.partition, metadata.tables["run_scores"].c.log_time_ns)
Index("sessions_last", metadata.tables["sessions"].c.last_at_ns)
Index("recent_errors_last", metadata.tables["recent_errors"].c.partition, metadata.tables["recent_errors"].c.at_ns)


def _bigint(name: str, **options: Any) -> Column[Any]:
    return Column(name, _INTEGER, nullable=False, **options)


def _text(name: str, **options: Any) -> Column[Any]:
    return Column(name, Text, nullable=False, **options)


# One row: whose store this is. Its time zone and its events topic are fixed when it is made.
store = _table(
    "store",
    Column("id", Integer, primary_key=True, autoincrement=False),
    _text("store_id"),
    _text("events_topic"),
    _text("timezone"),
    _bigint("created_at_ns"),
)

# One row a projection and partition; the truth about what has been applied. `begun_at` is the offset at which reading
# began, and 0 once the log lost anything unread: lanes met later have then lost it too. `fingerprint` is the hash of
# the record before `next_offset` ('' where there is none). `caught_up_at_ns`: all that was appended before then has
# been read.
positions = _table(
    "positions",
    _text("projection", primary_key=True),
    _bigint("partition", primary_key=True, autoincrement=False),
    _bigint("next_offset"),
    _bigint("epoch"),
    _bigint("incarnation"),
    _bigint("generation"),
    _bigint("begun_at"),
    _text("fingerprint"),
    _bigint("log_time_ns"),
    _bigint("caught_up_at_ns", server_default="0"),
)

# Marks and gaps belong to (projection, partition, emitter), across incarnations. `gaps` is JSON, [[first, last], …];
# `forgotten` counts the numbers of gaps beyond the 64 ranges kept: lost, and no longer to be filled. The columns are
# those of `projections.lane_marks.LaneMark`.
lane_marks = _table(
    "lane_marks",
    _text("projection", primary_key=True),
    _bigint("partition", primary_key=True, autoincrement=False),
    _text("emitter", primary_key=True),
    _bigint("mark"),
    _text("gaps"),
    _bigint("before"),
    _bigint("forgotten"),
    _bigint("quarantined"),
    _bigint("repeats"),
    _bigint("first_at_ns"),
    _bigint("log_time_ns"),
    _bigint("at_ns"),
    _bigint("is_shared"),
    sqlite_with_rowid=False,
)

# Emitters that somebody let go: they hold `complete_to` no longer, unless they are heard after `heard_at_ns`. What
# `is_struck` is none of ours: it never holds it, and stands outside of every sum.
forgotten_emitters = _table(
    "forgotten_emitters",
    _text("emitter", primary_key=True),
    _bigint("heard_at_ns"),
    _bigint("forgotten_at_ns", server_default="0"),
    _bigint("is_struck", server_default="0"),
)

# Incidents of a partition's log: `recreated` (a new incarnation), `retention` (offsets first..last gone unread),
# `skipped` (by hand), or `gone` (the topic has no such partition any more; over once it is read again).
log_incidents = _table(
    "log_incidents",
    _text("projection", primary_key=True),
    _bigint("partition", primary_key=True, autoincrement=False),
    _bigint("incarnation", primary_key=True, autoincrement=False),
    _bigint("first_offset", primary_key=True, autoincrement=False),
    _text("kind", primary_key=True),
    _bigint("last_offset"),
    _bigint("at_ns"),
)

# Records, or single lines of them, that could not be read, also sent to the dead-letters topic. `id`: topic, partition,
# offset, hash of the record's bytes, and the line's number. `sequence` is the first of its `events` numbers in a lane.
dead_letters = _table(
    "dead_letters",
    _text("id", primary_key=True),
    _bigint("partition"),
    _bigint("log_offset"),
    _bigint("log_time_ns"),
    _text("cause"),
    Column("emitter", Text),
    Column("sequence", _INTEGER),
    _bigint("events", server_default="1"),
    Column("key", LargeBinary),
    Column("value", LargeBinary),
    _bigint("published"),
)

# Values of a dimension that figures may name, a day (UTC, by log time); all others go under `__other__`.
dimension_values = _table(
    "dimension_values",
    _bigint("day", primary_key=True, autoincrement=False),
    _text("dimension", primary_key=True),
    _text("value", primary_key=True),
    sqlite_with_rowid=False,
)

# The numbers that stand for what a call was and which price it has. A number, once given, means the same for ever.
cost_keys = _table(
    "cost_keys",
    Column("id", _INTEGER, primary_key=True),
    *(_text(name) for name in COST_KEY),
    UniqueConstraint(*COST_KEY),
)

# Who priced figures again, when, under which prices, and what they came to; `finished_at_ns` is null while it goes on,
# and for ever where it was interrupted. Amounts are decimal texts: sums may pass 64 bits. `kept_…`: calls whose
# price could not be told; a call counts once for each of its attributes.
repricings = _table(
    "repricings",
    _text("id", primary_key=True),
    _bigint("at_ns"),
    Column("finished_at_ns", _INTEGER),
    _text("requested_by"),
    _text("price_set"),
    _bigint("from_ns"),
    _bigint("to_ns"),
    _text("provider"),
    _text("model"),
    _text("old_cost_usd"),
    _text("new_cost_usd"),
    _bigint("rows_changed"),
    *(_bigint(name) for name in ("kept_calls", "kept_session_calls", "kept_attribute_calls")),
)

# The alert evaluator: at most one at a time holds the lease; `round` is another number after each round that wrote.
alert_lease = _table(
    "alert_lease",
    Column("id", Integer, primary_key=True, autoincrement=False),
    _text("holder"),
    _bigint("expires_at_ns"),
    _bigint("learning_until_ns"),
    _bigint("round"),
)
# How far the figures of a projection were judged (`alerts.windows.Mark`); that of '' is of the present.
alert_marks = _table(
    "alert_marks",
    _text("projection", primary_key=True),
    _bigint("judged_to_ns"),
    Column("touched_ns", _INTEGER),
    Column("early_to_ns", _INTEGER),
)
# What a rule knows of a group (`alerts.state.State`). `group_values`: JSON, the values of the rule's `group_by`.
alert_states = _table(
    "alert_states",
    _text("rule", primary_key=True),
    _text("group_values", primary_key=True),
    *(_bigint(name) for name in ("level", "transition", "window_to_ns", "since_ns")),
    _text("incident"),
    *(_bigint(name) for name in ("said_ns", "seen", "is_withheld")),
)
# Written with the state that made it, published afterwards; also the history that the report shows. `payload` is the
# record. `published`: 0 not yet, 1 acknowledged, 2 withheld and to be named in a summary, 3 withheld and named.
# `revised_at_ns`: when a commit touched its window after it was raised, 0 never.
alert_outbox = _table(
    "alert_outbox",
    _text("id", primary_key=True),
    _bigint("at_ns"),
    _text("rule"),
    _text("status"),
    _text("severity"),
    _text("group_values"),
    _text("service"),
    _text("summary"),
    _bigint("window_from_ns"),
    _bigint("window_to_ns"),
    Column("payload", LargeBinary, nullable=False),
    _bigint("revised_at_ns"),
    _bigint("published"),
    Index("alert_outbox_at", "at_ns"),
)

# A version of a dataset holds all of its examples, and never gets more. `source`: where they came from.
dataset_versions = _table(
    "dataset_versions",
    _text("dataset", primary_key=True),
    _bigint("version", primary_key=True, autoincrement=False),
    _bigint("created_at_ns"),
    _text("source"),
)
# `example_id` is the hash of the inputs, the same in every version and dataset. Inputs, outputs and metadata are JSON;
# run, user and session are what the metadata say of them.
dataset_examples = _table(
    "dataset_examples",
    _text("dataset", primary_key=True),
    _bigint("version", primary_key=True, autoincrement=False),
    _bigint("number", primary_key=True, autoincrement=False),
    *(_text(name) for name in ("example_id", "inputs", "outputs", "metadata")),
    *(Column(name, Text) for name in ("source_run_id", "user_id", "session_id")),
)
# `finished_at_ns` is null until every example was answered and scored. `evaluators`: JSON, as they were named.
experiments = _table(
    "experiments",
    _text("experiment", primary_key=True),
    _text("prefix"),
    _bigint("number"),
    _text("dataset"),
    _bigint("version"),
    _text("target"),
    _text("evaluators"),
    _bigint("repetitions"),
    Column("git_commit", Text),
    _bigint("started_at_ns"),
    Column("finished_at_ns", _INTEGER),
    UniqueConstraint("prefix", "number"),
)
# One answer with all of its scores (JSON, by key); none where infrastructure failed. A cost is null where a call of it
# has no price. `evaluator_cost_picodollars`: what judging it cost, which is no part of the other.
experiment_results = _table(
    "experiment_results",
    _text("experiment", primary_key=True),
    _text("example_id", primary_key=True),
    _bigint("repetition", primary_key=True, autoincrement=False),
    Column("session_id", Text),
    _text("run_id"),
    _text("scores"),
    Column("error", Text),
    _text("models"),
    _bigint("latency_ns"),
    _bigint("input_tokens"),
    _bigint("output_tokens"),
    *(Column(name, _INTEGER) for name in ("cost_picodollars", "evaluator_cost_picodollars")),
)
