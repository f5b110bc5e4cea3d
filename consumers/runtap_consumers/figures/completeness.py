"""The ledger and `complete_to`, worked out at read from what emitters said and what projections applied.

Pure functions: `work_out_ledger` (where every captured event is) and `work_out_completeness` (before which instant
nothing is missing that is not counted). Lanes belong to one projection each, so both are worked out per projection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from typing import Any

from runtap_consumers.store.read.emitters import SILENCE_NS, Books

# Emitters report every 10 s: log time in which nobody did was an outage, and does not count as anybody's silence.
_OUTAGE_NS = 30 * 10**9


@dataclass
class Sums:
    """Where captured events are. `captured` = `applied` + `in_flight` + dropped + `lost` + `quarantined` +
    `superseded`, once events that one emitter adopted of another are set off.
    """

    captured: int = 0
    applied: int = 0
    in_flight: int = 0
    lost: int = 0
    quarantined: int = 0
    superseded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        """Adds another emitter's sums."""
        self.captured += other.captured
        self.applied += other.applied
        self.in_flight += other.in_flight
        self.lost += other.lost
        self.quarantined += other.quarantined
        self.superseded += other.superseded
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    @property
    def not_applied(self) -> int:
        """Numbered events that the projection does not show."""
        return self.in_flight + self.lost + self.quarantined


@dataclass(frozen=True)
class Completeness:
    """`at_ns`: before that instant nothing is missing that is not counted; `None` when nothing is known.

    `silent`: emitters that left it without a closing report.
    """

    at_ns: int | None
    silent: tuple[str, ...] = ()


def work_out_sums(books: Books, projection: str, emitter: str) -> Sums:
    """The ledger of one emitter in one projection. No term is ever negative."""
    report = books.newest.get(emitter)
    lanes = books.lanes_of(projection, emitter)
    said = report.lanes if report else {}
    tops = lost = applied = before = quarantined = 0
    for partition in {*lanes, *said}:
        lane = lanes.get(partition)
        mark = lane.mark if lane else 0
        top = max(said.get(partition, 0), mark)
        tops += top
        lost += books.announced(emitter, partition, mark, top)
        if lane:
            lost += lane.missing
            applied += lane.mark - lane.missing - lane.quarantined - lane.before
            before += lane.before
            quarantined += lane.quarantined
    dropped = dict(report.dropped) if report else {}
    superseded = report.superseded if report else 0
    set_off = books.handed.get(emitter, 0) - (sum(report.adopted.values()) if report else 0)
    unnumbered = sum(dropped.values()) + superseded + set_off
    captured = max(report.captured if report else 0, tops + unnumbered) - before
    in_flight = captured - applied - lost - quarantined - unnumbered
    return Sums(captured, applied, in_flight, lost, quarantined, superseded, dropped)


def work_out_ledger(books: Books, projections: Sequence[str]) -> dict[str, Sums]:
    """The ledger of each projection over all emitters."""
    ledger = {}
    for projection in projections:
        total = Sums()
        for emitter in books.emitters:
            total.add(work_out_sums(books, projection, emitter))
        ledger[projection] = total
    return ledger


def worst_projection(ledger: dict[str, Sums]) -> str | None:
    """Whose sums are the headline: the projection that shows the fewest of the numbered events."""
    return max(
        ledger, key=lambda name: (ledger[name].not_applied, ledger[name].lost, ledger[name].quarantined), default=None
    )


def worst_of(ledger: dict[str, Sums]) -> Sums:
    """The headline. Nothing where there is no projection."""
    worst = worst_projection(ledger)
    return Sums() if worst is None else ledger[worst]


def describe_sums(sums: Sums) -> dict[str, Any]:
    """Where captured events are, as the report and the ledger show it."""
    return {
        # A start that its end made superfluous is not sent, and no loss.
        "captured": sums.captured - sums.superseded,
        "applied": sums.applied,
        "in_flight": sums.in_flight,
        "dropped": dict(sorted(sums.dropped.items())),
        "lost": sums.lost,
        "quarantined": sums.quarantined,
    }


def work_out_completeness(books: Books, projections: Sequence[str]) -> Completeness:
    """`complete_to` of figures that come from several projections: that of the one furthest behind."""
    parts = [_completeness_of(books, projection) for projection in projections]
    silent = tuple(sorted({emitter for part in parts for emitter in part.silent}))
    instants = [part.at_ns for part in parts if part.at_ns is not None]
    return Completeness(min(instants) if instants and len(instants) == len(parts) else None, silent)


def _completeness_of(books: Books, projection: str) -> Completeness:
    still_open: list[int] = []
    closed: list[int] = []
    silent: list[str] = []
    for emitter in books.last_heard_ns:
        covered = books.covered_reports(projection, emitter)
        # A clock that was set back must not reopen what was already called complete.
        instant = max((report.complete_at_ns for report in covered), default=None)
        if instant is not None and covered[-1].closing:
            closed.append(instant)
        elif _has_left(books, projection, emitter):
            silent.append(emitter)
        elif instant is not None:
            still_open.append(instant)
        elif emitter in books.first_at_ns:
            still_open.append(books.first_at_ns[emitter])
        else:
            # Only a report names it, and no projection has applied that: nothing can be said.
            return Completeness(None)
    # Once all are closed nothing is missing up to the last closing.
    at_ns = min(still_open) if still_open else max(closed, default=None)
    return Completeness(at_ns, tuple(silent))


def witnesses_of_silence(books: Books, emitter: str) -> set[tuple[str, int]]:
    """Which of `books.report_times` show that others went on after an emitter's last sign of life.

    Without the rest of them the emitter is as silent as with it: a minute of log time in steps that are no outage.
    """
    heard = books.last_heard_ns[emitter]
    witnesses: set[tuple[str, int]] = set()
    kept_ns, pending, seen_ns = heard, None, 0
    times = books.report_times
    for index in range(bisect_right(times, heard, key=itemgetter(1)), len(times)):
        other, at_ns = times[index]
        if other == emitter:
            continue
        if at_ns - kept_ns > _OUTAGE_NS and pending is not None:
            witnesses.add(pending)
            seen_ns += pending[1] - kept_ns if pending[1] - kept_ns <= _OUTAGE_NS else 0
            kept_ns = pending[1]
            if seen_ns >= SILENCE_NS:
                return witnesses
        pending = (other, at_ns)
    if pending is not None:
        witnesses.add(pending)
    return witnesses


def _has_left(books: Books, projection: str, emitter: str) -> bool:
    if books.is_closed(emitter):
        return False
    heard = books.last_heard_ns[emitter]
    # In a partition in which the projection lags, the emitter may have gone on.
    for partition in books.partitions[emitter]:
        position = books.positions.get((projection, partition))
        if position is None or position.log_time_ns < heard + SILENCE_NS:
            return False
    later = (at for other, at in books.report_times if other != emitter and at > heard)
    steps = (after - earlier for earlier, after in pairwise([heard, *later]))
    return sum(step for step in steps if step <= _OUTAGE_NS) >= SILENCE_NS
