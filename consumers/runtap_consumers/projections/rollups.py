"""The tables that projections fill, declared once: their keys, their measures, and how two rows of one key become one.

A projection returns rows in the order declared here; `store.tables` makes SQL tables of the same declarations. Every
row carries partition and generation at the end of its key and is summed at read, so each row has one writer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from runtap_consumers.units import DAY_NS, MINUTE_NS, PICODOLLARS, SECOND_NS

SKEW_AHEAD_NS = MINUTE_NS
SKEW_BEHIND_NS = 8 * DAY_NS

# Retention by log time; days and totals are kept for ever.
RETENTION_NS = {"minute": 2 * DAY_NS, "hour": 400 * DAY_NS}
# After so long a silence a lane's marks are deleted: twice as long as an emitter may resend.
LANE_RETENTION_NS = 14 * DAY_NS
# Of a score, which is a number with decimals: sums of integers are exact in any order.
SCORE_UNIT = 10**9
GRAINS = ("minute", "hour", "day", "total")
_ALL_GRAINS: dict[str, int | None] = {grain: RETENTION_NS.get(grain) for grain in GRAINS}
OTHER = "__other__"


class Merge(Enum):
    """What becomes of a measure when a second row of its key arrives."""

    ADD = "add"
    MIN = "min"
    MAX = "max"
    # The first value that is not null is kept.
    KEEP = "keep"
    # The new value replaces the old one, which it contains.
    REPLACE = "replace"
    # Of the row with the larger `number`.
    LATER = "later"
    # The bits of both.
    OR = "or"


@dataclass(frozen=True)
class Measure:
    """A measure, one column that is not part of the key. `kind`: `integer`, `text` or `bytes`.

    A sum that would pass 64 bits within months is two columns, each added by itself: of every addition the whole
    `unit`s go to the column `whole`, and what is left to that of the measure's name, so that `whole * unit + name` is
    exact, without a carry.
    """

    name: str
    merge: Merge
    kind: str = "integer"
    # Totals have no sketches.
    in_total: bool = True
    whole: str = ""
    unit: int = 1


@dataclass(frozen=True)
class Rollup:
    """A table of rows that add up.

    `keys` leave out the bucket in front, and partition and generation at the end. `grains`: which of `GRAINS` have a
    table, named `{name}_{grain}`, and for how much log time their rows are kept (`None`: for ever); without any, there
    is one table of the rollup's name. Where `passes_on`, a row is in one grain only: written to the finest, it passes
    to the next when its time there is over.
    """

    name: str
    keys: tuple[str, ...]
    measures: tuple[Measure, ...]
    grains: dict[str, int | None] = field(default_factory=dict)
    integer_keys: tuple[str, ...] = ()
    passes_on: bool = False

    def table_name(self, grain: str | None = None) -> str:
        """Name of the SQL table, of one grain where there are grains."""
        return f"{self.name}_{grain}" if self.grains else self.name

    def key_columns(self, grain: str | None = None) -> tuple[str, ...]:
        """All columns of the key, in order."""
        bucket = ("bucket_ns",) if self.grains and grain != "total" else ()
        return (*bucket, *self.keys, "partition", "generation")

    def measures_of(self, grain: str | None = None) -> tuple[Measure, ...]:
        """The measures that a grain's table has."""
        return tuple(measure for measure in self.measures if measure.in_total or grain != "total")

    def stored_row(self, key: tuple[Any, ...], tail: tuple[int, ...], row: list[Any]) -> tuple[Any, ...]:
        """A row as its table has it. `tail`: partition and generation, where the key does not end with them."""
        if not self._wide:
            return (*key, *tail, *row)
        stored = [*key, *tail, *row]
        first = len(key) + len(tail)
        for index, unit in self._wide:
            stored[first + index : first + index + 1] = divmod(stored[first + index], unit)
        return tuple(stored)

    @cached_property
    def _wide(self) -> list[tuple[int, int]]:
        """Where measures of two columns are, the last first."""
        return [(index, one.unit) for index, one in enumerate(self.measures) if one.whole][::-1]


