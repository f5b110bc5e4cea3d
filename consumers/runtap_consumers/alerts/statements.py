"""The statements of the alert evaluator: lease, states, outbox.

Those that take a writer run inside a transaction of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runtap_consumers.alerts.rules import AlertState, Budget, NewGroup, RootsMinute
from runtap_consumers.projections.rollups import RETENTION_NS
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import HOUR_NS

# Rows of the live generation alone count (a rebuild fills another one beside it).
_LIVE = "JOIN positions p ON p.projection = 'errors' AND p.partition = t.partition AND p.generation = t.generation"
_BUDGETS_KEPT_NS = 48 * HOUR_NS


class Lease(NamedTuple):
    """Who may evaluate, until when, and how far it has come."""

    holder: str
    expires_at_ns: int
    learning_until_ns: int
    evaluated_to_ns: int


class OutboxRow(NamedTuple):
    """An alert, as it is stored until it is published and afterwards."""

    id: str
    at_ns: int
    rule: str
    state: str
    service: str
    summary: str
    payload: bytes


def lock_lease(writer: Writer, learning_until_ns: int, evaluated_to_ns: int) -> Lease | None:
    """The lease, locked until the transaction ends; `None` while another evaluator is inside one of its own.

    Args:
        writer: inside a transaction.
        learning_until_ns: of a store that has no lease yet.
        evaluated_to_ns: likewise; only windows after it, and those that commits touch, are judged.
    """
    writer.execute(
        "INSERT INTO alert_lease (id, holder, expires_at_ns, learning_until_ns, evaluated_to_ns) "
        "VALUES (1, '', 0, ?, ?) ON CONFLICT DO NOTHING",
        (learning_until_ns, evaluated_to_ns),
    )
    rows = writer.query(
        "SELECT holder, expires_at_ns, learning_until_ns, evaluated_to_ns FROM alert_lease WHERE id = 1"
        + writer.dialect.skip_locked
    )
    return Lease(*rows[0]) if rows else None


def renew_lease(writer: Writer, holder: str, expires_at_ns: int, evaluated_to_ns: int) -> None:
    """Writes what the holder of the locked lease has done."""
    writer.execute(
        "UPDATE alert_lease SET holder = ?, expires_at_ns = ?, evaluated_to_ns = ? WHERE id = 1",
        (holder, expires_at_ns, evaluated_to_ns),
    )


def release_lease(writer: Writer, holder: str) -> None:
    """Ends a holder's lease now."""
    writer.execute("UPDATE alert_lease SET expires_at_ns = 0 WHERE id = 1 AND holder = ?", (holder,))


def applied_log(writer: Writer) -> dict[int, tuple[int, int]]:
    """Next offset and log time of the `errors` projection, by partition."""
    rows = writer.query("SELECT partition, next_offset, log_time_ns FROM positions WHERE projection = 'errors'")
    return {partition: (next_offset, log_time_ns) for partition, next_offset, log_time_ns in rows}


def take_touched_minutes(writer: Writer) -> int | None:
    """Takes the announcements of commits, to be called before reading what they announce.

    A row that a commit has locked is left for the next time: waiting for it, two rows in two orders could deadlock.

    Returns:
        The oldest minute, `None` without any.
    """
    rows = writer.query(
        "DELETE FROM touched_minutes WHERE (bucket_ns, partition, generation) IN (SELECT bucket_ns, partition, "
        f"generation FROM touched_minutes{writer.dialect.skip_locked}) RETURNING bucket_ns"
    )
    return min((bucket for (bucket,) in rows), default=None)


def read_roots(writer: Writer, from_ns: int, to_ns: int) -> list[RootsMinute]:
    """Minutes that begin in [from_ns, to_ns), all partitions together."""
    rows = writer.query(
        "SELECT t.service, t.environment, t.bucket_ns, sum(t.ok), sum(t.errors), max(t.sample_error_run_id) "
        f"FROM roots_minute t {_LIVE} WHERE t.bucket_ns >= ? AND t.bucket_ns < ? "
        "GROUP BY t.service, t.environment, t.bucket_ns",
        (from_ns, to_ns),
    )
    # PostgreSQL's sums are numeric.
    return [
        RootsMinute(service, environment, bucket_ns, int(ok), int(errors), sample)
        for service, environment, bucket_ns, ok, errors, sample in rows
    ]


