"""A quantity above or below a threshold, over a window that slides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple
from zoneinfo import ZoneInfo

from runtap_consumers.alerts.rule_file import MOST_MINUTES_NS, RuleSettings, attribute_of
from runtap_consumers.alerts.rules.words import query_of, span_words, where_words
from runtap_consumers.alerts.state import Figures, State, Verdict
from runtap_consumers.alerts.windows import RoundPlan, Window, ends_to_judge
from runtap_consumers.figures.quantities import QUANTITIES, shown_value
from runtap_consumers.instants import day_start_ns
from runtap_consumers.store import tables
from runtap_consumers.store.read.ranges import DEFAULT_NS
from runtap_consumers.store.read.snapshot import owner_of
from runtap_consumers.store.read.window_sums import Group, Sums
from runtap_consumers.units import DAY_NS
from runtap_schemas.alerts import Severity, Status

Limits = Sequence[tuple[Decimal, Severity]]


class Reading(NamedTuple):
    """What a group shows in a window. `value`: `None` without data; `limits`: from the first to the worst; `recover`:
    what it is over at.
    """

    group: Group
    window: Window
    value: Decimal | None
    calls: int
    sums: Sums
    limits: Limits
    recover: Decimal


class Threshold:
    """A `[[rule]]` with `above` or `below`."""

    def __init__(self, settings: RuleSettings) -> None:
        assert settings.window is not None
        self.settings = settings
        self.quantity = QUANTITIES[settings.what]
        self.unit = self.quantity.unit
        self.projection = owner_of(tables.metadata.tables[self.quantity.rollup.table_name("day")])
        self._span_ns = settings.window
        is_by_attribute = attribute_of(settings, self.quantity) is not None
        self.step_name = "hour" if is_by_attribute or settings.window > MOST_MINUTES_NS else "minute"
        # By attribute, what is older than two days is kept by the day.
        self._is_in_days = is_by_attribute and settings.window > MOST_MINUTES_NS - DAY_NS // 24
        self._is_early = self.quantity.only_grows and settings.below is None

    def windows(self, plan: RoundPlan, zone: ZoneInfo) -> Iterator[Window]:
        """Each that ended or was touched; before it is complete where what was counted can only grow."""
        for end_ns, is_complete in ends_to_judge(plan, self.step_name, self._span_ns, zone, self._is_early):
            if self._is_in_days:
                days = self._span_ns // DAY_NS
                yield Window(day_start_ns(end_ns - 1, zone, days_later=1 - days), end_ns, is_complete)
            else:
                yield Window(end_ns - self._span_ns, end_ns, is_complete)

    def judge(self, figures: Figures, window: Window, states: Mapping[Group, State]) -> Iterator[Verdict]:
        """Crossings, and what is over."""
        found = figures.sums(self.settings, self.quantity, window.from_ns, window.to_ns)
        for group in sorted({*found, *states, *self._expected(figures, window)}):
            state = states.get(group, State())
            # Once more about the window of the last change: it may have got worse since.
            if window.to_ns > state.window_to_ns or (state.level and window.to_ns == state.window_to_ns):
                sums = found.get(group, {})
                calls = self.quantity.calls(sums)
                value = self.quantity.value(sums) if calls else None
                if value is None and self.settings.below is not None and self.quantity.only_grows:
                    # Nothing was counted: that is the least there can be.
                    value = Decimal(0)
                change = self.step(state, Reading(group, window, value, calls, sums, *self.limits()))
                if change is not None:
                    yield change

    def _expected(self, figures: Figures, window: Window) -> Iterator[Group]:
        """Groups whose silence tells something: all that were met in the day before the window."""
        if self.settings.below is None and self.settings.no_data != "alert":
            return
        if self.settings.group_by:
            yield from figures.sums(self.settings, self.quantity, window.from_ns - DEFAULT_NS, window.from_ns)
        else:
            yield ()

    def limits(self, usual: Decimal = Decimal(1)) -> tuple[Limits, Decimal]:
        """The thresholds from the first to the worst, each with its severity, and what it is over at. `usual`: what
        the rule's amounts are factors of, where they are any.
        """
        rule = self.settings
        (first,) = (each for each in (rule.above, rule.below, rule.times_usual) if each is not None)
        limits: list[tuple[Decimal, Severity]] = [(first * usual, rule.severity)]
        if rule.critical is not None:
            limits.append((rule.critical * usual, "critical"))
        return limits, (first if rule.recover is None else rule.recover) * usual

    def step(self, state: State, reading: Reading) -> Verdict | None:
        """What the next window makes of a group's state; `None`: nothing."""
        rule, window, value = self.settings, reading.window, reading.value
        if value is None:
            level = int(rule.no_data == "alert" and window.is_complete)
            is_over = rule.no_data == "resolve"
        else:
            level = sum(self._crosses(value, limit) for limit, _ in reading.limits)
            level = level if reading.calls >= rule.least_calls else 0
            is_over = not self._crosses(value, reading.recover)
        if level > state.level:
            since_ns = state.since_ns or window.to_ns
            if state.level == 0 and window.to_ns - since_ns < rule.for_:
                return None if state.since_ns else Verdict(reading.group, state._replace(since_ns=since_ns))
            return self._tell("firing", state._replace(level=level, since_ns=since_ns), reading)
        if not window.is_complete or window.to_ns == state.window_to_ns:
            return None
        if state.level and is_over:
            return self._tell("resolved", state._replace(level=0, since_ns=0), reading)
        if state.level and level and rule.repeat and window.to_ns >= state.said_ns + rule.repeat:
            return self._tell("firing", state, reading)
        if state.since_ns and not (level or state.level):
            return Verdict(reading.group, state._replace(since_ns=0))
        return None

    def _crosses(self, value: Decimal, limit: Decimal) -> bool:
        return value < limit if self.settings.below is not None else value >= limit

    def _tell(self, status: Status, state: State, reading: Reading) -> Verdict:
        window, value = reading.window, reading.value
        threshold, severity = reading.limits[max(state.level, 1) - 1]
        where, span = where_words(self.settings, reading.group), span_words(window)
        if value is None:
            says = f"{where}: no {self.quantity.title} in {span}: nothing was counted"
        else:
            side = "below" if self.settings.below is not None else "at or above"
            if status == "resolved":
                side = "again at or above" if side == "below" else "again below"
                threshold = reading.recover
            shown, limit = shown_value(value, self.unit), shown_value(threshold, self.unit)
            says = f"{where}: {self.quantity.title} {shown} in {span}, {side} {limit}"
        told = state._replace(transition=state.transition + 1, window_to_ns=window.to_ns, said_ns=window.to_ns)
        return Verdict(reading.group, told, status, severity, value, threshold, window, says, reading.sums)

    def query(self, change: Verdict, zone: ZoneInfo) -> str:
        """The command that shows it."""
        return query_of(self.quantity.command, self.settings, change, zone)
