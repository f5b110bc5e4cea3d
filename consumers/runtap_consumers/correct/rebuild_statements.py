"""What a rebuild reads and writes: positions of its own, rows of the generation after the live one, and the switch."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Table

from runtap_consumers.projections.grains import Calendar
from runtap_consumers.projections.rollups import COST_BY_ATTRIBUTE, Measure, Merge
from runtap_consumers.store import retention, tables
from runtap_consumers.store.positions import Position
from runtap_consumers.store.read.snapshot import owner_of
from runtap_consumers.store.writer import Writer
from runtap_consumers.worker.decoding import NOT_APPLIED

Query = Callable[..., list[Any]]
# Sums by table, day (`None` in tables without days) and measure.
Sums = Counter[tuple[str, int | None, str]]

_OF_OLDER_SESSIONS = "session_id IN (SELECT session_id FROM sessions WHERE {live} AND first_at_ns < {from_ns})"
# Which rows a rebuild does not replace: those from before the instant from which on the log holds everything.
_OLDER = {
    "recent_errors": "at_ns < {from_ns}",
    "sessions": _OF_OLDER_SESSIONS,
    "session_costs": _OF_OLDER_SESSIONS,
    "runs": "ended_at_ns < {from_ns}",
    "open_runs": "started_at_ns < {from_ns}",
    "run_scores": "log_time_ns < {from_ns}",
    "contents": "log_time_ns < {from_ns}",
    # What live workers noted at an emitter's first event is met by no rebuild.
    "emitter_reports": "(log_time_ns < {from_ns} OR number = 0)",
    "emitter_counts": "log_time_ns < {from_ns}",
    "abandoned_lanes": "log_time_ns < {from_ns}",
    # Counts without a time can be told apart only where the log has all of it.
    "skipped_types": "{from_ns} > 0",
    "skewed_events": "{from_ns} > 0",
    "model_names": "{from_ns} > 0",
    "run_durations": "{from_ns} > 0",
    "strays": "{from_ns} > 0",
    # Who reported when: a report that came again would count as another to a rebuild.
    "report_minutes": "{from_ns} >= 0",
}
# Positions, and what live workers announce to the alert evaluator, are no figures.
_NOT_FIGURES = ("positions", "touched_minutes")
_SUMS = {Merge.ADD: "CAST(sum({0}) AS BIGINT)", Merge.MIN: "min({0})", Merge.MAX: "max({0})", Merge.KEEP: "min({0})"}
_SUMMED_OF_RUNS = ("duration_ns", "input_tokens", "output_tokens", "cost_picodollars")


class Sides(NamedTuple):
    """Live rows of a partition, and those that a rebuild made, of which what lies before `from_ns` does not count."""

    partition: int
    generation: int
    from_ns: int

    @property
    def live(self) -> str:
        return f"partition = {self.partition} AND generation = {self.generation}"

    @property
    def made(self) -> str:
        return f"partition = {self.partition} AND generation = {self.generation + 1}"

    def replaced(self, table: Table) -> str:
        """The condition for rows of either side to be in the range that is replaced."""
        older = _OLDER.get(table.name, "bucket_ns < {from_ns}").format(live=self.live, from_ns=self.from_ns)
        return f"NOT ({older})"


def rebuild_name(projection: str, from_ns: int | str, basis: str) -> str:
    """Under which a rebuild keeps positions and marks: one that was asked for something else does not find them."""
    return f"{projection}.rebuild/{from_ns}/{basis}"


def tables_of(projection: str) -> list[Table]:
    """The tables of a projection's figures, in the order in which they are switched."""
    found = [
        table
        for table in tables.metadata.sorted_tables
        if "generation" in table.columns and table.name not in _NOT_FIGURES and owner_of(table) == projection
    ]
    # Last those that are worked out of days; and sessions, which say what is older in other tables.
    return sorted(found, key=lambda table: table.name == "sessions" or _days_of(table) is not None)


def _days_of(table: Table) -> Table | None:
    """The table of days that a table without a time adds up."""
    name = "errors" if table.name == "error_groups" else table.name.removesuffix("_total")
    return tables.metadata.tables[f"{name}_day"] if name != table.name else None


