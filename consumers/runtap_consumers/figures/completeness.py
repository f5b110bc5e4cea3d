"""The ledger and `complete_to`, worked out at read from what emitters said and what projections applied.

Pure functions: `work_out_ledger` (where every captured event is) and `work_out_completeness` (before which instant
nothing is missing that is not counted). Marks belong to one projection each, so both are worked out per projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from runtap_consumers.projections.rollups import LANE_RETENTION_NS
from runtap_consumers.store.read.books import Books, LaneKey, Range


@dataclass
class Sums:
    """Where captured events are: `captured` = `applied` + `in_flight` + dropped + `lost` + `quarantined` +
    `superseded`.
    """

    captured: int = 0
    applied: int = 0
    in_flight: int = 0
    lost: int = 0
    quarantined: int = 0
    superseded: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    repeats: int = 0

    def add(self, other: Sums) -> None:
        """Adds another lane's, or emitter's, sums."""
        # By name it takes three times as long, and each figure's page adds thousands.
        self.captured += other.captured
        self.applied += other.applied
        self.in_flight += other.in_flight
        self.lost += other.lost
        self.quarantined += other.quarantined
        self.superseded += other.superseded
        self.repeats += other.repeats
        for reason, count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count


@dataclass(frozen=True)
class Completeness:
    """`at_ns`: before that instant nothing is missing that is not counted; `None` when nothing is known.

    `silent`: emitters that left it without a closing report, since they vanished, were forgotten, or wrote to a
    partition that is gone. `held_by`: the emitter whose newest frame it is; `None`: it is a partition's.
    """

    at_ns: int | None
    silent: tuple[str, ...] = ()
    held_by: str | None = None


def is_caught_up(books: Books, projection: str, key: LaneKey) -> bool:
    """Whether a projection has read all that was there when a lane's largest number was heard: what it has not met of
    it will not come, but for a frame that was sent again.
    """
    return books.read_to_ns(projection, key[0]) > books.said[key][1]


def lost_ranges(books: Books, projection: str, key: LaneKey) -> list[Range]:
    """The numbers of a lane that a projection has not met, and nobody expects any more."""
    lane, (said, _) = books.lanes.get(projection, {}).get(key), books.said[key]
    mark, gaps = (lane.mark, lane.gaps) if lane else (0, [])
    return [*gaps, (mark + 1, said)] if said > mark and is_caught_up(books, projection, key) else list(gaps)


def work_out_lane(books: Books, projection: str, key: LaneKey) -> Sums:
    """What became of a lane's numbers in a projection. No term is ever negative."""
    lane, (said, _) = books.lanes.get(projection, {}).get(key), books.said[key]
    lost = sum(last - first + 1 for first, last in lost_ranges(books, projection, key))
    if lane is None:
        position = books.positions.get((projection, key[0]))
        began_later = books.is_gone(projection, key[0]) if position is None else position.begun_at > 0
        if lost and began_later:
            # The log had lost it before the projection began.
            return Sums()
        return Sums(captured=said, in_flight=said - lost, lost=lost)
    gaps = sum(last - first + 1 for first, last in lane.gaps) + lane.forgotten
    captured, lost = said - lane.before, lost + lane.forgotten
    applied = lane.mark - gaps - lane.quarantined - lane.before
    in_flight = captured - applied - lost - lane.quarantined
    return Sums(captured, applied, in_flight, lost, lane.quarantined, repeats=lane.repeats)


def work_out_sums(books: Books, projection: str, emitter: str) -> Sums:
    """The ledger of one emitter in one projection."""
    known = books.emitters[emitter]
    refused = sum(known.dropped.values()) + known.superseded
    sums = Sums(captured=refused, superseded=known.superseded, dropped=dict(known.dropped))
    for key in books.keys_of[emitter]:
        sums.add(work_out_lane(books, projection, key))
    return sums


def work_out_ledger(books: Books, projections: Sequence[str]) -> dict[str, Sums]:
    """The ledger of each projection over all emitters."""
    ledger = {projection: Sums() for projection in projections}
    for projection, total in ledger.items():
        for emitter, known in books.emitters.items():
            if not known.is_struck:
                total.add(work_out_sums(books, projection, emitter))
    return ledger


def worst_projection(ledger: dict[str, Sums]) -> str | None:
    """Whose sums are the headline: the projection that shows the fewest of the numbered events."""

    def badness(name: str) -> tuple[int, ...]:
        sums = ledger[name]
        return sums.in_flight + sums.lost + sums.quarantined, sums.lost, sums.quarantined

    return max(ledger, key=badness, default=None)


class LedgerSums(TypedDict):
    """Where events are: captured = applied + in_flight + dropped + lost + quarantined."""

    captured: int
    applied: int
    in_flight: int
    dropped: dict[str, int]
    lost: int
    quarantined: int


class AllSums(LedgerSums):
    """Of all emitters; `foreign` and `impossible` belong to none, and stand outside of the sum."""

    foreign: int
    impossible: int


def describe_sums(sums: Sums) -> LedgerSums:
    """Where captured events are, as the report and the ledger show it."""
    return {
        # Starts that were not sent since their ends say it all are nobody's loss.
        "captured": sums.captured - sums.superseded,
        "applied": sums.applied,
        "in_flight": sums.in_flight,
        "dropped": dict(sorted(sums.dropped.items())),
        "lost": sums.lost,
        "quarantined": sums.quarantined,
    }


def describe_all(books: Books, ledger: dict[str, Sums]) -> AllSums:
    """The sums of the projection that shows the fewest events, and what belongs to no emitter."""
    worst = worst_projection(ledger)
    sums = Sums() if worst is None else ledger[worst]
    return {**describe_sums(sums), "foreign": books.strays["foreign"], "impossible": books.strays["impossible"]}


def work_out_completeness(books: Books, projections: Sequence[str]) -> Completeness:
    """`complete_to` of figures that come from several projections: that of the one furthest behind."""
    instants: list[tuple[int, str | None]] = []
    silent: set[str] = set()
    for projection in projections:
        for partition in {number for _, number in books.positions}:
            if not books.is_gone(projection, partition):
                instants.append((books.read_to_ns(projection, partition), None))
        for key in books.met:
            at_ns = _claimed_to_ns(books, projection, key)
            if at_ns is not None:
                instants.append((at_ns, key[1]))
            elif not (books.emitters[key[1]].is_closed or books.emitters[key[1]].is_struck):
                silent.add(key[1])
    at_ns, held_by = min(instants, default=(0, None), key=lambda instant: instant[0])
    return Completeness(at_ns or None, tuple(sorted(silent)), held_by)


def _claimed_to_ns(books: Books, projection: str, key: LaneKey) -> int | None:
    """Up to where a lane is complete in a projection; `None`: it no longer counts."""
    emitter, lane = books.emitters[key[1]], books.lanes.get(projection, {}).get(key)
    read_to_ns = books.read_to_ns(projection, key[0])
    if emitter.is_struck or books.is_gone(projection, key[0]):
        return None
    if emitter.is_closed:
        if is_caught_up(books, projection, key) or (lane and lane.mark >= books.said[key][0]):
            return None
    else:
        heard_ns = books.heard_ns[key]
        # What is older than the marks of a lane live is never sent again.
        silent_ns = min(books.watched.get(key, heard_ns + LANE_RETENTION_NS), heard_ns + LANE_RETENTION_NS)
        if emitter.forgotten_ns >= heard_ns or read_to_ns >= silent_ns:
            return None
    if lane is not None:
        return lane.claimed_to_ns
    # Not met here: what it captured first may be missing.
    return min(lane.first_at_ns for lane in books.met[key])
