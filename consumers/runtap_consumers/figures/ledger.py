"""The ledger in words and rows: where every captured event is, by service, emitter and reason (`build_ledger`)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any
from zoneinfo import ZoneInfo

from runtap_consumers.figures.completeness import (
    Sums,
    describe_sums,
    work_out_completeness,
    work_out_ledger,
    work_out_sums,
    worst_projection,
)
from runtap_consumers.instants import format_instant
from runtap_consumers.store.read.books import read_books
from runtap_consumers.store.read.emitters import Books, Range
from runtap_consumers.store.read.losses import (
    EmitterFacts,
    LaneFacts,
    Skip,
    read_counts,
    read_emitter_facts,
    read_forks,
    read_incidents,
    read_lane_facts,
)
from runtap_consumers.store.read.snapshot import Snapshot

UNANNOUNCED = "unannounced"
_NOBODY = EmitterFacts("", "", "", 0, 0)


def build_ledger(snapshot: Snapshot, zone: ZoneInfo) -> dict[str, Any]:
    """Everything that is known of what became of captured events.

    Each row adds up: captured = applied + in_flight + dropped + lost + quarantined (+ handed_over, what other emitters
    adopted less what was adopted, which is 0 over all). Rows are of the projection that shows the fewest events;
    `projections` holds each one's own.

    Args:
        snapshot: what to read.
        zone: of the times in it.
    """
    names = snapshot.projections
    books = read_books(snapshot, names)
    ledger = work_out_ledger(books, names)
    headline = worst_projection(ledger)
    complete = work_out_completeness(books, names)
    lanes = read_lane_facts(snapshot)
    emitters = _describe_emitters(snapshot, books, headline, lanes, set(complete.silent), zone) if headline else []
    return {
        "complete_to": format_instant(complete.at_ns, zone),
        "projection": headline,
        "captured_is_at_least": any(row["state"] == "vanished" for row in emitters),
        **describe_sums(ledger[headline] if headline else Sums()),
        "lost_by_reason": _sum_reasons(emitters, "lost_by_reason"),
        "repeats": sum(row["repeats"] for row in emitters),
        "projections": [
            {
                "projection": name,
                **{key: count for key, count in describe_sums(sums).items() if key not in ("captured", "dropped")},
                "repeats": sum(lane.repeats for (of, _), lane in lanes.items() if of == name),
            }
            for name, sums in ledger.items()
        ],
        "services": _sum_services(emitters),
        "emitters": emitters,
        "shared_emitters": [
            {
                "emitter": fork.emitter,
                "since_report": fork.number,
                "processes": [{"host": host, "process_id": process_id} for host, process_id in fork.processes],
            }
            for fork in read_forks(snapshot)
        ],
        "incidents": [
            {
                "projection": incident.projection,
                "partition": incident.partition,
                "incarnation": incident.incarnation,
                "kind": incident.kind,
                "first_offset": incident.first_offset,
                "last_offset": incident.last_offset,
                "at": format_instant(incident.at_ns, zone),
            }
            for incident in read_incidents(snapshot)
        ],
        "skewed_events": read_counts(snapshot, "skewed_events", "service"),
        "unknown_event_types": read_counts(snapshot, "skipped_types", "type"),
    }


def _describe_emitters(
    snapshot: Snapshot,
    books: Books,
    projection: str,
    lanes: dict[tuple[str, str], LaneFacts],
    silent: set[str],
    zone: ZoneInfo,
) -> list[dict[str, Any]]:
    facts, skips = read_emitter_facts(snapshot)
    rows = []
    for emitter in books.emitters:
        known = facts.get(emitter, _NOBODY)
        lane_facts = lanes.get((projection, emitter), LaneFacts())
        sums = work_out_sums(books, projection, emitter)
        rows.append(
            {
                "emitter": emitter,
                "service": known.service or None,
                "environment": known.environment or None,
                "host": known.host or None,
                "process_id": known.process_id or None,
                "state": "closed" if books.is_closed(emitter) else "vanished" if emitter in silent else "open",
                "last_heard": format_instant(books.last_heard_ns.get(emitter), zone),
                **describe_sums(sums),
                "handed_over": _handed_over(books, emitter),
                "lost_by_reason": _lost_by_reason(books, emitter, lane_facts, skips, sums.lost),
                "repeats": lane_facts.repeats,
                "content_dropped": known.content_dropped,
            }
        )
    return rows


def _handed_over(books: Books, emitter: str) -> int:
    newest = books.newest.get(emitter)
    return books.handed.get(emitter, 0) - (sum(newest.adopted.values()) if newest else 0)


def _lost_by_reason(books: Books, emitter: str, lanes: LaneFacts, skips: list[Skip], lost: int) -> dict[str, int]:
    """Gives missing numbers the reason with which they were announced; each number counts once."""
    newest = books.newest.get(emitter)
    said = newest.lanes if newest else {}
    reasons: dict[str, int] = defaultdict(int)
    for partition in sorted({*lanes.marks, *said}):
        mark = lanes.marks.get(partition, 0)
        missing = [*lanes.gaps.get(partition, ()), (mark + 1, said.get(partition, 0))]
        announced = (skip for skip in skips if (skip.emitter, skip.partition) == (emitter, partition))
        counted_to = 0
        for skip in sorted(announced, key=lambda skip: (skip.first, skip.last)):
            count = sum(_overlap((max(skip.first, counted_to + 1), skip.last), gap) for gap in missing)
            counted_to = max(counted_to, skip.last)
            if count:
                reasons[skip.reason] += count
    unannounced = lost - sum(reasons.values())
    if unannounced > 0:
        reasons[UNANNOUNCED] += unannounced
    return dict(sorted(reasons.items()))


def _overlap(one: Range, other: Range) -> int:
    return max(min(one[1], other[1]) - max(one[0], other[0]) + 1, 0)


def _sum_services(emitters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    services: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in emitters:
        services[row["service"] or "", row["environment"] or ""].append(row)
    return [
        {
            "service": service or None,
            "environment": environment or None,
            "emitters": len(rows),
            "captured_is_at_least": any(row["state"] == "vanished" for row in rows),
            **{
                name: sum(row[name] for row in rows)
                for name in ("captured", "applied", "in_flight", "lost", "quarantined", "handed_over", "repeats")
            },
            "dropped": _sum_reasons(rows, "dropped"),
            "lost_by_reason": _sum_reasons(rows, "lost_by_reason"),
        }
        for (service, environment), rows in sorted(services.items())
    ]


def _sum_reasons(rows: list[dict[str, Any]], name: str) -> dict[str, int]:
    summed: dict[str, int] = defaultdict(int)
    for row in rows:
        for reason, count in row[name].items():
            summed[reason] += count
    return dict(sorted(summed.items()))
