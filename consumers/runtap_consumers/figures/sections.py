"""What the report and costs are made of, section by section."""

from __future__ import annotations

from typing import TypedDict

from runtap_consumers.figures.completeness import AllSums
from runtap_consumers.figures.sessions import SessionFigures
from runtap_consumers.figures.shapes import Dollars, Instant, OfRange, Range


class ModelCost(TypedDict):
    """What calls of one model used and cost."""

    provider: str | None
    model: str | None
    calls: int
    unpriced_calls: int
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Dollars | None


class ServiceCost(TypedDict):
    """What calls of one service cost."""

    service: str | None
    environment: str | None
    calls: int
    unpriced_calls: int
    cost_usd: Dollars | None


class CostSection(TypedDict):
    """Model calls, their tokens and what they cost; `cost_usd` is that of the calls with a known price."""

    calls: int
    priced_calls: int
    unpriced_calls: int
    unmetered_calls: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_usd: Dollars | None
    average_cost_per_call_usd: Dollars | None
    by_model: list[ModelCost]
    by_service: list[ServiceCost]


class Performance(TypedDict):
    """How runs went; quantiles are off by 1 % at most."""

    count: int
    errors: int
    success_rate: float | None
    calls_per_minute: float
    total_seconds: float
    avg_seconds: float | None
    min_seconds: float | None
    max_seconds: float | None
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    first_token_p50_seconds: float | None
    first_token_p95_seconds: float | None
    output_tokens_per_second: float | None


class Component(Performance):
    """A component's runs. `request_models`: what calls of this model asked for, where that has another name."""

    run_type: str
    name: str | None
    model: str | None
    request_models: list[str]


class ErrorType(TypedDict):
    """Errors of one type; `rate`: to root runs that ended."""

    type: str
    category: str | None
    count: int
    rate: float | None


class _ErrorFacts(TypedDict):
    type: str | None
    category: str | None
    status_code: int | None
    code: str | None
    raised_at: str | None
    message: str | None
    run_type: str | None
    service: str | None


class ErrorGroupFigures(_ErrorFacts):
    """Errors that are alike; seen at any time, counted in the range."""

    fingerprint: str
    count: int
    first_seen: Instant
    last_seen: Instant
    sample_run_id: str


class LastError(_ErrorFacts):
    """One error, where it arose."""

    run_id: str
    name: str | None
    at: Instant


class ErrorSection(TypedDict):
    """Errors where they arose; `recent`: the last ten."""

    total: int
    by_type: list[ErrorType]
    groups: list[ErrorGroupFigures]
    recent: list[LastError]


class RuleName(TypedDict):
    """The rule that raised an alert, and the revision of it that did."""

    id: str
    revision: str


class AlertFigures(TypedDict):
    """An alert that fired, was resolved, or was noticed: the record that its topic holds (`runtap_schemas.alerts`)."""

    id: str
    incident_id: str
    status: str
    severity: str
    rule: RuleName
    group: dict[str, str]
    at: Instant
    value: str | None
    threshold: str | None
    unit: str
    window: Range | None
    complete_to: Instant | None
    trace_id: str | None
    sample_run_ids: list[str]
    error_type: str | None
    error_place: str | None
    change: dict[str, Dollars] | None
    summary: str
    query: str
    labels: dict[str, str]
    runbook: str | None


class Components(OfRange):
    """How the components' runs went, the slowest in total first."""

    performance_by_run_type: dict[str, Performance]
    performance: list[Component]


class Errors(OfRange):
    """Errors of a range."""

    errors: ErrorSection


class KeyScores(TypedDict):
    """What was thought of runs, by what was judged. `value`: the category; null for numbers, of which `mean` is."""

    service: str | None
    environment: str | None
    key: str
    value: str | None
    count: int
    mean: str | None


class ScoresBy(TypedDict):
    """Numbers by a fact of the runs that they are about, for as long as these are kept."""

    name: str | None
    key: str
    count: int
    mean: str | None


class Feedback(TypedDict):
    """What was thought of runs."""

    by_key: list[KeyScores]
    by_model: list[ScoresBy]
    by_name: list[ScoresBy]


class FeedbackOfRange(OfRange):
    """Feedback of a range."""

    feedback: Feedback


class Alerts(OfRange):
    """Alerts of a range, newest first."""

    alerts: list[AlertFigures]


class ReportFigures(Components, Errors, FeedbackOfRange, Alerts):
    """Every figure of a range. `sessions`: the newest of the `session_count` that there are."""

    cost: CostSection
    session_count: int
    sessions: list[SessionFigures]
    ledger: AllSums


class CostFigures(TypedDict):
    """What calls used and cost. `cached_share` of the input tokens; `share` of the total's cost; `series_usd`: cost by
    `buckets`.
    """

    calls: int
    priced_calls: int
    unpriced_calls: int
    unmetered_calls: int
    input_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    input_audio_tokens: int
    input_image_tokens: int
    output_tokens: int
    reasoning_tokens: int
    output_audio_tokens: int
    web_searches: int
    cached_share: float | None
    saved_usd: Dollars | None
    cost_usd: Dollars | None
    share: float | None
    series_usd: list[Dollars]


_MonthBegin = TypedDict("_MonthBegin", {"from": Instant})


class Month(_MonthBegin):
    """This month so far, and what it will cost if it goes on like that: null within its first days."""

    cost_usd: Dollars
    forecast_usd: Dollars | None
    least_usd: Dollars | None
    most_usd: Dollars | None
    method: str | None


class Costs(OfRange):
    """Costs of a range. A row also has each name of `by`: null is for calls without it. `source`: rollups, or runs."""

    timezone: str
    by: list[str]
    source: str
    rows: list[CostFigures]
    total: CostFigures
    buckets: list[Instant]
    month: Month | None
