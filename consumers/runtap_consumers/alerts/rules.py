"""When an alert is raised: functions of figures, without store and clock.

A rule is a function from what it reads and its state to alerts and its next state; the evaluator feeds it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

from runtap_consumers.figures.words import error_facts
from runtap_consumers.projections.rollups import RETENTION_NS
from runtap_consumers.units import HOUR_NS, MINUTE_NS, minute_of
from runtap_schemas import Alert

ERROR_RATE = "error_rate"
NEW_ERROR_GROUP = "new_error_group"
FIRING = "firing"
OK = "ok"
WINDOW_MINUTES = 5
WINDOW_NS = WINDOW_MINUTES * MINUTE_NS
# More would take seconds in one transaction, which PostgreSQL ends, and in which no other process can write to SQLite.
WINDOWS_A_ROUND = 240
_ID_LENGTH = 64
_MESSAGE_LENGTH = 500


class AlertState(NamedTuple):
    """A condition that has an end. `transition` counts its changes, `window_to_ns` ends the last one's window."""

    state: str
    transition: int
    window_to_ns: int


class RootsMinute(NamedTuple):
    """Ended roots of a service and environment in one minute."""

    service: str
    environment: str
    bucket_ns: int
    ok: int
    errors: int
    sample_run_id: str | None


class NewGroup(NamedTuple):
    """An error group that no alert has named."""

    service: str
    fingerprint: str
    environment: str
    type: str
    category: str
    status_code: int | None
    code: str | None
    raised_at: str | None
    message: str | None
    occurrences: int
    sample_run_id: str | None


class Budget(NamedTuple):
    """New-group alerts of a service in one hour: how many were sent, how many await the summary."""

    service: str
    hour_ns: int
    sent: int
    suppressed: int


class RateLimits(NamedTuple):
    """From which rate of failed roots on a service fires, and how many ended roots a window needs to be judged."""

    rate: float
    least_roots: int


class WindowPlan(NamedTuple):
    """The ends of the windows to judge, ascending, and up to where windows are judged after them."""

    windows: list[int]
    evaluated_to_ns: int


@dataclass
class Verdict:
    """What a rule makes of its figures: alerts in their order, and the states that changed."""

    alerts: list[Alert] = field(default_factory=list)
    states: dict[tuple[str, str], AlertState] = field(default_factory=dict)


def alert_id(*parts: str | int) -> str:
    """An id that names what it is about, the same whenever it is made; long ones are hashed in the middle."""
    quoted = [quote(str(part), safe="") for part in parts]
    text = "/".join(quoted)
    if len(text) <= _ID_LENGTH:
        return text
    digest = hashlib.sha256("/".join(quoted[1:-1]).encode()).hexdigest()[:16]
    last = quoted[-1] if len(quoted[-1]) <= 20 else hashlib.sha256(quoted[-1].encode()).hexdigest()[:16]
    return f"{quoted[0]}/{digest}/{last}"


def judge_error_rates(
    minutes: Iterable[RootsMinute],
    windows: Sequence[int],
    states: Mapping[tuple[str, str], AlertState],
    limits: RateLimits,
    now_ns: int,
) -> Verdict:
    """Failed roots over ended roots (ok and error) of each service and environment, window by window.

    It fires where a window with enough roots reaches the rate, and is resolved by a later window that lies below it, or
    that is over and has none: a service that fell silent would fire for ever.

    Args:
        minutes: of all the windows.
        windows: the ends of the windows to judge, ascending, Unix nanoseconds.
        states: of before; windows up to that of a state's last change are not judged again.
        limits: the rule's settings.
        now_ns: time of the alerts.
    """
    by_service: dict[tuple[str, str], dict[int, RootsMinute]] = defaultdict(dict)
    for minute in minutes:
        by_service[minute.service, minute.environment][minute.bucket_ns] = minute
    verdict = Verdict()
    firing = {key for key, state in states.items() if state.state == FIRING}
    for key in sorted(firing.union(by_service)):
        state = states.get(key, AlertState(OK, 0, 0))
        for window_to in windows:
            if window_to <= state.window_to_ns:
                continue
            buckets = range(window_to - WINDOW_NS, window_to, MINUTE_NS)
            found = [by_service[key][bucket] for bucket in buckets if bucket in by_service[key]]
            changed = _next_state(state, found, limits, window_to, now_ns)
            if changed is not None:
                state = verdict.states[key] = changed
                verdict.alerts.append(_rate_alert(key, changed, found, limits, now_ns))
    return verdict


def _next_state(
    state: AlertState, minutes: Sequence[RootsMinute], limits: RateLimits, window_to_ns: int, now_ns: int
) -> AlertState | None:
    errors = sum(minute.errors for minute in minutes)
    roots = errors + sum(minute.ok for minute in minutes)
    is_kept_whole = now_ns - RETENTION_NS["minute"] <= window_to_ns - WINDOW_NS and window_to_ns <= now_ns
    if not (roots or is_kept_whole):
        # The window is not over, or its minutes may be deleted: that is no silence.
        return None
    is_high = roots > 0 and errors / roots >= limits.rate
    if state.state != FIRING and is_high and roots >= limits.least_roots:
        return AlertState(FIRING, state.transition + 1, window_to_ns)
    if state.state == FIRING and not is_high:
        return AlertState(OK, state.transition + 1, window_to_ns)
    return None