def _sums(*names: str) -> tuple[Measure, ...]:
    return tuple(Measure(name, Merge.ADD) for name in names)


def _duration(name: str, whole: str) -> Measure:
    return Measure(name, Merge.ADD, whole=whole, unit=SECOND_NS)


def _kept(*names: str, kind: str = "text") -> tuple[Measure, ...]:
    return tuple(Measure(name, Merge.KEEP, kind) for name in names)


TOKEN_CLASSES = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "output_tokens",
    "reasoning_tokens",
    "output_audio_tokens",
    "web_searches",
)

# A call is an ended model run: priced, unpriced (usage, no price), unmetered (succeeded without usage), or failed
# without usage. A cached call is one that LangChain's own cache answered; it is priced, at nothing.
COST_MEASURES = (
    *_sums("calls", "priced_calls", "unpriced_calls", "unmetered_calls", "cached_calls", *TOKEN_CLASSES),
    Measure("cost_picodollars", Merge.ADD, whole="cost_microdollars", unit=PICODOLLARS // 10**6),
)

# What a call was and which price it has. Rows of which there is nearly one a call hold a number for it (`cost_key`,
# of the table `cost_keys`), which makes them half as large and half as dear.
COST_KEY = ("provider", "model", "service", "environment", "price_set", "price_class")
COST = Rollup(
    "cost",
    COST_KEY,
    COST_MEASURES,
    grains=_ALL_GRAINS,
)
# Attributes are `user` and up to three metadata keys. A row a value: so many that hours are kept for two days only.
COST_BY_ATTRIBUTE = Rollup(
    "cost_by_attribute",
    ("attribute", "value", "cost_key"),
    COST_MEASURES,
    grains={"hour": 2 * DAY_NS, "day": 400 * DAY_NS},
    integer_keys=("cost_key",),
    passes_on=True,
)

PERFORMANCE = Rollup(
    "performance",
    ("service", "environment", "run_type", "name", "model"),
    (
        *_sums("count", "ok", "errors", "interrupted", "cancelled"),
        _duration("total_ns", "total_seconds"),
        Measure("min_ns", Merge.MIN),
        Measure("max_ns", Merge.MAX),
        # Tokens and durations of the runs that reported output tokens: their ratio is the output speed.
        *_sums("output_tokens"),
        _duration("output_ns", "output_seconds"),
        # `cut_off`: answers that ended at a limit of tokens; `refused`: those that a filter or the model withheld.
        *_sums("first_token_count", "cut_off", "refused"),
        Measure("sketch", Merge.REPLACE, "bytes", in_total=False),
        Measure("first_token_sketch", Merge.REPLACE, "bytes", in_total=False),
    ),
    grains=_ALL_GRAINS,
)

# Ended root runs: what a service's error rate is made of.
ROOTS = Rollup(
    "roots",
    ("service", "environment"),
    (*_sums("ok", "errors", "interrupted", "cancelled"), Measure("sample_error_run_id", Merge.KEEP, "text")),
    grains=_ALL_GRAINS,
)
_OCCURRENCE = (
    *_sums("count"),
    Measure("first_at_ns", Merge.MIN),
    Measure("last_at_ns", Merge.MAX),
    Measure("sample_run_id", Merge.KEEP, "text"),
)
# Origins only: one exception that passed through three ancestors is one error.
ERRORS = Rollup("errors", ("service", "environment", "fingerprint"), _OCCURRENCE, grains=_ALL_GRAINS)
ERROR_GROUPS = Rollup(
    "error_groups",
    ("service", "environment", "fingerprint"),
    (
        *_kept("type", "category", "message", "run_type"),
        *_kept("status_code", kind="integer"),
        *_kept("code", "raised_at"),
        *_OCCURRENCE,
    ),
)
# The last RECENT_ERRORS of each partition.
RECENT_ERRORS_KEPT = 100
RECENT_ERRORS = Rollup(
    "recent_errors",
    ("at_ns", "run_id"),
    (
        *_kept("service", "environment", "run_type", "name", "type", "category", "message"),
        *_kept("status_code", kind="integer"),
        *_kept("code", "raised_at"),
    ),
    integer_keys=("at_ns",),
)
# Minutes of which commits of a projection wrote figures since the alert evaluator last looked. It deletes what it has
# judged, unless the count says that they were touched again meanwhile.
TOUCHED_MINUTES = Rollup("touched_minutes", ("projection", "bucket_ns"), _sums("touches"), integer_keys=("bucket_ns",))

# A row for each user of a session, '' where an event names none.
SESSIONS = Rollup(
    "sessions",
    ("session_id", "user_id"),
    (
        Measure("first_at_ns", Merge.MIN),
        Measure("last_at_ns", Merge.MAX),
        *_sums("starts", "ends", "traces", "llm_calls", "tool_calls", "errors", "input_tokens", "output_tokens"),
        Measure("service", Merge.KEEP, "text"),
        Measure("last_log_time_ns", Merge.MAX),
    ),
)
SESSION_COSTS = Rollup("session_costs", ("session_id", "cost_key"), COST_MEASURES, integer_keys=("cost_key",))

# What a run is, from its start on; of the same names in its events.
RUN_IDENTITY = (
    *("parent_run_id", "trace_id", "session_id", "user_id", "service", "environment", "run_type", "name"),
    *("provider", "request_model"),
)
# Starts whose end has not come.
OPEN_RUNS = Rollup(
    "open_runs",
    ("run_id",),
    (*_kept(*RUN_IDENTITY), *_kept("started_at_ns", "log_time_ns", kind="integer")),
)

# What was thought of runs, by what was judged; categories by their name, numbers under ''. `score_billionths` of all
# numbers together.
SCORES = Rollup(
    "scores",
    ("service", "environment", "key", "value"),
    (*_sums("count"), Measure("score_billionths", Merge.ADD, whole="score_wholes", unit=SCORE_UNIT)),
    grains=_ALL_GRAINS,
)
# The same, one by one, for as long as runs are kept.
RUN_SCORES = Rollup(
    "run_scores",
    ("run_id", "key", "source", "at_ns"),
    (*_kept("score", "value", "comment", "service", "environment"), *_kept("log_time_ns", kind="integer")),
    integer_keys=("at_ns",),
)

# What went into a run and came out of it, where that was captured: JSON by zstd, with the keys `inputs`, `outputs` and
# `content_bytes` (what it was before it was cut off).
CONTENTS = Rollup("contents", ("run_id",), (*_kept("log_time_ns", kind="integer"), *_kept("content", kind="bytes")))

# How often a model that was asked for answered under another name: a call that failed was answered by none.
MODEL_NAMES = Rollup("model_names", ("request_model", "model"), _sums("count"))

# How long model calls and chains took until their `end`, and calls until their `first_token`, of all time, as
# histograms: how many took at most so long and longer than the bound before. Which failed stands in `performance`.
DURATION_BOUNDS_NS = tuple(tenths * SECOND_NS // 10 for tenths in (1, 5, 10, 20, 50, 100, 300, 600))
RUN_DURATIONS = Rollup(
    "run_durations",
    ("service", "environment", "run_type", "model", "until"),
    (
        *_sums("to_100ms", "to_500ms", "to_1s", "to_2s", "to_5s", "to_10s", "to_30s", "to_60s", "above_60s"),
        _duration("total_ns", "total_seconds"),
    ),
)

# Event types that this version does not know, and events whose time was not believed.
SKIPPED_TYPES = Rollup("skipped_types", ("type",), _sums("count"))
SKEWED = Rollup("skewed_events", ("service",), _sums("count"))

# What each process said last of itself; an emitter that only its events tell of has a row of number 0, without host.
# Two processes under one emitter id, a snapshot restored twice, may show as two rows.
EMITTER_REPORTS = Rollup(
    "emitter_reports",
    ("emitter", "host", "process_id"),
    (
        *(Measure(name, Merge.LATER) for name in ("number", "log_time_ns", "closing")),
        # Skipped: JSON, [{first, last, reason}, …].
        *(Measure(name, Merge.LATER, "text") for name in ("service", "environment", "skipped")),
    ),
    integer_keys=("process_id",),
)
# What emitters count, by `kind` (dropped, superseded, content_dropped) and reason: a claim that steps back is none.
EMITTER_COUNTS = Rollup(
    "emitter_counts",
    ("emitter", "kind", "reason"),
    tuple(Measure(name, Merge.MAX) for name in ("total", "log_time_ns")),
)
# Numbers that somebody else said will never be sent.
ABANDONED = Rollup(
    "abandoned_lanes",
    ("emitter", "first_number", "last_number"),
    (Measure("reason", Merge.KEEP, "text"), Measure("log_time_ns", Merge.MIN)),
    integer_keys=("first_number", "last_number"),
)
# In which tens of seconds of a minute of log time somebody reported, a bit each: whoever is silent then is gone.
REPORT_MINUTES = Rollup("report_minutes", ("bucket_ns",), (Measure("tens", Merge.OR),), integer_keys=("bucket_ns",))
# What belongs to no lane: records of nobody (`foreign`), events whose number is `impossible`.
STRAYS = Rollup("strays", ("kind",), _sums("count"))

ROLLUPS = (
    COST,
    COST_BY_ATTRIBUTE,
    PERFORMANCE,
    ROOTS,
    ERRORS,
    ERROR_GROUPS,
    RECENT_ERRORS,
    TOUCHED_MINUTES,
    SESSIONS,
    SESSION_COSTS,
    OPEN_RUNS,
    SCORES,
    RUN_SCORES,
    CONTENTS,
    MODEL_NAMES,
    RUN_DURATIONS,
    SKIPPED_TYPES,
    SKEWED,
    EMITTER_REPORTS,
    EMITTER_COUNTS,
    ABANDONED,
    REPORT_MINUTES,
    STRAYS,
)


def _columns(kind: str, *names: str) -> list[tuple[str, str]]:
    return [(name, kind) for name in names]


# One row of facts an ended run. Rows have no key of their own: the fence is the guarantee that each comes once.
RUN_COLUMNS = (
    *_columns("integer", "partition", "generation", "log_time_ns"),
    *_columns("integer", "started_at_ns", "ended_at_ns", "duration_ns", "first_token_ns"),
    *_columns("text", "run_id", *RUN_IDENTITY, "model", "service_tier", "status", "finish_reason"),
    *_columns("text", "error_type", "error_category", "error_message", "error_fingerprint"),
    *_columns("integer", "error_origin", "error_status_code"),
    *_columns("text", "error_code", "error_raised_at", "usage_source"),
    *_columns("integer", *TOKEN_CLASSES),
    *_columns("text", "price_set", "price_class"),
    *_columns("integer", "cost_picodollars"),
    *_columns("text", "tags", "metadata", "root_name", "model_source"),
)


@dataclass
class Changes:
    """What one projection makes of a batch.

    `minutes` holds deltas of rollups with grains, by minute: (bucket, *keys) -> measures; `rows` those of rollups
    without grains: keys -> measures. Both leave out partition and generation, which the commit adds. A sketch measure
    is a list of bucket numbers until then. `runs` are whole rows less partition and generation; `ended_run_ids` close
    open runs.
    """

    minutes: dict[str, dict[tuple[Any, ...], list[Any]]] = field(default_factory=dict)
    rows: dict[str, dict[tuple[Any, ...], list[Any]]] = field(default_factory=dict)
    runs: list[tuple[Any, ...]] = field(default_factory=list)
    ended_run_ids: list[str] = field(default_factory=list)

    def announce(self, projection: str) -> None:
        """Notes the minutes of which this has figures."""
        minutes = {key[0] for rows in self.minutes.values() for key in rows}
        self.rows[TOUCHED_MINUTES.name] = {(projection, minute): [1] for minute in minutes}
