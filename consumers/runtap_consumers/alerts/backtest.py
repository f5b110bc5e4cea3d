"""What rules would have said: the same functions over the figures as they are now, window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runtap_consumers.alerts import statements as alert_rows
from runtap_consumers.alerts.rules.new_errors import NewErrors
from runtap_consumers.alerts.snapshot_figures import SnapshotFigures
from runtap_consumers.alerts.state import Rule, State
from runtap_consumers.alerts.windows import Mark, RoundPlan
from runtap_consumers.figures.quantities import Present
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot
from runtap_consumers.store.read.window_sums import Group


class Said(NamedTuple):
    """What a rule said, or would have said. `window_to_ns`: 0 where no window was judged."""

    rule: str
    group: Group
    status: str
    window_to_ns: int


@dataclass(frozen=True)
class BackTest:
    """A back-test beside what happened. `revised`: differences about groups of which a commit touched a window after
    an alert about it was raised.
    """

    said: list[tuple[Said, str]]
    equal: int
    missing: list[Said]
    more: list[Said]
    revised: list[Said]
    not_replayed: list[str]


def replay(store: Store, rules: Sequence[Rule], from_ns: int, to_ns: int, now_ns: int) -> BackTest:
    """Judges all windows that end in (from_ns, to_ns] again, and compares that with what was raised about them.

    What fired at `from_ns` fires from the start. Rules about the present (lag, lost events) have no past to judge.
    """
    with open_snapshot(store) as snapshot:
        history = alert_rows.read_history(snapshot, 0, now_ns + 1)
        before = [row for row in history if (row.window_to_ns or row.at_ns) <= from_ns]
        within = [row for row in history if from_ns < (row.window_to_ns or row.at_ns) <= to_ns]
        replayed = [rule for rule in rules if rule.projection]
        said = []
        for rule in replayed:
            fired = {alert_rows.read_group(row.group_values): row for row in before if row.rule == rule.settings.id}
            states = {
                group: State(level=1, transition=1, window_to_ns=row.window_to_ns, incident=row.id)
                for group, row in fired.items()
                if row.status == "firing"
            }
            if isinstance(rule, NewErrors):
                named = {alert_rows.read_group(row.group_values) for row in within if row.rule == rule.settings.id}
                known = alert_rows.read_states(snapshot).get(rule.settings.id, {})
                states = {group: state for group, state in known.items() if group not in named}
            said += list(_judge(snapshot, store, rule, states, (from_ns, to_ns, now_ns)))
    ids = {rule.settings.id for rule in replayed}
    # Summaries and rules that are gone have groups of none.
    told = [row for row in within if row.rule in ids and "/more/" not in row.id]
    real = {Said(row.rule, alert_rows.read_group(row.group_values), row.status, row.window_to_ns) for row in told}
    again = {each for each, _ in said}
    late = [row for row in told if row.revised_at_ns]
    touched = {Said(row.rule, alert_rows.read_group(row.group_values), row.status, row.window_to_ns) for row in late}
    # What was said of another window instead goes with it.
    groups = {(each.rule, each.group) for each in touched - again}
    revised = {
        each for each in real ^ again if each in touched or (each in again and (each.rule, each.group) in groups)
    }
    return BackTest(
        sorted(said),
        len(real & again),
        sorted((real - again) - revised),
        sorted((again - real) - revised),
        sorted(revised),
        [rule.settings.id for rule in rules if not rule.projection],
    )


def _judge(
    snapshot: Snapshot, store: Store, rule: Rule, states: dict[Group, State], times: tuple[int, int, int]
) -> Iterator[tuple[Said, str]]:
    from_ns, to_ns, now_ns = times
    figures = SnapshotFigures(snapshot, store.zone, Present(now_ns, 0))
    touched_ns = from_ns if isinstance(rule, NewErrors) else None
    for window in rule.windows(RoundPlan(Mark(from_ns, touched_ns), to_ns, now_ns), store.zone):
        for finding in rule.judge(figures, window, states):
            state = finding.state
            if finding.status == "firing":
                state = state._replace(incident=state.incident or "fired")
            elif finding.status is not None:
                state = state._replace(incident="")
            states[finding.group] = state
            if finding.status is not None:
                window_to_ns = 0 if finding.window is None else finding.window.to_ns
                yield Said(rule.settings.id, finding.group, finding.status, window_to_ns), finding.says
