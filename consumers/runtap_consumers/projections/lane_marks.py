"""The lane rule: which events of a lane are new, which are repeats, which are missing.

A lane is one emitter's events, numbered 1, 2, 3 … and sent in frames to one partition. The log holds it in order, with
repeats, some of them a thousand numbers late. One number a lane, the mark, tells them apart; gaps are kept so that what
lands late is still counted. Marks belong to (projection, partition, emitter) and outlive the topic.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from runtap_consumers.projections.rollups import SKEW_BEHIND_NS
from runtap_schemas import EmitterReported, Frame, Unreadable

MAX_GAPS = 64
# No process captures more. A number further ahead is nobody's: taken for a leap, it would make repeats of all to come.
MOST_EVENTS_A_SECOND = 100_000
_GRACE_SECONDS = 60
# A process that is up for longer captures less a second: a year of 2,000 a second is within this at the full rate.
_LONGEST_SECONDS = 7 * 86_400
# What a spool may hold of an emitter that no projection has met.
MOST_UNHEARD = 10**9
_first = itemgetter(0)


@dataclass(slots=True)
class LaneMark:
    """What one projection knows of one lane.

    `first_at_ns`: nothing that the emitter captured before it is to come, as its first frame said (0: not known);
    `at_ns`: up to where the newest frame applied claims that everything is in, or counted (0: not known);
    `log_time_ns`: when the newest frame was appended. `before` are numbers that the log no longer held when the
    projection first read it; `forgotten` those of gaps beyond `MAX_GAPS` ranges, which are lost for good; `quarantined`
    numbers whose event could not be read. `is_shared`: 1 where two processes number events under this emitter id.
    """

    first_at_ns: int
    log_time_ns: int
    mark: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    before: int = 0
    forgotten: int = 0
    quarantined: int = 0
    repeats: int = 0
    at_ns: int = 0
    is_shared: int = 0

    def can_reach(self, number: int, log_time_ns: int) -> bool:
        """Whether a process may have come to a number by then."""
        return number <= self.mark + _most_events(log_time_ns - self.log_time_ns)

    @property
    def claimed_to_ns(self) -> int:
        """Before that instant no event counts that is to come: by its own time, or by its log time where that is not
        believed.
        """
        return max(min(self.at_ns, self.log_time_ns), self.log_time_ns - SKEW_BEHIND_NS)

    def take(self, first: int, last: int) -> Sequence[int]:
        """Decides on numbers of the lane: returns those that are new, and counts the others as repeats."""
        if first > self.mark:
            if first > self.mark + 1:
                self._add_gap(len(self.gaps), (self.mark + 1, first - 1))
            self.mark = last
            return range(first, last + 1)
        new = [number for number in range(first, min(last, self.mark) + 1) if self._fill(number)] if self.gaps else []
        if last > self.mark:
            new += range(self.mark + 1, last + 1)
            self.mark = last
        self.repeats += last - first + 1 - len(new)
        return new

    def _fill(self, number: int) -> bool:
        # Gaps are in order and apart: only the last one that begins at or before the number can hold it.
        index = bisect_right(self.gaps, number, key=_first) - 1
        if index < 0 or self.gaps[index][1] < number:
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

    def take(self, frame: Frame | Unreadable, events: Sequence[Any], log_time_ns: int) -> Sequence[int] | None:
        """Decides on a frame.

        Args:
            frame: one that names its lane.
            events: what is in it; nothing of one that cannot be read.
            log_time_ns: when the broker appended it.

        Returns:
            The numbers that are new; `None`: no lane gets so far in the time that has passed.
        """
        emitter, first, at_ns = frame.emitter, frame.first, frame.at_ns
        assert emitter is not None
        last = first + frame.count - 1
        lane = self.lanes.get(emitter)
        if lane is None:
            lane = LaneMark(_oldest(at_ns, events, log_time_ns), log_time_ns)
            # Of a lane first met so far on that nobody can have lost as much, this log never held the beginning.
            if self._begun_at > 0 or first > MOST_EVENTS_A_SECOND * _GRACE_SECONDS:
                lane.before = lane.mark = first - 1
            self.lanes[emitter] = lane
        if not lane.can_reach(first, log_time_ns):
            return None
        self.changed.add(emitter)
        lane.log_time_ns = max(lane.log_time_ns, log_time_ns)
        self.opened_gap |= first > lane.mark + 1
        new = lane.take(first, last)
        if at_ns is not None and at_ns > lane.at_ns:
            if not new and lane.at_ns and not lane.forgotten:
                # A process never goes back in its lane: this one came to the same numbers later.
                lane.is_shared = 1
            lane.at_ns = at_ns
        return new

    def quarantine(self, emitter: str, count: int) -> None:
        """Counts new numbers of a lane as unreadable."""
        self.lanes[emitter].quarantined += count


def can_claim(report: EmitterReported, number: int) -> bool:
    """Whether a process may have refused so many events when it came to a number of its lane."""
    refused = sum(sum(kinds.values()) for kinds in report.dropped.values()) + report.superseded
    return max(refused, report.content_dropped) <= number + _most_events(report.at_ns - report.started_at_ns)


def _most_events(time_ns: int) -> int:
    return MOST_EVENTS_A_SECOND * (min(max(time_ns // 10**9, 0), _LONGEST_SECONDS) + _GRACE_SECONDS)


def _oldest(at_ns: int | None, events: Sequence[Any], log_time_ns: int) -> int:
    # What is older by its own time counts at its log time.
    least_ns = log_time_ns - SKEW_BEHIND_NS
    captured: list[int] = [event.at_ns for event in events if getattr(event, "at_ns", None) is not None]
    return max(least_ns, min([at_ns or least_ns, log_time_ns, *captured]))