def read_new_groups(writer: Writer, limit: int = 1_000) -> list[NewGroup]:
    """Error groups that are not known yet, the oldest first. What is beyond the limit comes in the next round."""
    rows = writer.query(
        "SELECT t.service, t.fingerprint, max(t.environment), max(t.type), max(t.category), max(t.status_code), "
        "max(t.code), max(t.raised_at), max(t.message), sum(t.count), max(t.sample_run_id) "
        f"FROM error_groups t {_LIVE} "
        "LEFT JOIN alert_known_groups k ON k.service = t.service AND k.fingerprint = t.fingerprint "
        "WHERE k.service IS NULL GROUP BY t.service, t.fingerprint ORDER BY min(t.first_at_ns), t.fingerprint LIMIT ?",
        (limit,),
    )
    return [NewGroup._make((*facts, int(occurrences), sample)) for *facts, occurrences, sample in rows]


def add_known_groups(writer: Writer, groups: Sequence[NewGroup], known_at_ns: int) -> None:
    """Makes groups known: no alert will name them again."""
    for group in groups:
        writer.execute(
            "INSERT INTO alert_known_groups (service, fingerprint, known_at_ns) VALUES (?, ?, ?)",
            (group.service, group.fingerprint, known_at_ns),
        )


def read_states(writer: Writer, rule: str) -> dict[tuple[str, str], AlertState]:
    """States of a rule by service and environment."""
    rows = writer.query(
        "SELECT service, environment, state, transition, window_to_ns FROM alert_states WHERE rule = ?", (rule,)
    )
    return {(row[0], row[1]): AlertState(*row[2:]) for row in rows}


def write_state(writer: Writer, rule: str, service: str, environment: str, state: AlertState) -> None:
    """Writes a state, new or changed."""
    writer.execute(
        "INSERT INTO alert_states (rule, service, environment, state, transition, window_to_ns) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (rule, service, environment) DO UPDATE SET "
        "state = excluded.state, transition = excluded.transition, window_to_ns = excluded.window_to_ns",
        (rule, service, environment, *state),
    )


def read_sent(writer: Writer, hour_ns: int) -> dict[str, int]:
    """New-group alerts of an hour by service."""
    return dict(writer.query("SELECT service, sent FROM alert_budgets WHERE hour_ns = ?", (hour_ns,)))


def spend_budget(writer: Writer, service: str, hour_ns: int, sent: int, suppressed: int) -> None:
    """Adds to what a service has used up of an hour's budget."""
    writer.execute(
        "INSERT INTO alert_budgets (service, hour_ns, sent, suppressed, summarised) VALUES (?, ?, ?, ?, 0) "
        "ON CONFLICT (service, hour_ns) DO UPDATE SET sent = alert_budgets.sent + excluded.sent, "
        "suppressed = alert_budgets.suppressed + excluded.suppressed",
        (service, hour_ns, sent, suppressed),
    )


def take_unsummarised(writer: Writer, before_hour_ns: int) -> list[Budget]:
    """Hours before the given one that owe a summary; it counts as written from here on."""
    rows = writer.query(
        "SELECT service, hour_ns, sent, suppressed FROM alert_budgets "
        "WHERE hour_ns < ? AND suppressed > 0 AND summarised = 0 ORDER BY hour_ns, service",
        (before_hour_ns,),
    )
    writer.execute("UPDATE alert_budgets SET summarised = 1 WHERE hour_ns < ? AND summarised = 0", (before_hour_ns,))
    writer.execute("DELETE FROM alert_budgets WHERE hour_ns < ?", (before_hour_ns - _BUDGETS_KEPT_NS,))
    return [Budget(*row) for row in rows]


def add_to_outbox(writer: Writer, rows: Sequence[OutboxRow]) -> None:
    """Stores alerts to be published, and forgets what was published long ago."""
    for row in rows[:1]:
        writer.execute(
            "DELETE FROM alert_outbox WHERE published = 1 AND at_ns < ?", (row.at_ns - RETENTION_NS["hour"],)
        )
    for row in rows:
        writer.execute(
            "INSERT INTO alert_outbox (id, at_ns, rule, state, service, summary, payload, published) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            row,
        )


def read_outbox(writer: Writer, limit: int = 100) -> list[OutboxRow]:
    """Alerts that nobody has acknowledged, in the order in which they arose."""
    rows = writer.query(
        "SELECT id, at_ns, rule, state, service, summary, payload FROM alert_outbox "
        "WHERE published = 0 ORDER BY at_ns, id LIMIT ?",
        (limit,),
    )
    return [OutboxRow._make((*facts, bytes(payload))) for *facts, payload in rows]


def mark_published(writer: Writer, alert_id: str) -> None:
    """Notes that Kafka has acknowledged an alert."""
    writer.execute("UPDATE alert_outbox SET published = 1 WHERE id = ?", (alert_id,))
