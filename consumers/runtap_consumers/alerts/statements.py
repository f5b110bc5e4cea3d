"""The statements of the alert evaluator: lease, marks, states, outbox.

Those that take a writer run inside a transaction of it; those that take a snapshot read its state of the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import func, select

from runtap_consumers.alerts.state import State
from runtap_consumers.alerts.windows import Mark
from runtap_consumers.projections.rollups import RETENTION_NS
from runtap_consumers.store import tables
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.store.read.window_sums import Group
from runtap_consumers.store.writer import Writer
from runtap_consumers.units import MINUTE_NS

DUE, PUBLISHED, WITHHELD, SUMMARISED = range(4)
_OUTBOX = [column.name for column in tables.alert_outbox.columns]


class Lease(NamedTuple):
    """Who may evaluate, and until when; a store that is new learns until `learning_until_ns`."""

    holder: str
    expires_at_ns: int
    learning_until_ns: int
    round: int


class OutboxRow(NamedTuple):
    """An alert, as it is stored until it is published and afterwards; the columns of its table."""

    id: str
    at_ns: int
    rule: str
    status: str
    severity: str
    group_values: str
    service: str
    summary: str
    window_from_ns: int
    window_to_ns: int
    payload: bytes
    revised_at_ns: int = 0
    published: int = DUE


class Touched(NamedTuple):
    """A minute that commits announced, `touches` of them until then."""

    projection: str
    bucket_ns: int
    partition: int
    generation: int
    touches: int


def stored_group(group: Group) -> str:
    """A group as its column has it."""
    return orjson.dumps(group).decode()


def read_group(stored: str) -> Group:
    """A group of its column."""
    return tuple(orjson.loads(stored))


def take_lease(writer: Writer, name: str, now_ns: int, lease_ns: int, learning_until_ns: int) -> Lease | None:
    """Takes the lease, or keeps it for longer; `None` while another holds it. Returns it as it was before."""
    writer.execute(
        "INSERT INTO alert_lease (id, holder, expires_at_ns, learning_until_ns, round) VALUES (1, '', 0, ?, 0) "
        "ON CONFLICT DO NOTHING",
        (learning_until_ns,),
    )
    rows = writer.query(
        "SELECT holder, expires_at_ns, learning_until_ns, round FROM alert_lease WHERE id = 1"
        + writer.dialect.skip_locked
    )
    lease = Lease(*rows[0]) if rows else None
    if lease is None or (lease.holder != name and lease.expires_at_ns > now_ns):
        return None
    writer.execute("UPDATE alert_lease SET holder = ?, expires_at_ns = ? WHERE id = 1", (name, now_ns + lease_ns))
    return lease


def finish_round(writer: Writer, name: str, number: int) -> bool:
    """Ends a round that began as this number, in the transaction that writes it; false: the lease is another's now."""
    return bool(
        writer.execute(
            "UPDATE alert_lease SET round = round + 1 WHERE id = 1 AND holder = ? AND round = ?", (name, number)
        )
    )


def release_lease(writer: Writer, holder: str) -> None:
    """Ends a holder's lease now."""
    writer.execute("UPDATE alert_lease SET expires_at_ns = 0 WHERE id = 1 AND holder = ?", (holder,))


def read_touched(snapshot: Snapshot) -> list[Touched]:
    """What commits announced that this state of the store holds."""
    table = tables.metadata.tables["touched_minutes"].c
    columns = (table.projection, table.bucket_ns, table.partition, table.generation, table.touches)
    return [Touched(*row) for row in snapshot.connection.execute(select(*columns))]


def forget_touched(writer: Writer, touched: Iterable[Touched]) -> None:
    """Deletes announcements, but for those that a commit repeated meanwhile, or is about to."""
    lock = writer.dialect.skip_locked
    where = "projection = ? AND bucket_ns = ? AND partition = ? AND generation = ? AND touches = ?"
    for each in touched:
        # A row that a commit has locked stays: waiting for it, two rows in two orders could deadlock.
        if writer.query(f"SELECT touches FROM touched_minutes WHERE {where}{lock}", each):
            writer.execute(f"DELETE FROM touched_minutes WHERE {where}", each)


def read_marks(snapshot: Snapshot) -> dict[str, Mark]:
    """How far the figures of each projection were judged."""
    return {row.projection: Mark(*row[1:]) for row in snapshot.connection.execute(select(tables.alert_marks))}


def write_mark(writer: Writer, projection: str, mark: Mark) -> None:
    """Notes how far a projection's figures were judged."""
    writer.execute(
        "INSERT INTO alert_marks (projection, judged_to_ns, touched_ns, early_to_ns) VALUES (?, ?, ?, ?) ON CONFLICT "
        "(projection) DO UPDATE SET judged_to_ns = excluded.judged_to_ns, touched_ns = excluded.touched_ns, "
        "early_to_ns = excluded.early_to_ns",
        (projection, mark.judged_to_ns, mark.touched_ns, mark.early_to_ns),
    )


