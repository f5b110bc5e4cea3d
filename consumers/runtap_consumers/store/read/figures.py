"""Reading what costs, performance and errors add up to in a range of time.

A range is read segment by segment (`runtap_consumers.store.read.ranges`), each from the table of its grain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import BigInteger, Column, ColumnElement, LargeBinary, Select, Table, cast, func, literal_column, select

from runtap_consumers.projections.rollups import Merge
from runtap_consumers.store import tables
from runtap_consumers.store.read.costs import COUNTS, CostSums
from runtap_consumers.store.read.ranges import TimeRange
from runtap_consumers.store.read.snapshot import Snapshot
from runtap_consumers.units import SECOND_NS

# By what runs counted under, or errors and sessions; the smallest first.
_OF_SERVICES = ("performance_total", "cost_total", "sessions")


@dataclass
class ComponentFigures:
    """How the runs of one component went. Sketches are concatenated; sums of durations are as they are stored, whole
    seconds and nanoseconds beside them.
    """

    count: int = 0
    ok: int = 0
    errors: int = 0
    total_seconds: int = 0
    total_ns: int = 0
    min_ns: int | None = None
    max_ns: int | None = None
    output_tokens: int = 0
    output_seconds: int = 0
    output_ns: int = 0
    sketch: bytes = b""
    first_token_sketch: bytes = b""

    @property
    def duration_ns(self) -> int:
        """How long all runs took together."""
        return self.total_seconds * SECOND_NS + self.total_ns

    @property
    def output_duration_ns(self) -> int:
        """How long those took that reported output tokens."""
        return self.output_seconds * SECOND_NS + self.output_ns


def sum_figures(rows: Iterable[Sequence[Any]]) -> ComponentFigures:
    """One component of many rows; a row has the fields of `ComponentFigures` in their order."""
    columns = list(zip(*rows, strict=True))
    if not columns:
        return ComponentFigures()
    count, ok, errors, total_seconds, total_ns, min_ns, max_ns, *outputs, sketches, first_token_sketches = columns
    output_tokens, output_seconds, output_ns = map(sum, outputs)
    return ComponentFigures(
        count=sum(count),
        ok=sum(ok),
        errors=sum(errors),
        total_seconds=sum(total_seconds),
        total_ns=sum(total_ns),
        min_ns=min(min_ns),
        max_ns=max(max_ns),
        output_tokens=output_tokens,
        output_seconds=output_seconds,
        output_ns=output_ns,
        sketch=b"".join(filter(None, sketches)),
        first_token_sketch=b"".join(filter(None, first_token_sketches)),
    )


@dataclass
class ErrorGroup:
    """An error group of a service: what it is, when it was ever seen, and how often in the range."""

    fingerprint: str
    service: str
    type: str
    category: str
    message: str | None
    run_type: str
    status_code: int | None
    code: str | None
    raised_at: str | None
    first_at_ns: int
    last_at_ns: int
    sample_run_id: str
    count: int = 0
    _sample_at_ns: int = -1

    def occur(self, count: int, last_at_ns: int, sample_run_id: str | None) -> None:
        """Adds a stored row of the range; the newest one's sample stands for the group."""
        self.count += count
        if sample_run_id and last_at_ns > self._sample_at_ns:
            self.sample_run_id, self._sample_at_ns = sample_run_id, last_at_ns


def _select_segments(
    snapshot: Snapshot, rollup: str, time_range: TimeRange, service: str | None
) -> Iterator[tuple[Table, Select[Any]]]:
    for segment in time_range.segments:
        table = tables.metadata.tables[f"{rollup}_{segment.grain}"]
        statement = select().where(
            table.c.bucket_ns >= segment.from_ns, table.c.bucket_ns < segment.to_ns, snapshot.is_live(table)
        )
        yield table, statement if service is None else statement.where(table.c.service == service)


def read_merged(
    snapshot: Snapshot,
    rollup: str,
    time_range: TimeRange,
    service: str | None,
    keys: Sequence[str],
    measures: Sequence[str] = (),
    **where: str,
) -> Iterator[Sequence[Any]]:
    """What the rows of a range add up to by these columns of the key, which come first; of each segment apart.

    `measures` are by default those that `sum_figures` takes. `where`: values that other columns must have.
    """
    names = measures or [measure.name for measure in fields(ComponentFigures)]
    for table, statement in _select_segments(snapshot, rollup, time_range, service):
        conditions = [table.c[name] == value for name, value in where.items()]
        by = [table.c[key] for key in keys]
        merged = statement.add_columns(*by, *(_merged(snapshot, table.c[name]) for name in names))
        yield from snapshot.connection.execute(merged.where(*conditions).group_by(*by)).all()


def _merged(snapshot: Snapshot, column: Column[Any]) -> ColumnElement[Any]:
    merge = column.info["merge"]
    if merge is Merge.ADD:
        # A sum of integers is a decimal on PostgreSQL.
        return cast(func.sum(column), BigInteger)
    if merge is Merge.REPLACE:
        return literal_column(snapshot.dialect.join_bytes.format(column.name), LargeBinary)
    return func.min(column) if merge is Merge.MIN else func.max(column)


def read_costs(
    snapshot: Snapshot, time_range: TimeRange, service: str | None, keys: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], CostSums]]:
    """Calls, tokens and money by these columns of the key; by segment, so that a key may come more than once."""
    measures = (*COUNTS, "cost_microdollars", "cost_picodollars")
    for row in read_merged(snapshot, "cost", time_range, service, keys, measures):
        yield (
            tuple(row[: len(keys)]),
            CostSums(dict(zip(COUNTS, row[len(keys) : -2], strict=True)), row[-2] * 10**6 + row[-1]),
        )


