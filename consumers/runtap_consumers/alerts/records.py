"""From what a rule found to the record that subscribers read: with a trace to look at, the error, the cost's change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import select

from runtap_consumers.alerts.rules.words import facts_of
from runtap_consumers.alerts.snapshot_figures import SnapshotFigures
from runtap_consumers.alerts.state import AnySettings, Rule, Verdict
from runtap_consumers.alerts.windows import Window
from runtap_consumers.figures.changes import PARTS, read_used, split
from runtap_consumers.figures.quantities import decimal_text
from runtap_consumers.instants import dollars, format_instant
from runtap_consumers.pricing.table import PriceTable
from runtap_consumers.store import tables
from runtap_consumers.store.read.figures import read_error_groups
from runtap_consumers.store.read.ranges import TimeRange, exact_segments
from runtap_consumers.store.read.run_filter import RunFilter
from runtap_consumers.store.read.runs import stream_runs
from runtap_consumers.units import MINUTE_NS
from runtap_schemas.alerts import Alert, AlertRule, AlertWindow, alert_key

_UTC = ZoneInfo("UTC")
_KEY_LENGTH = 160
_SAMPLES = 3
# Runs are looked for in the last minutes of a window: a month of them would take seconds.
_SAMPLED_NS = 10 * MINUTE_NS
_FAILURES = ("error_rate", "errors", "failure_rate")
_ORDERS = {"cost": "cost_picodollars", "latency": "duration_ns", "time": "first_token_ns"}
_RUN_FILTERS = ("service", "model", "name", "run_type")


def alert_id(rule: AnySettings, group: tuple[str, ...], transition: int) -> str:
    """An id that names what it is about, the same whenever it is made; a long one is hashed in the middle."""
    key = alert_key(rule.id, facts_of(rule, group))
    if len(key) > _KEY_LENGTH:
        key = f"{rule.id}?{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    return f"{key}/{transition}"


def make_record(
    rule: Rule, found: Verdict, figures: SnapshotFigures, prices: Callable[[], PriceTable], behind_ns: int
) -> Alert:
    """The record of a finding that has a status.

    Args:
        rule: that found it.
        found: what it found.
        figures: of the state of the store in which it did.
        prices: for why a cost changed.
        behind_ns: how old the oldest record is that was not applied.
    """
    assert found.status is not None
    settings, window = rule.settings, found.window
    facts = {**_evidence(settings, found, figures), **found.facts}
    if getattr(settings, "what", "") == "cost" and found.status == "firing" and window is not None:
        facts["change"] = _change(settings, found, figures, prices)
    says = found.says
    if window is not None and not window.is_complete and behind_ns > MINUTE_NS:
        says += f" (figures are {behind_ns // MINUTE_NS} min behind: it may be more)"
    samples = facts.get("sample_run_ids") or []
    return Alert(
        id=alert_id(settings, found.group, found.state.transition),
        incident_id=found.state.incident,
        status=found.status,
        severity=found.severity,
        rule=AlertRule(settings.id, settings.revision),
        group=facts_of(settings, found.group),
        at=format_instant(figures.now_ns, _UTC),
        value=None if found.value is None else decimal_text(found.value),
        threshold=None if found.threshold is None else decimal_text(found.threshold),
        unit=rule.unit,
        window=None if window is None else _window(window),
        complete_to=format_instant(figures.complete_to_ns, _UTC),
        trace_id=_trace_of(figures, samples[0]) if samples else None,
        summary=says,
        query=rule.query(found, figures.zone),
        labels=settings.labels,
        runbook=settings.runbook,
        **facts,
    )


def _window(window: Window) -> AlertWindow:
    return AlertWindow(format_instant(window.from_ns, _UTC), format_instant(window.to_ns, _UTC))


def _evidence(settings: AnySettings, found: Verdict, figures: SnapshotFigures) -> dict[str, Any]:
    """Runs that show it, and the most frequent error where it is about errors."""
    window, what = found.window, getattr(settings, "what", "cost")
    if window is None or found.status == "resolved":
        return {}
    facts = {**settings.where, **facts_of(settings, found.group)}
    if what in _FAILURES:
        within = TimeRange(window.from_ns, window.to_ns, exact_segments(window.from_ns, window.to_ns, figures.zone))
        sample = found.sums.get("sample_error_run_id")
        for group in read_error_groups(figures.snapshot, within, facts.get("service"), facts.get("environment"))[:1]:
            samples = [each for each in (group.sample_run_id, sample) if each]
            return {
                "error_type": group.type,
                "error_place": group.raised_at,
                "sample_run_ids": list(dict.fromkeys(samples)),
            }
        return {"sample_run_ids": [sample] if sample else []}
    filters: dict[str, Any] = {name: facts[name] for name in _RUN_FILTERS if name in facts}
    wanted = RunFilter(
        since_ns=max(window.from_ns, min(window.to_ns, figures.now_ns) - _SAMPLED_NS),
        until_ns=window.to_ns,
        user_id=facts.get("user"),
        order=_ORDERS.get(what.partition("_")[0], "duration_ns"),
        **({"run_type": "llm"} | filters),
    )
    return {"sample_run_ids": [run["run_id"] for run in stream_runs(figures.snapshot, wanted, None, _SAMPLES)]}


def _trace_of(figures: SnapshotFigures, run_id: str) -> str | None:
    runs = tables.runs.c
    found = select(runs.trace_id).where(runs.run_id == run_id, figures.snapshot.is_live(tables.runs)).limit(1)
    return figures.snapshot.connection.execute(found).scalar()


def _change(
    settings: AnySettings, found: Verdict, figures: SnapshotFigures, prices: Callable[[], PriceTable]
) -> dict[str, str] | None:
    """Why the window cost more than the one before it; `None` where costs are not kept by what the rule asks for."""
    facts: Mapping[str, str] = {**settings.where, **facts_of(settings, found.group)}
    window = found.window
    if window is None or not {*facts} <= {"service"}:
        return None
    before_ns = window.from_ns - (window.to_ns - window.from_ns)
    used = [
        read_used(
            figures.snapshot,
            prices(),
            TimeRange(from_ns, to_ns, exact_segments(from_ns, to_ns, figures.zone)),
            facts.get("service"),
        )
        for from_ns, to_ns in ((before_ns, window.from_ns), (window.from_ns, window.to_ns))
    ]
    parts = split(*used)
    return {part: dollars(sum(each[part] for each in parts.values())) for part in PARTS}
