"""The figures of all time as Prometheus scrapes them: `exposition`, text format 0.0.4.

Everything is read from the store, so that a restart loses nothing. What `runtap_figures_revision` moves with may let a
counter fall. Models and tools have their names only where a run of theirs succeeded: models name both.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from runtap_consumers.figures.completeness import describe_all, work_out_completeness, work_out_ledger
from runtap_consumers.figures.report import SHOWN
from runtap_consumers.figures.runs import PROJECTION as RUNS
from runtap_consumers.figures.runs import abandoned_before
from runtap_consumers.projections.rollups import DURATION_BOUNDS_NS, SCORE_UNIT
from runtap_consumers.projections.rollups import OTHER as CAPPED
from runtap_consumers.store.read.books import Books, read_books
from runtap_consumers.store.read.figures import read_model_names
from runtap_consumers.store.read.scores import read_scores
from runtap_consumers.store.read.sessions import count_sessions
from runtap_consumers.store.read.snapshot import Snapshot, cost_of
from runtap_consumers.store.read.totals import (
    STATUSES,
    read_cost_totals,
    read_durations,
    read_error_types,
    read_open_calls,
    read_outcomes,
    read_revision,
)
from runtap_consumers.units import PICODOLLARS, SECOND_NS

OTHER = "other"
MAX_SERIES_A_SERVICE = 5_000

_STATUSES = ("success", "error", "interrupted", "cancelled")
_OF = ("service", "environment")
_BOUNDS = [*(str(bound / SECOND_NS) for bound in DURATION_BOUNDS_NS), "+Inf"]
_STATES = ("captured", "applied", "in_flight", "lost", "quarantined")


@dataclass(frozen=True)
class _Family:
    """`names`: which label, the first, is a name that may become `other`. `unit`: divides the values."""

    name: str
    documentation: str
    labels: tuple[str, ...]
    kind: Callable[..., Metric] = CounterMetricFamily
    names: str = ""
    unit: int = 1

    @property
    def lines(self) -> int:
        """How many series the values of one set of labels are."""
        if self.kind is HistogramMetricFamily:
            return len(_BOUNDS) + 2
        return 2 if self.kind is SummaryMetricFamily else 1


def _of_model(
    name: str, documentation: str, *labels: str, kind: Callable[..., Metric] = CounterMetricFamily, unit: int = 1
) -> _Family:
    return _Family(name, documentation, ("model", *labels, *_OF), kind, "model", unit)


def _gauge(name: str, documentation: str, *labels: str, unit: int = 1) -> _Family:
    return _Family(name, documentation, labels, GaugeMetricFamily, unit=unit)


_Histogram, _Summary = HistogramMetricFamily, SummaryMetricFamily
LLM_CALLS = _of_model("langchain_llm_calls", "Model calls that ended.", "status")
CHAIN_CALLS = _Family("langchain_chain_calls", "Chain runs that ended.", ("status", *_OF))
TOOL_CALLS = _Family("langchain_tool_calls", "Tool runs that ended.", ("tool_name", "status", *_OF), names="tool_name")
LLM_DURATION = _of_model("langchain_llm_duration_seconds", "How long model calls took.", kind=_Histogram)
FIRST_TOKEN = _of_model(
    "runtap_time_to_first_token_seconds", "How long it took until the first token of streamed calls.", kind=_Histogram
)
CHAIN_DURATION = _Family("langchain_chain_duration_seconds", "How long chain runs took.", _OF, _Histogram)
ACTIVE_CALLS = _of_model("langchain_llm_active_calls", "Calls that have not ended.", kind=GaugeMetricFamily)
TOKENS = _of_model("langchain_token_usage", "Tokens of calls that told their usage.", "type", kind=_Summary)
COST = _of_model("runtap_cost_dollars", "What calls with a known price cost.", "provider", unit=PICODOLLARS)
UNPRICED = _of_model("runtap_unpriced_calls", "Calls with usage and without a known price.", "provider")
UNMETERED = _of_model("runtap_unmetered_calls", "Calls that succeeded without telling their usage.", "provider")
ERRORS = _Family("runtap_errors", "Errors where they arose, by type.", ("type", *_OF), names="type")
SCORES = _Family("runtap_scores", "What was thought of runs.", ("key", "value", *_OF), names="key")
SCORE_SUM = _Family(
    "runtap_score_points",
    "The sum of the scores that are numbers.",
    ("key", *_OF),
    GaugeMetricFamily,
    "key",
    SCORE_UNIT,
)
SESSIONS = _gauge("runtap_sessions", "Sessions that are kept.")
LEDGER = _gauge("runtap_ledger_events", "Where captured events are.", "state")
DROPPED = _gauge("runtap_ledger_dropped_events", "Events that emitters dropped.", "reason")
COMPLETE_TO = _gauge(
    "runtap_complete_to_timestamp_seconds", "Before it no event is missing that is not counted.", unit=SECOND_NS
)
REVISION = _gauge(
    "runtap_figures_revision",
    "Changes when a counter may fall: figures were priced again or rebuilt, another worker took over, a name first "
    "succeeded.",
)
FOLDED = _gauge("runtap_metrics_folded", "Series of the least used names that are summed in those named other.")
FAMILIES = (
    *(LLM_CALLS, CHAIN_CALLS, TOOL_CALLS, LLM_DURATION, CHAIN_DURATION, ACTIVE_CALLS, TOKENS),
    *(
        FIRST_TOKEN,
        COST,
        UNPRICED,
        UNMETERED,
        ERRORS,
        SCORES,
        SCORE_SUM,
        SESSIONS,
        LEDGER,
        DROPPED,
        COMPLETE_TO,
        REVISION,
        FOLDED,
    ),
)

_Key = tuple[_Family, tuple[str, ...]]
# Service, which label, and its value.
_Name = tuple[str, str, str]


@dataclass
class _Page:
    """Values by family and labels; `uses`: how often a name was called, or an error arose."""

    series: dict[_Key, list[int]] = field(default_factory=dict)
    uses: Counter[_Name] = field(default_factory=Counter)

    def add(self, family: _Family, labels: tuple[str, ...], *values: int) -> None:
        """Adds to what has the same labels."""
        before = self.series.get((family, labels))
        added = list(values) if before is None else [one + other for one, other in zip(before, values, strict=True)]
        self.series[family, labels] = added

    def fold(self, limit: int) -> None:
        """Gives the least used names of a service with more than `limit` series the name `other`."""
        keys = defaultdict[str, dict[_Name | None, list[_Key]]](lambda: defaultdict(list))
        for family, labels in self.series:
            if labels:
                keys[labels[-2]][_name_of(family, labels)].append((family, labels))
        folded = 0
        for names in keys.values():
            lines = {name: sum(family.lines for family, _ in of_name) for name, of_name in names.items()}
            if sum(lines.values()) <= limit:
                continue
            others = {
                _as_other(*key) for name, of_name in names.items() if name is not None for key in of_name
            } - self.series.keys()
            room = limit - lines.pop(None, 0) - sum(family.lines for family, _ in others)
            ranked = sorted((name for name in lines if name), key=lambda name: (-self.uses[name], name))
            for name, used in zip(ranked, accumulate(lines[name] for name in ranked), strict=True):
                if used > room:
                    folded += lines[name]
                    for key in names[name]:
                        self.add(*_as_other(*key), *self.series.pop(key))
        self.add(FOLDED, (), folded)


def _name_of(family: _Family, labels: tuple[str, ...]) -> _Name | None:
    is_name = family.names and labels[0] != OTHER
    return (labels[-2], family.names, labels[0]) if is_name else None


def _as_other(family: _Family, labels: tuple[str, ...]) -> _Key:
    return family, (OTHER, *labels[1:])


def collect_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    """All families, those without a series, too."""
    page, books = _Page(), read_books(snapshot)
    outcomes = read_outcomes(snapshot)
    names = _Names(outcomes, read_model_names(snapshot))
    _add_runs(page, outcomes, names)
    _add_durations(page, snapshot, names)
    _add_costs(page, snapshot, names)
    _add_errors(page, snapshot)
    _add_scores(page, snapshot)
    _add_open_calls(page, snapshot, books, names)
    page.fold(MAX_SERIES_A_SERVICE)
    _add_pipeline(page, snapshot, books)
    # A name that first succeeds takes with it what `other` had of it.
    page.add(REVISION, (), read_revision(snapshot) + names.digest)
    made = {family: family.kind(family.name, family.documentation, labels=family.labels) for family in FAMILIES}
    for (family, labels), values in sorted(page.series.items(), key=lambda item: item[0][1]):
        _add_to(made[family], family, labels, values)
    yield from made.values()


def _add_to(metric: Metric, family: _Family, labels: tuple[str, ...], values: list[int]) -> None:
    if isinstance(metric, HistogramMetricFamily):
        *counts, whole_seconds, rest_ns = values
        total_ns = whole_seconds * SECOND_NS + rest_ns
        metric.add_metric(labels, list(zip(_BOUNDS, accumulate(counts), strict=True)), total_ns / SECOND_NS)
    elif isinstance(metric, SummaryMetricFamily):
        metric.add_metric(labels, *values)
    elif isinstance(metric, (CounterMetricFamily, GaugeMetricFamily)):
        metric.add_metric(labels, values[0] / family.unit)


class _Names:
    """Which names are shown, and as what."""

    def __init__(self, outcomes: Sequence[Any], model_names: list[tuple[str, str, int]]) -> None:
        named = ((row.run_type, row.model if row.run_type == "llm" else row.name) for row in outcomes if row.ok)
        self._succeeded = {name for name in named if name[1] != CAPPED}
        self._answering = {asked: model for asked, model, _ in model_names}

    @property
    def digest(self) -> int:
        """Another number where a name is shown that was not, or calls that failed count under another one."""
        return zlib.crc32(repr((sorted(self._succeeded), sorted(self._answering.items()))).encode())

    def model_of(self, model: str) -> str:
        # Calls that failed count under the model that others answered as which asked for the same.
        return self._shown("llm", model if ("llm", model) in self._succeeded else self._answering.get(model, model))

    def tool_of(self, name: str) -> str:
        return self._shown("tool", name)

    def _shown(self, run_type: str, name: str) -> str:
        return name if (run_type, name) in self._succeeded else OTHER


def _add_runs(page: _Page, outcomes: Sequence[Any], names: _Names) -> None:
    for row in outcomes:
        of, counts = (row.service, row.environment), [getattr(row, name) for name in STATUSES]
        if row.run_type == "llm":
            family, shown = LLM_CALLS, [names.model_of(row.model)]
            page.add(ACTIVE_CALLS, (*shown, *of), 0)
        elif row.run_type == "chain":
            family, shown = CHAIN_CALLS, []
        elif row.run_type == "tool":
            family, shown = TOOL_CALLS, [names.tool_of(row.name)]
        else:
            continue
        for status, count in zip(_STATUSES, counts, strict=True):
            page.add(family, (*shown, status, *of), count)
        for name in shown:
            page.uses[row.service, family.names, name] += sum(counts)


def _add_durations(page: _Page, snapshot: Snapshot, names: _Names) -> None:
    for service, environment, run_type, until, model, *values in read_durations(snapshot):
        if run_type == "llm":
            family = LLM_DURATION if until == "end" else FIRST_TOKEN
            page.add(family, (names.model_of(model), service, environment), *values)
        else:
            page.add(CHAIN_DURATION, (service, environment), *values)


def _add_scores(page: _Page, snapshot: Snapshot) -> None:
    for each in read_scores(snapshot, None, None):
        of = (each.service, each.environment)
        page.add(SCORES, (each.key, each.value, *of), each.count)
        if not each.value:
            page.add(SCORE_SUM, (each.key, *of), int(each.total * SCORE_UNIT))
        page.uses[each.service, "key", each.key] += each.count


def _add_costs(page: _Page, snapshot: Snapshot, names: _Names) -> None:
    for row in read_cost_totals(snapshot):
        of, model = (row.service, row.environment), names.model_of(row.model)
        metered = row.priced_calls + row.unpriced_calls - row.cached_calls
        page.add(TOKENS, (model, "prompt", *of), metered, row.input_tokens)
        page.add(TOKENS, (model, "completion", *of), metered, row.output_tokens)
        page.add(UNPRICED, (model, row.provider, *of), row.unpriced_calls)
        page.add(UNMETERED, (model, row.provider, *of), row.unmetered_calls)
        # Of calls without a price nobody knows that they cost nothing.
        if row.priced_calls:
            page.add(COST, (model, row.provider, *of), cost_of(row))


def _add_errors(page: _Page, snapshot: Snapshot) -> None:
    for service, environment, error_type, count in read_error_types(snapshot):
        name = OTHER if error_type == CAPPED else error_type or ""
        page.add(ERRORS, (name, service, environment), count)
        page.uses[service, ERRORS.names, name] += count


def _add_open_calls(page: _Page, snapshot: Snapshot, books: Books, names: _Names) -> None:
    abandoned_before_ns = abandoned_before(work_out_completeness(books, [RUNS]).at_ns)
    for service, environment, asked, count in read_open_calls(snapshot, abandoned_before_ns):
        page.add(ACTIVE_CALLS, (names.model_of(asked or ""), service, environment), count)


def _add_pipeline(page: _Page, snapshot: Snapshot, books: Books) -> None:
    sums: Mapping[str, Any] = describe_all(books, work_out_ledger(books, snapshot.projections))
    for state in _STATES:
        page.add(LEDGER, (state,), sums[state])
    for reason, count in sums["dropped"].items():
        page.add(DROPPED, (reason,), count)
    complete_ns = work_out_completeness(books, SHOWN).at_ns
    if complete_ns is not None:
        page.add(COMPLETE_TO, (), complete_ns)
    page.add(SESSIONS, (), count_sessions(snapshot))


class _OfSnapshot(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return collect_metrics(self._snapshot)


def exposition(snapshot: Snapshot) -> bytes:
    """What a scrape gets, of text format 0.0.4."""
    return generate_latest(_OfSnapshot(snapshot))