def read_components(
    snapshot: Snapshot, time_range: TimeRange, service: str | None, model_names: Sequence[tuple[str, str, int]]
) -> dict[tuple[str, str, str], ComponentFigures]:
    """Figures by run type, name and model ('' where a component has none). Calls that failed count under the model that
    others answered as which asked for the same, by `read_model_names`.
    """
    rows: dict[tuple[str, str, str], list[Sequence[Any]]] = defaultdict(list)
    for run_type, name, model, *measures in read_merged(
        snapshot, "performance", time_range, service, ("run_type", "name", "model")
    ):
        rows[run_type, name, model].append(measures)
    found = {component: sum_figures(measures) for component, measures in rows.items()}
    answering = {asked: model for asked, model, _ in model_names}
    for (run_type, name, model), figures in list(found.items()):
        if run_type == "llm" and model in answering and figures.ok == 0:
            of_both = [*rows.pop((run_type, name, model)), *rows.get((run_type, name, answering[model]), ())]
            del found[run_type, name, model]
            found[run_type, name, answering[model]] = sum_figures(of_both)
            rows[run_type, name, answering[model]] = of_both
    return found


def read_model_names(snapshot: Snapshot) -> list[tuple[str, str, int]]:
    """Models as they were asked for and as they answered, where these differ, with how often; the rarest first."""
    table = tables.metadata.tables["model_names"]
    names, count = (table.c.request_model, table.c.model), func.sum(table.c.count)
    statement = select(*names, count).where(snapshot.is_live(table)).group_by(*names).order_by(count, *names)
    return [(asked, model, int(times)) for asked, model, times in snapshot.connection.execute(statement)]


def is_service(snapshot: Snapshot, name: str) -> bool:
    """Whether there is or was a service of that name."""
    found = (tables.metadata.tables[of].c.service for of in _OF_SERVICES)
    has_row = (select(service).where(service == name, snapshot.is_live(service.table)).limit(1) for service in found)
    return any(snapshot.connection.execute(statement).scalar() is not None for statement in has_row)


def read_services(snapshot: Snapshot) -> list[str]:
    """All services that there ever were."""
    found: set[str] = set()
    for name in _OF_SERVICES:
        table = tables.metadata.tables[name]
        statement = select(table.c.service).where(snapshot.is_live(table)).distinct()
        found.update(service for service in snapshot.connection.execute(statement).scalars() if service)
    return sorted(found)


def read_ended_roots(snapshot: Snapshot, time_range: TimeRange, service: str | None) -> int:
    """Root runs that ended ok or in error: what error rates are counted against."""
    total = 0
    for table, statement in _select_segments(snapshot, "roots", time_range, service):
        total += int(
            snapshot.connection.execute(
                statement.add_columns(func.coalesce(func.sum(table.c.ok + table.c.errors), 0))
            ).scalar_one()
        )
    return total


def read_error_groups(
    snapshot: Snapshot, time_range: TimeRange, service: str | None, environment: str | None = None
) -> list[ErrorGroup]:
    """The error groups that occurred in the range, most frequent first."""
    groups = _known_groups(snapshot, service)
    for table, statement in _select_segments(snapshot, "errors", time_range, service):
        if environment is not None:
            statement = statement.where(table.c.environment == environment)
        columns = (table.c[name] for name in ("service", "fingerprint", "count", "last_at_ns", "sample_run_id"))
        for of_service, fingerprint, *occurrence in snapshot.connection.execute(statement.add_columns(*columns)).all():
            groups[of_service, fingerprint].occur(*occurrence)
    occurred = [group for group in groups.values() if group.count]
    return sorted(occurred, key=lambda group: (-group.count, group.service, group.fingerprint))


def _known_groups(snapshot: Snapshot, service: str | None) -> dict[tuple[str, str], ErrorGroup]:
    table = tables.metadata.tables["error_groups"]
    names = [each.name for each in fields(ErrorGroup) if each.name in table.c and each.name != "count"]
    # Whichever partition and environment saw a group first names it.
    first_first = (table.c.first_at_ns, table.c.partition)
    statement = select(*(table.c[name] for name in names)).where(snapshot.is_live(table)).order_by(*first_first)
    if service is not None:
        statement = statement.where(table.c.service == service)
    groups: dict[tuple[str, str], ErrorGroup] = {}
    for row in snapshot.connection.execute(statement).all():
        group = groups.get((row.service, row.fingerprint))
        if group is None:
            groups[row.service, row.fingerprint] = ErrorGroup(*row)
        else:
            group.last_at_ns = max(group.last_at_ns, row.last_at_ns)
            # The first row may be of an environment that sends no messages.
            group.message = group.message or row.message
    return groups


@dataclass(frozen=True)
class RecentError:
    """One error origin."""

    run_id: str
    run_type: str
    name: str
    type: str
    category: str | None
    message: str | None
    status_code: int | None
    code: str | None
    raised_at: str | None
    at_ns: int
    service: str


def read_recent_errors(
    snapshot: Snapshot, from_ns: int, to_ns: int, service: str | None, limit: int
) -> list[RecentError]:
    """The last error origins in [from_ns, to_ns), newest first."""
    table = tables.metadata.tables["recent_errors"]
    statement = (
        select(*(table.c[column.name] for column in fields(RecentError)))
        .where(table.c.at_ns >= from_ns, table.c.at_ns < to_ns, snapshot.is_live(table))
        .order_by(table.c.at_ns.desc(), table.c.run_id)
        .limit(limit)
    )
    if service is not None:
        statement = statement.where(table.c.service == service)
    return [RecentError(*row) for row in snapshot.connection.execute(statement)]
