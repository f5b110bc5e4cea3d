"""The lane rule: which events of a lane are new, which are repeats, which are missing.

A lane is one emitter's events for one partition, numbered 1, 2, 3 … The log holds a lane in order, with repeats, some
of them a thousand numbers late. One number a lane, the mark, tells them apart; gaps are kept so that what lands late is
still counted. Marks belong to (projection, partition, emitter) and outlive the topic.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from operator import itemgetter

MAX_GAPS = 64
_first = itemgetter(0)


@dataclass(slots=True)
class LaneMark:
    """What one projection knows of one lane.

    `before` are numbers that lay before the log began when the projection first read it; `forgotten` those of gaps
    beyond `MAX_GAPS` ranges, which are lost for good; `quarantined` numbers whose record could not be read.
    """

    first_at_ns: int
    last_log_time_ns: int
    mark: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    before: int = 0
    forgotten: int = 0
    quarantined: int = 0
    repeats: int = 0

    def take(self, number: int) -> bool:
        """Decides on the next number of the lane: whether its event is new; a repeat is counted."""
        if number == self.mark + 1:
            self.mark = number
            return True
        if number > self.mark:
            self._add_gap(len(self.gaps), (self.mark + 1, number - 1))
            self.mark = number
            return True
        return self._fill(number)

    def _fill(self, number: int) -> bool:
        # Gaps are in order and apart: only the last one that begins at or before the number can hold it.
        index = bisect_right(self.gaps, number, key=_first) - 1
        if index < 0 or self.gaps[index][1] < number:
            self.repeats += 1
            return False
        first, last = self.gaps.pop(index)
        if number < last:
            self._add_gap(index, (number + 1, last))
        if first < number:
            self._add_gap(index, (first, number - 1))
        return True

    def _add_gap(self, index: int, gap: tuple[int, int]) -> None:
        self.gaps.insert(index, gap)
        if len(self.gaps) > MAX_GAPS:
            first, last = self.gaps.pop(0)
            self.forgotten += last - first + 1


class LaneMarks:
    """All lanes of one partition, as a set of projections in lockstep knows them."""

    def __init__(self, begun_at: int, lanes: dict[str, LaneMark]) -> None:
        """`begun_at`: the offset at which the projections began to read the partition."""
        self._begun_at = begun_at
        self.lanes = lanes
        self.changed: set[str] = set()
        self.opened_gap = False

    def take(self, emitter: str, number: int, at_ns: int, log_time_ns: int, quarantined: bool = False) -> bool:
        """Decides whether a record is new.

        `at_ns` is when it was captured, the log time where that is not known; `quarantined` records cannot be read.
        """
        lane = self.lanes.get(emitter)
        if lane is None:
            lane = self.lanes[emitter] = LaneMark(first_at_ns=min(at_ns, log_time_ns), last_log_time_ns=log_time_ns)
            if self._begun_at > 0:
                lane.before = lane.mark = number - 1
        self.changed.add(emitter)
        if number > lane.mark + 1:
            self.opened_gap = True
        if log_time_ns > lane.last_log_time_ns:
            lane.last_log_time_ns = log_time_ns
        is_new = lane.take(number)
        if is_new and quarantined:
            lane.quarantined += 1
        return is_new
