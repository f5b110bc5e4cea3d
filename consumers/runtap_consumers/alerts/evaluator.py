"""Evaluating the alert rules over the whole store: one evaluator at a time, one transaction a round."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import structlog

from runtap_consumers.alerts import rules
from runtap_consumers.alerts import statements as alert_rows
from runtap_consumers.alerts.statements import OutboxRow
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.engine import Store
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import HOUR_NS, minute_of
from runtap_schemas import Alert, encode_alert

LEASE_NS = 10 * 10**9

_logger = structlog.get_logger(__name__)


class Watermark(NamedTuple):
    """Up to which log time everything is applied, in all partitions; `caught_up`: everything there is."""

    watermark_ns: int
    caught_up: bool


class AlertEvaluator:
    """One process's evaluator. Any number may run on a store: the holder of the lease works, the others wait for it.

    Not safe for use by two threads at once.
    """

    def __init__(self, store: Store, settings: ConsumerSettings) -> None:
        self._store = store
        self._settings = settings
        self._writer = Writer.of(store)
        self._name = uuid.uuid4().hex
        self.holds_lease = False

    def now_ns(self) -> int:
        """The present by the database's clock, Unix nanoseconds: one that is an hour ahead would judge an hour ahead,
        and keep all others from it for so long.
        """
        return int(self._writer.read(f"SELECT {self._writer.dialect.now_ns}")[0][0])

    def evaluate(self, now_ns: int, watermark_ns: int, caught_up: bool) -> int:
        """Judges what has changed since the last round, and stores alerts in the outbox.

        Args:
            now_ns: the present, as `now_ns` says.
            watermark_ns: the least log time that is applied over all partitions; `now_ns` for one that is at its end.
            caught_up: all partitions are at their end, so that the present's window can be judged too.

        Returns:
            How many alerts were raised; 0 also where another evaluator holds the lease.

        Raises:
            StoreError: nothing was written.
        """
        writer, held = self._writer, self.holds_lease
        # True again only once this round has committed.
        self.holds_lease = False
        with writer.transaction():
            learning_until_ns = self._store.created_at_ns + int(self._settings.alert_learning_seconds * 10**9)
            lease = alert_rows.lock_lease(writer, learning_until_ns, minute_of(now_ns))
            if lease is None or (lease.holder != self._name and lease.expires_at_ns > now_ns):
                return 0
            alerts = [
                *self._new_groups(now_ns, lease.learning_until_ns),
                *self._summaries(now_ns),
            ]
            touched_ns = alert_rows.take_touched_minutes(writer)
            plan = rules.plan_windows(lease.evaluated_to_ns, touched_ns, watermark_ns, now_ns if caught_up else None)
            alerts += self._error_rates(now_ns, plan.windows)
            # A nanosecond apart, so that they are published in this order.
            rows = [_outbox_row(alert, now_ns + index) for index, alert in enumerate(alerts)]
            alert_rows.add_to_outbox(writer, rows)
            alert_rows.renew_lease(writer, self._name, now_ns + LEASE_NS, plan.evaluated_to_ns)
        self.holds_lease = True
        if not held:
            _logger.info("alert_lease_taken", store_id=self._store.store_id, previous_holder=lease.holder or None)
        return len(alerts)

    def _new_groups(self, now_ns: int, learning_until_ns: int) -> list[Alert]:
        groups = alert_rows.read_new_groups(self._writer)
        if not groups:
            return []
        alert_rows.add_known_groups(self._writer, groups, now_ns)
        if now_ns < learning_until_ns:
            _logger.info("error_groups_learned", groups=len(groups))
            return []
        hour_ns = now_ns - now_ns % HOUR_NS
        sent = alert_rows.read_sent(self._writer, hour_ns)
        named, spent = rules.choose_new_groups(groups, sent, self._settings.alert_groups_an_hour)
        for service, (now_sent, suppressed) in spent.items():
            alert_rows.spend_budget(self._writer, service, hour_ns, now_sent, suppressed)
        return [rules.new_group_alert(group, now_ns) for group in named]

    def _summaries(self, now_ns: int) -> list[Alert]:
        budgets = alert_rows.take_unsummarised(self._writer, now_ns - now_ns % HOUR_NS)
        return [rules.summary_alert(budget, now_ns) for budget in budgets]

    def _error_rates(self, now_ns: int, windows: Sequence[int]) -> list[Alert]:
        if not windows:
            return []
        minutes = alert_rows.read_roots(self._writer, windows[0] - rules.WINDOW_NS, windows[-1])
        states = alert_rows.read_states(self._writer, rules.ERROR_RATE)
        limits = rules.RateLimits(self._settings.alert_error_rate, self._settings.alert_least_roots)
        verdict = rules.judge_error_rates(minutes, windows, states, limits, now_ns)
        for (service, environment), state in verdict.states.items():
            alert_rows.write_state(self._writer, rules.ERROR_RATE, service, environment, state)
        return verdict.alerts

    def watermark(self, ends: Mapping[int, int], now_ns: int) -> Watermark:
        """Compares what is applied with where the log ends.

        Args:
            ends: the next offset of every partition, read before this call.
            now_ns: the present as of that reading.
        """
        with self._writer.transaction():
            applied = alert_rows.applied_log(self._writer)
        at_end = {
            partition: applied[partition][0] == end if partition in applied else end == 0
            for partition, end in ends.items()
        }
        times = (now_ns if at_end[number] else applied.get(number, (0, 0))[1] for number in ends)
        return Watermark(min(times, default=0), bool(ends) and all(at_end.values()))

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


def _outbox_row(alert: Alert, at_ns: int) -> OutboxRow:
    return OutboxRow(alert.id, at_ns, alert.rule, alert.state, alert.service, alert.summary, encode_alert(alert))
