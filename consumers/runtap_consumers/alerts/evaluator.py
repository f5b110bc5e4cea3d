"""Evaluating the alert rules over the whole store: one evaluator at a time, each round over one state of the store.

A round takes the lease, reads and judges, then writes marks, states and alerts in one transaction, which fails where
the lease has changed hands meanwhile. What commits announce is forgotten only with that.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from typing import Self
from zoneinfo import ZoneInfo

import structlog
from msgspec import structs
from sqlalchemy.exc import SQLAlchemyError

from runtap_consumers.alerts import statements as alert_rows
from runtap_consumers.alerts.records import alert_id, make_record
from runtap_consumers.alerts.rule_source import RuleSource
from runtap_consumers.alerts.snapshot_figures import RunningSums, SnapshotFigures
from runtap_consumers.alerts.state import Rule, State, Verdict
from runtap_consumers.alerts.statements import DUE, SUMMARISED, WITHHELD, OutboxRow, Touched, stored_group
from runtap_consumers.alerts.windows import SETTLE_NS, Mark, RoundPlan, Window, complete_to
from runtap_consumers.errors import StoreError
from runtap_consumers.figures.quantities import Present
from runtap_consumers.instants import format_instant
from runtap_consumers.pricing.source import load_prices
from runtap_consumers.pricing.table import PriceTable
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_consumers.store.read.snapshot import Snapshot, open_snapshot
from runtap_consumers.store.read.window_sums import Group
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import MINUTE_NS, minute_of
from runtap_schemas.alerts import Alert, AlertRule, decode_alert, encode_alert

LEASE_NS = 10 * 10**9
# Of a rule and minute; the groups beyond are named in a summary.
NEW_ALERTS_A_MINUTE = 50
# A round that has more to judge goes on in the next one, so that health and lease keep up.
_ROUND_SECONDS = 4.0

_logger = structlog.get_logger(__name__)
_UTC = ZoneInfo("UTC")


@dataclass
class _Round:
    """What a round has found so far, over one state of the store."""

    figures: SnapshotFigures
    now_ns: int
    behind_ns: int
    begun: dict[str, int]
    changed: dict[str, dict[Group, State]] = field(default_factory=dict)
    rows: list[OutboxRow] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=dict)
    summarised: list[str] = field(default_factory=list)


class AlertEvaluator:
    """One process's evaluator. Any number may run on a store: the holder of the lease works, the others wait for it.

    Not safe for use by two threads at once.
    """

    def __init__(self, store: Store, settings: ConsumerSettings) -> None:
        self._store = store
        self._settings = settings
        self._source = RuleSource(settings)
        self._writer = Writer.of(store)
        self._name = uuid.uuid4().hex
        # As the store has them, while no other evaluator has written; else `None`.
        self._states: dict[str, dict[Group, State]] | None = None
        self._judged_rules: Sequence[Rule] = ()
        self._running: dict[str, RunningSums] = {}
        self._loaded_prices: PriceTable | None = None
        # Rules that were said to have failed.
        self._failed: set[str] = set()
        self.holds_lease = False

    @property
    def rules(self) -> list[Rule]:
        """The rules as they are now."""
        return self._source.rules()

    def now_ns(self) -> int:
        """The present by the database's clock, Unix nanoseconds: one that is an hour ahead would judge an hour ahead,
        and keep all others from it for so long.
        """
        return int(self._writer.read(f"SELECT {self._writer.dialect.now_ns}")[0][0])

    def evaluate(self, now_ns: int, ends: Mapping[int, int]) -> int:
        """Judges what has changed since the last round, and stores alerts in the outbox.

        Args:
            now_ns: the present, as `now_ns` says, asked for before the ends.
            ends: the next offset of every partition.

        Returns:
            How many alerts were raised; 0 also where another evaluator holds the lease.

        Raises:
            StoreError: nothing was written.
        """
        held, self.holds_lease = self.holds_lease, False
        states, self._states = self._states if held else None, None
        learning_until_ns = self._store.created_at_ns + int(self._settings.alert_learning_seconds * 10**9)
        with self._writer.transaction():
            lease = alert_rows.take_lease(self._writer, self._name, now_ns, LEASE_NS, learning_until_ns)
        if lease is None:
            return 0
        if not held:
            self._running.clear()
            _logger.info("alert_lease_taken", store_id=self._store.store_id, previous_holder=lease.holder or None)
        rules = self._source.rules()
        with open_snapshot(self._store) as snapshot:
            touched = alert_rows.read_touched(snapshot)
            removed: list[tuple[str, Group, State]] = []
            if states is None or rules is not self._judged_rules:
                states, removed = _fitting(alert_rows.read_states(snapshot), rules)
            found = self._judge(snapshot, rules, states, touched, now_ns, ends, lease.learning_until_ns)
            self._end_removed(found, removed)
        if not self._write(found, rules, touched, lease.round):
            return 0
        self._states, self._judged_rules, self.holds_lease = states, rules, True
        return len(found.rows)

    def _judge(
        self,
        snapshot: Snapshot,
        rules: Sequence[Rule],
        states: dict[str, dict[Group, State]],
        touched: Sequence[Touched],
        now_ns: int,
        ends: Mapping[int, int],
        learning_until_ns: int,
    ) -> _Round:
        marks = alert_rows.read_marks(snapshot)
        watermarks = {name: _watermark(snapshot, name, ends, now_ns) for name in snapshot.projections}
        behind_ns = now_ns - min(watermarks.values(), default=now_ns)
        oldest = {
            name: min(each.bucket_ns for each in touched if each.projection == name)
            for name in {each.projection for each in touched}
        }
        for name, mark in marks.items():
            if mark.touched_ns is not None:
                oldest[name] = min(oldest.get(name, mark.touched_ns), mark.touched_ns)
        present = Present(now_ns, behind_ns)
        figures = SnapshotFigures(snapshot, self._store.zone, present, learning_until_ns, oldest, self._running)
        begun = alert_rows.count_begun(snapshot, minute_of(now_ns))
        this = _Round(figures, now_ns, behind_ns, begun)
        self._add_summaries(this, snapshot)
        deadline = time.monotonic() + _ROUND_SECONDS
        # What is of the present has no mark that a watermark could hold.
        watermarks[""] = now_ns + SETTLE_NS
        for projection in sorted({rule.projection for rule in rules}):
            first = Mark(minute_of(now_ns) - (0 if projection else MINUTE_NS))
            mark = replace(marks.get(projection, first), touched_ns=oldest.get(projection))
            plan = RoundPlan(mark, complete_to(watermarks.get(projection, 0)), now_ns)
            chosen = [rule for rule in rules if rule.projection == projection]
            judged = self._judge_projection(this, plan, chosen, states, deadline)
            if judged != marks.get(projection):
                this.marks[projection] = judged
        return this

    def _judge_projection(
        self,
        this: _Round,
        plan: RoundPlan,
        rules: Sequence[Rule],
        states: dict[str, dict[Group, State]],
        deadline: float,
    ) -> Mark:
        """Judges windows by their end, over all rules; returns how far it came."""
        zone = self._store.zone
        windows = merge(*(_with_rule(rule, plan, zone) for rule in rules), key=lambda pair: pair[0].to_ns)
        done_ns = 0
        for window, rule in windows:
            if window.to_ns > done_ns and done_ns and time.monotonic() > deadline:
                if done_ns <= plan.complete_to_ns:
                    return Mark(done_ns, done_ns)
                return Mark(max(plan.mark.judged_to_ns, plan.complete_to_ns), done_ns, done_ns)
            done_ns = window.to_ns
            known = states[rule.settings.id]
            try:
                for finding in rule.judge(this.figures, window, known):
                    self._note(this, rule, finding, known)
            except (StoreError, SQLAlchemyError):
                raise
            except Exception:
                # A bug, met by one rule: all others go on, and its next windows are judged.
                if rule.settings.id not in self._failed:
                    self._failed.add(rule.settings.id)
                    _logger.exception("alert_rule_failed", rule=rule.settings.id, window_to_ns=window.to_ns)
        judged_to_ns, touched_ns = plan.mark.judged_to_ns, plan.mark.touched_ns
        if plan.complete_to_ns < judged_to_ns and touched_ns is not None:
            # The watermark has gone back (a partition was added): what was touched beyond it is judged when it returns.
            return Mark(max(plan.complete_to_ns, min(judged_to_ns, touched_ns)))
        return Mark(max(judged_to_ns, plan.complete_to_ns))

    def _note(self, this: _Round, rule: Rule, finding: Verdict, known: dict[Group, State]) -> None:
        rule_id, group, state = rule.settings.id, finding.group, finding.state
        if finding.status is not None:
            record_id = alert_id(rule.settings, group, state.transition)
            is_first = not state.incident and finding.status != "resolved"
            if is_first and this.begun.get(rule_id, 0) >= NEW_ALERTS_A_MINUTE:
                state = state._replace(is_withheld=True)
            elif is_first:
                this.begun[rule_id] = this.begun.get(rule_id, 0) + 1
            state = state._replace(incident=state.incident or record_id)
            record = make_record(rule, replace(finding, state=state), this.figures, self._prices, this.behind_ns)
            withheld = WITHHELD if finding.status != "resolved" else SUMMARISED
            # A rule about one service is that service's, whatever its groups are.
            service = record.group.get("service") or rule.settings.where.get("service", "")
            self._add(this, record, group, withheld if state.is_withheld else DUE, service, finding.window)
            if finding.status != "firing":
                state = state._replace(incident="", is_withheld=False)
        known[group] = state
        this.changed.setdefault(rule_id, {})[group] = state

    @staticmethod
    def _add(
        this: _Round, record: Alert, group: Group, published: int, service: str = "", window: Window | None = None
    ) -> None:
        this.rows.append(
            OutboxRow(
                record.id,
                # A nanosecond apart, so that they are published in this order.
                this.now_ns + len(this.rows),
                record.rule.id,
                record.status,
                record.severity,
                stored_group(group),
                service,
                record.summary,
                0 if window is None else window.from_ns,
                0 if window is None else window.to_ns,
                encode_alert(record),
                0,
                published,
            )
        )

    def _end_removed(self, this: _Round, removed: Sequence[tuple[str, Group, State]]) -> None:
        """Resolves what fires by a rule that is gone, or that has other groups now."""
        for rule_id, group, state in removed:
            found = self._writer.read(
                "SELECT payload, service FROM alert_outbox WHERE rule = ? AND group_values = ? "
                "ORDER BY at_ns DESC LIMIT 1",
                (rule_id, stored_group(group)),
            )
            if not found:
                continue
            ((payload, service),) = found
            ended = State(transition=state.transition + 1)
            last = decode_alert(bytes(payload))
            record = structs.replace(
                last,
                id=f"{state.incident.rpartition('/')[0]}/{ended.transition}",
                status="resolved",
                at=format_instant(this.now_ns, _UTC),
                summary=f"the rule {rule_id} is not there any more; it said: {last.summary}",
            )
            self._add(this, record, group, SUMMARISED if state.is_withheld else DUE, service)
            this.changed.setdefault(rule_id, {})[group] = ended

    def _add_summaries(self, this: _Round, snapshot: Snapshot) -> None:
        for rule_id, count, first_ns in alert_rows.read_withheld(snapshot, minute_of(this.now_ns)):
            record = Alert(
                id=f"{rule_id}/more/{minute_of(first_ns) // 10**9}",
                incident_id=f"{rule_id}/more/{minute_of(first_ns) // 10**9}",
                status="noticed",
                severity="warning",
                rule=AlertRule(rule_id, ""),
                group={},
                at=format_instant(this.now_ns, _UTC),
                value=str(count),
                unit="alerts",
                summary=f"{rule_id}: {count:,} groups more within a minute: `runtap alerts list` names them",
                query=f"runtap alerts list --rule {rule_id}",
            )
            self._add(this, record, (), DUE)
            this.summarised.append(rule_id)

    def _write(self, this: _Round, rules: Sequence[Rule], touched: Sequence[Touched], number: int) -> bool:
        writer = self._writer
        if not (this.marks or this.changed or this.rows or touched):
            return True
        with writer.transaction():
            if not alert_rows.finish_round(writer, self._name, number):
                return False
            for rule_id in this.summarised:
                alert_rows.mark_summarised(writer, rule_id, minute_of(this.now_ns))
            for projection in {each.projection for each in touched}:
                ids = [rule.settings.id for rule in rules if rule.projection == projection]
                minutes = {each.bucket_ns for each in touched if each.projection == projection}
                alert_rows.mark_revised(writer, ids, sorted(minutes), this.now_ns)
            for rule_id, changed in this.changed.items():
                alert_rows.write_states(writer, rule_id, changed.items())
            alert_rows.add_to_outbox(writer, this.rows)
            for projection, mark in this.marks.items():
                alert_rows.write_mark(writer, projection, mark)
            alert_rows.forget_touched(writer, touched)
        return True

    def _prices(self) -> PriceTable:
        if self._loaded_prices is None:
            self._loaded_prices = load_prices(self._settings)
        return self._loaded_prices

    def outbox(self) -> list[OutboxRow]:
        """Alerts that are not acknowledged yet, in the order in which they arose."""
        with self._writer.transaction():
            return alert_rows.read_outbox(self._writer)

    def mark_published(self, alert_id: str) -> None:
        """Notes that an alert was acknowledged."""
        with self._writer.transaction():
            alert_rows.mark_published(self._writer, alert_id)

    def close(self) -> None:
        """Gives the lease back, so that the next evaluator need not wait for its end, and closes the connection."""
        try:
            if self.holds_lease:
                with self._writer.transaction():
                    alert_rows.release_lease(self._writer, self._name)
        finally:
            self.holds_lease = False
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fitting(
    states: dict[str, dict[Group, State]], rules: Sequence[Rule]
) -> tuple[dict[str, dict[Group, State]], list[tuple[str, Group, State]]]:
    """The states of the rules that there are, and those of others, or of other groups, that fire."""
    widths = {rule.settings.id: len(rule.settings.group_by) for rule in rules}
    fitting: dict[str, dict[Group, State]] = {rule_id: {} for rule_id in widths}
    removed = []
    for rule_id, known in states.items():
        for group, state in known.items():
            if len(group) == widths.get(rule_id):
                fitting[rule_id][group] = state
            elif state.incident:
                removed.append((rule_id, group, state))
    return fitting, removed


def _with_rule(rule: Rule, plan: RoundPlan, zone: ZoneInfo) -> Iterator[tuple[Window, Rule]]:
    return ((window, rule) for window in rule.windows(plan, zone))


def _watermark(snapshot: Snapshot, projection: str, ends: Mapping[int, int], now_ns: int) -> int:
    """Up to which log time a projection has applied everything in all partitions; the present for one at its end."""
    applied = {row.partition: row for row in snapshot.positions if row.projection == projection}
    times = []
    for partition, end in ends.items():
        row = applied.get(partition)
        is_at_end = end == 0 if row is None else row.next_offset == end
        times.append(now_ns if is_at_end else 0 if row is None else row.log_time_ns)
    return min(times, default=0)