def read_states(snapshot: Snapshot) -> dict[str, dict[Group, State]]:
    """All states, by rule and group."""
    found: dict[str, dict[Group, State]] = {}
    for rule, group, *facts in snapshot.connection.execute(select(tables.alert_states)):
        found.setdefault(rule, {})[read_group(group)] = State(*facts)._replace(is_withheld=bool(facts[-1]))
    return found


def write_states(writer: Writer, rule: str, states: Iterable[tuple[Group, State]]) -> None:
    """Writes states of a rule, new or changed."""
    rows: list[Any] = [(rule, stored_group(group), *state[:-1], int(state.is_withheld)) for group, state in states]
    writer.upsert(tables.alert_states, rows)


def add_to_outbox(writer: Writer, rows: Sequence[OutboxRow]) -> None:
    """Stores alerts to be published, and forgets what was published long ago."""
    for row in rows[:1]:
        kept_ns = row.at_ns - RETENTION_NS["hour"]
        writer.execute("DELETE FROM alert_outbox WHERE published > 0 AND at_ns < ?", (kept_ns,))
    values = ", ".join("?" * len(_OUTBOX))
    for row in rows:
        writer.execute(f"INSERT INTO alert_outbox ({', '.join(_OUTBOX)}) VALUES ({values})", row)


def mark_revised(writer: Writer, rules: Sequence[str], touched_ns: Iterable[int], now_ns: int) -> None:
    """Notes of alerts of these rules that a commit touched their window after they were raised."""
    names = ", ".join("?" * len(rules))
    for minute_ns in touched_ns if rules else ():
        writer.execute(
            # An alert is raised when its window's last minute has begun, by clocks that agree to a minute.
            "UPDATE alert_outbox SET revised_at_ns = ? WHERE at_ns >= ? AND window_from_ns <= ? AND window_to_ns > ? "
            f"AND revised_at_ns = 0 AND rule IN ({names})",
            (now_ns, minute_ns - MINUTE_NS, minute_ns, minute_ns, *rules),
        )


def read_outbox(writer: Writer, limit: int = 100) -> list[OutboxRow]:
    """Alerts that nobody has acknowledged, in the order in which they arose."""
    rows = writer.query(
        f"SELECT {', '.join(_OUTBOX)} FROM alert_outbox WHERE published = {DUE} ORDER BY at_ns, id LIMIT ?", (limit,)
    )
    return [OutboxRow(*row)._replace(payload=bytes(row[_OUTBOX.index("payload")])) for row in rows]


def mark_published(writer: Writer, alert_id: str) -> None:
    """Notes that Kafka has acknowledged an alert."""
    writer.execute(f"UPDATE alert_outbox SET published = {PUBLISHED} WHERE id = ?", (alert_id,))


def count_begun(snapshot: Snapshot, since_ns: int) -> dict[str, int]:
    """How many alerts that began something were stored for publishing since then, by rule."""
    outbox = tables.alert_outbox.c
    is_named = outbox.published.in_((DUE, PUBLISHED)) & (outbox.status != "resolved")
    statement = select(outbox.rule, func.count()).where(outbox.at_ns >= since_ns, is_named).group_by(outbox.rule)
    return {rule: int(count) for rule, count in snapshot.connection.execute(statement)}


def read_withheld(snapshot: Snapshot, before_ns: int) -> list[tuple[str, int, int]]:
    """Rules with alerts from before an instant that no summary has named yet: how many, and the first one's time."""
    outbox = tables.alert_outbox.c
    counted = select(outbox.rule, func.count(), func.min(outbox.at_ns)).group_by(outbox.rule)
    rows = snapshot.connection.execute(counted.where(outbox.published == WITHHELD, outbox.at_ns < before_ns))
    return [(rule, int(count), int(first_ns)) for rule, count, first_ns in rows]


def mark_summarised(writer: Writer, rule: str, before_ns: int) -> None:
    """Notes that a summary names what waited for it."""
    writer.execute(
        f"UPDATE alert_outbox SET published = {SUMMARISED} WHERE published = {WITHHELD} AND rule = ? AND at_ns < ?",
        (rule, before_ns),
    )


def read_history(snapshot: Snapshot, from_ns: int, to_ns: int) -> list[Any]:
    """All alerts that were raised in a range, withheld ones, too, oldest first."""
    outbox = tables.alert_outbox
    within = (outbox.c.at_ns >= from_ns, outbox.c.at_ns < to_ns)
    return list(snapshot.connection.execute(select(outbox).where(*within).order_by(outbox.c.at_ns, outbox.c.id)))
