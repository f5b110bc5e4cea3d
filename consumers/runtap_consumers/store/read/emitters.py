"""What is known of emitters: what they said, and what projections applied of them.

Plain data and an index of it (`Books`); `figures.completeness` draws the conclusions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter

from runtap_consumers.projections.rollups import LANE_RETENTION_NS

SILENCE_NS = 60 * 10**9

Range = tuple[int, int]


@dataclass(frozen=True)
class LaneState:
    """What one projection applied of one emitter's lane. `missing`: numbers in its gaps, forgotten ones included."""

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
            for lane_key, ranges in report.skipped.items():
                self._announced[lane_key].extend(ranges)
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
        for index in reversed(range(len(kept))):
            if self.is_covered(projection, kept[index]):
                return kept[: index + 1]
        return []

    def is_covered(self, projection: str, report: Report) -> bool:
        """Whether the projection applied, or knows as skipped, every number that the report speaks of."""
        spoken = {(report.emitter, partition): last for partition, last in report.lanes.items()}
        for lane_key, last in report.replayed.items():
            spoken[lane_key] = max(last, spoken.get(lane_key, 0))
        for (emitter, partition), last in spoken.items():
            lane = self.lanes_of(projection, emitter).get(partition)
            mark = lane.mark if lane else 0
            if mark < last and self.announced(emitter, partition, mark, last) < last - mark:
                return False
        return True
