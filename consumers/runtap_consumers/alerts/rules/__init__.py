"""The kinds of alert rules, one module each: pure functions of figures, states and settings."""

from __future__ import annotations

from collections.abc import Sequence

from runtap_consumers.alerts.rule_file import BudgetSettings
from runtap_consumers.alerts.rules.budget import Budget
from runtap_consumers.alerts.rules.losses import Losses
from runtap_consumers.alerts.rules.new_errors import NewErrors
from runtap_consumers.alerts.rules.present import PresentThreshold
from runtap_consumers.alerts.rules.threshold import Threshold
from runtap_consumers.alerts.rules.usual import Usual
from runtap_consumers.alerts.state import AnySettings, Rule
from runtap_consumers.figures.quantities import PRESENT_QUANTITIES


def make_rule(settings: AnySettings) -> Rule:
    """The rule that settings describe."""
    if isinstance(settings, BudgetSettings):
        return Budget(settings)
    if settings.what == "new_error_group":
        return NewErrors(settings)
    if settings.what == "events_lost":
        return Losses(settings)
    if settings.what in PRESENT_QUANTITIES:
        return PresentThreshold(settings)
    return Threshold(settings) if settings.times_usual is None else Usual(settings)


def make_rules(settings: Sequence[AnySettings]) -> list[Rule]:
    """All of them, in their order."""
    return [make_rule(each) for each in settings]