def _rate_alert(
    key: tuple[str, str], state: AlertState, minutes: Sequence[RootsMinute], limits: RateLimits, now_ns: int
) -> Alert:
    service, environment = key
    errors = sum(minute.errors for minute in minutes)
    roots = errors + sum(minute.ok for minute in minutes)
    where = f"{service or 'unknown service'} ({environment})" if environment else service or "unknown service"
    is_firing = state.state == FIRING
    if roots:
        figures = f"{errors} of {roots} root runs failed ({errors / roots:.1%}) in {WINDOW_MINUTES} minutes"
        summary = f"{where}: {figures}, {'at or above' if is_firing else 'below'} {limits.rate:.1%}"
    else:
        summary = f"{where}: no root run succeeded or failed in {WINDOW_MINUTES} minutes"
    return Alert(
        id=alert_id(ERROR_RATE, service, environment, state.transition),
        rule=ERROR_RATE,
        state="firing" if is_firing else "resolved",
        at_ns=now_ns,
        service=service,
        environment=environment or None,
        summary=summary,
        count=errors,
        rate=errors / roots if roots else None,
        window_from_ns=state.window_to_ns - WINDOW_NS,
        # The window that holds the present ends with it.
        window_to_ns=min(state.window_to_ns, now_ns),
        sample_run_id=next((minute.sample_run_id for minute in reversed(minutes) if minute.errors), None),
    )


def choose_new_groups(
    groups: Sequence[NewGroup], sent: Mapping[str, int], groups_an_hour: int
) -> tuple[list[NewGroup], dict[str, tuple[int, int]]]:
    """Divides new groups into those that get an alert of their own and those that wait for the hour's summary.

    Args:
        groups: in the order of their first occurrence.
        sent: alerts of this hour so far, by service.
        groups_an_hour: the cap of a service.

    Returns:
        The groups to name, and by service how many were named now and how many were not.
    """
    named = []
    spent: dict[str, tuple[int, int]] = {}
    for group in groups:
        now_sent, suppressed = spent.get(group.service, (0, 0))
        if sent.get(group.service, 0) + now_sent < groups_an_hour:
            named.append(group)
            spent[group.service] = (now_sent + 1, suppressed)
        else:
            spent[group.service] = (now_sent, suppressed + 1)
    return named, spent


def new_group_alert(group: NewGroup, now_ns: int) -> Alert:
    """The alert that names a group which was never seen in its service."""
    what = f"{group.type} ({error_facts(group.category, group.status_code, group.code)})"
    if group.raised_at:
        what += f" at {group.raised_at}"
    if group.message:
        what += f": {' '.join(group.message.split())[:_MESSAGE_LENGTH]}"
    return Alert(
        id=alert_id(NEW_ERROR_GROUP, group.service, group.fingerprint),
        rule=NEW_ERROR_GROUP,
        state="noticed",
        at_ns=now_ns,
        service=group.service,
        environment=group.environment or None,
        summary=f"{group.service or 'unknown service'}: new error {what}",
        count=group.occurrences,
        fingerprint=group.fingerprint,
        sample_run_id=group.sample_run_id,
    )


def summary_alert(budget: Budget, now_ns: int) -> Alert:
    """The one alert for the new groups of an hour that had none of their own."""
    hour = datetime.fromtimestamp(budget.hour_ns // 10**9, UTC)
    return Alert(
        id=alert_id(NEW_ERROR_GROUP, budget.service, "hour", budget.hour_ns // HOUR_NS),
        rule=NEW_ERROR_GROUP,
        state="noticed",
        at_ns=now_ns,
        service=budget.service,
        summary=(
            f"{budget.service or 'unknown service'}: {budget.suppressed} more new error groups in the hour from "
            f"{hour:%Y-%m-%d %H:%M} UTC; `runtap report` names them"
        ),
        count=budget.suppressed,
        window_from_ns=budget.hour_ns,
        window_to_ns=budget.hour_ns + HOUR_NS,
    )


def plan_windows(
    evaluated_to_ns: int, oldest_touched_ns: int | None, watermark_ns: int, now_ns: int | None
) -> WindowPlan:
    """The windows that may have changed, at most `WINDOWS_A_ROUND`.

    Args:
        evaluated_to_ns: that of the plan before.
        oldest_touched_ns: the oldest minute that a commit has touched since; all windows that hold it are judged again.
        watermark_ns: only windows that end at or before it are complete.
        now_ns: the present where everything is applied: the window that holds it is judged as it stands. Else `None`.
    """
    last = minute_of(watermark_ns)
    first = evaluated_to_ns + MINUTE_NS
    if oldest_touched_ns is not None:
        first = min(first, oldest_touched_ns + MINUTE_NS)
    # Minutes are kept for 48 hours: of older ones nothing is left to judge.
    first = max(first, last - RETENTION_NS["minute"])
    end = min(last, first + (WINDOWS_A_ROUND - 1) * MINUTE_NS)
    windows = list(range(first, end + 1, MINUTE_NS))
    if windows and end < last:
        return WindowPlan(windows, end)
    if now_ns is not None:
        windows.append(minute_of(now_ns) + MINUTE_NS)
    if last < evaluated_to_ns and oldest_touched_ns is not None:
        # The watermark has gone back (a partition was added): what was touched beyond it is judged when it returns.
        return WindowPlan(windows, max(last, min(evaluated_to_ns, oldest_touched_ns)))
    return WindowPlan(windows, max(last, evaluated_to_ns))
