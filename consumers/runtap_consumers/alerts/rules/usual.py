"""A quantity far above what is usual: the median of the same hour of the seven days before, of at least three."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from decimal import Decimal
from statistics import median

from runtap_consumers.alerts.rules.threshold import Reading, Threshold
from runtap_consumers.alerts.state import Figures, State, Verdict
from runtap_consumers.alerts.windows import Window
from runtap_consumers.figures.quantities import shown_value
from runtap_consumers.instants import day_start_ns, hour_start_ns
from runtap_consumers.store.read.window_sums import Group
from runtap_consumers.units import HOUR_NS

_DAYS, _LEAST_DAYS = 7, 3


class Usual(Threshold):
    """A `[[rule]]` with `times_usual`."""

    def judge(self, figures: Figures, window: Window, states: Mapping[Group, State]) -> Iterator[Verdict]:
        """Crossings of a threshold that is each group's own."""
        found = figures.sums(self.settings, self.quantity, window.from_ns, window.to_ns)
        usual = self._usual(figures, window)
        for group in sorted({*found, *states}):
            state, sums = states.get(group, State()), found.get(group, {})
            # A group without enough of a past is judged once it has one; what fires there goes on until then.
            if group in usual and window.to_ns > state.window_to_ns:
                calls = self.quantity.calls(sums)
                value = self.quantity.value(sums) if calls else None
                change = self.step(state, Reading(group, window, value, calls, sums, *self.limits(usual[group])))
                if change is not None:
                    shown = shown_value(usual[group], self.unit)
                    yield Verdict(**{**vars(change), "says": f"{change.says} (usual at this hour: {shown})"})

    def _usual(self, figures: Figures, window: Window) -> dict[Group, Decimal]:
        """The median of each group. Of what adds up, scaled to the window's length."""
        values: dict[Group, list[Decimal]] = defaultdict(list)
        hour_ns = hour_start_ns(window.to_ns - 1, figures.zone)
        into_day_ns = hour_ns - day_start_ns(hour_ns, figures.zone)
        scale = Decimal(window.to_ns - window.from_ns) / HOUR_NS if self.quantity.only_grows else Decimal(1)
        for days in range(1, _DAYS + 1):
            begin_ns = hour_start_ns(day_start_ns(hour_ns, figures.zone, days_later=-days) + into_day_ns, figures.zone)
            for group, sums in figures.sums(self.settings, self.quantity, begin_ns, begin_ns + HOUR_NS).items():
                calls = self.quantity.calls(sums)
                value = self.quantity.value(sums) if calls else None
                if value is not None and calls >= self.settings.least_calls:
                    values[group].append(value * scale)
        return {group: median(of_days) for group, of_days in values.items() if len(of_days) >= _LEAST_DAYS}
