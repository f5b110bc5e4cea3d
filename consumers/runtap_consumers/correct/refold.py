"""One partition of a rebuild: the retained log folded as a worker does, with positions and marks of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from runtap_consumers.correct.rebuild_statements import read_refused, read_unreadable
from runtap_consumers.errors import FencedError
from runtap_consumers.projections.batch import Batch, believed_time
from runtap_consumers.projections.lane_marks import LaneMark, LaneMarks
from runtap_consumers.projections.rollups import REPORT_MINUTES, TOUCHED_MINUTES, Changes
from runtap_consumers.store.positions import lane_row, load_lanes
from runtap_consumers.store.writer import Commit, Row
from runtap_consumers.worker.partition import Partition, Tools
from runtap_schemas import Frame, Unreadable

Ranges = list[tuple[int, int]]
_NO_END = 2**63 - 1


class Refold(Partition):
    """A projection's partition, folded into the generation after the live one; events before `from_ns` do not count."""

    def __init__(self, number: int, name: str, projection: str, tools: Tools, from_ns: int) -> None:
        super().__init__(number, [name], tools)
        self._projection, self._from_ns, self._keeps_labels = projection, from_ns, True

    def load(self, log_start: int) -> None:
        super().load(log_start)
        if not self.cursors:
            raise FencedError(f"partition {self.number} has no position any more", self._projection)
        (position,) = self._positions.values()
        marks = _RetainedMarks(position.begun_at, self.cursors[0].marks.lanes, *self._read_live())
        marks.from_ns, marks.is_by_log_time = self._from_ns, self._projection == "ledger"
        self.cursors[0].marks = marks
        # What live workers could not apply: it would end the rebuild.
        self.refused = read_refused(self._tools.writer.read, self.number)

    def joined_lanes(self) -> list[Row]:
        """The lanes that are not as live workers have them, once the figures made here count."""
        live, unreadable = self._read_live()
        joined = {
            emitter: join_lanes(live.get(emitter), made, unreadable.get(emitter, ()))
            for emitter, made in sorted(self.cursors[0].marks.lanes.items())
        }
        changed = {emitter: lane for emitter, lane in joined.items() if lane != live.get(emitter)}
        return [lane_row(self._projection, self.number, emitter, lane) for emitter, lane in changed.items()]

    def _read_live(self) -> tuple[dict[str, LaneMark], dict[str, set[int]]]:
        with self._tools.store.read() as connection:
            live = load_lanes(connection, self.number, self._projection)
        return live, read_unreadable(self._tools.writer.read, self.number)

    def _add_missing_positions(self, log_start: int) -> None:
        """Nothing: one made here would be of the live generation."""

    def _changes_of(self, name: str, batch: Batch) -> Changes:
        changes = super()._changes_of(self._projection, batch)
        # Live workers have announced these minutes to the alert evaluator already, and noted those of reports.
        for rollup in (TOUCHED_MINUTES, REPORT_MINUTES):
            changes.rows.pop(rollup.name, None)
        return changes

    def _add_deletions(self, commit: Commit) -> None:
        """Nothing: live workers delete, in all generations."""


class _RetainedMarks(LaneMarks):
    """Marks over a log that begins in the middle of lanes; events before `from_ns` do not count."""

    from_ns = 0
    is_by_log_time = False

    def __init__(
        self, begun_at: int, made: dict[str, LaneMark], live: dict[str, LaneMark], unreadable: dict[str, set[int]]
    ) -> None:
        # Numbers from before live workers' first are repeats to them; all later ones may still land late.
        begun = {name: LaneMark(lane.first_at_ns, 0, mark=lane.before) for name, lane in live.items()}
        super().__init__(begun_at, begun | made)
        self._live, self._unreadable = live, unreadable

    def take(self, frame: Frame | Unreadable, events: Sequence[Any], log_time_ns: int) -> Sequence[int] | None:
        emitter, first = frame.emitter, frame.first
        assert emitter is not None
        live = self._live.get(emitter)
        if live is not None and not live.can_reach(first, log_time_ns):
            # To live workers it belonged to no lane; here it may be the first that the log still holds of it.
            return None
        instants = [log_time_ns] * frame.count
        if not self.is_by_log_time and isinstance(frame, Frame):
            captured = (getattr(event, "at_ns", None) for event in events)
            instants = [log_time_ns if at is None else believed_time(at, log_time_ns) for at in captured]
        if min(instants) >= self.from_ns:
            return super().take(frame, events, log_time_ns)
        new: list[int] = []
        for number, instant in enumerate(instants, first):
            counts = instant >= self.from_ns
            if not counts and self._is_missing(emitter, number):
                # The figures that stay do not have it: taken here, the ledger would call it applied.
                continue
            event = events[number - first : number - first + 1]
            if super().take(replace(frame, first=number, count=1), event, log_time_ns):
                if counts:
                    new.append(number)
                elif isinstance(frame, Unreadable) or isinstance(event[0], Unreadable):
                    self.quarantine(emitter, 1)
        return new

    def _is_missing(self, emitter: str, number: int) -> bool:
        lane = self._live.get(emitter)
        return number in self._unreadable.get(emitter, ()) or (lane is not None and _lies_in(number, lane.gaps))


def join_lanes(live: LaneMark | None, made: LaneMark, unreadable: Iterable[int]) -> LaneMark:
    """A lane once the rebuilt figures count: as live workers have it, but for what was found in the retained log.

    Args:
        live: what live workers know; `None`: nothing.
        made: what the rebuild knows. Numbers that do not count for it lie in gaps.
        unreadable: numbers that could not be read when they were met first.
    """
    if live is None:
        return made
    not_met = [*made.gaps, (made.mark + 1, _NO_END)]
    if made.forgotten:
        # The numbers of its oldest gaps are forgotten: up to there, what live workers counted is kept.
        not_met.insert(0, (1, not_met[0][0] - 1))
    mark = max(live.mark, made.mark)
    missing = [*live.gaps, (live.mark + 1, mark)]
    overlaps = [(max(a, c), min(b, d)) for a, b in missing for c, d in not_met]
    gaps = [(first, last) for first, last in overlaps if first <= last]
    known = [number for number in unreadable if number <= live.mark]
    # Dead letters do not say which of them a rebuild could read; without the projection `ledger` there are none.
    still_unreadable = max(len(known), live.quarantined) - sum(not _lies_in(number, not_met) for number in known)
    return dataclasses.replace(
        live,
        mark=mark,
        gaps=gaps,
        quarantined=min(still_unreadable + made.quarantined, live.quarantined + _count(missing) - _count(gaps)),
        log_time_ns=max(live.log_time_ns, made.log_time_ns),
        at_ns=max(live.at_ns, made.at_ns),
    )


def _lies_in(number: int, ranges: Ranges) -> bool:
    return any(first <= number <= last for first, last in ranges)


def _count(ranges: Ranges) -> int:
    return sum(last - first + 1 for first, last in ranges)
