"""What a rule remembers of a group, and what it finds: all that passes between rules and the evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from runtap_consumers.alerts.rule_file import BudgetSettings, RuleSettings
from runtap_consumers.alerts.windows import RoundPlan, Window
from runtap_consumers.figures.quantities import PresentQuantity, Quantity
from runtap_consumers.store.read.window_sums import Group, Sums
from runtap_schemas.alerts import Severity, Status

AnySettings = RuleSettings | BudgetSettings


class State(NamedTuple):
    """What is known of a rule's group.

    Attributes:
        level: 0 all is well; else how many of the rule's thresholds are crossed.
        transition: counts the changes of `level`: the alert's id has it.
        window_to_ns: the end of the window of the last change: no window before it is judged again.
        since_ns: a threshold: since the end of which window it is crossed; a budget: when its forecast was said.
        incident: the id of what fires; empty where nothing does.
        said_ns: the end of the window of the last alert: `repeat` counts from it.
        seen: a budget: the begin of its period; losses: how many events.
        is_withheld: its alerts are counted in a summary and not published.
    """

    level: int = 0
    transition: int = 0
    window_to_ns: int = 0
    since_ns: int = 0
    incident: str = ""
    said_ns: int = 0
    seen: int = 0
    is_withheld: bool = False


@dataclass(frozen=True)
class Verdict:
    """A group whose state changes; with a `status`, an alert about it.

    `facts` are what the alert says besides: fields of the record.
    """

    group: Group
    state: State
    status: Status | None = None
    severity: Severity = "warning"
    value: Decimal | None = None
    threshold: Decimal | None = None
    window: Window | None = None
    says: str = ""
    sums: Sums = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class ErrorFound(NamedTuple):
    """An error group of a service."""

    service: str
    environment: str
    fingerprint: str
    occurrences: int
    sample_run_id: str | None
    says: str
    type: str
    place: str | None


class Figures(Protocol):
    """The figures of one state of the store, as rules ask for them."""

    zone: ZoneInfo
    now_ns: int
    # Until then a new store learns what is usual.
    learning_until_ns: int

    def sums(self, rule: AnySettings, quantity: Quantity, from_ns: int, to_ns: int) -> Mapping[Group, Sums]:
        """Sums of a quantity over a window by the rule's groups."""

    def running_sums(self, rule: AnySettings, quantity: Quantity, from_ns: int, to_ns: int) -> Mapping[Group, Sums]:
        """The same for a window that begins where it began the last time; groups that cannot have changed since may be
        left out.
        """

    def present(self, rule: AnySettings, quantity: PresentQuantity) -> Mapping[Group, Decimal]:
        """What a quantity of the present is now."""

    def errors_since(self, from_ns: int) -> Sequence[ErrorFound]:
        """The error groups that occurred since then, the first to occur first."""

    def lost(self) -> int:
        """How many events were lost, of all time."""


class Rule(Protocol):
    """A rule. It has no memory but the states it is given.

    Attributes:
        unit: of its values and thresholds.
        projection: whose figures it judges: their watermark and their touches decide when.
        step_name: its windows end with each `minute` or each `hour`.
    """

    unit: str
    projection: str
    step_name: str

    @property
    def settings(self) -> AnySettings:
        """What the file says."""

    def windows(self, plan: RoundPlan, zone: ZoneInfo) -> Iterator[Window]:
        """The windows that a round has to judge, by their end."""

    def judge(self, figures: Figures, window: Window, states: Mapping[Group, State]) -> Iterator[Verdict]:
        """What a window changes.

        Args:
            figures: what there is.
            window: one of `windows`; those before it were judged.
            states: by group, as far as any is known.
        """

    def query(self, change: Verdict, zone: ZoneInfo) -> str:
        """The command that shows what a change is about."""
