"""The ledger in words and rows: where every captured event is, by service, emitter and reason (`build_ledger`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict
from zoneinfo import ZoneInfo

from runtap_consumers.figures.completeness import (
    AllSums,
    Completeness,
    LedgerSums,
    describe_all,
    describe_sums,
    lost_ranges,
    work_out_completeness,
    work_out_ledger,
    work_out_sums,
    worst_projection,
)
from runtap_consumers.figures.shapes import Instant, pick
from runtap_consumers.instants import format_instant
from runtap_consumers.store.read.books import Books, LaneKey, read_books
from runtap_consumers.store.read.snapshot import Snapshot, read_counts

UNANNOUNCED = "unannounced"
STRUCK_OUT = "struck out"


class _Counts(TypedDict):
    applied: int
    in_flight: int
    lost: int
    quarantined: int
    repeats: int


class ProjectionSums(_Counts):
    """Where numbered events are in one projection."""

    projection: str


class ServiceSums(_Counts):
    """A service's emitters together. `captured_is_at_least`: one vanished, and what it captured last nobody knows."""

    service: str | None
    environment: str | None
    emitters: int
    captured_is_at_least: bool
    captured: int
    dropped: dict[str, int]
    lost_by_reason: dict[str, int]


class EmitterFigures(LedgerSums):
    """One emitter. `state`: open, closed, silent, vanished, forgotten or struck out."""

    emitter: str
    service: str | None
    environment: str | None
    host: str | None
    process_id: int | None
    state: str
    last_heard: Instant | None
    captured_is_at_least: bool
    lost_by_reason: dict[str, int]
    repeats: int
    content_dropped: int


class Process(TypedDict):
    """A process, as far as it is known."""

    host: str
    process_id: int


class SharedEmitter(TypedDict):
    """An emitter that is more than one process: of two events under one number only the first counts."""

    emitter: str
    processes: list[Process]


class Forgotten(TypedDict):
    """An emitter that somebody let go by hand."""

    emitter: str
    at: Instant
    struck_out: bool


class Incident(TypedDict):
    """What happened to a partition's log."""

    projection: str
    partition: int
    incarnation: int
    kind: str
    first_offset: int
    last_offset: int
    at: Instant


class Ledger(AllSums):
    """Everything that is known of what became of captured events. Rows are of `projection`, the one that shows the
    fewest; emitters that are struck out belong to nobody's sum.
    """

    complete_to: Instant | None
    held_by: str | None
    projection: str | None
    captured_is_at_least: bool
    lost_by_reason: dict[str, int]
    repeats: int
    projections: list[ProjectionSums]
    services: list[ServiceSums]
    emitters: list[EmitterFigures]
    shared_emitters: list[SharedEmitter]
    forgotten: list[Forgotten]
    incidents: list[Incident]
    skewed_events: dict[str, int]
    unknown_event_types: dict[str, int]


def build_ledger(snapshot: Snapshot, zone: ZoneInfo) -> Ledger:
    """The ledger as one state of the store has it."""
    names = snapshot.projections
    books = read_books(snapshot)
    ledger = work_out_ledger(books, names)
    headline = worst_projection(ledger)
    complete = work_out_completeness(books, names)
    emitters = [_describe(books, headline, name, complete, zone) for name in sorted(books.emitters)] if headline else []
    ours = [row for row in emitters if row["state"] != STRUCK_OUT]
    return {
        "complete_to": format_instant(complete.at_ns, zone),
        "held_by": complete.held_by,
        "projection": headline,
        "captured_is_at_least": any(row["captured_is_at_least"] for row in ours),
        **describe_all(books, ledger),
        "lost_by_reason": _sum_reasons(ours, "lost_by_reason"),
        "repeats": sum(row["repeats"] for row in ours),
        "projections": [{**pick(ProjectionSums, vars(sums)), "projection": name} for name, sums in ledger.items()],
        "services": _sum_services(ours),
        "emitters": emitters,
        "shared_emitters": [
            {"emitter": emitter, "processes": [{"host": host, "process_id": number} for host, number in processes]}
            for emitter, processes in books.shared.items()
        ],
        "forgotten": [
            {"emitter": one.emitter, "at": format_instant(one.forgotten_at_ns, zone), "struck_out": bool(one.is_struck)}
            for one in books.forgotten
        ],
        "incidents": [
            {**pick(Incident, one._mapping), "at": format_instant(one.at_ns, zone)} for one in books.incidents
        ],
        "skewed_events": read_counts(snapshot, "skewed_events", "service"),
        "unknown_event_types": read_counts(snapshot, "skipped_types", "type"),
    }


