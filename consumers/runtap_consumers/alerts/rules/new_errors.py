"""Error groups that no alert has named in their service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from zoneinfo import ZoneInfo

from runtap_consumers.alerts.rule_file import RuleSettings
from runtap_consumers.alerts.rules.words import query_of
from runtap_consumers.alerts.state import Figures, State, Verdict
from runtap_consumers.alerts.windows import RoundPlan, Window
from runtap_consumers.store.read.window_sums import EVALUATION, Group
from runtap_consumers.units import MINUTE_NS


class NewErrors:
    """A `[[rule]]` of `new_error_group`. Which groups are known is its states, of which a rebuild takes nothing."""

    unit, projection, step_name = "errors", "errors", "minute"

    def __init__(self, settings: RuleSettings) -> None:
        # An alert names the group as well as the service.
        self.settings = settings.model_copy(update={"group_by": ("service", "fingerprint")})

    def windows(self, plan: RoundPlan, zone: ZoneInfo) -> Iterator[Window]:
        """One: the oldest minute that was touched, of which on it looks; what was counted there can only grow."""
        if plan.mark.touched_ns is not None:
            yield Window(plan.mark.touched_ns, plan.mark.touched_ns + MINUTE_NS, is_complete=False)

    def judge(self, figures: Figures, window: Window, states: Mapping[Group, State]) -> Iterator[Verdict]:
        """Those that are not known yet; a store that is new learns them in silence."""
        wanted = self.settings.where
        known = set(states)
        for error in figures.errors_since(window.from_ns):
            group = (error.service, error.fingerprint)
            is_left_out = error.environment == EVALUATION and "environment" not in wanted
            if is_left_out or group in known or any(getattr(error, name) != value for name, value in wanted.items()):
                continue
            known.add(group)
            state = State(transition=1, window_to_ns=window.to_ns)
            if figures.now_ns < figures.learning_until_ns:
                yield Verdict(group, state)
                continue
            says = f"{error.service or 'unknown service'}: new error {error.says}"
            count = Decimal(error.occurrences)
            facts = {
                "error_type": error.type,
                "error_place": error.place,
                "sample_run_ids": [error.sample_run_id] if error.sample_run_id else [],
            }
            yield Verdict(group, state, "noticed", self.settings.severity, count, None, None, says, facts=facts)

    def query(self, change: Verdict, zone: ZoneInfo) -> str:
        """The command that shows it."""
        return query_of("report", self.settings, change, zone)
