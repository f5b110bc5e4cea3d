"""Events that were lost: each time that more of them are known to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from zoneinfo import ZoneInfo

from runtap_consumers.alerts.rule_file import RuleSettings
from runtap_consumers.alerts.state import Figures, State, Verdict
from runtap_consumers.alerts.windows import RoundPlan, Window
from runtap_consumers.store.read.window_sums import Group
from runtap_consumers.units import MINUTE_NS, minute_of


class Losses:
    """A `[[rule]]` of `events_lost`. What was lost before it was first judged counts, too, but in a new store's first
    minutes. A number that lands late after all lowers what was seen, without an alert.
    """

    unit, projection, step_name = "events", "", "minute"

    def __init__(self, settings: RuleSettings) -> None:
        self.settings = settings

    def windows(self, plan: RoundPlan, zone: ZoneInfo) -> Iterator[Window]:
        """The minute that ended last, unless it was judged."""
        end_ns = minute_of(plan.now_ns)
        if end_ns > plan.mark.judged_to_ns:
            yield Window(end_ns - MINUTE_NS, end_ns, is_complete=True)

    def judge(self, figures: Figures, window: Window, states: Mapping[Group, State]) -> Iterator[Verdict]:
        """More than were known."""
        state, lost = states.get((), State()), figures.lost()
        if lost == state.seen:
            return
        seen = state._replace(seen=lost)
        if lost < state.seen:
            yield Verdict((), seen)
            return
        more = lost - state.seen
        says = f"{more:,} events more were lost, {lost:,} in all: `runtap ledger` says whose and why"
        told = seen._replace(transition=state.transition + 1, window_to_ns=window.to_ns)
        yield Verdict((), told, "noticed", self.settings.severity, Decimal(more), None, None, says)

    def query(self, change: Verdict, zone: ZoneInfo) -> str:
        """The command that shows them."""
        return "runtap ledger"