def _describe(books: Books, projection: str, emitter: str, complete: Completeness, zone: ZoneInfo) -> EmitterFigures:
    known, sums = books.emitters[emitter], work_out_sums(books, projection, emitter)
    keys = [key for key in books.keys_of[emitter] if key in books.heard_ns]
    heard_ns = max((books.heard_ns[key] for key in keys), default=None)
    has_left = emitter in complete.silent
    if known.is_struck:
        state = STRUCK_OUT
    elif known.is_closed:
        state = "closed"
    elif has_left:
        state = "forgotten" if known.forgotten_ns >= (heard_ns or 0) else "vanished"
    else:
        state = "silent" if books.silent.issuperset(keys) else "open"
    return {
        "emitter": emitter,
        "service": known.service or None,
        "environment": known.environment or None,
        "host": known.host or None,
        "process_id": known.process_id or None,
        "state": state,
        "last_heard": format_instant(heard_ns, zone),
        "captured_is_at_least": has_left,
        **describe_sums(sums),
        "lost_by_reason": _lost_by_reason(books, projection, emitter, sums.lost),
        "repeats": sums.repeats,
        "content_dropped": known.content_dropped,
    }


def _lost_by_reason(books: Books, projection: str, emitter: str, lost: int) -> dict[str, int]:
    """Gives lost numbers the reason with which they were announced; each number counts once."""
    reasons = defaultdict[str, int](int)
    for key in books.keys_of[emitter] if lost else ():
        counted_to = 0
        for first, last, reason in sorted(books.emitters[emitter].announced):
            begin = max(first, counted_to + 1)
            for start, end in lost_ranges(books, projection, key):
                reasons[reason] += max(min(last, end) - max(begin, start) + 1, 0)
            counted_to = max(counted_to, last)
    others = lost - sum(reasons.values())
    if others:
        reasons[_reason_of_others(books, projection, books.keys_of[emitter])] += others
    return {reason: count for reason, count in sorted(reasons.items()) if count}


def _reason_of_others(books: Books, projection: str, keys: list[LaneKey]) -> str:
    """What happened last to a log since these lanes were first heard of, if anything did."""
    since = {key[0]: min(lane.first_at_ns for lane in books.met[key]) for key in keys if key in books.met}
    happened = (one for one in reversed(books.incidents) if one.projection == projection)
    kinds = (one.kind for one in happened if one.at_ns >= since.get(one.partition, one.at_ns + 1))
    return next(kinds, UNANNOUNCED)


def _sum_services(emitters: list[EmitterFigures]) -> list[ServiceSums]:
    services: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in emitters:
        services[row["service"] or "", row["environment"] or ""].append(row)
    return [
        {
            "service": service or None,
            "environment": environment or None,
            "emitters": len(rows),
            "captured_is_at_least": any(row["captured_is_at_least"] for row in rows),
            "captured": sum(row["captured"] for row in rows),
            **pick(_Counts, {name: sum(row[name] for row in rows) for name in _Counts.__annotations__}),
            "dropped": _sum_reasons(rows, "dropped"),
            "lost_by_reason": _sum_reasons(rows, "lost_by_reason"),
        }
        for (service, environment), rows in sorted(services.items())
    ]


def _sum_reasons(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    summed: dict[str, int] = defaultdict(int)
    for row in rows:
        for reason, count in row[name].items():
            summed[reason] += count
    return dict(sorted(summed.items()))
