"""The ledger and `complete_to`, worked out at read from what emitters said and what projections applied.

Pure functions: `work_out_ledger` (where every captured event is) and `work_out_completeness` (before which instant
nothing is missing that is not counted). Lanes belong to one projection each, so both are worked out per projection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter

from runtap_consumers.projections.rollups import DAY_NS

# A lane that was silent for so long is forgotten, with its marks: twice what an emitter may resend after.
LANE_RETENTION_NS = 14 * DAY_NS
SILENCE_NS = 60 * 10**9
# Emitters report every 10 s. Log time over which nobody reported was an outage, which ages nobody.
_OUTAGE_NS = 30 * 10**9

Range = tuple[int, int]


@dataclass(frozen=True)
class LaneState:
    """What one projection applied of one emitter's lane. `missing` are the numbers of its gaps, forgotten ones
    included.
    """

    projection: str
    partition: int
    emitter: str
    mark: int
    missing: int
    before: int
    quarantined: int
    first_at_ns: int
    last_log_time_ns: int


@dataclass(frozen=True)
class Report:
    """What an emitter said of itself. `skipped` and `replayed` are by (emitter, partition); `dropped` by reason."""

    emitter: str
    number: int
    log_time_ns: int
    complete_at_ns: int
    captured: int
    closing: bool = False
    superseded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    adopted: dict[str, int] = field(default_factory=dict)
    lanes: dict[int, int] = field(default_factory=dict)
    skipped: dict[tuple[str, int], tuple[Range, ...]] = field(default_factory=dict)
    replayed: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass(frozen=True)
class PositionState:
    """How far a projection has come in a partition. `begun_at`: the offset at which it began."""

    projection: str
    partition: int
    begun_at: int
    log_time_ns: int


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


class Books:
    """Everything known of emitters and projections, indexed."""

    def __init__(
        self,
        lanes: Iterable[LaneState],
        reports: Iterable[Report],
        positions: Iterable[PositionState] = (),
        report_times: Iterable[tuple[str, int]] = (),
    ) -> None:
        """Args:
        lanes: what projections applied.
        reports: what emitters said; of each at least the newest.
        positions: how far projections came.
        report_times: (emitter, log time) of further reports, which show only that it was there.
        """
        self.reports: dict[str, list[Report]] = defaultdict(list)
        for report in sorted(reports, key=lambda report: report.number):
            self.reports[report.emitter].append(report)
        self.newest = {emitter: kept[-1] for emitter, kept in self.reports.items()}
        self.positions = {(position.projection, position.partition): position for position in positions}
        self.first_at_ns: dict[str, int] = {}
        self.last_heard_ns: dict[str, int] = {}
        self.partitions: dict[str, set[int]] = defaultdict(set)
        self._lanes: dict[tuple[str, str], dict[int, LaneState]] = defaultdict(dict)
        for lane in lanes:
            self._lanes[lane.projection, lane.emitter][lane.partition] = lane
            self._hear(lane.emitter, lane.last_log_time_ns, [lane.partition])
            self.first_at_ns[lane.emitter] = min(self.first_at_ns.get(lane.emitter, lane.first_at_ns), lane.first_at_ns)
        self.handed: dict[str, int] = defaultdict(int)
        self._announced: dict[tuple[str, int], list[Range]] = defaultdict(list)
        for report in self.newest.values():
            self._hear(report.emitter, report.log_time_ns, report.lanes)
            for emitter, count in report.adopted.items():
                self.handed[emitter] += count
            for place, ranges in report.skipped.items():
                self._announced[place].extend(ranges)
        self.emitters = sorted({*self.last_heard_ns, *self.handed})
        known = ((report.emitter, report.log_time_ns) for kept in self.reports.values() for report in kept)
        self.report_times = sorted({*report_times, *known}, key=itemgetter(1))

    def _hear(self, emitter: str, log_time_ns: int, partitions: Iterable[int]) -> None:
        self.last_heard_ns[emitter] = max(self.last_heard_ns.get(emitter, 0), log_time_ns)
        self.partitions[emitter].update(partitions)

    def lanes_of(self, projection: str, emitter: str) -> dict[int, LaneState]:
        """The emitter's lanes as the projection applied them, by partition.

        Where a projection knows nothing of what an emitter said, and never will, that lies before it: the log had lost
        its beginning when the projection began, or the lane was forgotten long after the emitter's end.
        """
        lanes = dict(self._lanes.get((projection, emitter), {}))
        newest = self.newest.get(emitter)
        for partition, last in (newest.lanes if newest else {}).items():
            position = self.positions.get((projection, partition))
            if partition in lanes or position is None:
                continue
            heard = self.last_heard_ns[emitter]
            if position.log_time_ns > heard + (0 if position.begun_at else LANE_RETENTION_NS):
                first_at = self.first_at_ns.get(emitter, heard)
                lanes[partition] = LaneState(projection, partition, emitter, last, 0, last, 0, first_at, heard)
        return lanes

    def announced(self, emitter: str, partition: int, above: int, to: int) -> int:
        """How many numbers in (above, to] were announced as skipped."""
        count = 0
        for first, last in sorted(self._announced.get((emitter, partition), ())):
            last = min(last, to)
            first = max(first, above + 1)
            if first <= last:
                count += last - first + 1
                above = last
        return count

    def is_closed(self, emitter: str) -> bool:
        """Whether the emitter said that it ended."""
        newest = self.newest.get(emitter)
        return newest is not None and newest.closing

    def covered_reports(self, projection: str, emitter: str) -> list[Report]:
        """The emitter's reports up to the newest that is covered."""
        kept = self.reports.get(emitter, [])
        for place in reversed(range(len(kept))):
            if self.is_covered(projection, kept[place]):
                return kept[: place + 1]
        return []

    def is_covered(self, projection: str, report: Report) -> bool:
        """Whether the projection applied, or knows as skipped, every number that the report speaks of."""
        spoken = {(report.emitter, partition): last for partition, last in report.lanes.items()}
        for place, last in report.replayed.items():
            spoken[place] = max(last, spoken.get(place, 0))
        for (emitter, partition), last in spoken.items():
            lane = self.lanes_of(projection, emitter).get(partition)
            mark = lane.mark if lane else 0
            if mark < last and self.announced(emitter, partition, mark, last) < last - mark:
                return False
        return True


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
            # Known by a report alone, which no projection applied: nothing can be said.
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
    for place in range(bisect_right(times, heard, key=itemgetter(1)), len(times)):
        other, at_ns = times[place]
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
    # Where the projection lags in one of its partitions, the emitter may go on there unseen.
    for partition in books.partitions[emitter]:
        position = books.positions.get((projection, partition))
        if position is None or position.log_time_ns < heard + SILENCE_NS:
            return False
    later = (at for other, at in books.report_times if other != emitter and at > heard)
    steps = (after - earlier for earlier, after in pairwise([heard, *later]))
    return sum(step for step in steps if step <= _OUTAGE_NS) >= SILENCE_NS