def read_positions(query: Query, name: str, lock: str = "") -> dict[int, Position]:
    """Positions by partition. `lock`: SQL at the end of the statement."""
    columns = ", ".join(name for name in Position.__annotations__ if name != "projection")
    rows = query(f"SELECT partition, {columns} FROM positions WHERE projection = ? ORDER BY partition{lock}", (name,))
    return {partition: Position(name, *others) for partition, *others in rows}


def lock_positions(writer: Writer, name: str) -> dict[int, Position]:
    """Positions that nobody moves until the transaction ends."""
    # What follows is as large as the retained log.
    writer.set_local(statement_timeout="0")
    return read_positions(writer.query, name, writer.dialect.for_update)


def read_unreadable(query: Query, partition: int) -> dict[str, set[int]]:
    """Numbers of events that could not be read, by emitter."""
    found: dict[str, set[int]] = defaultdict(set)
    for emitter, first, count in query(
        "SELECT emitter, sequence, events FROM dead_letters WHERE partition = ? AND sequence IS NOT NULL", (partition,)
    ):
        found[emitter].update(range(first, first + count))
    return found


def read_refused(query: Query, partition: int) -> dict[int, dict[int, str]]:
    """Numbers of events that could not be applied, by the offset of their record, each with its cause."""
    found: dict[int, dict[int, str]] = defaultdict(dict)
    for offset, first, count, cause in query(
        "SELECT log_offset, sequence, events, cause FROM dead_letters WHERE partition = ? AND cause LIKE ?",
        (partition, f"{NOT_APPLIED}%"),
    ):
        found[offset].update(dict.fromkeys(range(first, first + count), cause))
    return found


def find_rebuild(query: Query, projection: str, basis: str) -> str | None:
    """The name of a rebuild in the making, if it has this basis."""
    names = query(
        "SELECT DISTINCT projection FROM positions WHERE projection LIKE ?", (rebuild_name(projection, "%", basis),)
    )
    return names[0][0] if names else None


def begin_rebuild(writer: Writer, projection: str, name: str, offsets: dict[int, int]) -> None:
    """Makes a rebuild's positions, at these offsets by partition, instead of another's."""
    with writer.transaction():
        forget_rebuilds(writer, projection)
        for partition, offset in offsets.items():
            # An epoch never used before fences a process that still works on an earlier rebuild.
            writer.execute(
                "INSERT INTO positions (projection, partition, next_offset, epoch, incarnation, generation, begun_at, "
                "fingerprint, log_time_ns) SELECT ?, partition, ?, ?, incarnation, generation + 1, begun_at, '', 0 "
                "FROM positions WHERE projection = ? AND partition = ?",
                (name, offset, time.time_ns(), projection, partition),
            )


def forget_rebuilds(writer: Writer, projection: str) -> None:
    """Deletes all that rebuilds of a projection have made, inside a transaction; others wait for it."""
    lock_positions(writer, projection)
    for table in ("positions", "lane_marks"):
        writer.execute(f"DELETE FROM {table} WHERE projection LIKE ?", (rebuild_name(projection, "%", "%"),))
    for figures in tables_of(projection):
        writer.execute(
            f"DELETE FROM {figures.name} WHERE (partition, generation) NOT IN "
            "(SELECT partition, generation FROM positions WHERE projection = ?)",
            (projection,),
        )


