"""A quantity of the present moment above or below a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from zoneinfo import ZoneInfo

from runtap_consumers.alerts.rule_file import RuleSettings
from runtap_consumers.alerts.rules.threshold import Reading, Threshold
from runtap_consumers.alerts.rules.words import query_of, where_words
from runtap_consumers.alerts.state import Figures, State, Verdict
from runtap_consumers.alerts.windows import RoundPlan, Window
from runtap_consumers.figures.quantities import PRESENT_QUANTITIES, shown_value
from runtap_consumers.store.read.window_sums import Group
from runtap_consumers.units import MINUTE_NS, minute_of
from runtap_schemas.alerts import Status


class PresentThreshold(Threshold):
    """A `[[rule]]` about what is now: it is judged each minute, and has no past that could be judged again."""

    def __init__(self, settings: RuleSettings) -> None:
        self.settings = settings
        self.present = PRESENT_QUANTITIES[settings.what]
        self.unit = self.present.unit
        self.projection, self.step_name = "", "minute"

    def windows(self, plan: RoundPlan, zone: ZoneInfo) -> Iterator[Window]:
        """The minute that ended last, unless it was judged."""
        end_ns = minute_of(plan.now_ns)
        if end_ns > plan.mark.judged_to_ns:
            yield Window(end_ns - MINUTE_NS, end_ns, is_complete=True)

    def judge(self, figures: Figures, window: Window, states: Mapping[Group, State]) -> Iterator[Verdict]:
        """Crossings, and what is over."""
        found = figures.present(self.settings, self.present)
        for group in sorted({*found, *states}):
            reading = Reading(group, window, found.get(group), 0, {}, *self.limits())
            change = self.step(states.get(group, State()), reading)
            if change is not None:
                yield change

    def _tell(self, status: Status, state: State, reading: Reading) -> Verdict:
        threshold, severity = reading.limits[max(state.level, 1) - 1]
        value, window = reading.value, reading.window
        shown = "nothing" if value is None else shown_value(value, self.unit)
        side = "below" if (self.settings.below is not None) == (status == "firing") else "at or above"
        limit = shown_value(threshold, self.unit)
        says = f"{where_words(self.settings, reading.group)}: {self.present.title} {shown}, {side} {limit}"
        told = state._replace(transition=state.transition + 1, window_to_ns=window.to_ns, said_ns=window.to_ns)
        return Verdict(reading.group, told, status, severity, value, threshold, None, says)

    def query(self, change: Verdict, zone: ZoneInfo) -> str:
        """The command that shows it."""
        return query_of(self.present.command, self.settings, change, zone)
