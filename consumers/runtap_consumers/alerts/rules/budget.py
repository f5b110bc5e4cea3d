"""What a calendar day, week or month of the store's zone costs, against what it may cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.alerts.rule_file import BudgetSettings, attribute_of
from runtap_consumers.alerts.rules.words import query_of, where_words
from runtap_consumers.alerts.state import Figures, State, Verdict
from runtap_consumers.alerts.windows import RoundPlan, Window, ends_to_judge
from runtap_consumers.figures.quantities import QUANTITIES, shown_value
from runtap_consumers.instants import day_start_ns, local_time
from runtap_consumers.store.read.window_sums import Group
from runtap_consumers.units import HOUR_NS
from runtap_schemas.alerts import Severity

# Of a period, before nothing is said of where it is going: three days of a month.
_FORECAST_FROM = Decimal("0.1")
_FORECAST_LEAST_NS = 3 * HOUR_NS


class Budget:
    """A `[[budget]]`. A level is a percentage of the limit that was reached; it is over with its period."""

    unit, projection = "USD", "cost"

    def __init__(self, settings: BudgetSettings) -> None:
        self.settings = settings
        self._quantity = QUANTITIES["cost"]
        self.step_name = "minute" if attribute_of(settings, self._quantity) is None else "hour"
        self._limits = [settings.limit * percent / 100 for percent in settings.at]

    def windows(self, plan: RoundPlan, zone: ZoneInfo) -> Iterator[Window]:
        """From the period's begin to each end that a commit touched."""
        for end_ns, is_complete in ends_to_judge(plan, self.step_name, 0, zone, is_early=True):
            yield Window(self._period(end_ns - 1, zone)[0], end_ns, is_complete)

    def judge(self, figures: Figures, window: Window, states: Mapping[Group, State]) -> Iterator[Verdict]:
        """Levels that are reached, and periods that are over."""
        for group, state in sorted(states.items()):
            if 0 < state.seen < window.from_ns:
                yield self._over(group, state, window)
        found = figures.running_sums(self.settings, self._quantity, window.from_ns, window.to_ns)
        least = self._least_forecast(window, figures.zone)
        # Of many groups nearly all are far below: they are looked at, and that is all.
        low = min(self._limits[0], self.settings.limit if least is None else least)
        for group, sums in sorted(found.items()):
            spent = self._quantity.value(sums) or Decimal(0)
            if spent >= low:
                yield from self._judge_group(group, states.get(group, State()), spent, window, least)

    def _judge_group(
        self, group: Group, state: State, spent: Decimal, window: Window, least: Decimal | None
    ) -> Iterator[Verdict]:
        if state.seen != window.from_ns:
            state = State(transition=state.transition + bool(state.level or state.since_ns))
        if window.to_ns < state.window_to_ns:
            return
        level, limit = sum(spent >= each for each in self._limits), self.settings.limit
        where = f"{where_words(self.settings, group)}: this {self.settings.period}"
        shown = f"{where} has cost {shown_value(spent, self.unit)}"
        reached: dict[str, Any] = {"seen": window.from_ns, "transition": state.transition + 1}
        reached["window_to_ns"] = window.to_ns
        if level > state.level:
            percent = self.settings.at[level - 1]
            says = f"{shown}, {percent} % of {shown_value(limit, self.unit)} or more"
            severity: Severity = "critical" if percent >= 100 else self.settings.severity
            told = state._replace(level=level, **reached)
            yield Verdict(group, told, "firing", severity, spent, self._limits[level - 1], window, says)
        elif least is not None and least <= spent < limit and not state.since_ns:
            forecast = spent * limit / least
            says = (
                f"{shown} and is on its way to {shown_value(forecast, self.unit)}, past {shown_value(limit, self.unit)}"
            )
            told = state._replace(since_ns=window.to_ns, **reached)
            yield Verdict(group, told, "firing", self.settings.severity, forecast, limit, window, says)

    def _over(self, group: Group, state: State, window: Window) -> Verdict:
        says = f"{where_words(self.settings, group)}: another {self.settings.period} has begun"
        told = State(transition=state.transition + 1, window_to_ns=window.from_ns, incident=state.incident)
        return Verdict(group, told, "resolved", self.settings.severity, None, None, window, says)

    def _least_forecast(self, window: Window, zone: ZoneInfo) -> Decimal | None:
        """What leads to the limit by the period's end, if it goes on so; `None` before a tenth of it is over."""
        begin_ns, end_ns = self._period(window.from_ns, zone)
        elapsed_ns = Decimal(window.to_ns - begin_ns)
        least_ns = max(_FORECAST_FROM * (end_ns - begin_ns), Decimal(_FORECAST_LEAST_NS))
        if not self.settings.forecast or elapsed_ns < least_ns:
            return None
        return self.settings.limit * elapsed_ns / (end_ns - begin_ns)

    def _period(self, at_ns: int, zone: ZoneInfo) -> tuple[int, int]:
        """Begin and end of the period that holds an instant."""
        if self.settings.period == "day":
            return day_start_ns(at_ns, zone), day_start_ns(at_ns, zone, days_later=1)
        day = local_time(at_ns, zone).date()
        if self.settings.period == "week":
            back = day.weekday()
            return day_start_ns(at_ns, zone, days_later=-back), day_start_ns(at_ns, zone, days_later=7 - back)
        following = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        return (
            day_start_ns(at_ns, zone, days_later=1 - day.day),
            day_start_ns(at_ns, zone, days_later=(following - day).days),
        )

    def query(self, change: Verdict, zone: ZoneInfo) -> str:
        """The command that shows it."""
        return query_of("costs", self.settings, change, zone)