def switch_rows(writer: Writer, projection: str, sides: Sides, log_time_ns: int) -> None:
    """Replaces the live rows by those that were made, inside a transaction, and fences their workers.

    Args:
        writer: of the transaction, which has locked the positions.
        projection: whose.
        sides: the rows.
        log_time_ns: of the live workers.
    """
    # Live workers delete in all generations; a bucket that the rebuild still filled afterwards is half there.
    for statement, parameters in retention.expired_buckets(projection, sides.partition, log_time_ns):
        writer.execute(statement, parameters)
    for table in tables_of(projection):
        names = [column.name for column in table.columns]
        values = [str(sides.generation) if name == "generation" else name for name in names]
        insert = f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {', '.join(values)} FROM {table.name} "
        days = _days_of(table)
        if days is not None:
            _switch_sums(writer, table, days, sides, f"{insert} WHERE {sides.made}")
            continue
        writer.execute(f"DELETE FROM {table.name} WHERE {sides.live} AND {sides.replaced(table)}")
        chosen = f"WHERE {sides.made} AND {sides.replaced(table)}"
        if table is tables.runs:
            # Runs are most of all rows: changing them is cheaper than writing them again.
            writer.execute(f"UPDATE runs SET generation = {sides.generation} {chosen}")
        else:
            # A start or a report that was sent again may be among the older rows, too.
            writer.execute(f"{insert} {chosen} ON CONFLICT DO NOTHING")
    fence = "UPDATE positions SET epoch = epoch + 1 WHERE projection = ? AND partition = ?"
    writer.execute(fence, (projection, sides.partition))


def _switch_sums(writer: Writer, table: Table, days: Table, sides: Sides, insert: str) -> None:
    """Adds the days up, which are switched already; facts that days do not have are kept where a day is older."""
    keys = [column.name for column in days.primary_key.columns][1:]
    key = ", ".join(keys)
    measures = [column for column in days.columns if not column.primary_key and column.name in table.columns]
    facts = [column.name for column in table.columns if column.name not in days.columns]
    older = f"SELECT {key} FROM {days.name} WHERE {sides.live} AND bucket_ns < {sides.from_ns}"
    writer.execute(f"DELETE FROM {table.name} WHERE {sides.live} AND ({key}) NOT IN ({older})")
    kept = ", ".join(f"{name} = coalesce({table.name}.{name}, excluded.{name})" for name in facts)
    writer.execute(f"{insert} ON CONFLICT ({key}) DO {f'UPDATE SET {kept}' if kept else 'NOTHING'}")
    sums = ", ".join(f"{_SUMS[one.info['merge']].format(one.name)} AS {one.name}" for one in measures)
    writer.execute(
        f"UPDATE {table.name} SET {', '.join(f'{one.name} = days.{one.name}' for one in measures)} "
        f"FROM (SELECT {key}, {sums} FROM {days.name} WHERE {sides.live} GROUP BY {key}) AS days "
        f"WHERE {' AND '.join(f'{table.name}.{name} = days.{name}' for name in keys)}"
    )


def add_sums(query: Query, projection: str, sides: Sides, calendar: Calendar, before: Sums, after: Sums) -> None:
    """Adds up what would be replaced, and what would replace it."""
    for table in tables_of(projection):
        passes_on = table.name.startswith(COST_BY_ATTRIBUTE.name)
        if (table.name.endswith(("_minute", "_hour")) and not passes_on) or _days_of(table) is not None:
            # Their sums are those of the days.
            continue
        columns = [
            column
            for column in table.columns
            if column.info.get("merge") is Merge.ADD or (table.name == "runs" and column.name in _SUMMED_OF_RUNS)
        ]
        measures = [column.info.get("measure", Measure(column.name, Merge.ADD)) for column in columns]
        has_days = passes_on or table.name.endswith("_day")
        bucket = "bucket_ns" if has_days else "partition"
        # In two parts, since sums may pass 64 bits.
        parts = "".join(f", sum({m.name} >> 32), sum({m.name} & 4294967295)" for m in columns)
        for rows, sums in ((sides.live, before), (sides.made, after)):
            for begin, count, *halves in query(
                f"SELECT {bucket}, count(*){parts} FROM {table.name} "
                f"WHERE {rows} AND {sides.replaced(table)} GROUP BY {bucket}"
            ):
                day_ns = calendar.day_of(begin) if has_days else None
                # How many rows are still hours says nothing.
                name = table.name.replace("_hour", "_day")
                sums[name, day_ns, "rows"] += 0 if passes_on else count
                for column, one, high, low in zip(columns, measures, halves[::2], halves[1::2], strict=True):
                    unit = one.unit if column.name == one.whole else 1
                    sums[name, day_ns, one.name] += ((int(high or 0) << 32) + int(low or 0)) * unit
